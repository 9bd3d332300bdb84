"""Box formats: how each model family asks for a box and writes it as text.

A format says how the numbers of a box are written, what one unit is (a fraction of the frame, a
thousandth of it, or one of its pixels), and which question such an answer belongs to
(box_format.py). Neither the format nor the frame (see frames.py) is ever guessed from the text. The
families' own formats are in builtin_formats.py; a user's own `BoxFormat` is named by its import
path. This module imports no NumPy, because the settings are checked against it.
"""

import functools
import importlib
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.answers.box_format import (
    BOXES,
    COORDINATES,
    EXPRESSION,
    POINT_GROUPS,
    Box,
    BoxFormat,
    numbers_of,
)
from perpo_pipeline.answers.builtin_formats import BOX_FORMATS
from perpo_pipeline.answers.frames import FRAMES
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

__all__ = [
    "BOX_FORMATS",
    "COORDINATES",
    "PAGE_PROMPT",
    "REFERRING_PROMPT",
    "Box",
    "BoxFormat",
    "describe_box_format",
    "frame_fault",
    "get_box_format",
    "shown_question",
]

# The question for the text of a page, where the data has none of its own.
PAGE_PROMPT = "Transcribe the text on this page."
REFERRING_PROMPT = BOX_FORMATS["llava"].instruction
"""The paper's grounding instruction (METHOD: 'The paper's recipes')."""


def shown_question(prompt: str) -> str:
    """The expression alone if the prompt is a box format's instruction with an expression in it."""
    found = (box_format.asked_for(prompt) for box_format in BOX_FORMATS.values())
    return min(filter(None, found), key=len, default=prompt)


def get_box_format(name: str) -> BoxFormat:
    """The format with that name, or the user's `BoxFormat` at the path `pkg.module:attribute`.

    Raises ConfigError naming the built-in formats, and for a user's format that does not read the
    box that it writes.
    """
    return BOX_FORMATS.get(name) or _load_own(name)


def describe_box_format(name: str) -> str | dict[str, Any]:
    """What decides how answers are read, for fingerprints.

    That is the name of a built-in format, but the content of a user's own, which may change while
    its name stays.
    """
    if name in BOX_FORMATS:
        return name
    return {"name": name, **get_box_format(name).describe()}


def frame_fault(box_format: str, frame: str) -> str | None:
    """Why a format and a frame do not fit together, or None if they do."""
    required = get_box_format(box_format).frame
    if required is None or required == frame:
        return None
    return (
        f"box_format {box_format} needs the frame {required}, not {frame}: "
        f"set box_frame to {required}"
    )


@functools.cache
def _load_own(name: str) -> BoxFormat:
    """The user's own format, checked with one box."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no box format {name!r}{did_you_mean(name, BOX_FORMATS) or ';'} there are "
            f"{', '.join(BOX_FORMATS)}",
            fix="give one of these, or your own as pkg.module:attribute",
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"the box format {name!r} cannot be imported: {type(error).__name__}: {error}",
            fix="give a module on the Python path and the name of a BoxFormat in it",
        ) from error
    if not isinstance(found, BoxFormat):
        raise ConfigError(
            f"the box format {name!r} has type {type(found).__name__}, not BoxFormat",
            fix=f"name a perpo_pipeline.answers.BoxFormat (see {advice.page('boxes')})",
        )
    _check_fields(found, name)
    _check_round_trip(found, name)
    return found


def _check_fields(own: BoxFormat, name: str) -> None:
    if own.instruction.count(EXPRESSION) != 1:
        raise ConfigError(f"the instruction of the box format {name!r} needs one {EXPRESSION}")
    groups = getattr(own.pattern, "groupindex", {})
    absent = [group for group in own.groups if group not in groups]
    if absent:
        raise ConfigError(
            f"the pattern of the box format {name!r} has no group {', '.join(absent)}",
            fix="give a compiled one that names the four numbers, as in (?P<x1>[0-9]+); a box of "
            "two cells names first and last",
        )
    if own.around.count(BOXES) != 1:
        raise ConfigError(
            f"what stands around the boxes of {name!r}, its around, needs one {BOXES}"
        )
    point_groups = getattr(own.point_pattern, "groupindex", {})
    if own.point_pattern is not None and not {*POINT_GROUPS} <= {*point_groups}:
        raise ConfigError(
            f"the point_pattern of the box format {name!r} lacks the groups x1 and y1",
            fix="give a compiled one that names both numbers, as in (?P<x1>[0-9]+)",
        )
    if not own.no_target.strip() or own.pattern.search(own.no_target):
        raise ConfigError(
            f"the answer for no object of the box format {name!r} is {own.no_target!r}, which is "
            f"{'a box' if own.no_target.strip() else 'empty'}",
            fix='give a text without a box as no_target, such as "[]"',
        )
    if own.scale is not None and not own.scale > 0:
        raise ConfigError(
            f"the scale of the box format {name!r} is {own.scale}",
            fix="give the number of units across the frame, or None for its pixels",
        )
    if (own.bins or own.cells) and (own.scale is None or own.scale % 1 or own.decimals):
        raise ConfigError(
            f"the box format {name!r} writes {'cells' if own.cells else 'bins'}, with the scale "
            f"{own.scale} and {own.decimals} decimals",
            fix="give their whole number as scale, and no decimals",
        )
    if own.frame is not None and own.frame not in FRAMES:
        raise ConfigError(
            f"the box format {name!r} needs a frame that does not exist: {own.frame!r}",
            fix=f"one of {', '.join(FRAMES)}, or None where every frame makes sense",
        )


def _check_round_trip(own: BoxFormat, name: str) -> None:
    """Raise ConfigError unless each pattern finds the box or the point that its template writes."""
    names = ", ".join(own.groups)
    _check_place(
        own,
        name,
        (100.0, 200.0, 300.0, 400.0),
        half=1.01 if own.cells else 0.51,  # a line of cells is read from edge to edge
        fix=f"the template writes what the pattern finds, both with the names {names}",
    )
    if own.point_pattern is not None:
        _check_place(
            own,
            name,
            (100.0, 200.0),
            half=0.51,
            fix="point_template writes what point_pattern finds: the names x and y in one, the "
            "groups x1 and y1 in the other",
        )


def _check_place(
    own: BoxFormat, name: str, place: tuple[float, ...], *, half: float, fix: str
) -> None:
    """Write a box or a point, and read it; `half` is how many written units may lie between."""
    kind = "box" if len(place) == len(COORDINATES) else "point"
    try:
        written, found = _there_and_back(own, place)
    except Exception as error:  # the user's template, too
        raise ConfigError(
            f"the box format {name!r} cannot write a {kind} and read it: "
            f"{type(error).__name__}: {error}",
            fix=fix,
        ) from error
    rounding = half * 10.0**-own.decimals * 1000 / (own.scale or 1000)
    is_same = found is not None and all(
        abs(a - b) <= rounding for a, b in zip(found, place, strict=True)
    )
    if not is_same:
        raise ConfigError(
            f"the box format {name!r} writes {place} as {written!r} and reads that as {found}",
            where="an image of 1000x1000 pixels",
            fix=fix,
        )


def _there_and_back(
    own: BoxFormat, place: tuple[float, ...]
) -> tuple[str | None, tuple[float, ...] | None]:
    """The text of a box or a point in an image of 1000 x 1000 pixels, and where it is read."""
    import numpy as np

    from perpo_pipeline.answers.placement import place_frame

    placement = place_frame("full", (1000, 1000))
    if len(place) == len(COORDINATES):
        x1, y1, x2, y2 = place
        written = own.write((x1, y1, x2, y2), placement)
        match = own.pattern.search(written or "")
        units = None if match is None else own.in_units(np.array(own.numbers(match)))
    else:
        x, y = place
        written = own.write_point((x, y), placement)
        match = None if own.point_pattern is None else own.point_pattern.search(written or "")
        units = np.array(numbers_of(match, POINT_GROUPS)) + own.bin_offset if match else None
    found = None if units is None else tuple(placement.to_image_px(units, own.scale).tolist())
    return written, found
