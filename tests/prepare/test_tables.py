"""The plain JSON-lines form: checked row by row, every fault expected with its line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.collect import Request
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.run import Run

GOOD = {"image": "a.png", "prompt": "Where?", "task": "grounding", "gt_box": [1, 2, 8, 9]}


def dataset(tmp_path: Path, *rows: Any) -> TableSource:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 10), "blue").save(tmp_path / "b.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("no image at all")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return TableSource(source="jsonl", path=tmp_path / "data.jsonl")


def read_rows(source: TableSource, split: str, box_format: str = "llava") -> Any:
    prepared = read_table(source, Request(split, box_format))
    return list(prepared.rows), prepared.facts


def test_a_good_row_keeps_its_values(tmp_path: Path) -> None:
    rows, _ = read_rows(dataset(tmp_path, GOOD), "train")
    (row,) = rows
    assert row["gt_box"] == [1.0, 2.0, 8.0, 9.0]
    assert (row["width"], row["height"], row["prompt"]) == (20, 10, "Where?")
    assert row["image"] == {"bytes": None, "path": str((tmp_path / "a.png").resolve())}


def test_an_expression_gets_the_papers_instruction(tmp_path: Path) -> None:
    row = {**GOOD, "expression": "glass behind burger"}
    del row["prompt"]
    (read,), _ = read_rows(dataset(tmp_path, row), "train")
    assert read["prompt"] == (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "glass behind burger"
    )


def test_embedded_images_are_the_files_bytes(tmp_path: Path) -> None:
    source = dataset(tmp_path, GOOD).model_copy(update={"embed_images": True})
    (row,), _ = read_rows(source, "train")
    assert row["image"]["bytes"] == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({**GOOD, "gt_box": [8, 2, 1, 9]}, "inverted or empty"),
        ({**GOOD, "gt_box": [1, 2, 1, 9]}, "inverted or empty"),
        ({**GOOD, "gt_box": [1, 2, 8, 19]}, "outside the image of 20x10"),
        ({**GOOD, "gt_box": [-3, 2, 8, 9]}, "outside the image"),
        ({**GOOD, "gt_box": [1, 2, 8]}, "not four finite numbers"),
        ({**GOOD, "gt_box": [1, 2, 8, "9"]}, "not four finite numbers"),
        ({**GOOD, "gt_box": None}, "`gt_box` is null (task grounding"),
        ({k: v for k, v in GOOD.items() if k != "gt_box"}, "`gt_box` is missing"),
        ({**GOOD, "gt_box": [4, 5, 4.9, 5.9]}, "gt_box is smaller than a pixel"),
        (
            {**GOOD, "prompt": "Is <image> <image>?"},
            "holds <image> more than once; it is the place",
        ),
        ({**GOOD, "image": None}, "`image` is null"),
        ({**GOOD, "image": ""}, "`image` is missing"),
        ({**GOOD, "id": None}, "`id` is null; give a value"),
        ({**GOOD, "dataset": None}, "`dataset` is null; give a value"),
        ({**GOOD, "task": None}, "`task` is null; give one of"),
        ({k: v for k, v in GOOD.items() if k != "task"}, "`task` is missing; give one of"),
        ({**GOOD, "task": "ocr", "gt_text": None}, "`gt_text` is null (task ocr)"),
        ({**GOOD, "image": "missing.png"}, "No such file"),
        ({**GOOD, "image": "torn.png"}, "torn.png"),
        ({**GOOD, "image": "text.png"}, "text.png"),
        ({**GOOD, "image": "."}, "directory"),
        ({**GOOD, "gt_bx": 1}, "unknown keys ['gt_bx']"),
        ({**GOOD, "task": "guess"}, "`task` is 'guess'"),
        ({**GOOD, "task": "ocr"}, "`gt_text` is missing"),
        ({**GOOD, "expression": "x"}, "either `prompt` or `expression`"),
        ({**GOOD, "prompt": 3}, "`prompt` is not text"),
        ({**GOOD, "prompt": " <image>\n"}, "the prompt has no text"),
        ({**GOOD, "prompt": None, "expression": " \n"}, "`expression` is white space alone"),
        ({**GOOD, "id": {"a": 1}}, "`id` is neither text nor a whole number"),
        ({**GOOD, "dataset": ["x"]}, "`dataset` is neither text nor a whole number"),
        ({**GOOD, "image": "https://a.org/x.png"}, "nothing is downloaded"),
        ({**GOOD, "gt_box": [0, 0, 1, 10**400]}, "not four finite numbers"),
        ({**GOOD, "image": "a\x00.png"}, "holds a character that is not text"),
        ({**GOOD, "prompt": "a \ud800 b"}, "holds a character that is not text"),
        ({**GOOD, "task": "ocr", "gt_text": "x", "gt_box": [1, 2, 3]}, "not four finite numbers"),
        ({**GOOD, "gt_boxes": [[1, 2, 8, 9], [5, 5, 3, 8]]}, "gt_boxes[1] is inverted or empty"),
        ({**GOOD, "gt_point": [1, 2, 3]}, "gt_point is not two finite numbers"),
        ({**GOOD, "gt_point": [500, 2]}, "gt_point [500, 2] is outside the image"),
        (
            {"image": GOOD["image"], "task": "grounding", "expression": "x", "gt_point": [1, 2]},
            "a `gt_point` needs a `prompt`",
        ),
        ({**GOOD, "gt_boxes": "none"}, "gt_boxes is not a list of boxes"),
        ({**GOOD, "gt_boxes": []}, "says that there is no target, beside a gt_box"),
        ({**GOOD, "gt_polygon": [1, 1, 9, 9, 9, 1, 1, 8]}, "Self-intersection"),
        ({**GOOD, "gt_polygon": [1, 1, 9, 9]}, "three or more points"),
        ({**GOOD, "task": "vqa", "gt_text": "x", "gt_polygon": [1, 1, 9, 9]}, "three or more"),
        ('{"image": ' + "[" * 100_000, "not JSON"),
        ("{broken", "not JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_nothing_is_read(
    tmp_path: Path, bad: Any, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_rows(dataset(tmp_path, GOOD, bad), "train")
    assert "1 fault:" in str(caught.value)
    assert "line 2: " in str(caught.value) and expected in str(caught.value)


def test_a_null_box_beside_a_text_is_no_box(tmp_path: Path) -> None:
    row = {**GOOD, "task": "ocr", "gt_text": "x", "gt_box": None}
    (read,), _ = read_rows(dataset(tmp_path, row), "train")
    assert read["gt_box"] is None and read["gt_text"] == "x"


@pytest.mark.parametrize(
    "truth",
    [
        {"gt_boxes": [[1, 2, 8, 9], [10, 2, 12, 4]]},
        {"gt_boxes": []},
        {"gt_point": [3.5, 4]},
        {"gt_point": [3.5, 4], "gt_box": [1, 1, 9, 9]},
        {"gt_polygon": [1, 1, 9, 1, 9, 9, 2, 8]},
        {"gt_polygon": [1, 1, 9, 1, 5, 9], "gt_box": [1, 1, 9, 9]},
    ],
)
def test_several_boxes_no_box_or_a_polygon_are_a_truth_too(tmp_path: Path, truth: Any) -> None:
    row = {key: value for key, value in GOOD.items() if key != "gt_box"} | truth
    (read,), _ = read_rows(dataset(tmp_path, row), "train")
    found = {name: read[name] for name in ("gt_box", "gt_boxes", "gt_polygon", "gt_point")}
    assert {name: value for name, value in found.items() if value is not None} == truth


def test_half_a_pixel_outside_is_rounding_and_stays_as_it_is(tmp_path: Path) -> None:
    (row,), _ = read_rows(dataset(tmp_path, {**GOOD, "gt_box": [-0.4, 2, 20.3, 9]}), "train")
    assert row["gt_box"] == [-0.4, 2.0, 20.3, 9.0]


def test_faults_of_many_rows_come_together(tmp_path: Path) -> None:
    rows = [{**GOOD, "gt_box": [9, 9, 1, 1 - n]} for n in range(30)]
    with pytest.raises(InputError, match=r"30 faults[\s\S]*and 10 more"):
        read_rows(dataset(tmp_path, *rows), "train")


def test_a_fault_that_many_rows_share_is_listed_once_with_their_number(tmp_path: Path) -> None:
    rows = [{**GOOD, "gt_box": [9, 9, 1, 1]}] * 30 + [{**GOOD, "task": "x"}]
    with pytest.raises(InputError) as caught:
        read_rows(dataset(tmp_path, *rows), "train")
    message = str(caught.value)
    assert "line 1, line 2, line 3, ... (30 in all): gt_box is inverted" in message
    assert "line 31: `task` is 'x'" in message and "more" not in message


def test_a_list_given_for_lines_is_one_fault(tmp_path: Path) -> None:
    source = dataset(tmp_path, GOOD, GOOD)
    source.path.write_text(json.dumps([GOOD, GOOD], indent=1))
    with pytest.raises(InputError, match="1 fault:\n  - line 1: the file is a JSON list"):
        read_rows(source, "train")


def test_a_normalised_box_is_reported_as_normalised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it looks normalised; give pixels"):
        read_rows(dataset(tmp_path, {**GOOD, "gt_box": [0.1, 0.2, 0.5, 1.0]}), "train")


NORMALISED = [0.1, 0.2, 0.5, 1.0]


@pytest.mark.parametrize(
    "truths",
    [
        [{"gt_box": NORMALISED}, {"gt_box": [0, 0, 1, 1]}],
        [{"gt_box": None, "gt_boxes": [NORMALISED, NORMALISED]}],
        [{"gt_box": NORMALISED}, {"gt_box": None, "gt_polygon": [0, 0, 0.5, 0, 0.5, 0.5]}],
    ],
)
def test_boxes_that_are_all_normalised_are_one_mistake_of_the_file(
    tmp_path: Path, truths: list[dict[str, Any]]
) -> None:
    rows = [{**GOOD, **truth} for truth in truths]
    rows.append({**GOOD, "task": "ocr", "gt_text": "a text has no box", "gt_box": None})
    with pytest.raises(InputError) as caught:
        read_rows(dataset(tmp_path, *rows), "train")
    message = str(caught.value)
    assert "all 2 boxes are within 0-1: they look normalised; give pixels" in message
    assert "multiply x by the image's width" in message and "line 1" not in message


def test_some_normalised_boxes_are_faults_of_their_rows_and_listed_once(tmp_path: Path) -> None:
    rows = [{**GOOD, "gt_box": [0.1, 0.2, 0.5, 0.3 + n / 100]} for n in range(9)]
    with pytest.raises(InputError, match=r"line 3, \.\.\. \(9 in all\): gt_box is within"):
        read_rows(dataset(tmp_path, *rows, GOOD), "train")


def test_an_image_of_two_pixels_may_have_boxes_within_the_first(tmp_path: Path) -> None:
    source = dataset(tmp_path, *[{**GOOD, "image": "tiny.png", "gt_box": [0, 0, 1, 1]}] * 2)
    Image.new("RGB", (2, 2)).save(tmp_path / "tiny.png")
    assert [row["gt_box"] for row in read_rows(source, "train")[0]] == [[0, 0, 1, 1]] * 2


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x' occurs twice"):
        read_rows(dataset(tmp_path, {**GOOD, "id": "x"}, {**GOOD, "id": "x"}), "train")


def test_the_same_image_and_text_twice_are_two_prompts(tmp_path: Path) -> None:
    rows, _ = read_rows(dataset(tmp_path, GOOD, GOOD), "train")
    assert rows[0]["prompt_id"] != rows[1]["prompt_id"]


def test_equal_amounts_are_taken_from_each_dataset(tmp_path: Path) -> None:
    rows = [{**GOOD, "dataset": name} for name in "aaabbb"]
    source = dataset(tmp_path, *rows).model_copy(update={"per_dataset": 2})
    read, facts = read_rows(source, "train")
    assert [row["dataset"] for row in read] == ["a", "a", "b", "b"]
    assert facts["left_out_by_per_dataset"] == 2


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the dataset is empty"):
        read_rows(dataset(tmp_path), "train")


def test_a_missing_file_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_rows(TableSource(source="jsonl", path=tmp_path / "none.jsonl"), "train")


def test_a_changed_image_changes_the_facts_that_are_fingerprinted(tmp_path: Path) -> None:
    source = dataset(tmp_path, GOOD)
    _, before = read_rows(source, "train")
    other = tmp_path / "moved"
    other.mkdir()
    source = dataset(other, GOOD)
    Image.new("RGB", (20, 10), "green").save(other / "a.png")
    _, after = read_rows(source, "train")
    assert before["file_sha256"] == after["file_sha256"]
    assert before["images_sha256"] != after["images_sha256"]


def test_an_expression_gets_the_question_of_the_runs_box_format(tmp_path: Path) -> None:
    row = {"image": "a.png", "expression": "cat", "task": "grounding", "gt_box": [1, 2, 8, 9]}
    source = dataset(tmp_path, row, GOOD)
    rows, facts = read_rows(source, "train", "qwen2.5-vl")
    question = "Locate cat, output its bbox coordinates using JSON format."
    assert [row["prompt"] for row in rows] == [question, "Where?"]
    assert facts["instruction"] == question.replace(" cat", " {expression}")
    assert read_rows(source, "train")[1]["instruction"] != facts["instruction"]


def test_the_box_format_changes_nothing_where_no_row_has_an_expression(tmp_path: Path) -> None:
    source = dataset(tmp_path, GOOD)
    assert read_rows(source, "train", "qwen2.5-vl") == read_rows(source, "train", "llava")


def test_what_was_done_to_the_images_is_recorded_with_the_prompts(tmp_path: Path) -> None:
    """Stored 20 x 10 and shown 10 x 20: the box lies in the upright image."""
    exif = Image.Exif()
    exif[274] = 6
    source = dataset(
        tmp_path,
        GOOD,
        {**GOOD, "image": "t.png", "gt_box": [1, 2, 8, 19]},
        {**GOOD, "image": "p.png"},
    )
    Image.new("RGB", (20, 10), "red").save(tmp_path / "t.png", exif=exif)
    Image.new("RGB", (20, 10), "red").convert("P").save(tmp_path / "p.png")
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "prepare": {
            "train": source.model_dump(mode="json"),
            "test": {"source": "testbed", "num_prompts": 2},
        },
    }
    run = Run(RunConfig.model_validate(config), quiet=True)
    rows = prepare(run, "train").table().to_pylist()
    assert [row["image_notes"] for row in rows] == [[], ["exif-orientation"], ["palette"]]
    assert [(row["width"], row["height"]) for row in rows] == [(20, 10), (10, 20), (20, 10)]
    assert prepare(run, "test").table()["image_notes"].to_pylist() == [[], []]
