"""Files of completions: what is read, and that every bad row is reported with its line."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.evaluate.prediction_files import mend_text, read_predictions

GROUNDING = {
    "completion": "[0.1, 0.2, 0.3, 0.4]",
    "gt_box": [10, 20, 30, 40],
    "width": 100,
    "height": 80,
}
TEXT = {"completion": "a page", "gt_text": "a page"}


def write(folder: Path, *rows) -> Path:
    path = folder / "predictions.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def ids(path: Path, task: str = "grounding", **options) -> list[str]:
    return [row["prompt_id"] for row in read_predictions(path, task, **options).rows]


def test_rows_come_in_order_with_their_truth_and_defaults(tmp_path):
    named = {**GROUNDING, "split": "val", "dataset": "refcoco", "image": "1.jpg", "id": "x"}
    first, second = read_predictions(write(tmp_path, GROUNDING, "", named), "grounding").rows
    assert (first["split"], first["dataset"], first["image_key"]) == ("all", "unnamed", None)
    assert (second["split"], second["dataset"], second["image_key"]) == ("val", "refcoco", "1.jpg")
    for row in (first, second):
        assert row["gt_box"] == [10.0, 20.0, 30.0, 40.0]
        assert (row["width"], row["height"], row["resized"]) == (100, 80, None)


def test_the_same_questions_have_the_same_ids_whatever_the_answers(tmp_path):
    ours = ids(write(tmp_path, GROUNDING, {**GROUNDING, "id": 7}))
    other = {**GROUNDING, "completion": "no box"}
    assert ids(write(tmp_path, other, {**other, "id": 7})) == ours


@pytest.mark.parametrize(
    "change",
    [{"gt_box": [10, 20, 30, 41]}, {"width": 101}, {"split": "val"}, {"dataset": "e"}, {"id": 2}],
)
def test_a_different_question_or_truth_has_a_different_id(tmp_path, change):
    assert ids(write(tmp_path, GROUNDING)) != ids(write(tmp_path, {**GROUNDING, **change}))


def test_a_row_keeps_its_id_when_rows_are_added_only_if_it_is_named(tmp_path):
    row = {**GROUNDING, "id": "b"}
    assert ids(write(tmp_path, row)) == ids(write(tmp_path, {**GROUNDING, "id": "a"}, row))[1:]
    assert ids(write(tmp_path, GROUNDING)) != ids(write(tmp_path, row, GROUNDING))[1:]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"completion": "a", "completion": "b"}', "the key 'completion' is given twice"),
        ({"completion": "a"}, "`gt_box` is missing"),
        ({**GROUNDING, "completion": None}, "`completion` is missing"),
        ({**GROUNDING, "completion": 3}, "`completion` is not text: 3"),
        ({**GROUNDING, "answer": "a"}, r"unknown keys \['answer'\]"),
        ({**GROUNDING, "resized": [8, 8]}, "`resized` is only for the frame"),
        ({**GROUNDING, "gt_box": [30, 20, 10, 40]}, "inverted or empty"),
        ({**GROUNDING, "gt_box": [10, 20, 10, 40]}, "inverted or empty"),
        ({**GROUNDING, "gt_box": [10, 20, math.nan, 40]}, "not four finite numbers"),
        ({**GROUNDING, "gt_box": [10, 20, 30]}, "not four finite numbers"),
        ({**GROUNDING, "gt_box": [10, 20, 30, 95]}, "outside the image of 100x80"),
        ({**GROUNDING, "width": 0}, "`width` is not a whole number of pixels above 0: 0"),
        ({**GROUNDING, "height": 80.5}, "`height` is not a whole number"),
        ({**GROUNDING, "height": True}, "`height` is not a whole number"),
        ({**GROUNDING, "dataset": "all"}, "means all datasets"),
        ({**GROUNDING, "dataset": 3}, "`dataset` is not text: 3"),
        ({**GROUNDING, "id": [1]}, "`id` is neither text nor a whole number"),
        ({**GROUNDING, "split": "\ud800"}, "`split` holds half a character"),
        ({**GROUNDING, "id": "\udfff"}, "`id` holds half a character"),
    ],
)
def test_a_bad_row_is_reported_with_its_line(tmp_path, row, message):
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        read_predictions(write(tmp_path, GROUNDING, row), "grounding")


def test_all_faults_are_reported_at_once_up_to_twenty(tmp_path):
    bad = {**GROUNDING, "width": -1, "height": -1}
    with pytest.raises(InputError) as caught:
        read_predictions(write(tmp_path, GROUNDING, bad, "{"), "grounding")
    assert "3 faults" in str(caught.value)
    assert all(part in str(caught.value) for part in ("`width`", "`height`", "line 3: not JSON"))
    with pytest.raises(InputError, match=r"30 faults[\s\S]*line 20[\s\S]*\.\.\. and 10 more"):
        read_predictions(
            write(tmp_path, *[{**GROUNDING, "width": -n} for n in range(30)]), "grounding"
        )
    with pytest.raises(InputError, match=r"line 1, line 2, line 3, \.\.\. \(30 in all\): not JSON"):
        read_predictions(write(tmp_path, *["{"] * 30), "grounding")


def test_an_id_given_twice_is_a_fault_within_its_split_and_dataset(tmp_path):
    row = {**GROUNDING, "id": "x"}
    with pytest.raises(InputError, match="line 3: the id of line 1 is given again"):
        read_predictions(
            write(tmp_path, row, GROUNDING, {**row, "gt_box": [1, 2, 3, 4]}), "grounding"
        )
    assert len(set(ids(write(tmp_path, row, {**row, "split": "val"})))) == 2
    assert len(set(ids(write(tmp_path, {**row, "id": 1}, {**row, "id": "1"})))) == 2


def test_every_row_needs_a_resized_size_if_the_frame_does(tmp_path):
    sized = {**GROUNDING, "resized": [84, 56]}
    (row,) = read_predictions(write(tmp_path, sized), "grounding", needs_resized=True).rows
    assert row["resized"] == [84, 56]
    for bad in (GROUNDING, {**GROUNDING, "resized": [84]}, {**GROUNDING, "resized": [84, 0]}):
        with pytest.raises(InputError, match="`resized` is"):
            read_predictions(write(tmp_path, bad), "grounding", needs_resized=True)


def test_halves_of_characters_in_completions_are_mended_and_counted(tmp_path):
    path = write(
        tmp_path,
        {**TEXT, "completion": "a\ud83d\ud83db"},
        TEXT,
        {**TEXT, "completion": "\U0001f600"},
    )
    found = read_predictions(path, "ocr")
    assert [row["completion"] for row in found.rows] == ["a\ufffd\ufffdb", "a page", "\U0001f600"]
    assert found.mended == 1


def test_a_true_text_that_is_half_a_character_is_a_fault(tmp_path):
    with pytest.raises(InputError, match="line 1: `gt_text` holds half a character"):
        read_predictions(write(tmp_path, {**TEXT, "gt_text": "\udc00"}), "ocr")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_mended_text_can_be_written_and_is_as_long(text):
    mended = mend_text(text)
    mended.encode()
    assert len(mended) == len(text)
    assert all(a == b or b == "\ufffd" for a, b in zip(text, mended, strict=True))


def fox(**changes):
    return {"image": "7", "question": "OCR:", "label": "true", "answer": "said", **changes}


def test_foxs_list_is_read_under_our_names(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([fox(), fox(image="8", answer="")]))
    first, second = read_predictions(path, "ocr").rows
    assert (first["completion"], first["gt_text"], first["image_key"]) == ("said", "true", "7")
    assert second["completion"] == ""


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([fox(), {"image": "8"}], "entry 1: expected the keys"),
        ([fox(), 3], "entry 1: expected the keys .* not int"),
        ([fox(), fox(more=1)], "entry 1: expected the keys"),
        ([fox(), fox(answer="other")], "entry 1: the id of entry 0 is given again"),
        ([fox(answer=3)], "entry 0: `completion` is not text"),
        ([fox(label=None)], "entry 0: `gt_text` is missing"),
        ([fox(image=3)], "entry 0: `image` is not text"),
        ([], "holds no predictions"),
    ],
)
def test_bad_entries_of_foxs_list_are_reported(tmp_path, entries, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        read_predictions(path, "ocr")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no predictions"),
        (b"\n \n", "holds no predictions"),
        (b"\xff{}", "cannot be"),
        (b"[{", "not JSON"),
    ],
)
def test_files_that_hold_nothing_to_read_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_predictions(path, "ocr")
    with pytest.raises(ConfigError, match="no such file"):
        read_predictions(tmp_path / "absent.jsonl", "ocr")


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(TEXT).encode()] * 2))
    assert len(read_predictions(path, "ocr").rows) == 2
