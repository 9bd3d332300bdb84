"""The file of a round: an ordinary run's file, so that every command works on the round by hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.file import config_of
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Json
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically

HEAD = """\
# {name} of the run {run}, written by `perpo iterate`, which writes it again; change a copy.
# Every command works with it, such as `perpo status --config {file}`.
"""
ONE_ROUND = "one-round"


@dataclass(frozen=True)
class Part:
    """The prompts of a round: `num` from `start` on in the drawn order; None: all of the split."""

    start: int
    num: int | None


@dataclass(frozen=True)
class Round:
    """One round: its number (None for the one beside the others), its file and its run."""

    number: int | None
    file: Path
    config: RunConfig

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.config.run

    @property
    def title(self) -> str:
        """As messages and tables name it: `round 2`."""
        return self.name.replace("-", " ")


def round_folder(config: RunConfig, number: int | None) -> Path:
    """The folder of a round's results."""
    return config.run_dir / (ONE_ROUND if number is None else f"round-{number}")


def write_round(
    config: RunConfig,
    method: str,
    prompts: Mapping[str, Version],
    part: Part,
    *,
    number: int | None,
    model: Path | None = None,
    earlier: Path | None = None,
    max_lists: Any = None,
    writes: bool = True,
) -> Round:
    """A round, whose file is written unless it is there, or unless not `writes`.

    prompts: the run's own prompts, by split. model: the merged model that it begins with; None:
    the run's model. earlier: the lists of the round before, of which `rounds.keep_lists` are kept.
    max_lists: replaces `filter.max_lists`.
    """
    raw = _settings(config, method, prompts, part, number)
    if model is not None:
        raw["model"] = {k: v for k, v in raw.get("model", {}).items() if k != "revision"}
        raw["model"]["id"] = str(model)
        if config.rounds.reference == "base":
            raw["train"] |= _the_base(config)
    if earlier is not None:
        kept = {"earlier": str(earlier), "keep_earlier": config.rounds.keep_lists}
        raw["filter"] = raw.get("filter", {}) | kept
    if max_lists is not None:
        raw.setdefault("filter", {})["max_lists"] = max_lists
    folder = round_folder(config, number)
    file = folder.with_suffix(".yaml")
    head = HEAD.format(name=folder.name.capitalize(), run=config.run, file=file)
    text = head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)
    if writes and (not file.is_file() or file.read_text(encoding="utf-8") != text):
        write_atomically(file, lambda sink: sink.write(text.encode()))
    return Round(number, file, config_of(yaml.safe_load(text), file))


def _settings(
    config: RunConfig,
    method: str,
    prompts: Mapping[str, Version],
    part: Part,
    number: int | None,
) -> Json:
    """The sections of the round's file: those of the run, where they are about this round."""
    given = config.model_dump(mode="json", exclude_unset=True, exclude={"rounds", "report"})
    train = config.train.shared.model_dump(mode="json", exclude_unset=True)
    own, seed = _training(config, method)
    evaluated = {
        "splits": [name for name in prompts if name != config.sample.split],
        "models": [BASE, method] if number == 1 else [method],
        "conditions": [],
    }
    dropped = {"condition_splits", "out_of_domain"}
    kept = {k: v for k, v in given.get("eval", {}).items() if k not in dropped}
    sources = {split: _source(prompts[split]) for split in prompts}
    if part.num is not None:
        sources[config.sample.split] |= {"start": part.start, "num_prompts": part.num}
    return given | {
        "run": round_folder(config, number).name,
        "data_root": str(config.run_dir),
        "prepare": sources,
        "train": {**train, "methods": {method: own}, "seeds": [seed]},
        "eval": kept | evaluated,
    }


def _the_base(config: RunConfig) -> Json:
    """The run's own model as the reference."""
    revision = config.model.revision
    named = {} if revision is None else {"reference_revision": revision}
    return {"reference_model": config.model.id, **named}


def _source(prompts: Version) -> Json:
    return {"source": "prompts", "path": str(prompts.path)}


def _training(config: RunConfig, method: str) -> tuple[Json, int]:
    """The method's own settings and its seed; `method` may be one of several seeds."""
    settings = config.train.variants()[method]
    for name, own in config.train.methods.items():
        if method in (name, f"{name}-seed{settings.seed}"):
            raw = own.model_dump(mode="json", exclude_unset=True)
            return {**raw, "method": settings.method}, settings.seed
    raise KeyError(method)
