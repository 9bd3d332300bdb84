"""Rounds whose stages take milliseconds: artifacts of the synthetic run, drawn around the truth.

How often a round is right depends on its name alone, so it is known where the rounds must end.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import (
    BOTH,
    prepare_synthetic,
    sample_synthetic,
    train_synthetic,
    write_evaluation,
)

from perpo_pipeline.commands import run as command
from perpo_pipeline.commands.run import Given
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.config.sources import list_sources
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.merge import merge_adapter
from perpo_pipeline.merge.folder import RECORD, WEIGHTS
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.testbed import shipped_model_dir
from perpo_pipeline.vlm.adapters import weights_sha256

FILE = """
run: small
data_root: {root}
prepare:
  train: {{source: testbed, num_prompts: 36}}
  validation: {{source: testbed, num_prompts: 80}}
  test: {{source: testbed, num_prompts: 90}}
sample: {{num_samples: 6}}
filter: {{min_margin: 0.6, max_lists: 8}}
train: {{methods: {{perpo: {{beta: 0.3}}}}}}
rounds: {{num: 4, num_prompts: 9, beside: one-round}}
"""
RIGHT = {"base": 0.3, "round-1": 0.6, "round-2": 0.95, "round-3": 0.95, "one-round": 0.8}
"""Round 3 gives the answers of round 2, so it gains nothing."""


def write_rounds(folder: Path, text: str = FILE) -> Path:
    """The run's file, with its results beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(text.format(root=folder / "data"))
    return file


def use_fakes(
    patch: pytest.MonkeyPatch,
    called: list[str],
    before: Callable[[str], object] = lambda title: None,
    right: Mapping[str, float] = RIGHT,
) -> None:
    """Replace the stages and the merging; `called` gets what is made, after `before` saw it."""

    def note(run: str, *words: str) -> None:
        title = " ".join([run, *words])
        before(title)
        called.append(title)

    def stage(name: str) -> Callable[[Given, Sequence[str]], None]:
        def make(given: Given, names: Sequence[str]) -> None:
            sets = [parse_set(one) for one in given.common["sets"] or ()]
            run = Run(load_config(given.common["config"], sets), quiet=True)
            note(run.config.run, name, *names)
            _make(run, name, names, right)

        return make

    def merge(adapter: Path, out: Path, *, model: str, **_: Any) -> Path:
        assert model == "testbed" or (Path(model) / RECORD).is_file()  # where it is now
        note("merge", out.parent.parent.name)
        shutil.copytree(shipped_model_dir(), out)
        (out / "chat_template.extra").write_text(out.name)  # another model than the shipped one
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {WEIGHTS: weights_sha256(open_version(adapter)), "made_at": made_at, "files": {}}
        (out / RECORD).write_text(json.dumps(record))
        return out

    patch.setattr(command, "STAGES", {name: stage(name) for name in command.STAGES})
    patch.setattr(merge_adapter, "merge", merge)
    patch.setattr(command, "_free_memory", lambda: None)  # no model is loaded


def _make(run: Run, stage: str, names: Sequence[str], right: Mapping[str, float]) -> None:
    match stage:
        case "prepare":
            (split,) = names
            is_drawn = list_sources(run.config.prepare[split])[0].source == "testbed"
            _ = prepare_synthetic(run, split, task=BOTH) if is_drawn else prepare(run, split)
        case "sample":
            sample_synthetic(run)
        case "score":
            score(run, "train")
        case "filter":
            filter_lists(run, "train")
        case "train":
            train_synthetic(run, names[0])
        case "eval":
            for asked in run.config.evaluations():
                if asked.name in names:
                    key = "base" if asked.model == "base" else run.config.run
                    write_evaluation(run, asked, right[key])
