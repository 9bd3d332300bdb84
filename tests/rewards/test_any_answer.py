"""Any answer gets a reward in [0, 1] by every reward, in every format, in bounded time."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards.answer_rows import answers

from perpo_pipeline.answers.boxes import BOX_FORMATS
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.measure_files import measure_answers, measure_boxes
from perpo_pipeline.rewards.builtin import REWARDS
from perpo_pipeline.rewards.choice import measure
from perpo_pipeline.store.artifacts import input_of

TRUTH = {
    "gt_box": [10.0, 20.0, 30.0, 40.0],
    "gt_boxes": [[10.0, 20.0, 30.0, 40.0], [50.0, 50.0, 90.0, 90.0]],
    "gt_polygon": [10.0, 10.0, 90.0, 10.0, 50.0, 90.0],
    "gt_point": [50.0, 50.0],
    "gt_text": "4",
}
DIGITS, DEPTH = 100_000, 100_000
HOSTILE = {
    "digits": "[" + "9" * DIGITS + ", 1, 2, 3]",
    "decimals": "[0." + "1" * DIGITS + ", 1, 2, 3]",
    "deep": "[" * DEPTH + "1, 2, 3, 4" + "]" * DEPTH,
    "deep objects": '{"bbox_2d": ' * (DEPTH // 10) + "1" + "}" * (DEPTH // 10),
    "thoughts": "<think>" * DEPTH,
    "unclosed fence": "```json\n" * (DEPTH // 8),
    "answers": "<answer>[1, 2, 3, 4]" * (DEPTH // 10),
    "boxes": "[0, 0, 1, 1], " * 2_000,
    "points": "[0, 0], [1, 1], [0, 1], " * 2_000,
    "numbers": "1," * DEPTH,
    "huge": "[1" + "0" * 300 + ", -1" + "0" * 300 + ", 1e999, 1]",
    "words": "one " * (DEPTH // 4),
}
PIECES = [
    *(
        "[0.1, 0.2, 0.3, 0.4]",
        "[10, 20, 30, 40]",
        "(10,20),(30,40)",
        "'bbox_2d': [",
        '"bbox_2d": [[',
    ),
    *("<think>", "</think>", "<answer>", "</answer>", "```json", "[", "]", "(", ")", ",", "{", "}"),
    *("1", "-2", ".5", "999999999", "\ud800", "\x00", "\uff0c", " ", "\n", "four", "none"),
]
written = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12).map("".join)
spelled = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "replace"))
readings = st.builds(
    Reading,
    box_format=st.sampled_from(list(BOX_FORMATS)),
    box_frame=st.sampled_from(["full", "crop", "pad"]),
    thinking=st.sampled_from(["auto", "opened", "none"]),
    tag=st.sampled_from(["answer", None]),
    which=st.sampled_from(["first", "last"]),
)


def rewards_of(completions, reading, name):
    cleaned = [text.encode("utf-8", "replace").decode() for text in completions]
    rows = answers(*({"completion": text, **TRUTH} for text in cleaned))
    return measure(replace(rows, reading=reading), {name: 1.0})


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=25, deadline=None)
@given(st.lists(written | spelled, min_size=1, max_size=5), readings)
def test_any_text_gets_a_reward_from_0_to_1(name, completions, reading):
    if name == "polygon_iou" and BOX_FORMATS[reading.box_format].cells:
        with pytest.raises(ConfigError, match="has no polygons"):
            rewards_of(completions, reading, name)
        return
    found = rewards_of(completions, reading, name)
    assert ((found.rewards >= 0) & (found.rewards <= 1)).all()
    assert (found.rewards[~found.parse_ok] == 0).all()
    alone = [rewards_of([text], reading, name) for text in completions]
    np.testing.assert_array_equal(found.rewards, [one.rewards[0] for one in alone])
    np.testing.assert_array_equal(found.parse_ok, [one.parse_ok[0] for one in alone])


@pytest.mark.parametrize("name", REWARDS)
def test_hostile_texts_are_scored_in_bounded_time(name):
    """Some 100,000 characters each: work that grows with their square would take minutes."""
    for box_format in ("llava", "qwen3-vl", "qwen-vl"):
        for which in ("first", "last"):
            start = time.monotonic()
            found = rewards_of(HOSTILE.values(), Reading(box_format, which=which), name)
            assert ((found.rewards >= 0) & (found.rewards <= 1)).all()
            assert time.monotonic() - start < 20


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_hostile_texts_are_measured_from_a_file(box_format: str, tmp_path: Path):
    box = {"gt_box": TRUTH["gt_box"], "width": 100, "height": 100}
    frame = "resized:100x100" if box_format == "qwen2.5-vl" else "full"
    texts = [*HOSTILE.values(), *PIECES]
    for kind, truth in (("boxes", box), ("answers", {"gt_text": "4"})):
        lines = [json.dumps({"completion": text, **truth}) for text in texts]
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("\n".join(lines))
        if kind == "boxes":
            found = measure_boxes(file, out=tmp_path / kind, box_format=box_format, frame=frame)
        elif box_format == "llava":
            found = measure_answers(file, out=tmp_path / kind)
        rewards = input_of(found, "predictions").table()["reward"].to_numpy()
        assert len(rewards) == len(texts) and ((rewards >= 0) & (rewards <= 1)).all()
