"""POPE: its published figure, and files that do not fit together."""

import json
import math
from pathlib import Path

import pytest

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.pope import pope_metrics, read_pope, says_yes

SUFFIX = "\nAnswer the question using a single word or phrase."


def test_the_published_figures_are_reproduced(realdata: Path):
    folder = realdata / "pope"
    rows = read_pope(
        folder / "answers_llava-v1.5-13b_popular.jsonl",
        folder / "questions_popular.jsonl",
        folder / "coco_pope_popular.json",
    )
    pairs = [(row["says_yes"], row["is_yes"]) for row in rows]
    counts = [pairs.count(p) for p in ((True, True), (True, False), (False, False), (False, True))]
    assert counts == [1182, 59, 1441, 318]
    metrics = {row["name"]: row for row in pope_metrics(rows)}
    expected = {
        "f1": 0.8624590,
        "accuracy": 2623 / 3000,
        "precision": 1182 / 1241,
        "recall": 1182 / 1500,
        "yes_rate": 1241 / 3000,
    }
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, abs=5e-8)
        assert metrics[name]["low"] < value < metrics[name]["high"]
    assert {name: row["n"] for name, row in metrics.items()} == {
        "accuracy": 3000,
        "precision": 1241,
        "recall": 1500,
        "f1": 3000,
        "yes_rate": 3000,
    }


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not.", False),
        ("Yes. No.", True),
        ("No. Yes", False),
        ("", True),
        ("NO", True),
        ("nothing", True),
        ("Not sure", True),
        ("It is, no, two", False),
    ],
)
def test_answers_are_read_as_popes_script_does(answer, is_yes):
    """Only the words No, not and no, before the first full stop; anything else is a yes."""
    assert says_yes(answer) is is_yes


def _files(folder: Path, answers=None, questions=None, labels=None):
    """Two questions on one image; answers and labels are in the other order."""
    default = {
        "answers": [{"question_id": 8, "text": "No"}, {"question_id": 7, "text": "Yes, it is"}],
        "questions": [
            {"question_id": 7, "image": "a.jpg", "text": "Is there a cat?" + SUFFIX},
            {"question_id": 8, "image": "a.jpg", "text": "Is there a dog?" + SUFFIX},
        ],
        "labels": [
            {"image": "a.jpg", "text": "Is there a dog?", "label": "yes"},
            {"image": "a.jpg", "text": "Is there a cat?", "label": "yes"},
        ],
    }
    given = {"answers": answers, "questions": questions, "labels": labels}
    paths = []
    for name, rows in default.items():
        change = given[name]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, change(rows) if change else rows)))
        paths.append(path)
    return paths


def test_rows_are_joined_by_what_they_say_and_not_by_position(tmp_path):
    rows = read_pope(*_files(tmp_path))
    assert [(r["question"], r["completion"], r["says_yes"]) for r in rows] == [
        ("Is there a dog?", "No", False),
        ("Is there a cat?", "Yes, it is", True),
    ]


def test_the_misspelt_questions_of_early_copies_are_the_same_questions(tmp_path):
    def misspell(rows):
        return [{**row, "text": row["text"].replace("?", " in the imange?")} for row in rows]

    def spell(rows):
        return [{**row, "text": row["text"].replace("?", " in the image?")} for row in rows]

    assert len(read_pope(*_files(tmp_path, questions=spell, labels=misspell))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": lambda r: r[:1]}, "question_id 7: no answer in .*answers.jsonl"),
        ({"answers": lambda r: [*r, r[0]]}, "line 3: 8 is given twice"),
        (
            {"answers": lambda r: [*r, {"question_id": 9, "text": "No"}]},
            "question_id 9: not among the questions in .*questions.jsonl",
        ),
        ({"questions": lambda r: r[:1]}, r"dog.*: no question about it in .*questions.jsonl"),
        (
            {"questions": lambda r: [*r, {**r[0], "question_id": 9}]},
            "question_id 9: asks the same as question_id 7",
        ),
        ({"labels": lambda r: r[:1]}, "question_id 7: no label in .*labels.jsonl for .*cat"),
        ({"labels": lambda r: [*r, {**r[0], "label": "no"}]}, r"line 3: \('a.jpg', .*given twice"),
        ({"labels": lambda r: [{**r[0], "label": "Yes"}, r[1]]}, "line 1: `label` is 'Yes'"),
        ({"answers": lambda r: [{"question_id": 7}, r[0]]}, "line 1: `text` is missing"),
        ({"answers": lambda r: [[1], *r]}, "line 1: not a JSON object"),
        ({"answers": lambda r: []}, "the file is empty"),
        (
            {"answers": lambda r: [{"question_id": [7], "text": "No"}, r[0]]},
            "`question_id` is neither",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_pope(*_files(tmp_path, **change))


def test_all_faults_of_a_file_are_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        read_pope(*_files(tmp_path, answers=lambda rows: []))
    assert "answers" in str(caught.value)
    with pytest.raises(InputError) as caught:
        read_pope(*_files(tmp_path, answers=lambda r: [{"question_id": 1, "text": "x"}]))
    assert "2 faults" in str(caught.value)


def test_metrics_of_a_model_that_never_says_yes(tmp_path):
    """No yes: no precision; of two true ones none is found: recall 0, F1 0."""
    never = {"answers": lambda rows: [{**row, "text": "No"} for row in rows]}
    metrics = {r["name"]: r for r in pope_metrics(read_pope(*_files(tmp_path, **never)))}
    assert math.isnan(metrics["precision"]["value"]) and metrics["precision"]["n"] == 0
    assert metrics["recall"]["value"] == metrics["f1"]["value"] == 0.0
    assert metrics["accuracy"]["value"] == 0.0
