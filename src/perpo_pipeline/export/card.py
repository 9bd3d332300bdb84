"""The card of an export: what it is, from which run, and how its tool reads it (README.md)."""

import re
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
from perpo_pipeline.export.sampled import Sampled
from perpo_pipeline.export.targets import TARGETS
from perpo_pipeline.status.lineage import Traced
from perpo_pipeline.status.published import card_environment, lineage_row

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
    """What the card says of the export itself; `name` is the dataset's.

    `notes` counts the images that `perpo prepare` converted, by the kind of conversion; `outside`
    the images that are exported as paths. Of the better answers, `cut` were cut at max_new_tokens.
    """

    config: RunConfig
    split: str
    name: str
    to: str
    chosen: Chosen
    rows: int
    cut: int
    notes: Mapping[str, int]
    outside: int


def dataset_card(facts: Facts, sampled: Sampled, lineage: list[Traced]) -> str:
    """README.md with the hub's YAML header; `lineage` are the artifacts behind the export."""
    target = TARGETS[facts.to]
    settings = {one.artifact: _settings(one) for one in lineage}
    score = settings.get("scores", {})
    return _template().render(
        header=_header(facts),
        facts=facts,
        paper=PAPER,
        version=__version__,
        description=DESCRIPTIONS[target.needs],
        target=target,
        pairs=PAIRS[facts.chosen.pairs] if target.needs == "pairs" else None,
        reward=_weights(score.get("reward") or facts.config.score.reward),
        sampled=sampled,
        load=target.load.format(
            folder="FOLDER", split=facts.split, split_name=_split_name(facts.split), name=facts.name
        ),
        lineage=[lineage_row(one) for one in lineage],
        notes=dict(sorted(facts.notes.items())),
        arguments=dict(sampled.chat.arguments),
    )


def _header(facts: Facts) -> str:
    """The fields of the hub: which files are the split's, and what the dataset is for."""
    is_lines = TARGETS[facts.to].open is json_lines
    files = f"{facts.split}.jsonl" if is_lines else f"{DATA}/{facts.split}-*.parquet"
    fields = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": _split_name(facts.split), "path": files}],
            }
        ],
        "tags": ["perpo", facts.to],
        "task_categories": ["image-text-to-text"],
    }
    return str(yaml.safe_dump(fields, sort_keys=False))


def _split_name(split: str) -> str:
    """The split's name in `datasets`, which takes letters, digits and underscores."""
    return re.sub(r"\W", "_", split)


def _settings(traced: Traced) -> Mapping[str, Any]:
    return {} if traced.version is None else traced.version.manifest["settings"]


def _weights(reward: Any) -> str:
    """`iou`, or the shares of a weighted mean: `iou 0.7, giou 0.3`."""
    if not isinstance(reward, Mapping):
        return str(reward)
    if len(reward) == 1:
        return str(next(iter(reward)))
    return ", ".join(f"{name} {weight:g}" for name, weight in reward.items())


def _template() -> jinja2.Template:
    environment = card_environment(Path(__file__).parent)
    environment.filters["commas"] = "{:,}".format
    return environment.get_template("card.md")
