"""Deterministic pictures with referring expressions: the data of the embedded default.

A scene is a handful of coloured shapes on a pale background, rendered with anti-aliasing, and
every question about it that has exactly one answer ("red circle", "leftmost square", "triangle
left of the red circle"). Everything is a pure function of (seed, index, preset), so any shard can
be rendered separately. Scenes have no texture, noise or heavy occlusion, so that a picture stays a
PNG of 1-2 KB and its boxes are definite.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perpo_pipeline.errors import ConfigError

# Makes these scenes differ from other uses of the same seeds.
DOMAIN = 250204371
SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 215, 40),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
    "orange": (250, 140, 30),
    "cyan": (60, 210, 220),
    "gray": (130, 130, 130),
}
EXTREMES = ("leftmost", "rightmost", "topmost", "bottommost", "largest", "smallest")
RELATIONS = ("left of", "right of", "above", "below")
KINDS = ("attribute", "extreme", "relation")


@dataclass(frozen=True)
class ScenePreset:
    """What scenes of one difficulty look like; lengths are fractions of the image side."""

    image_size: int
    num_objects: tuple[int, int]
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    half_size: tuple[float, float]
    max_stretch: float  # width and height differ by up to this factor squared; 1 = regular shapes
    max_overlap: float  # of two boxes, as a share of the smaller one
    position_gap: float = 0.08  # an extreme or a relation holds by at least this much
    size_ratio: float = 1.2  # "largest" is at least this much wider than the next
    asked: tuple[str, ...] = KINDS  # kinds of questions of `referring_example`


PRESETS: dict[str, ScenePreset] = {
    "small": ScenePreset(
        image_size=96,
        num_objects=(2, 3),
        shapes=("circle", "square", "triangle"),
        colours=("red", "green", "blue", "yellow", "purple", "black"),
        half_size=(0.1, 0.2),
        max_stretch=1.0,
        max_overlap=0.0,
        position_gap=0.12,
        size_ratio=1.3,
        asked=("extreme", "relation"),  # the shipped model never learned to find a "red circle"
    ),
    "full": ScenePreset(
        image_size=112,
        num_objects=(4, 7),
        shapes=("circle", "square", "triangle", "diamond"),
        colours=("red", "green", "blue", "yellow", "purple", "orange", "cyan", "gray"),
        half_size=(0.05, 0.18),
        max_stretch=1.3,
        max_overlap=0.25,
        position_gap=0.04,
    ),
}


@dataclass(frozen=True)
class SceneObject:
    """One shape; centre and half extents are fractions of the image side."""

    shape: str
    colour: str
    center_x: float
    center_y: float
    half_width: float
    half_height: float

    @property
    def box_xyxy_norm(self) -> tuple[float, float, float, float]:
        """Bounding box in [0, 1]."""
        x, y, w, h = self.center_x, self.center_y, self.half_width, self.half_height
        return (x - w, y - h, x + w, y + h)

    @property
    def size(self) -> float:
        """Geometric mean of the half extents: what "largest" compares."""
        return float((self.half_width * self.half_height) ** 0.5)


@dataclass(frozen=True)
class Question:
    """An expression that fits exactly one object of its scene, and a wrong object like it."""

    expression: str
    target: int
    distractor: int
    kind: str  # one of KINDS


@dataclass(frozen=True)
class ReferringScene:
    """One picture with all its objects and all its valid questions."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]

    def box_xyxy_px(self, number: int) -> tuple[float, float, float, float]:
        """Box of one object in pixels of the image."""
        x1, y1, x2, y2 = self.objects[number].box_xyxy_norm
        side = self.image.width
        return (x1 * side, y1 * side, x2 * side, y2 * side)


@dataclass(frozen=True)
class ReferringExample:
    """One picture with one question; boxes are xyxy in pixels, `image` is RGB."""

    image: Image.Image = field(repr=False)
    expression: str
    box_xyxy_px: tuple[float, float, float, float]
    distractor_box_xyxy_px: tuple[float, float, float, float]


# How often `referring_example` asks each kind, among the kinds a scene offers.
KIND_WEIGHTS = {"attribute": 0.35, "extreme": 0.4, "relation": 0.25}


def scene_preset(preset: str) -> ScenePreset:
    """The settings of a preset; raises ConfigError for an unknown name."""
    if preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"unknown testbed preset {preset!r}", fix=f"choose one of: {known}")
    return PRESETS[preset]


def referring_example(seed: int, index: int, preset: str = "small") -> ReferringExample:
    """Picture and question number `index` for a seed: a pure function of its three arguments."""
    settings = scene_preset(preset)
    scene, rng = _draw_scene(seed, index, settings, settings.asked)
    kinds = sorted({question.kind for question in scene.questions} & set(settings.asked))
    weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    fitting = [question for question in scene.questions if question.kind == kind]
    question = fitting[int(rng.integers(len(fitting)))]
    return ReferringExample(
        image=scene.image,
        expression=question.expression,
        box_xyxy_px=scene.box_xyxy_px(question.target),
        distractor_box_xyxy_px=scene.box_xyxy_px(question.distractor),
    )


def referring_scene(seed: int, index: int, preset: str = "small") -> ReferringScene:
    """Scene number `index` for a seed with all its valid questions, of any kind.

    It is the one of `referring_example` unless it offers none of the kinds asked there.
    """
    return _draw_scene(seed, index, scene_preset(preset), KINDS)[0]


def _draw_scene(
    seed: int, index: int, preset: ScenePreset, kinds: Collection[str]
) -> tuple[ReferringScene, np.random.Generator]:
    rng = np.random.default_rng([DOMAIN, preset.image_size, seed, index])
    while True:
        objects = _place_objects(rng, preset)
        questions = tuple(valid_questions(objects, preset, rng)) if objects else ()
        # With two look-alikes side by side no question may be valid: draw again.
        if any(question.kind in kinds for question in questions):
            image = render_scene(objects, preset, rng)
            return ReferringScene(image, tuple(objects), questions), rng


def _place_objects(rng: np.random.Generator, preset: ScenePreset) -> list[SceneObject]:
    """Objects that hardly overlap; empty if the drawn objects did not fit into the frame."""
    low, high = preset.num_objects
    count = int(rng.integers(low, high + 1))
    # Leave one shape out: with several objects of a shape, the questions are harder.
    shapes = rng.permutation(len(preset.shapes))[: len(preset.shapes) - 1]
    placed: list[SceneObject] = []
    for _ in range(count):
        shape = preset.shapes[int(shapes[rng.integers(len(shapes))])]
        colour = preset.colours[int(rng.integers(len(preset.colours)))]
        for _attempt in range(20):
            candidate = _place_one(rng, preset, shape, colour)
            if all(overlap_share(candidate, other) <= preset.max_overlap for other in placed):
                placed.append(candidate)
                break
        else:
            return []
    return placed


def _place_one(
    rng: np.random.Generator, preset: ScenePreset, shape: str, colour: str
) -> SceneObject:
    half = rng.uniform(*preset.half_size)
    limit = float(np.log(preset.max_stretch))
    stretch = float(np.exp(rng.uniform(-limit, limit)))
    width, height = half * stretch, half / stretch
    x, y = rng.uniform(width, 1 - width), rng.uniform(height, 1 - height)
    return SceneObject(shape, colour, float(x), float(y), float(width), float(height))


def overlap_share(first: SceneObject, second: SceneObject) -> float:
    """Intersection of two boxes as a share of the smaller box, in [0, 1]."""
    a, b = first.box_xyxy_norm, second.box_xyxy_norm
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    smaller = 4 * min(first.size, second.size) ** 2
    return width * height / smaller


def valid_questions(
    objects: list[SceneObject], preset: ScenePreset, rng: np.random.Generator
) -> Iterator[Question]:
    """Every expression of the grammar that fits exactly one object, by a clear gap.

    `rng` only chooses among equally good distractors.
    """
    for expression, target, kind in _expressions(objects, preset):
        alike = [
            j
            for j, other in enumerate(objects)
            if j != target and other.shape == objects[target].shape
        ]
        others = alike or [j for j in range(len(objects)) if j != target]
        yield Question(expression, target, others[int(rng.integers(len(others)))], kind)


def _expressions(objects: list[SceneObject], preset: ScenePreset) -> Iterator[tuple[str, int, str]]:
    named: dict[tuple[str, str], list[int]] = {}
    by_shape: dict[str, list[int]] = {}
    for j, thing in enumerate(objects):
        named.setdefault((thing.colour, thing.shape), []).append(j)
        by_shape.setdefault(thing.shape, []).append(j)
    for (colour, shape), group in named.items():
        if len(group) == 1:
            yield f"{colour} {shape}", group[0], "attribute"
    for shape, group in [*by_shape.items(), ("shape", list(range(len(objects))))]:
        if len(group) > 1 and (shape != "shape" or len(by_shape) > 1):
            for word in EXTREMES:
                winner = _extreme(objects, group, word, preset)
                if winner is not None:
                    yield f"{word} {shape}", winner, "extreme"
    groups = [(shape, group) for shape, group in by_shape.items()]
    groups += [(f"{c} {s}", group) for (c, s), group in named.items() if len(group) > 1]
    for (colour, shape), anchors in named.items():
        if len(anchors) == 1:
            for noun, group in groups:
                for word in RELATIONS:
                    winner = _related(objects, group, word, anchors[0], preset)
                    if winner is not None:
                        yield f"{noun} {word} the {colour} {shape}", winner, "relation"


# The smaller the value, the better the word fits.
_MEASURES: dict[str, Callable[[SceneObject], float]] = {
    "leftmost": lambda thing: thing.center_x,
    "rightmost": lambda thing: -thing.center_x,
    "topmost": lambda thing: thing.center_y,
    "bottommost": lambda thing: -thing.center_y,
    "largest": lambda thing: -float(np.log(thing.size)),
    "smallest": lambda thing: float(np.log(thing.size)),
    "left of": lambda thing: thing.center_x,
    "right of": lambda thing: -thing.center_x,
    "above": lambda thing: thing.center_y,
    "below": lambda thing: -thing.center_y,
}


def _extreme(
    objects: list[SceneObject], group: list[int], word: str, preset: ScenePreset
) -> int | None:
    measure = _MEASURES[word]
    ranked = sorted(group, key=lambda j: measure(objects[j]))
    ratio = float(np.log(preset.size_ratio))
    gap = ratio if word in ("largest", "smallest") else preset.position_gap
    lead = measure(objects[ranked[1]]) - measure(objects[ranked[0]])
    return ranked[0] if lead >= gap else None


def _related(
    objects: list[SceneObject], group: list[int], word: str, anchor: int, preset: ScenePreset
) -> int | None:
    """The one member in this relation to the anchor, by a clear gap; else None."""
    measure = _MEASURES[word]
    offsets = {j: measure(objects[j]) - measure(objects[anchor]) for j in group if j != anchor}
    fitting = [j for j, offset in offsets.items() if offset < 0]
    if len(fitting) != 1 or offsets[fitting[0]] > -preset.position_gap:
        return None
    return fitting[0]


def render_scene(
    objects: list[SceneObject], preset: ScenePreset, rng: np.random.Generator
) -> Image.Image:
    """Draw the objects, later ones on top, over a plain or softly graded pale background."""
    side = preset.image_size
    first, second = rng.uniform(200, 255, size=3), rng.uniform(200, 255, size=3)
    if rng.random() < 0.5:
        second = first
    ramp = np.linspace(0, 1, side)[:, None, None]
    canvas = np.broadcast_to(first + (second - first) * ramp, (side, side, 3)).copy()
    if rng.random() < 0.5:
        canvas = canvas.transpose(1, 0, 2).copy()
    for thing in objects:
        _paint(canvas, thing)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), "RGB")


def _paint(canvas: NDArray[np.float64], thing: SceneObject) -> None:
    side = canvas.shape[0]
    x1, y1, x2, y2 = (value * side for value in thing.box_xyxy_norm)
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    right, bottom = min(side, int(np.ceil(x2))), min(side, int(np.ceil(y2)))
    cover = _coverage(thing, side, (left, top, right, bottom))[..., None]
    region = canvas[top:bottom, left:right]
    region += cover * (np.array(COLOURS[thing.colour], dtype=np.float64) - region)


def _coverage(
    thing: SceneObject, side: int, region: tuple[int, int, int, int]
) -> NDArray[np.float64]:
    """Share of each pixel that the shape covers, (rows, columns) in [0, 1]."""
    left, top, right, bottom = region
    step = SUPERSAMPLING
    xs = (np.arange(left * step, right * step) + 0.5) / (side * step)
    ys = (np.arange(top * step, bottom * step) + 0.5) / (side * step)
    dx = np.abs(xs - thing.center_x)[None, :] / thing.half_width
    dy = (ys - thing.center_y)[:, None] / thing.half_height
    if thing.shape == "circle":
        inside = dx**2 + dy**2 <= 1
    elif thing.shape == "square":
        inside = (dx <= 1) & (np.abs(dy) <= 1)
    elif thing.shape == "triangle":  # apex at the top
        inside = (np.abs(dy) <= 1) & (dx <= (dy + 1) / 2)
    else:
        inside = dx + np.abs(dy) <= 1
    blocks = inside.reshape(bottom - top, step, right - left, step)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float64)
