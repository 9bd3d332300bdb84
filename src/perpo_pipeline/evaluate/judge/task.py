"""What makes up a judged benchmark: questions, how a reply is parsed, how scores are measured."""

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
class ShownImage:
    """An image file that the judge sees, with the sha256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Question:
    """One request to the judge; metrics are also measured for each of its `groups`."""

    item_id: str
    prompt: str
    order: int = 0
    groups: tuple[str, ...] = ()
    image: ShownImage | None = None
    is_trimmed: bool = False  # thoughts or tags were taken off an answer


@dataclass(frozen=True)
class Review:
    """A reply that was collected elsewhere."""

    item_id: str
    reply: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """How one benchmark is judged.

    `parse` returns k numbers from a reply, or None. `measure` gets the numbers of the questions
    whose replies were all parsed, `(n, orders, k)`, and returns intervals by metric name
    (metrics.METRICS).
    """

    name: str
    parse: Callable[[str], Scores | None]
    measure: Callable[[npt.NDArray[np.float64]], Measured]
    orders: int = 1

    def prompt_file(self, with_image: bool = False) -> Path:
        """The prompt with its placeholders; the one `with_image` says that the image is there."""
        return PROMPTS / f"{self.name}{'-with-image' if with_image else ''}.txt"

    def prompt_sha256(self, with_image: bool = False) -> str:
        """The sha256 of the prompt file with its placeholders."""
        return file_sha256(self.prompt_file(with_image))

    def fill(self, *, with_image: bool = False, **values: str) -> str:
        """The prompt with each `{{name}}` replaced by its value; values are not filled again."""
        pieces = self.prompt_file(with_image).read_text(encoding="utf-8").split("{{")
        filled = [pieces[0]]
        for piece in pieces[1:]:
            name, rest = piece.split("}}", 1)
            filled.append(values[name] + rest)
        return "".join(filled)
