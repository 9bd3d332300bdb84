"""Scores: the right truth for each row, unparsed answers as 0, nothing re-ordered."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.score import score_samples

LLAVA = {"box_format": "llava", "box_frame": "full"}


def samples(*rows: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "prompt_id": [key for key, _ in rows],
            "sample_id": pa.array(range(len(rows)), pa.int32()),
            "completion": [text for _, text in rows],
        }
    )


def prompt(key: str, task: str = "grounding", **truth: object) -> dict[str, object]:
    row = {"prompt_id": key, "task": task, "width": 100, "height": 100}
    return {**row, "gt_text": None, "gt_box": None, **truth}


def prompts(*rows: dict[str, object]) -> pa.Table:
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("task", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("gt_text", pa.string()),
            ("gt_box", pa.list_(pa.float64())),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema)


def test_each_answer_is_measured_against_the_truth_of_its_own_prompt() -> None:
    """Half of the box is right: intersection 0.2*0.4, union 0.4*0.4, IoU 0.5; then a full hit."""
    truth = prompts(prompt("a", gt_box=[0, 0, 40, 40]), prompt("b", gt_box=[50, 50, 90, 90]))
    given = samples(
        ("b", "[0.50, 0.50, 0.90, 0.90]"),
        ("a", "[0.00, 0.00, 0.20, 0.40]"),
        ("b", "[0.00, 0.00, 0.20, 0.40]"),
        ("a", "no box at all"),
    )
    scored = score_samples(given, truth, reward="iou", **LLAVA)
    assert scored["prompt_id"].to_pylist() == ["b", "a", "b", "a"]
    assert scored["reward"].to_pylist() == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert scored["parse_ok"].to_pylist() == [True, True, True, False]
    assert scored["box"].to_pylist()[1] == pytest.approx([0, 0, 20, 40])
    assert scored["box"].to_pylist()[3] is None


def test_auto_takes_the_measure_of_each_rows_task() -> None:
    truth = prompts(prompt("a", gt_box=[0, 0, 40, 40]), prompt("t", task="ocr", gt_text="abcd"))
    given = samples(("t", "abcx"), ("a", "[0.00, 0.00, 0.40, 0.40]"))
    scored = score_samples(given, truth, reward="auto", **LLAVA)
    assert scored["reward"].to_pylist() == pytest.approx([0.75, 1.0])


def test_a_sample_without_its_prompt_is_an_error_not_a_zero() -> None:
    with pytest.raises(ArtifactError, match="belong to no prompt, the first to x"):
        score_samples(samples(("x", "")), prompts(prompt("a", gt_box=[0, 0, 1, 1])), reward="iou",
                      **LLAVA)  # fmt: skip


def test_a_reward_without_its_truth_is_an_error_not_a_zero() -> None:
    with pytest.raises(ArtifactError, match="no truth to measure against"):
        score_samples(samples(("a", "x")), prompts(prompt("a", gt_box=[0, 0, 1, 1])),
                      reward="edit_similarity", **LLAVA)  # fmt: skip


def resized_samples(*rows: tuple[str, str, tuple[int, int] | None]) -> pa.Table:
    sizes = pa.array([size for *_, size in rows], pa.list_(pa.int32()))
    return samples(*[(key, text) for key, text, _ in rows]).append_column("resized", sizes)


RESIZED = {"box_format": "qwen2.5-vl", "box_frame": "resized"}


def test_pixels_of_the_resized_image_are_read_by_each_rows_own_size() -> None:
    """The same text is (0, 0, 50, 50) of 100 x 100 seen at 56 x 56, (0, 0, 25, 50) at 112 x 56."""
    truth = prompts(prompt("a", gt_box=[0, 0, 50, 50]), prompt("b", gt_box=[0, 0, 50, 50]))
    text = '```json\n[{"bbox_2d": [0, 0, 28, 28], "label": "cat"}]\n```'
    given = resized_samples(("b", text, (112, 56)), ("a", text, (56, 56)), ("a", "?", (56, 56)))
    scored = score_samples(given, truth, reward="iou", **RESIZED)
    assert scored["box"].to_pylist()[:2] == [[0, 0, 25, 50], [0, 0, 50, 50]]
    assert scored["reward"].to_pylist() == pytest.approx([0.5, 1.0, 0.0])


def test_an_answer_without_the_size_that_its_frame_needs_names_the_stage_to_rerun() -> None:
    truth = prompts(prompt("a", gt_box=[0, 0, 50, 50]), prompt("t", task="ocr", gt_text="abcd"))
    given = resized_samples(("a", "?", (56, 56)), ("a", "?", None), ("t", "abcd", None))
    with pytest.raises(ArtifactError, match="1 answers lack, the first of prompt a") as caught:
        score_samples(given, truth, reward="auto", **RESIZED)
    assert "rerun `perpo sample`" in str(caught.value)
    scored = score_samples(given[2:], truth, reward="auto", **RESIZED)
    assert scored["reward"].to_pylist() == [1.0]  # a text needs none


def test_the_official_sample_is_reproduced_to_1e9(realdata: Path) -> None:
    """The released record's 20 IoUs, with the unrounded truth in the full-image frame."""
    record = json.loads((realdata / "perpo_official_sample/data.json").read_text())[0]
    truth = prompts({**prompt("p", gt_box=[389, 43, 494, 229]), "width": 640, "height": 424})
    given = samples(*[("p", text) for text in record["answers_gen"]])
    scored = score_samples(given, truth, reward="iou", **LLAVA)
    assert scored["reward"].to_pylist() == pytest.approx(record["iou_scores"], abs=1e-9)
