"""Published answers of real models against their published figures, right and wrongly set up."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perpo_pipeline.answers.frames import smart_resize
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.file import load_config
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS
from tools.acceptance.base import ANSWER_COLUMNS, TRUTH_COLUMNS, check_base, token_fault
from tools.acceptance.published import Published, find_published
from tools.acceptance.stages import CONFIGS, HELD_OUT, METHOD, TEST

LLAVA = "llava-hf/llava-1.5-7b-hf"
QUESTIONS = 300
Row = dict[str, Any]


def xyxy(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


@pytest.fixture(scope="module")
def llava(realdata: Path) -> list[Row]:
    """1,975 answers of LLaVA-1.5-7B with their truths."""
    text = (realdata / "rec_predictions" / "llava15_refcoco_testA.jsonl").read_text()
    return [
        {
            "completion": row["raw_response"],
            "gt_box": xyxy(row["gt_xywh"]),
            "width": row["width"],
            "height": row["height"],
        }
        for row in map(json.loads, text.splitlines())
    ]


@pytest.fixture(scope="module")
def internvl(realdata: Path) -> list[Row]:
    """1,975 boxes of InternVL2.5-8B, written as Qwen3-VL writes boxes."""
    folder = realdata / "rec_predictions"
    said = json.loads((folder / "internvl25_refcoco_testA.json").read_text())
    truth = json.loads((realdata / "refcoco_gt" / "refcoco_testA.json").read_text())
    refs = list({row["img_id"]: row for row in reversed(truth)}.values())[::-1]
    answered = [entry["prediction"] for entry in said["lmms-lab/RefCOCO"]["internvl"]]
    return [
        {
            "completion": _thousandths(one, ref),
            "gt_box": xyxy(ref["bbox"]),
            "width": ref["width"],
            "height": ref["height"],
            "resized": smart_resize((ref["width"], ref["height"])),
        }
        for one, ref in zip(answered, refs, strict=True)
    ]


def _thousandths(said: Row, ref: Row) -> str:
    if not said.get("box"):
        return str(said["text"])
    sides = [ref["width"], ref["height"]] * 2
    box = [round(1000 * value / side) for value, side in zip(said["box"], sides, strict=True)]
    return f'```json\n[{{"bbox_2d": {box}, "label": "it"}}]\n```'


def some(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """300 of the rows, drawn anew by each seed."""
    chosen = np.random.default_rng(seed).choice(len(rows), QUESTIONS, replace=False)
    return [rows[i] for i in sorted(chosen)]


def tables(rows: Sequence[Row]) -> tuple[pa.Table, pa.Table]:
    """Answers and truths, as the stages write them."""
    defaults = {"task": "grounding", "finish_reason": "stop", "resized": None}
    full = [{**defaults, **row, "prompt_id": f"p{i}"} for i, row in enumerate(rows)]
    found = []
    for schema, names in ((PREDICTIONS, ANSWER_COLUMNS), (PROMPTS, TRUTH_COLUMNS)):
        fields = [schema.columns.field(name).with_nullable(True) for name in names]
        found.append(pa.Table.from_pylist(full, schema=pa.schema(fields)))
    return found[0], found[1]


def causes(rows: Sequence[Row], reading: Reading, published: Published) -> Sequence[str]:
    """The causes that are named for answers that must miss the range."""
    found = check_base(*tables(rows), reading, published)
    assert not found.passed
    return found.causes


def changed(rows: Sequence[Row], change: Callable[[int, Row], Row]) -> list[Row]:
    return [row | change(i, row) for i, row in enumerate(rows)]


FULL = Reading("llava", "full")


def test_the_range_is_the_binomial_interval_and_the_stated_allowance() -> None:
    """At p = 1/2 Wilson's centre is 1/2 and its half width z / (2 sqrt(n + z^2)), z = 1.96."""
    half = 1.959964 / (2 * (300 + 1.959964**2) ** 0.5)
    published = replace(find_published(LLAVA), ap50=0.5, below=0.03, above=0.02)
    assert published.limits(300) == pytest.approx((0.5 - half - 0.03, 0.5 + half + 0.02), abs=1e-6)
    assert replace(published, ap50=1.0).limits(300)[1] == 1.0


def test_llavas_published_answers_pass_whichever_300_are_asked(llava: list[Row]) -> None:
    published = find_published(LLAVA)
    for seed in range(20):
        found = check_base(*tables(some(llava, seed)), FULL, published)
        assert found.passed and not found.causes, (seed, found)
    assert check_base(*tables(llava), FULL, published).score.ap50 == 0.4891139240506329


def test_a_wrong_frame_is_named_with_what_the_others_score(llava: list[Row]) -> None:
    found = causes(some(llava), Reading("llava", "pad"), find_published(LLAVA))
    assert len(found) == 1 and found[0].startswith("wrong frame: the same answers, read as ")
    right = check_base(*tables(some(llava)), FULL, find_published(LLAVA)).score.ap50
    assert f"{right:.1%} as box_format llava, box_frame full" in found[0]
    assert "box_format llava, box_frame crop" in found[0] and "Nothing was chosen" in found[0]


def test_internvls_boxes_pass_and_a_wrong_format_is_named(internvl: list[Row]) -> None:
    published = replace(find_published(LLAVA), ap50=0.8942)
    rows = some(internvl)
    right = check_base(*tables(rows), Reading("qwen3-vl", "full"), published)
    assert right.passed
    found = causes(rows, Reading("qwen2.5-vl", "resized"), published)
    assert found[0].startswith("wrong box format: ")
    assert f"{right.score.ap50:.1%} as box_format qwen3-vl, box_frame full" in found[0]
    found = causes(rows, Reading("qwen-vl", "full"), published)
    assert found[0].startswith("wrong box format: ")
    assert found[1].startswith("wrong template or prompt: 300 of 300 answers hold no box")


@pytest.mark.parametrize("step", [1, 50])
def test_answers_of_other_images_are_named(llava: list[Row], step: int) -> None:
    rows = some(llava)
    moved = changed(rows, lambda i, _: {"completion": rows[(i + step) % len(rows)]["completion"]})
    (found,) = causes(moved, FULL, find_published(LLAVA))
    assert found.startswith("answers do not belong to their images: ")


def test_one_and_the_same_answer_is_named(llava: list[Row]) -> None:
    rows = changed(
        some(llava), lambda i, row: {"completion": "[0.0, 0.0, 0.5, 1.0]"} if i % 3 else {}
    )
    (found,) = causes(rows, FULL, find_published(LLAVA))
    assert found.startswith("degenerate answers: 200 of 300 prompts")
    assert "[0.0, 0.0, 0.5, 1.0]" in found


def test_answers_that_are_cut_are_named_first(llava: list[Row]) -> None:
    rows = changed(
        some(llava),
        lambda i, row: {"completion": row["completion"][:12], "finish_reason": "length"},
    )
    found = causes(rows, FULL, find_published(LLAVA))
    assert found[0].startswith("truncation: 300 of 300 answers end at eval.max_new_tokens")
    assert found[1].startswith("wrong template or prompt: ")


def test_answers_without_a_box_are_named_with_one_of_them(llava: list[Row]) -> None:
    rows = changed(some(llava), lambda i, row: {"completion": f"a man, {i}"} if i % 2 else {})
    (found,) = causes(rows, FULL, find_published(LLAVA))
    assert found.startswith("wrong template or prompt: 150 of 300 answers hold no box")
    assert "'a man, 1'" in found


def test_answers_that_are_too_good_are_doubted(internvl: list[Row]) -> None:
    (found,) = causes(some(internvl), Reading("qwen3-vl", "full"), find_published(LLAVA))
    assert found.startswith("better than published: ")


def test_answers_that_are_only_worse_have_no_known_cause(llava: list[Row]) -> None:
    """As if another prompt were worth eleven points."""
    published = replace(find_published(LLAVA), ap50=0.6, below=0.0)
    (found,) = causes(some(llava), FULL, published)
    assert found.startswith("unknown: ")


def test_another_number_of_image_tokens_is_named() -> None:
    published = find_published("Qwen/Qwen2.5-VL-7B-Instruct")
    assert token_fault([391, 400], published) is None and token_fault([], published) is None
    fault = token_fault([391, 1564], published)
    assert fault is not None
    assert "an image of 640x480 becomes 1,564 tokens, and 391 are expected" in fault


def test_a_model_without_a_figure_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'Qwen/Qwen3-VL-4B-Instruct'") as caught:
        find_published("Qwen/Qwen3-VL-4B")
    assert "with its source" in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_acceptance_has_a_figure_and_its_three_splits(path: Path) -> None:
    config = load_config(path)
    assert find_published(config.model.id).source
    assert list(config.prepare) == ["train", TEST, HELD_OUT]
    assert config.eval.splits == [TEST, HELD_OUT] and config.eval.conditions == []
    assert config.filter.max_lists == QUESTIONS and list(config.train.methods) == [METHOD]
    source = config.prepare[TEST]
    asked = source.num_prompts if source.source == "testbed" else source.per_dataset
    assert asked == QUESTIONS
