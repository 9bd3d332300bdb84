"""Warnings that answers were read with the wrong settings or cut, with the figures behind them.

A model is rarely so wrong that nearly all its boxes are unreadable, far outside the image or in its
very corner; a wrong format or frame is.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.rewards.builtin import Floats, Measured

MOSTLY = 0.9  # share of the answers
FAR = 0.1  # distance out of the frame, as a share of its extent
MANY_FAR = 0.5  # share of the regions; of real models' boxes 3 % reach out of the image at most
FEWEST_UNITS = 100  # across a frame, so that a box within one unit is no box


@dataclass
class Doubts:
    """Collects what was read, part by part; `lines` are the warnings.

    `example` is a completion that could not be read, if there is one.
    """

    reading: Reading
    rows: int = 0
    unparsed: int = 0
    without_answer: int = 0
    empty: int = 0
    example: str | None = None
    _reaches: list[Floats] = field(default_factory=list)

    def add(self, found: Measured, texts: pl.Series) -> None:
        """Take over the figures of some answers and their texts, null where there is no answer."""
        self.add_texts(found.parse_ok, texts)
        if found.reach is not None:
            self.add_reach(found.reach)

    def add_texts(self, parse_ok: npt.NDArray[np.bool_], texts: pl.Series) -> None:
        """Count answers, those that could be read, and those of them without any text."""
        self.add_parsed(len(parse_ok), int(parse_ok.sum()))
        self.without_answer += texts.null_count()
        is_empty = (texts.str.strip_chars() == "").fill_null(False).to_numpy()
        self.empty += int((is_empty & parse_ok).sum())

    def add_parsed(self, rows: int, parsed: int) -> None:
        """Count answers, and those of them that could be read."""
        self.rows += rows
        self.unparsed += rows - parsed

    def add_reach(self, reach: Floats) -> None:
        """Take over how far regions go, `(n, 2)`: `Placement.reach`."""
        self._reaches.append(reach[~np.isnan(reach[:, 0])].astype(np.float32))

    def lines(self) -> list[str]:
        """The warnings, without a stage before them; none where all looks right."""
        reach = np.concatenate([np.empty((0, 2), np.float32), *self._reaches])
        found = (
            self._unread(),
            self._unended(),
            self._without_text(),
            self._far_outside(reach[:, 0]),
            self._in_the_corner(reach[:, 1]),
        )
        return [line for line in found if line is not None]

    def _unread(self) -> str | None:
        if not self.rows or self.unparsed < MOSTLY * self.rows:
            return None
        instance = "" if self.example is None else f", for instance {self.example[:80]!r}"
        return (
            f"only {self.rows - self.unparsed:,} of {self.rows:,} answers could be read: do they "
            f"use this box format, and end their thoughts? ({self._settings()}{instance})"
        )

    def _unended(self) -> str | None:
        if not self.without_answer:
            return None
        return (
            f"{self.without_answer:,} of {self.rows:,} completions hold no answer, because their "
            f"thought does not end; they count as wrong (thinking {self.reading.thinking})"
        )

    def _without_text(self) -> str | None:
        if not self.empty:
            return None
        return (
            f"{self.empty:,} of {self.rows:,} answers are empty: each is measured as a text of no "
            "characters"
        )

    def _far_outside(self, beyond: Floats) -> str | None:
        is_far = beyond > FAR
        if not len(beyond) or is_far.mean() < MANY_FAR:
            return None
        return (
            f"{int((beyond > 0).sum()):,} of {len(beyond):,} regions reach out of the frame, half "
            f"of these by more than {np.median(beyond[beyond > 0]):.1f} times its size: another "
            f"format or frame is likely ({self._settings()})"
        )

    def _in_the_corner(self, units: Floats) -> str | None:
        scale = get_box_format(self.reading.box_format).scale
        is_in_corner = units <= 1
        if not len(units) or is_in_corner.mean() < MOSTLY or (scale or FEWEST_UNITS) < FEWEST_UNITS:
            return None
        return (
            f"{int(is_in_corner.sum()):,} of {len(units):,} regions lie within the first unit of "
            "the frame: are their numbers fractions from 0 to 1, as in the format llava? "
            f"({self._settings()})"
        )

    def _settings(self) -> str:
        return f"box_format {self.reading.box_format}, box_frame {self.reading.box_frame}"
