"""How model families ask for a box and write it as text, and what the numbers in it mean.

Two settings decide, and neither is ever guessed from the text:

- the *format*: how four numbers are written and what one unit is: a fraction of the frame,
  a thousandth of it, or one of its pixels; and the question that such an answer belongs to.
- the *frame*: which picture the numbers refer to. `full` is the original, un-padded image;
  `crop` its centred square with the side of the short edge (what is left after CLIP's processor
  resized the shortest edge and cropped the centre); `pad` the centred square with the side of the
  long edge (the image padded, as in the original LLaVA); `resized` the image resized as a whole
  to a given size (Qwen2.5-VL's pixels are those of the resized image: see `smart_resize`), which
  differs from prompt to prompt and is recorded with every answer.

What counts as parsed, for every format: the *first* place in the text that has the format's shape
with four plain decimal numbers is taken, later ones are ignored; its numbers must lie inside the
frame up to `RANGE_SLACK` of its extent, else the answer is in another unit or frame and is
unparsed. Nothing is clamped, swapped or rescaled. An inverted box (x1 > x2 or y1 > y2) is parsed
and returned as it was written: the model did write a box, whose overlap with anything is 0.
"""

import functools
import importlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    pass

Box = tuple[float, float, float, float]
Size = tuple[int, int]

COORDINATES = ("x1", "y1", "x2", "y2")
FRAMES = ("full", "crop", "pad", "resized")

# How far outside its frame, as a share of the frame's extent, a coordinate may lie: models write
# 1.01 or 1001 at an edge, and rounding moves a coordinate by half a hundredth.
RANGE_SLACK = 0.01

EXPRESSION = "{expression}"
# LLaVA's question, and the paper's (METHOD: 'The paper's recipes').
_ASK = (
    "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
)


@dataclass(frozen=True)
class BoxFormat:
    """How one model family writes a box; a user's own is named as `pkg.module:attribute`.

    `pattern` finds it, with named groups x1, y1, x2, y2; `template` writes it (`str.format` with
    these names). A coordinate is `scale` units across the frame, None meaning the frame's pixels,
    and is written with `decimals` decimals. `instruction` asks for it: `{expression}` stands for
    what is looked for.
    """

    name: str
    pattern: re.Pattern[str]
    template: str
    scale: float | None
    decimals: int = 0
    instruction: str = _ASK

    def ask(self, expression: str) -> str:
        """The question for the box of what `expression` describes."""
        return self.instruction.replace(EXPRESSION, expression)

    def asked_for(self, question: str) -> str | None:
        """The expression in a question that `ask` made, None for any other text."""
        before, after = self.instruction.split(EXPRESSION)
        if not (question.startswith(before) and question.endswith(after)):
            return None
        return question.removeprefix(before).removesuffix(after)


# A plain decimal, as every built-in format writes its numbers: no plus sign, no exponent.
DECIMAL = r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


def _number(name: str) -> str:
    return rf"\s*(?P<{name}>{DECIMAL})\s*"


_BRACKETED = r"\[" + ",".join(map(_number, COORDINATES)) + r"\]"
_POINTS = r"\({},{}\)\s*(?:,\s*)?\({},{}\)".format(*map(_number, COORDINATES))
_JSON = r'"bbox_2d"\s*:\s*' + _BRACKETED
_JSON_TEMPLATE = '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'

BOX_FORMATS: dict[str, BoxFormat] = {
    box_format.name: box_format
    for box_format in (
        BoxFormat("llava", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", 1.0, decimals=2),
        BoxFormat("qwen-vl", re.compile(_POINTS), "<box>({x1},{y1}),({x2},{y2})</box>", 1000.0),
        BoxFormat(
            "qwen2-vl",
            re.compile(_POINTS),
            "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
            1000.0,
        ),
        BoxFormat(
            "qwen2.5-vl",  # the question of Qwen's cookbook
            re.compile(_JSON),
            _JSON_TEMPLATE,
            None,
            instruction="Locate {expression}, output its bbox coordinates using JSON format.",
        ),
        BoxFormat(
            "qwen3-vl",  # the question of Qwen3-VL's report, appendix on evaluation
            re.compile(_JSON),
            _JSON_TEMPLATE,
            1000.0,
            instruction='Locate every object that matches the description "{expression}" in the '
            "image. Report bbox coordinates in JSON format.",
        ),
        BoxFormat(
            "internvl",  # the question of InternVL's evaluation of RefCOCO
            re.compile(_BRACKETED),
            "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
            1000.0,
            instruction=_ASK.replace(EXPRESSION, f"<ref>{EXPRESSION}</ref>"),
        ),
        BoxFormat("pixel", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", None),
    )
}


def parse_box(
    text: str, box_format: str, *, frame: str, image_size: Size, resized: Size | None = None
) -> Box | None:
    """Read the first box in a text, as xyxy in pixels of the original image; None if unparsed.

    `image_size` and `resized` are (width, height) in pixels; `resized` is needed by the frame
    `resized` and used by no other. What counts as parsed: see the module. Raises ConfigError for
    an unknown format or frame, a missing `resized` and sizes below 1.
    """
    return _read(get_box_format(box_format), _Geometry.of(frame, image_size, resized), text)


def parse_boxes(
    text: str, box_format: str, *, frame: str, image_size: Size, resized: Size | None = None
) -> list[Box | None]:
    """Read every box in a text, in order; None stands for one that alone would be unparsed.

    Arguments, errors and what counts as parsed as in `parse_box`.
    """
    rule, geometry = get_box_format(box_format), _Geometry.of(frame, image_size, resized)
    return [_place(rule, geometry, match) for match in rule.pattern.finditer(text)]


def format_box(
    box_xyxy_px: Box, box_format: str, *, frame: str, image_size: Size, resized: Size | None = None
) -> str:
    """Write a box given in pixels of the original image: the inverse of `parse_box`, rounded.

    Halves round to even. Arguments as in `parse_box`. Raises InputError for a box that is
    inverted, not finite, or reaches out of the frame by more than one written unit (pixels beyond
    a centre crop cannot be written down: `clip_to_frame` first), else as `parse_box`.
    """
    rule = get_box_format(box_format)
    geometry = _Geometry.of(frame, image_size, resized)
    _check_box(box_xyxy_px)
    written = _write(rule, geometry, box_xyxy_px)
    if written is None:
        raise InputError(
            f"the box {list(box_xyxy_px)} reaches out of the frame {frame!r} "
            f"of an image of {image_size[0]}x{image_size[1]} pixels",
            fix="check the box, or clip it to the frame before writing it",
        )
    return written


def clip_to_frame(
    box_xyxy_px: Box, *, frame: str, image_size: Size, resized: Size | None = None
) -> Box | None:
    """The part of a box that lies inside the frame, in pixels of the original image; None if none.

    Only `crop` cuts anything off a box inside the image. Arguments and errors as in `format_box`.
    """
    geometry = _Geometry.of(frame, image_size, resized)
    _check_box(box_xyxy_px)
    left, top = geometry.offset
    right, bottom = left + geometry.extent[0], top + geometry.extent[1]
    x1, y1, x2, y2 = box_xyxy_px
    clipped = (max(x1, left), max(y1, top), min(x2, right), min(y2, bottom))
    is_visible = clipped[0] < clipped[2] and clipped[1] < clipped[3]
    return clipped if is_visible else None


def get_box_format(name: str) -> BoxFormat:
    """The format of that name, or the user's `BoxFormat` at the import path `pkg.module:attribute`.

    Raises ConfigError naming the formats there are, and for a format of the user's that does not
    read the box that it writes.
    """
    return BOX_FORMATS.get(name) or _load_own(name)


def describe_box_format(name: str) -> str | dict[str, Any]:
    """What of a format decides how answers are read, for fingerprints: the name of one of ours,
    the content of the user's own, which may change under its name."""
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
    }


def frame_fault(box_format: str, frame: str) -> str | None:
    """What does not fit between a format and a frame, or None."""
    if box_format == "qwen2.5-vl" and frame != "resized":
        return "box_format qwen2.5-vl is pixels of the resized image: set box_frame to resized"
    return None


@functools.cache
def _load_own(name: str) -> BoxFormat:
    """The user's own format, tried with one box."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no box format {name!r}",
            fix=f"one of {', '.join(BOX_FORMATS)}, or your own as pkg.module:attribute",
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
            f"the box format {name!r} is no BoxFormat but of type {type(found).__name__}",
            fix="name a perpo_pipeline.answers.boxes.BoxFormat",
        )
    if found.instruction.count(EXPRESSION) != 1:
        raise ConfigError(f"the instruction of the box format {name!r} needs one {EXPRESSION}")
    groups = getattr(found.pattern, "groupindex", {})
    absent = [group for group in COORDINATES if group not in groups]
    if absent:
        raise ConfigError(
            f"the pattern of the box format {name!r} has no group {', '.join(absent)}",
            fix="give a compiled one that names the four numbers, as in (?P<x1>[0-9]+)",
        )
    _check_round_trip(found, name)
    return found


def _check_round_trip(rule: BoxFormat, name: str) -> None:
    """Raise ConfigError unless a box that the format writes is found again by its pattern."""
    geometry, box = _Geometry.of("full", (1000, 1000), None), (100.0, 200.0, 300.0, 400.0)
    fix = "the template writes what the pattern finds, both with the names x1, y1, x2 and y2"
    try:
        written = _write(rule, geometry, box)
        found = None if written is None else _read(rule, geometry, written)
    except Exception as error:  # the user's template, too
        raise ConfigError(
            f"the box format {name!r} cannot write a box and read it: "
            f"{type(error).__name__}: {error}",
            fix=fix,
        ) from error
    rounding = 0.51 * 10.0**-rule.decimals * 1000 / (rule.scale or 1000)
    if found is None or any(abs(a - b) > rounding for a, b in zip(found, box, strict=True)):
        raise ConfigError(
            f"the box format {name!r} writes {box} as {written!r} and reads that as {found}",
            where="an image of 1000x1000 pixels",
            fix=fix,
        )


def _write(rule: BoxFormat, geometry: "_Geometry", box_xyxy_px: Box) -> str | None:
    """The box in the format; None where it reaches out of the frame by more than one unit."""
    step = 10.0**-rule.decimals
    written = {}
    fractions = geometry.to_fractions(box_xyxy_px)
    for name, fraction, units in zip(COORDINATES, fractions, geometry.units(rule), strict=True):
        value = fraction * units
        if not -step <= value <= units + step:
            return None
        written[name] = f"{min(max(value, 0.0), units):.{rule.decimals}f}"
    return rule.template.format(**written)


def _read(rule: BoxFormat, geometry: "_Geometry", text: str) -> Box | None:
    """The first box in the text, None if that is not as the module says."""
    match = rule.pattern.search(text)
    return None if match is None else _place(rule, geometry, match)


def _place(rule: BoxFormat, geometry: "_Geometry", match: re.Match[str]) -> Box | None:
    """The box that the format's pattern found, None if it is none or lies out of the frame."""
    fractions = []
    for name, units in zip(COORDINATES, geometry.units(rule), strict=True):
        try:
            fraction = float(match[name]) / units
        except (TypeError, ValueError):  # a user's pattern: no such group in this match, or words
            return None
        if not -RANGE_SLACK <= fraction <= 1 + RANGE_SLACK:
            return None
        fractions.append(fraction)
    return geometry.to_image_px(fractions)


def smart_resize(
    image_size: Size,
    *,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> Size:
    """The (width, height) to which Qwen2-VL and Qwen2.5-VL resize an image before they read it.

    Multiples of `factor` near the original size, with between `min_pixels` and `max_pixels` in
    all. Raises InputError for an edge ratio above 200, as the models do. Source: `smart_resize` of
    Qwen's `qwen-vl-utils`, which takes and gives (height, width).
    """
    width, height = image_size
    _check_size(image_size, "image_size")
    if max(image_size) / min(image_size) > 200:
        raise InputError(f"an image of {width}x{height} pixels is too narrow: edge ratio above 200")
    new_width, new_height = (round(edge / factor) * factor for edge in image_size)
    if new_width * new_height > max_pixels:
        ratio = math.sqrt(width * height / max_pixels)
        new_width, new_height = (
            max(factor, math.floor(edge / ratio / factor) * factor) for edge in image_size
        )
    elif new_width * new_height < min_pixels:
        ratio = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (math.ceil(edge * ratio / factor) * factor for edge in image_size)
    return new_width, new_height


@dataclass(frozen=True)
class _Geometry:
    """Where a frame lies over the original image, in its pixels, and how many pixels it has."""

    offset: tuple[float, float]
    extent: tuple[float, float]
    pixels: Size

    @classmethod
    def of(cls, frame: str, image_size: Size, resized: Size | None) -> "_Geometry":
        _check_size(image_size, "image_size")
        width, height = image_size
        if frame == "full":
            return cls((0, 0), image_size, image_size)
        if frame == "crop":
            side = min(image_size)
            return cls(((width - side) / 2, (height - side) / 2), (side, side), (side, side))
        if frame == "pad":
            side = max(image_size)
            # The released LLaVA pastes the image at whole pixels: images.pad_to_square.
            return cls(
                (-((side - width) // 2), -((side - height) // 2)), (side, side), (side, side)
            )
        if frame == "resized":
            if resized is None:
                raise ConfigError("the frame 'resized' needs the size of the resized image")
            _check_size(resized, "resized")
            return cls((0, 0), image_size, resized)
        raise ConfigError(f"there is no frame {frame!r}", fix=f"one of {', '.join(FRAMES)}")

    def units(self, rule: BoxFormat) -> tuple[float, float, float, float]:
        """How many of the format's units there are across the frame, for x1, y1, x2, y2."""
        x, y = self.pixels if rule.scale is None else (rule.scale, rule.scale)
        return x, y, x, y

    def to_image_px(self, fractions: list[float]) -> Box:
        x1, y1, x2, y2 = fractions
        (left, top), (width, height) = self.offset, self.extent
        return left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height

    def to_fractions(self, box_xyxy_px: Box) -> Box:
        x1, y1, x2, y2 = box_xyxy_px
        (left, top), (width, height) = self.offset, self.extent
        return (x1 - left) / width, (y1 - top) / height, (x2 - left) / width, (y2 - top) / height


def _check_size(size: Size, name: str) -> None:
    if min(size) < 1:
        raise ConfigError(f"{name} is {size}; width and height must be 1 or more")


def _check_box(box_xyxy_px: Box) -> None:
    x1, y1, x2, y2 = box_xyxy_px
    if not (all(map(math.isfinite, box_xyxy_px)) and x1 <= x2 and y1 <= y2):
        raise InputError(
            f"{list(box_xyxy_px)} is not a box: x1 <= x2 and y1 <= y2 must hold",
            fix="give boxes as x1, y1, x2, y2 in pixels of the original image",
        )


REFERRING_PROMPT = BOX_FORMATS["llava"].instruction
"""The paper's grounding instruction (METHOD: 'The paper's recipes')."""
