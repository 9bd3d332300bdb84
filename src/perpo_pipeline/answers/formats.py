"""Box formats: how each model family asks for a box and writes it as text.

A format says how four numbers are written, what one unit is (a fraction of the frame, a thousandth
of it, or one of its pixels), and which question such an answer belongs to. Neither the format nor
the frame (see frames.py) is ever guessed from the text. A user's own `BoxFormat` is named by its
import path. This module imports no NumPy, because the settings are checked against it.
"""

import dataclasses
import functools
import importlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.answers.frames import FRAMES
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.answers.placement import Placement

Box = tuple[float, float, float, float]

COORDINATES = ("x1", "y1", "x2", "y2")
EXPRESSION = "{expression}"
# The question for the text of a page, where the data has none of its own.
PAGE_PROMPT = "Transcribe the text on this page."
# LLaVA's question, and the paper's (METHOD: 'The paper's recipes').
_ASK = (
    "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
)


@dataclass(frozen=True)
class BoxFormat:
    """How one model family writes a box; a user's own is named as `pkg.module:attribute`.

    `pattern` finds a box, with the named groups x1, y1, x2, y2; `template` writes one (`str.format`
    with these names). The frame is `scale` units wide and high, or as many as it has pixels if
    `scale` is None; coordinates are written with `decimals` decimals. `instruction` asks for the
    box, with `{expression}` for the description of the object. `frame` is the only frame in which
    the format makes sense, None if it makes sense in all of them. `no_target` is the answer that
    there is no such object: SFT writes it, and denials.py reads it. `point_template` writes a point
    (with the names x, y) in the same unit; all formats read points alike (reading.py).
    """

    name: str
    pattern: re.Pattern[str]
    template: str
    scale: float | None
    decimals: int = 0
    instruction: str = _ASK
    frame: str | None = None
    no_target: str = "[]"
    point_template: str = "[{x}, {y}]"

    def ask(self, expression: str) -> str:
        """The question for the box of what `expression` describes."""
        return self.instruction.replace(EXPRESSION, expression)

    def asked_for(self, question: str) -> str | None:
        """The expression in a question that `ask` made, None for any other text."""
        before, after = self.instruction.split(EXPRESSION)
        if not (question.startswith(before) and question.endswith(after)):
            return None
        return question.removeprefix(before).removesuffix(after)

    def numbers(self, match: re.Match[str]) -> Box:
        """The coordinates in a match of `pattern` as they are written; NaN if one is no number."""
        try:
            x1, y1, x2, y2 = (float(match[name]) for name in COORDINATES)
        except (TypeError, ValueError):  # a user's pattern: no such group in this match, or words
            return (math.nan,) * 4
        return x1, y1, x2, y2

    def write(self, box_xyxy_px: Box, placement: "Placement") -> str | None:
        """The text of a box in pixels of the original image; halves round to even.

        None if the box reaches out of the frame by more than one written unit.
        """
        import numpy as np

        step = 10.0**-self.decimals
        values = placement.to_units(np.array(box_xyxy_px, np.float64), self.scale).tolist()
        sides = [float(units) for units in placement.units(self.scale)] * 2
        written = {}
        for name, value, side in zip(COORDINATES, values, sides, strict=True):
            if not -step <= value <= side + step:
                return None
            written[name] = f"{min(max(value, 0.0), side):.{self.decimals}f}"
        return self.template.format(**written)

    def write_point(self, point_xy_px: tuple[float, float], placement: "Placement") -> str | None:
        """The text of a point in pixels of the original image, as `write` writes a box."""
        x, y = point_xy_px
        corner = dataclasses.replace(self, template="{x1} {y1}").write((x, y, x, y), placement)
        if corner is None:
            return None
        x_written, y_written = corner.split()
        return self.point_template.format(x=x_written, y=y_written)


# A plain decimal, as every built-in format writes its numbers: no plus sign, no exponent.
DECIMAL = r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


def _number(name: str) -> str:
    return rf"\s*(?P<{name}>{DECIMAL})\s*"


_BRACKETED = r"\[" + ",".join(map(_number, COORDINATES)) + r"\]"
_POINTS = r"\({},{}\)\s*(?:,\s*)?\({},{}\)".format(*map(_number, COORDINATES))
# JSON as models write it. Qwen's own reader takes Python literals (single quotes, tuples, a comma
# after the last element) and mends an object that is cut off; the rest is ours: numbers in quotes,
# full-width commas and colons, and the box as the first list in a list.
JSON_COMMA = "[,\uff0c]"
JSON_OPENING, JSON_CLOSING = r"[\[(]", rf"(?:{JSON_COMMA}\s*)?[\])]"


def json_number(name: str) -> str:
    """The pattern of a number in a list, in quotes or without, as the group `name`."""
    return rf"\s*(?:[\"']\s*)?(?P<{name}>{DECIMAL})\s*(?:[\"']\s*)?"


_JSON = (
    rf"[\"']bbox_2d[\"']\s*[:\uff1a]\s*(?:{JSON_OPENING}\s*)?{JSON_OPENING}"
    + JSON_COMMA.join(map(json_number, COORDINATES))
    + JSON_CLOSING
)
_NO_OBJECT = "There is no such object in the image."  # for formats without a list of boxes
_JSON_POINT = '{{"point_2d": [{x}, {y}]}}'
_JSON_TEMPLATE = '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'

BOX_FORMATS: dict[str, BoxFormat] = {
    box_format.name: box_format
    for box_format in (
        BoxFormat("llava", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", 1.0, decimals=2),
        BoxFormat(
            "qwen-vl",
            re.compile(_POINTS),
            "<box>({x1},{y1}),({x2},{y2})</box>",
            1000.0,
            no_target=_NO_OBJECT,
            point_template="({x},{y})",
        ),
        BoxFormat(
            "qwen2-vl",
            re.compile(_POINTS),
            "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
            1000.0,
            no_target=_NO_OBJECT,
            point_template="({x},{y})",
        ),
        BoxFormat(
            "qwen2.5-vl",  # the question of Qwen's cookbook
            re.compile(_JSON),
            _JSON_TEMPLATE,
            None,
            instruction="Locate {expression}, output its bbox coordinates using JSON format.",
            point_template=_JSON_POINT,
            frame="resized",
        ),
        BoxFormat(
            "qwen3-vl",  # the question of Qwen3-VL's report, appendix on evaluation
            re.compile(_JSON),
            _JSON_TEMPLATE,
            1000.0,
            instruction='Locate every object that matches the description "{expression}" in the '
            "image. Report bbox coordinates in JSON format.",
            point_template=_JSON_POINT,
        ),
        BoxFormat(
            "internvl",  # the question of InternVL's evaluation of RefCOCO
            re.compile(_BRACKETED),
            "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
            1000.0,
            instruction=_ASK.replace(EXPRESSION, f"<ref>{EXPRESSION}</ref>"),
            no_target="<box>[]</box>",
        ),
        BoxFormat("pixel", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", None),
    )
}

REFERRING_PROMPT = BOX_FORMATS["llava"].instruction
"""The paper's grounding instruction (METHOD: 'The paper's recipes')."""


JSON_FORMATS = frozenset(
    name for name, rule in BOX_FORMATS.items() if rule.pattern.pattern == _JSON
)
"""The formats in which points and polygons are JSON, too."""


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
    its name stays. `frame` is left out: the settings hold the frame that is used.
    """
    if name in BOX_FORMATS:
        return name
    own = get_box_format(name)
    return {
        "name": name,
        "pattern": own.pattern.pattern,
        "flags": own.pattern.flags,
        "template": own.template,
        "scale": own.scale,
        "decimals": own.decimals,
        "instruction": own.instruction,
        "no_target": own.no_target,
        "point_template": own.point_template,
    }


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
            fix="name a perpo_pipeline.answers.BoxFormat (see docs/boxes.md)",
        )
    _check_fields(found, name)
    _check_round_trip(found, name)
    return found


def _check_fields(own: BoxFormat, name: str) -> None:
    if own.instruction.count(EXPRESSION) != 1:
        raise ConfigError(f"the instruction of the box format {name!r} needs one {EXPRESSION}")
    groups = getattr(own.pattern, "groupindex", {})
    absent = [group for group in COORDINATES if group not in groups]
    if absent:
        raise ConfigError(
            f"the pattern of the box format {name!r} has no group {', '.join(absent)}",
            fix="give a compiled one that names the four numbers, as in (?P<x1>[0-9]+)",
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
    if own.frame is not None and own.frame not in FRAMES:
        raise ConfigError(
            f"the box format {name!r} needs a frame that does not exist: {own.frame!r}",
            fix=f"one of {', '.join(FRAMES)}, or None where every frame makes sense",
        )


def _check_round_trip(own: BoxFormat, name: str) -> None:
    """Raise ConfigError unless the pattern finds the box that the template writes."""
    import numpy as np

    from perpo_pipeline.answers.placement import place_frame

    placement, box = place_frame("full", (1000, 1000)), (100.0, 200.0, 300.0, 400.0)
    fix = "the template writes what the pattern finds, both with the names x1, y1, x2 and y2"
    try:
        written = own.write(box, placement)
        match = None if written is None else own.pattern.search(written)
        numbers = None if match is None else np.array(own.numbers(match))
        found = (
            None if numbers is None else tuple(placement.to_image_px(numbers, own.scale).tolist())
        )
    except Exception as error:  # the user's template, too
        raise ConfigError(
            f"the box format {name!r} cannot write a box and read it: "
            f"{type(error).__name__}: {error}",
            fix=fix,
        ) from error
    rounding = 0.51 * 10.0**-own.decimals * 1000 / (own.scale or 1000)
    is_same = found is not None and all(
        abs(a - b) <= rounding for a, b in zip(found, box, strict=True)
    )
    if not is_same:
        raise ConfigError(
            f"the box format {name!r} writes {box} as {written!r} and reads that as {found}",
            where="an image of 1000x1000 pixels",
            fix=fix,
        )
