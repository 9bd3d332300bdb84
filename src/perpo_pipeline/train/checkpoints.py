"""Which checkpoints count: those with a marker, written when every file of all processes is there.

The marker says how many processes have saved, and under which ZeRO stage: ZeRO's optimiser state
is cut in as many pieces as there are processes, and fits no other number of them. It also says
whose checkpoint it is, for that of other settings would be gone on from without a word.
"""

import json
import shutil
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
    """Who saves: so many processes, under this ZeRO stage (0: none), for this version (its folder's
    name; empty in markers that do not say)."""

    processes: int = 1
    zero_stage: int = 0
    version: str = ""

    def reads(self, other: "Saver") -> bool:
        """Whether a checkpoint of `other` can be gone on from; without ZERO any number will do."""
        cut, theirs = (self.zero_stage, self.processes), (other.zero_stage, other.processes)
        return cut == theirs or not (self.zero_stage or other.zero_stage)

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
        self.world.wait()  # another node that leaves first would let srun end this one as it writes


def last_whole(checkpoints: Path, saver: Saver, world: World) -> str | None:
    """The newest checkpoint that was saved to the end; torn ones are removed.

    Raises ArtifactError where it is not one that this run could have saved.
    """
    # One process looks: a shared file system may show another state on another node.
    newest = world.share(_newest(checkpoints) if world.is_first else None)
    if newest is None:
        return None
    other = _saver_of(newest)
    if other.version not in ("", saver.version):
        raise ArtifactError(
            f"this checkpoint is of another training ({other.version}, not {saver.version})",
            where=str(newest),
            fix=f"move it back to where it was made, or remove {checkpoints} to begin anew",
        )
    if not saver.reads(other):
        raise ArtifactError(
            f"this training was begun by {other}, and is now asked to go on with {saver}: "
            "ZeRO's checkpoints fit the number of processes and the stage that wrote them",
            where=str(newest),
            fix=f"go on as it was begun, or remove {checkpoints} to begin anew",
        )
    return str(newest)


def _newest(checkpoints: Path) -> Path | None:
    found = {int(p.name.rsplit("-", 1)[1]): p for p in checkpoints.glob("checkpoint-*")}
    whole = [step for step, path in found.items() if (path / WHOLE).is_file()]
    for step in set(found) - set(whole):
        shutil.rmtree(found[step])
    return found[max(whole)] if whole else None


def _saver_of(checkpoint: Path) -> Saver:
    try:
        return Saver(**json.loads((checkpoint / WHOLE).read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # of an earlier version, which knew one process
        return Saver()
