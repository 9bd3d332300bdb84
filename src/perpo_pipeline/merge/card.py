"""The model card of a merged model: what it is, what it was made from, its metrics, how to load it.

`card.md` is its text. The card is meant to be published: it holds identities and fingerprints, and
no path of this machine.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import yaml

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.config.evaluations import BLANK_IMAGE, OTHER_IMAGE, read_evaluation
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metrics import METRICS
from perpo_pipeline.evaluate.printing import metrics_table, splits_table
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.merge.evaluations import Evaluation
from perpo_pipeline.merge.folder import ADAPTER
from perpo_pipeline.status.lineage import Traced
from perpo_pipeline.status.published import card_environment, lineage_row
from perpo_pipeline.store.artifacts import Json, Version
from perpo_pipeline.vlm.image_limits import (
    GRIDS,
    PIL_BACKEND,
    limits_recorded,
    option_arguments,
)

PAPER = "https://arxiv.org/abs/2502.04371"
LICENSE_FIELDS = ("license", "license_name", "license_link")
PIPELINE_TAG = "image-text-to-text"
SUBJECTS = {
    "adapter": "This model",
    "base": "The base model, on the same prompts",
    "answers": "Answers from a file; the file does not record which model gave them",
}
CONDITIONS = {
    OTHER_IMAGE: ", each question with the image of another prompt",
    BLANK_IMAGE: ", each question with an image in a single colour",
}
"""What evaluations with these images show the model, as part of a sentence."""


def model_card(
    record: Mapping[str, Any],
    adapter: Version,
    lineage: Iterable[Traced],
    evaluations: Sequence[Evaluation],
    image_arguments: Mapping[str, Any] = MappingProxyType({}),
    system_turn: Mapping[str, Any] | None = None,
    lora_rank: int | None = None,
    *,
    add_special_tokens: bool = False,
) -> str:
    """README.md with the hub's YAML header; `record` is the content of perpo_merge.json.

    `image_arguments` are those of the processor in training, where it limited the images' size;
    `system_turn` is the message before every question of training, None without one. `lora_rank` is
    the max_lora_rank with which vLLM applies an adapter exactly; None if it would not.
    `add_special_tokens`: a vLLM server must be asked for the begin token of a chat.
    """
    alone = record.get("form") == ADAPTER
    manifest = adapter.manifest
    settings, box_format = manifest["settings"], manifest["notes"].get("box_format")
    own_code = bool(record.get("own_code"))
    trusted = ", trust_remote_code=True" if own_code else ""
    return _template().render(
        header=_header(record, settings["method"]),
        alone=alone,
        ships=_ships(record),
        made="written" if alone else "merged",
        revision=(commit := _commit(record)),
        base_revision=f', revision="{commit}"' if commit else "",
        lora_rank=lora_rank,
        add_special_tokens=add_special_tokens,
        paper=PAPER,
        record=record,
        adapter=adapter,
        settings=settings,
        quantization=record.get("base_quantization"),
        own_code=own_code,
        system_turn="" if system_turn is None else f"{dict(system_turn)!r}, ",
        template_arguments="".join(
            f"\n    {name}={value!r}," for name, value in _template_arguments(settings).items()
        ),
        base_name=record["base_model"].rsplit("/", 1)[-1],
        limits=str(limits_recorded(settings)),
        processor_arguments=trusted + _as_python(image_arguments),
        model_arguments=trusted
        + _as_python({k: v for k, v in image_arguments.items() if k == GRIDS}),
        vllm_arguments=json.dumps({**PIL_BACKEND, **option_arguments(image_arguments)}),
        grids=image_arguments.get(GRIDS),
        box_format=box_format,
        box_question=_question(box_format) if box_format else "",
        data=[lineage_row(traced) for traced in lineage if traced.artifact != "adapter"],
        counts=", ".join(f"{value} {name}" for name, value in manifest["counts"].items()),
        training=_yaml({name: value for name, value in settings.items() if name != "model"}),
        splits=_over_splits(evaluations),
        evaluations=evaluations,
        subjects=SUBJECTS,
        packages=_package_rows(record, manifest),
    )


def _template_arguments(settings: Json) -> Json:
    return dict(settings.get("chat_template_kwargs") or {})


def _as_python(arguments: Mapping[str, Any]) -> str:
    """Further arguments of a call, as Python writes them."""
    return "".join(f", {name}={json.dumps(value)}" for name, value in arguments.items())


def _template() -> jinja2.Template:
    environment = card_environment(Path(__file__).parent)
    environment.filters["condition"] = _condition
    environment.filters["metrics_table"] = metrics_table
    return environment.get_template("card.md")


def _condition(evaluation: str) -> str:
    return CONDITIONS.get(read_evaluation(evaluation).image, "")


def _over_splits(evaluations: Sequence[Evaluation]) -> str:
    """This model and its base on every split; "" if there is only one."""
    named = [(read_evaluation(found.name), found) for found in evaluations]
    rows = [
        {**row, "model": asked.model, "split": asked.split}
        for asked, found in named
        if asked.split and not asked.image
        for row in found.rows
        if row["dataset"] == ALL and row["name"] in METRICS  # not another harness's
    ]
    return splits_table(rows) if len({row["split"] for row in rows}) > 1 else ""


def _yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False)


def _header(record: Mapping[str, Any], method: str) -> str:
    """The hub's fields; `base_model` is an id on a hub, so a folder and the testbed have none."""
    alone = record.get("form") == ADAPTER
    is_on_hub = not (record["base_is_directory"] or _ships(record))
    fields = {
        "base_model": record["base_model"] if is_on_hub else None,
        "base_model_relation": "adapter" if alone and is_on_hub else None,
        **{name: record.get(f"base_{name}") for name in LICENSE_FIELDS},
        "library_name": "peft" if alone else "transformers",
        "pipeline_tag": PIPELINE_TAG,
        "tags": list(dict.fromkeys(["perpo", method, *["lora"] * alone])),
    }
    return _yaml({name: value for name, value in fields.items() if value is not None})


def _ships(record: Mapping[str, Any]) -> bool:
    return record["base_model"] == "testbed" and not record["base_is_directory"]


def _commit(record: Mapping[str, Any]) -> str:
    """The base's commit on a hub, "" for a folder."""
    name, _, commit = str(record["base_identity"]).rpartition("@")
    return commit if name and name == record["base_model"] else ""


def _question(box_format: str) -> str:
    """How the format asks for a box; "" for a user's own format that is not installed here."""
    try:
        return get_box_format(box_format).instruction
    except ConfigError:
        return ""


def _package_rows(record: Mapping[str, Any], manifest: Json) -> list[tuple[str, str, str]]:
    """(package, its version in training, its version in merging); the git commit is the last."""
    trained, merged = manifest["packages"], record["packages"]
    names = sorted({*trained, *merged})
    rows = [(name, trained.get(name, "-"), merged.get(name, "-")) for name in names]
    return [*rows, ("git commit", manifest["git_commit"] or "-", record["git_commit"] or "-")]
