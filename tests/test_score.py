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


def test_the_official_sample_is_reproduced_to_1e9(realdata: Path) -> None:
    """The released record's 20 IoUs, with the unrounded truth in the full-image frame."""
    record = json.loads((realdata / "perpo_official_sample/data.json").read_text())[0]
    truth = prompts({**prompt("p", gt_box=[389, 43, 494, 229]), "width": 640, "height": 424})
    given = samples(*[("p", text) for text in record["answers_gen"]])
    scored = score_samples(given, truth, reward="iou", **LLAVA)
    assert scored["reward"].to_pylist() == pytest.approx(record["iou_scores"], abs=1e-9)
