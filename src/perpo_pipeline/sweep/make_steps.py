"""The steps of a sweep: what is finished is found, the rest is made in order."""

import contextlib
import gc
import io
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from perpo_pipeline.bars import time_text
from perpo_pipeline.evaluate.evaluate_model import evaluate_all
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Console, NotMade, Pinned, Run
from perpo_pipeline.sample.sample_prompts import sample
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.status.graph import Key
from perpo_pipeline.status.options import Options
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.sweep.steps import Step
from perpo_pipeline.train.task import reuse_trained
from perpo_pipeline.train.train_adapter import train

Versions = dict[Key, Version]
Stage = Callable[[Run, Step], object]


def _train(run: Run, step: Step) -> None:
    """Find the adapter without loading anything, or train it."""
    name, pinned = step.call.group, run.pinned
    assert pinned is not None
    found = reuse_trained(run, name)
    if found is None and pinned.only_find:
        raise NotMade(f"adapter/{name}")
    pinned.versions["adapter", name] = found or train(run, name)


def _frees_memory(work: Stage) -> Stage:
    """The stage; afterwards the next stage's model finds free what this one's model held."""

    def freeing(run: Run, step: Step) -> None:
        work(run, step)
        if run.pinned is None or run.pinned.only_find:
            return
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    return freeing


# How each stage is called; what it makes is pinned to the run.
STAGES: dict[str, Stage] = {
    "prepare": lambda run, step: prepare(run, step.call.group),
    "sample": _frees_memory(lambda run, step: sample(run, run.config.sample.split)),
    "score": lambda run, step: score(run, run.config.sample.split),
    "filter": lambda run, step: filter_lists(run, run.config.sample.split),
    "train": _frees_memory(_train),
    "eval": _frees_memory(lambda run, step: [*evaluate_all(run, step.call.names)]),
}


@dataclass
class Made:
    """The versions that each finished step has made, by the step's id, and how long steps took."""

    versions: dict[str, Versions] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def inputs(self, step: Step) -> Versions:
        """The versions that a step reads; all steps that it needs must be finished."""
        return {key: one for id in step.needs for key, one in self.versions[id].items()}

    def is_ready(self, step: Step) -> bool:
        """Whether everything that the step needs is finished."""
        return all(id in self.versions for id in step.needs)


def do_step(step: Step, inputs: Versions, sweep: str, *, quiet: bool, only_find: bool) -> Versions:
    """Call the stage of one step on `inputs`; returns what it made or found.

    Raises NotMade with `only_find` if it is not finished.
    """
    pinned = Pinned(dict(inputs), only_find)
    asked = Options({"sweep": f"the sweep {sweep}"})  # perpo gc then leaves it for some days
    run = Run(step.config, quiet=quiet or only_find, muted=only_find, options=asked, pinned=pinned)
    with contextlib.redirect_stdout(io.StringIO()):
        STAGES[step.stage](run, step)
    return {node.key: pinned.versions[node.key] for node in step.call.made}


def find_made(steps: Iterable[Step], sweep: str, made: Made) -> None:
    """Add to `made` the steps that are finished on disk; prints nothing, makes nothing."""
    for step in steps:
        if step.id in made.versions or not made.is_ready(step):
            continue
        with contextlib.suppress(NotMade):
            made.versions[step.id] = do_step(
                step, made.inputs(step), sweep, quiet=True, only_find=True
            )


@dataclass
class Progress:
    """Announces each step with its number among all, and the time that is left for all of them.

    `finished` steps of the `total` were there at the start.
    """

    sweep: str
    console: Console
    total: int
    seconds_left: Callable[[], tuple[float, bool]]
    jobs: int = 1
    finished: int = 0
    begun: int = 0

    @property
    def number(self) -> int:
        """How many steps there are: more than expected where another setting is chosen."""
        return max(self.total, self.finished + self.begun)

    def begin(self, step: Step) -> None:
        """Announce a step; the time left is unknown while no step of its kind has been made."""
        self.begun += 1
        seconds, is_all = self.seconds_left()
        seconds /= self.jobs
        left = f"{'about' if is_all else 'more than'} {time_text(seconds)} left"
        time_left = f" ({left})" if seconds >= 1 or is_all else ""
        place = f"{self.finished + self.begun}/{self.number}"
        self.console.say(f"sweep {self.sweep}: {place} {step.title}{time_left}")


def make_missing(steps: Iterable[Step], made: Made, progress: Progress) -> None:
    """Make the steps that are not finished, one after the other."""
    quiet = progress.console.quiet
    for step in [step for step in steps if step.id not in made.versions]:
        progress.begin(step)
        began = time.monotonic()
        found = do_step(step, made.inputs(step), progress.sweep, quiet=quiet, only_find=False)
        made.versions[step.id], made.seconds[step.id] = found, time.monotonic() - began
