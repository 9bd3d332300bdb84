"""`perpo train`: preferences and a model -> the adapter artifact (PEFT files and training log)."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.artifacts import Recipe, Version, Writer, adopt_files, input_of
from perpo_pipeline.atomic import write_atomically
from perpo_pipeline.config import TrainSettings
from perpo_pipeline.errors import ArtifactError, ConfigError
from perpo_pipeline.model_inputs import identify_model, model_notes, open_model
from perpo_pipeline.schemas import ADAPTER_LOG
from perpo_pipeline.stage import Run, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perpo_pipeline.models import Vlm
    from perpo_pipeline.train.lists import TrainingList

STAGE_VERSION = 1
PROMPT_COLUMNS = [
    "prompt_id", "task", "image", "image_sha256", "width", "height", "prompt", "gt_text", "gt_box",
]  # fmt: skip
LOG_COLUMNS = [name for name in ADAPTER_LOG.columns.names if name != "step"]
NO_SPACE_BYTES = 2**20


def train(run: Run, variant: str) -> Version:
    """Train one variant (a method with its settings) on the run's preferences."""
    _check_one_process()
    settings = run.config.train.variants()[variant]
    preferences = run.latest("preferences", run.config.sample.split)
    prompts = input_of(preferences, "prompts")
    resolved, model_settings = identify_model(run.config.model, run.scratch)
    counted = {**settings.result_settings(), **model_settings}
    if settings.method == "sft":
        counted |= {"box_format": run.config.model.box_format,
                    "box_frame": run.config.model.box_frame}  # fmt: skip
    recipe = Recipe("adapter", variant, "train", STAGE_VERSION, counted,
                    {"preferences": preferences, "prompts": prompts},
                    notes=model_notes(run.config.model))  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        if not writer.has_part(0):
            vlm = open_model(run.config.model, resolved, model_settings, run.scratch)
            lists = _training_lists(run, vlm, preferences, prompts, settings, model_settings)
            with _full_disk_explained(writer.path):
                log = _train_adapter(run, vlm, lists, settings, model_settings, writer, variant)
            writer.write_part(0, log)
        shutil.rmtree(writer.path / "checkpoints", ignore_errors=True)
        return {"steps": writer.read_part(0).num_rows, "lists": preferences.manifest["rows"]}

    return make(run, recipe, work, out=run.out)


def _check_one_process() -> None:
    """Several processes would multiply the batch that the fingerprint names."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"`perpo train` was started in {world_size} processes; it runs in one so far",
            fix="start it without torchrun",
        )


def _training_lists(
    run: Run, vlm: "Vlm", preferences: Version, prompts: Version, settings: TrainSettings,
    model_settings: Mapping[str, Any],
) -> "list[TrainingList]":  # fmt: skip
    from perpo_pipeline.train.lists import best_against_worst, ground_truth_lists, ranked_lists
    from perpo_pipeline.train.reference import make_reference

    rows = preferences.table().to_pylist()
    wanted = {row["prompt_id"] for row in rows}
    by_id = {
        row["prompt_id"]: row
        for part in prompts.batches(columns=PROMPT_COLUMNS)
        for row in part.to_pylist()
        if row["prompt_id"] in wanted
    }
    if settings.method == "sft":
        return ground_truth_lists(rows, by_id, vlm, run.config.model)
    reference = make_reference(
        run, vlm, preferences, by_id, model_settings, batch_size=settings.micro_batch_size,
        place=run.out / "reference" if run.out else run.place("reference", preferences.variant),
    )  # fmt: skip
    logps = reference.table().to_pydict()
    by_prompt = dict(zip(logps["prompt_id"], logps["ref_logps"], strict=True))
    lists = ranked_lists(rows, by_id, by_prompt)
    return [best_against_worst(entry) for entry in lists] if settings.method == "dpo" else lists


def _train_adapter(
    run: Run, vlm: "Vlm", lists: "list[TrainingList]", settings: TrainSettings,
    model_settings: Mapping[str, Any], writer: Writer, variant: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train, put the adapter's files into the version, return the rows of the log."""
    from perpo_pipeline.adapters import ADAPTER_RECORD
    from perpo_pipeline.train.trainer import fit

    policy, history = fit(
        vlm, lists, settings, model_settings["preprocess"], writer.path / "checkpoints",
        name=f"train {variant}", quiet=run.quiet,
    )  # fmt: skip
    staging = writer.path / "checkpoints" / "adapter"
    policy.save_pretrained(staging)  # type: ignore[operator]
    (staging / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    adopt_files(staging, writer)
    record = json.dumps({"base_identity": vlm.identity, "base_model": run.config.model.id})
    write_atomically(writer.path / ADAPTER_RECORD, lambda sink: sink.write(record.encode()))
    return [
        {"step": entry["step"], **{name: entry.get(name) for name in LOG_COLUMNS}}
        for entry in history
    ]


@contextmanager
def _full_disk_explained(path: Path) -> "Iterator[None]":
    """Checkpoints are written by libraries that wrap the system's error in their own."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(path).free > NO_SPACE_BYTES and "No space left" not in str(error):
            raise
        raise ArtifactError(
            "the disk is full", where=str(path),
            fix="free some space, then run the same command: it goes on after the last checkpoint",
        ) from error  # fmt: skip
