"""Which checkpoints count: those with a marker, written once every process has saved its files.

The marker records the number of processes and the ZeRO stage, because ZeRO shards its optimiser
state over the processes and the shards fit no other number of them. It also records the training
that the checkpoint belongs to; otherwise a run could silently resume from another run's checkpoint.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.train.processes import World

WHOLE = "whole"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Saver:
    """The training that saves a checkpoint.

    `zero_stage` is 0 without ZeRO. `version` is the name of the version's folder; it is empty in
    markers that do not record it.
    """

    processes: int = 1
    zero_stage: int = 0
    version: str = ""

    def can_resume_from(self, other: "Saver") -> bool:
        """Whether it can resume from a checkpoint of `other`.

        Without ZeRO the number of processes may differ.
        """
        ours, theirs = (self.zero_stage, self.processes), (other.zero_stage, other.processes)
        return ours == theirs or not (self.zero_stage or other.zero_stage)

    def __str__(self) -> str:
        zero = f" with ZeRO-{self.zero_stage}" if self.zero_stage else " without ZeRO"
        return f"{self.processes} process{'es' * (self.processes != 1)}{zero}"


class MarkWhole(TrainerCallback):
    """Writes the marker once every process has saved its part."""

    def __init__(self, saver: Saver, world: World) -> None:
        self.saver, self.world = saver, world

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.world.wait()
        if self.world.is_first:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            text = json.dumps(asdict(self.saver)) + "\n"
            write_atomically(directory / WHOLE, lambda sink: sink.write(text.encode()))
        self.world.wait()  # if another node left first, srun could end this one while it writes


class IntervalsOfNow(TrainerCallback):
    """Saves and logs in the intervals of this run's settings.

    transformers takes those of the checkpoint that a run resumes from.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def without_comparison() -> Iterator[None]:
    """Leave out transformers' warning that settings differ from the checkpoint's.

    It would be wrong: `IntervalsOfNow` takes the run's own, and the plan of the steps, which no
    number of processes changes, decides the batches.
    """
    logger = logging.getLogger("transformers.trainer_utils")
    logger.addFilter(_is_no_comparison)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_comparison)


def _is_no_comparison(record: logging.LogRecord) -> bool:
    return "do not match the ones in the `trainer_state.json`" not in str(record.msg)


def saver_now(checkpoints: Path, stage: int, world: World) -> Saver:
    """The training under way, at ZeRO's `stage`, with `checkpoints` in its version's folder."""
    return Saver(world.size if stage else 1, stage, checkpoints.parent.name)


def remove_incomplete(checkpoints: Path) -> None:
    """Remove the checkpoints that some process has not saved to the end."""
    for path in checkpoints.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)


def last_complete(checkpoints: Path, saver: Saver, world: World) -> str | None:
    """The newest complete checkpoint, or None.

    Raises ArtifactError if this run could not have saved it.
    """
    # One process looks: a shared file system may show a different state on another node.
    newest = world.broadcast(_newest(checkpoints) if world.is_first else None)
    if newest is None:
        return None
    other = _saver_of(newest)
    if other.version not in ("", saver.version):
        raise ArtifactError(
            f"this checkpoint belongs to another training ({other.version}, not {saver.version})",
            where=str(newest),
            fix=f"move it back to its own folder, or remove {checkpoints} to start again",
        )
    if not saver.can_resume_from(other):
        raise ArtifactError(
            f"this training was started by {other} and cannot be resumed by {saver}: ZeRO's "
            "checkpoints fit only the number of processes and the stage that wrote them",
            where=str(newest),
            fix=f"resume it as it was started, or remove {checkpoints} to start again",
        )
    return str(newest)


def newest_step(checkpoints: Path) -> int:
    """The step of the newest complete checkpoint, 0 if there is none."""
    newest = _newest(checkpoints)
    return 0 if newest is None else step_of(newest)


def step_of(checkpoint: str | Path) -> int:
    """The number of steps that were taken before a checkpoint."""
    return int(Path(checkpoint).name.rsplit("-", 1)[1])


def _newest(checkpoints: Path) -> Path | None:
    complete = {
        step_of(path): path for path in checkpoints.glob("checkpoint-*") if (path / WHOLE).is_file()
    }
    return complete[max(complete)] if complete else None


def _saver_of(checkpoint: Path) -> Saver:
    try:
        return Saver(**json.loads((checkpoint / WHOLE).read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # an earlier format, from before distributed training
        return Saver()
