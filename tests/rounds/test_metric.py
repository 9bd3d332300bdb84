"""The metric in which a round must gain."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.rounds.metric import metric_of
from perpo_pipeline.run import Run

SAID: dict[str, Any] = {"task": "vqa", "prompt": "Which?", "gt_text": "the first"}
BOX: dict[str, Any] = {"task": "grounding", "expression": "cup", "gt_box": [1, 1, 4, 4]}
BOXES = {"task": "grounding", "expression": "cups", "gt_boxes": [[1, 1, 4, 4], [2, 2, 6, 6]]}
NONE = {"task": "grounding", "expression": "dog", "gt_boxes": []}


def decided(folder: Path, rows: list[dict[str, Any]], name: str | None = None) -> str:
    """The metric of a run that is measured on these prompts."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = [json.dumps({"image": "a.png", **row}) for row in rows]
    (folder / "test.jsonl").write_text("\n".join(lines))
    source = {"source": "jsonl", "path": str(folder / "test.jsonl")}
    config = {
        "run": "r",
        "data_root": str(folder / "data"),
        "prepare": dict.fromkeys(("train", "test"), source),
        "rounds": {"metric": name},
    }
    run = Run(RunConfig.model_validate(config), quiet=True)
    return metric_of(run.config, [prepare(run, "test")]).name


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([SAID], "edit_distance"),
        ([NONE], "denial_rate"),
        ([BOXES, NONE], "mean_set_iou"),
        ([BOX], "ap50"),
    ],
)
def test_it_is_one_that_compare_compares(
    tmp_path: Path, rows: list[dict[str, Any]], expected: str
) -> None:
    assert decided(tmp_path, rows) == expected


def test_several_tasks_need_a_name_and_a_name_must_be_comparable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several tasks") as found:
        decided(tmp_path, [SAID, BOX])
    assert "ap50 or edit_distance" in str(found.value.fix)
    assert decided(tmp_path, [SAID, BOX], "miou") == "miou"
    with pytest.raises(ConfigError, match="token_f1 is not compared") as found:
        decided(tmp_path, [SAID], "token_f1")
    assert "choose one of edit_distance" in str(found.value.fix)
