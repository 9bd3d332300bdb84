"""The card of an export: what it is, from which run, and how its tool reads it (README.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from perpo_pipeline import __version__
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.export.files import DATA, json_lines
from perpo_pipeline.export.parts import Chosen
from perpo_pipeline.export.targets import TARGETS
from perpo_pipeline.status.lineage import Traced, trace
from perpo_pipeline.status.published import cell, lineage_row
from perpo_pipeline.store.artifacts import Version

PAPER = "https://arxiv.org/abs/2502.04371"
DESCRIPTIONS = {
    "pairs": "pairs of a better and a worse answer of one model to the same question, for DPO",
    "best": "the best of a model's answers to each question, for rejection-sampling fine-tuning",
    "lists": "ranked lists: all answers of one model to each question, each with its reward",
    "prompts": "questions with their true answers, for training with a reward",
}
PAIRS = {
    "best-worst": "the best and the worst answer of each list",
    "all": "every two answers of a list whose rewards differ",
}


@dataclass(frozen=True)
class Facts:
    """What the card says of the export itself; `name` is the dataset's, `place` its folder."""

    config: RunConfig
    split: str
    name: str
    place: Path
    to: str
    chosen: Chosen
    rows: int


def dataset_card(facts: Facts, source: Version, notes: Mapping[str, int]) -> str:
    """README.md with the hub's YAML header.

    `notes` counts the images that `perpo prepare` converted, by the kind of conversion.
    """
    target, lineage = TARGETS[facts.to], trace([source])
    settings = {one.artifact: _settings(one) for one in lineage}
    model, score = facts.config.model, settings.get("scores", {})
    return _template().render(
        header=_header(facts),
        facts=facts,
        paper=PAPER,
        version=__version__,
        description=DESCRIPTIONS[target.needs],
        target=target,
        pairs=PAIRS[facts.chosen.pairs] if target.needs == "pairs" else None,
        reward=_weights(score.get("reward") or facts.config.score.reward),
        sampled_from=_model_name(lineage, model.id),
        model=model,
        load=target.load.format(folder="FOLDER", split=facts.split, name=facts.name),
        lineage=[lineage_row(one) for one in lineage],
        notes=dict(sorted(notes.items())),
        arguments=dict(model.chat_template_kwargs),
    )


def _header(facts: Facts) -> str:
    """The fields of the hub: which files are the split's, and what the dataset is for."""
    is_lines = TARGETS[facts.to].open is json_lines
    files = f"{facts.split}.jsonl" if is_lines else f"{DATA}/{facts.split}-*.parquet"
    fields = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": facts.split, "path": files}],
            }
        ],
        "tags": ["perpo", facts.to],
        "task_categories": ["image-text-to-text"],
    }
    return str(yaml.safe_dump(fields, sort_keys=False))


def _settings(traced: Traced) -> Mapping[str, Any]:
    return {} if traced.version is None else traced.version.manifest["settings"]


def _weights(reward: Any) -> str:
    """`iou`, or the shares of a weighted mean: `iou 0.7, giou 0.3`."""
    if not isinstance(reward, Mapping):
        return str(reward)
    if len(reward) == 1:
        return str(next(iter(reward)))
    return ", ".join(f"{name} {weight:g}" for name, weight in reward.items())


def _model_name(lineage: list[Traced], configured: str) -> str:
    """The model that was sampled; of a folder only its name, because cards are published."""
    for one in lineage:
        if one.artifact == "samples" and one.version is not None:
            configured = str(one.version.manifest["notes"].get("model_id") or configured)
    return Path(configured).name if Path(configured).is_dir() else configured


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perpo_pipeline.export", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.filters["commas"] = "{:,}".format
    return environment.get_template("card.md")
