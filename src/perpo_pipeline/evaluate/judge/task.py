"""What a judged benchmark consists of: questions to ask, a form of reply, a measure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perpo_pipeline.evaluate.judge.replies import Scores
from perpo_pipeline.evaluate.statistics import Interval
from perpo_pipeline.store.atomic import file_sha256

ALL = "all"  # questions of every group together
PROMPTS = Path(__file__).parent / "prompts"

Measured = Mapping[str, Interval]


@dataclass(frozen=True)
class Question:
    """One request to the judge; `groups` are what its scores are also averaged by."""

    item_id: str
    prompt: str
    order: int = 0
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Review:
    """A reply that a judge has given elsewhere."""

    item_id: str
    reply: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """How one benchmark is judged.

    `parse` gives k numbers of a reply or None; `measure` gets those of the questions whose replies
    were all parsed, `(n, orders, k)`, and names metrics with their intervals.
    """

    name: str
    parse: Callable[[str], Scores | None]
    measure: Callable[[npt.NDArray[np.float64]], Measured]
    orders: int = 1

    @property
    def prompt_file(self) -> Path:
        return PROMPTS / f"{self.name}.txt"

    def prompt_sha256(self) -> str:
        """Of the file, before it is filled."""
        return file_sha256(self.prompt_file)

    def fill(self, **values: str) -> str:
        """The prompt with `{{name}}` replaced by each value; what is in a value stays as it is."""
        pieces = self.prompt_file.read_text(encoding="utf-8").split("{{")
        filled = [pieces[0]]
        for piece in pieces[1:]:
            name, rest = piece.split("}}", 1)
            filled.append(values[name] + rest)
        return "".join(filled)
