"""Stages of a sweep that take milliseconds: artifacts of the synthetic run, drawn around the truth.

A method is right with a probability that depends on its settings, so there is a best one.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import (
    prepare_synthetic,
    sample_synthetic,
    train_synthetic,
    write_evaluation,
)

from perpo_pipeline.errors import InputError
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.sweep import make_steps
from perpo_pipeline.sweep.make_steps import Versions, do_step
from perpo_pipeline.sweep.steps import Step

RUN = """
run: small
data_root: {root}
prepare:
  train: {{source: testbed, num_prompts: 8}}
  validation: {{source: testbed, num_prompts: 30}}
  test: {{source: testbed, num_prompts: 40}}
sample: {{num_samples: 6}}
filter: {{min_margin: 0.6}}
train: {{methods: {{sft: {{learning_rate: 1.0e-4}}, dpo: {{beta: 0.3}}, perpo: {{beta: 0.3}}}}}}
"""
SWEEP = """
sweep: beta
config: run.yaml
grids:
  - methods: [base]
  - methods: [dpo, perpo]
    parameters: {train.beta: [0.1, 0.5, 1], train.gamma: [1]}
seeds: [0, 1]
select_on: validation
report_on: test
"""
BEST = {"base": 0.3, "dpo": 0.6, "perpo": 0.9}


def fake_do(step: Step, inputs: Versions, sweep: str, *, quiet: bool, only_find: bool) -> Versions:
    """As `do_step`, with the fake stages: for a process that a test has started.

    The first two steps wait for each other, so that both processes have one.
    """
    make_steps.STAGES = fake_stages([])
    file = Path(step.config.data_root) / "log"
    with file.open("a") as log:
        device = os.environ["CUDA_VISIBLE_DEVICES"] or "cpu"
        log.write(f"{os.getpid()} {device} {step.title}\n")
    if step.stage == "prepare":
        _meet(file, "prepare")
    if step.stage == "train" and step.config.train.shared.epochs == 7:
        raise InputError("this cell fails")
    return do_step(step, inputs, sweep, quiet=quiet, only_find=only_find)


def fake_do_at_once(
    step: Step, inputs: Versions, sweep: str, *, quiet: bool, only_find: bool
) -> Versions:
    """As `fake_do`; two evaluations write their first part at the same time, and slowly."""
    writes = Writer.write_part

    def write_slowly(*arguments: Any, **more: Any) -> Any:
        _meet(Path(step.config.data_root) / "log", "eval")
        time.sleep(0.3)
        return writes(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        if step.stage == "eval":
            patch.setattr(Writer, "write_part", write_slowly)
        return fake_do(step, inputs, sweep, quiet=quiet, only_find=only_find)


def _meet(log: Path, stage: str) -> None:
    """Wait until two steps of a stage are in the log."""
    end = time.monotonic() + 60
    while sum(line.split()[2] == stage for line in log.read_text().splitlines()) < 2:
        assert time.monotonic() < end, "the steps are not made side by side"
        time.sleep(0.02)


def write_files(folder: Path, sweep: str = SWEEP) -> Path:
    """The file of a sweep, beside that of its run."""
    (folder / "run.yaml").write_text(RUN.format(root=folder / "data"))
    file = folder / "sweep.yaml"
    file.write_text(sweep)
    return file


def right(step: Step) -> float:
    """The share of right answers: highest at beta 0.5, a little apart by the seed."""
    cell = step.cell
    if cell.seed is None:
        return BEST["base"]
    settings = step.config.train.variants()[cell.method]
    return BEST[cell.method] - 0.5 * abs(settings.beta - 0.5) + 0.02 * cell.seed


def _evaluate(run: Run, step: Step) -> None:
    for asked in run.config.evaluations():
        write_evaluation(run, asked, right(step))


def fake_stages(
    called: list[str], before: Callable[[str], Any] = lambda title: None
) -> dict[str, Callable[[Run, Step], object]]:
    """The stages; the titles of the steps that are made, not only looked for, go to `called`."""

    def counted(work: Callable[[Run, Step], object]) -> Callable[[Run, Step], object]:
        def stage(run: Run, step: Step) -> None:
            assert run.pinned is not None
            if not run.pinned.only_find:
                before(step.title)
                called.append(step.title)
            work(run, step)

        return stage

    stages: dict[str, Callable[[Run, Step], object]] = {
        "prepare": lambda run, step: prepare_synthetic(run, step.call.group),
        "sample": lambda run, step: sample_synthetic(run),
        "score": lambda run, step: score(run, "train"),
        "filter": lambda run, step: filter_lists(run, "train"),
        "train": lambda run, step: train_synthetic(run, step.call.group),
        "eval": _evaluate,
    }
    return {name: counted(work) for name, work in stages.items()}
