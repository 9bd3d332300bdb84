"""The rendered scenes: reproducible, unambiguous, inside the frame, small as files."""

import io
import math

import numpy as np
import pytest

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.testbed.scenes import (
    COLOURS,
    PRESETS,
    SceneObject,
    referring_example,
    referring_scene,
    render_scene,
)


def fits(expression: str, objects: tuple[SceneObject, ...]) -> list[int]:
    """Every object that a reader could mean, derived from the words alone.

    Independent of the generator. Positions within 4 % of the side and sizes within 10 % count as
    equal, so an expression with so close a second candidate fits two objects here.
    """
    words = expression.split()
    if " the " in expression:
        noun, anchor_noun = expression.split(" the ")
        words = noun.split()
        relation = next(w for w in words if w in ("left", "right", "above", "below"))
        named = words[: words.index(relation)]
        colour, shape = anchor_noun.split()
        anchors = [o for o in objects if (o.colour, o.shape) == (colour, shape)]
        assert len(anchors) == 1, f"{expression}: the anchor is ambiguous"
        anchor = anchors[0]
        axis, sign = {
            "left": ("center_x", -1),
            "right": ("center_x", 1),
            "above": ("center_y", -1),
            "below": ("center_y", 1),
        }[relation]
        return [
            j
            for j, o in enumerate(objects)
            if o is not anchor
            and all(word in (o.colour, o.shape) for word in named)
            and sign * (getattr(o, axis) - getattr(anchor, axis)) > 0
        ]
    first, shape = words
    group = [j for j, o in enumerate(objects) if shape in (o.shape, "shape")]
    if first in COLOURS:
        return [j for j in group if objects[j].colour == first]
    if first in ("largest", "smallest"):
        sizes = {j: math.sqrt(objects[j].half_width * objects[j].half_height) for j in group}
        if first == "largest":
            return [j for j in group if sizes[j] > max(sizes.values()) / 1.1]
        return [j for j in group if sizes[j] < min(sizes.values()) * 1.1]
    axis = "center_x" if first in ("leftmost", "rightmost") else "center_y"
    places = {j: getattr(objects[j], axis) for j in group}
    if first in ("leftmost", "topmost"):
        return [j for j in group if places[j] < min(places.values()) + 0.039]
    return [j for j in group if places[j] > max(places.values()) - 0.039]


@pytest.mark.parametrize("preset", ["small", "full"])
def test_every_expression_fits_exactly_its_target(preset):
    checked = 0
    for index in range(60):
        scene = referring_scene(11, index, preset)
        for question in scene.questions:
            assert fits(question.expression, scene.objects) == [question.target]
            checked += 1
    assert checked > 300


def test_a_scene_is_the_same_every_time_and_at_any_position_in_a_shard():
    forwards = [referring_example(3, index) for index in range(6)]
    backwards = [referring_example(3, index) for index in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one.image.tobytes() == other.image.tobytes()
        assert one.expression == other.expression
        assert one.box_xyxy_px == other.box_xyxy_px
        assert one.distractor_box_xyxy_px == other.distractor_box_xyxy_px


def test_known_scene_has_not_changed():
    """Shipped weights and cached artifacts depend on these pixels; a change needs new weights."""
    example = referring_example(0, 0)
    assert example.expression == "topmost shape"
    assert example.image.size == (96, 96)


def test_only_kinds_that_a_preset_asks_are_asked():
    """`red circle` is an attribute; "left of the red circle" is a relation."""
    asked = [referring_example(5, index).expression for index in range(200)]
    assert not [text for text in asked if text.split()[0] in COLOURS and " the " not in text]
    scenes = [referring_scene(5, index) for index in range(200)]
    kinds = {question.kind for scene in scenes for question in scene.questions}
    assert kinds == {"attribute", "extreme", "relation"}


def test_seeds_share_no_scene():
    pictures = {referring_example(seed, i).image.tobytes() for seed in range(4) for i in range(50)}
    assert len(pictures) == 200


@pytest.mark.parametrize("preset", ["small", "full"])
def test_boxes_are_inside_the_image_and_the_distractor_is_another_object(preset):
    side = PRESETS[preset].image_size
    for index in range(100):
        example = referring_example(1, index, preset)
        for x1, y1, x2, y2 in (example.box_xyxy_px, example.distractor_box_xyxy_px):
            assert 0 <= x1 < x2 <= side
            assert 0 <= y1 < y2 <= side
        assert example.box_xyxy_px != example.distractor_box_xyxy_px


def test_the_distractor_has_the_target_shape_if_another_object_has_it():
    for index in range(60):
        scene = referring_scene(2, index)
        for question in scene.questions:
            target = scene.objects[question.target]
            alike = [o for o in scene.objects if o.shape == target.shape and o is not target]
            if alike:
                assert scene.objects[question.distractor] in alike


def test_small_pictures_are_small_files():
    sizes = []
    for index in range(50):
        buffer = io.BytesIO()
        referring_example(4, index).image.save(buffer, "PNG")
        sizes.append(buffer.tell())
    assert max(sizes) < 2048


def test_a_square_paints_exactly_its_box():
    """A 0.25-wide square centred at 0.5 on 96 px covers pixels 36..59 and no others."""
    square = SceneObject("square", "red", 0.5, 0.5, 0.125, 0.125)
    image = render_scene([square], PRESETS["small"], np.random.default_rng(0))
    red = np.all(np.asarray(image) == COLOURS["red"], axis=-1)
    expected = np.zeros((96, 96), dtype=bool)
    expected[36:60, 36:60] = True
    assert np.array_equal(red, expected)


def test_an_unknown_preset_is_a_user_error():
    with pytest.raises(ConfigError, match="medium"):
        referring_example(0, 0, "medium")
