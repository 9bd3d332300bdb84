"""An adapter alone, as PEFT and vLLM load it: weights, configuration, which base it needs."""

import shutil
from pathlib import Path

from perpo_pipeline.advice import command
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.vlm.adapters import (
    FULL_WEIGHTS,
    LORA_WEIGHTS,
    PEFT_CONFIG,
    name_base,
    read_record,
    write_record,
)
from perpo_pipeline.vlm.files import ResolvedModel

RECORDED = ("base_identity", "base_quantization", "base_dtype")


def check_travels(adapter: Version) -> None:
    """Raise ArtifactError for weights that were trained in full: PEFT has no form for them."""
    if (adapter.path / FULL_WEIGHTS).is_file():
        raise ArtifactError(
            "its weights were trained in full (train.tuning: full), so there is no adapter",
            where=str(adapter.path),
            fix=f"merge it: {command('merge', '--adapter', str(adapter.path), '--out', 'DIR')}",
        )


def write_adapter(adapter: Path, directory: Path, base_name: str, base: ResolvedModel) -> None:
    """Copy the adapter into `directory`; what names the base there names no path of this machine.

    Its PEFT configuration has the base's hub id and commit, or none if the base is a folder.
    """
    for name in (LORA_WEIGHTS, PEFT_CONFIG):
        shutil.copyfile(adapter / name, directory / name)
    name_base(directory, base)
    record = read_record(adapter)
    known = {name: record[name] for name in RECORDED if name in record}
    write_record(directory, {**known, "base_model": base_name})
