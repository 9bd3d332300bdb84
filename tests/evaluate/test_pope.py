"""POPE: its published figure, and files that do not fit together."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perpo_pipeline import cli
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ConfigError, InputError, PerpoError
from perpo_pipeline.evaluate.pope import pope_metrics, read_answer, says_yes, unread_note
from perpo_pipeline.evaluate.pope_files import ANY, read_pope

SUFFIX = "\nAnswer the question using a single word or phrase."


def _read(answers: Path, questions: Path | None, labels: Path):
    return read_pope(answers, questions, {ANY: labels}).rows


def test_the_published_figures_are_reproduced(realdata: Path):
    folder = realdata / "pope"
    rows = _read(
        folder / "answers_llava-v1.5-13b_popular.jsonl",
        folder / "questions_popular.jsonl",
        folder / "coco_pope_popular.json",
    )
    assert unread_note(rows) is None
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
        "accuracy_as_read": 2623 / 3000,
        "f1_as_read": 0.8624590,
    }
    assert metrics["neither_rate"]["value"] == 0.0
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, abs=5e-8)
        assert metrics[name]["low"] < value < metrics[name]["high"]
    assert {name: row["n"] for name, row in metrics.items()} == {
        "accuracy": 3000,
        "precision": 1241,
        "recall": 1500,
        "f1": 3000,
        "yes_rate": 3000,
        "neither_rate": 3000,
        "accuracy_as_read": 3000,
        "f1_as_read": 3000,
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
        ("No\nThere is only a sofa", True),
        ("**no**", True),
        ("No!", True),
        ("Yes, no doubt", False),
    ],
)
def test_answers_are_read_as_popes_script_does(answer, is_yes):
    """Only the words No, not and no, before the first full stop; anything else is a yes."""
    assert says_yes(answer) is is_yes


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("No!", "no"),
        ("**no**, a sofa", "no"),
        ("No\nThere is only a sofa", "no"),
        ('Answer: "Yes".', "yes"),
        ("_yes_", "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("I would say yes. No doubt.", "yes"),
        ("There is not.", "no"),
        ("", None),
        ("There isn't any.", None),
        ("nothing, yesterday, Norway", None),
        ("Not sure", None),
    ],
)
def test_an_answer_is_also_read_by_its_first_yes_or_no(answer, read):
    assert read_answer(answer) == read


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
    rows = _read(*_files(tmp_path))
    assert [(r["question"], r["completion"], r["says_yes"]) for r in rows] == [
        ("Is there a dog?", "No", False),
        ("Is there a cat?", "Yes, it is", True),
    ]


def test_the_misspelt_questions_of_early_copies_are_the_same_questions(tmp_path):
    def misspell(rows):
        return [{**row, "text": row["text"].replace("?", " in the imange?")} for row in rows]

    def spell(rows):
        return [{**row, "text": row["text"].replace("?", " in the image?")} for row in rows]

    assert len(_read(*_files(tmp_path, questions=spell, labels=misspell))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": lambda r: r[:1]}, "question_id 7: no answer in .*answers.jsonl"),
        ({"answers": lambda r: [*r, r[0]]}, "line 3: question_id 8 is given twice"),
        (
            {"answers": lambda r: [*r, {"question_id": 9, "text": "No"}]},
            "question_id 9: not among the questions in .*questions.jsonl",
        ),
        ({"questions": lambda r: r[:1]}, r"dog.*: no question about it in .*questions.jsonl"),
        (
            {"questions": lambda r: [*r, {**r[0], "question_id": 9}]},
            "line 3 with question_id 9: asks the same as question_id 7, and .*labels.jsonl has 1",
        ),
        (
            {
                "questions": lambda r: [*r, {**r[0], "question_id": 9}],
                "labels": lambda r: [*r, {**r[1], "label": "no"}],
                "answers": lambda r: [*r, {"question_id": 9, "text": "No"}],
            },
            "line 2: .*cat.* is labelled both yes and no, and question_id does not",
        ),
        ({"answers": lambda r: [*r[:1], 3]}, "line 2: not a JSON object"),
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
        _read(*_files(tmp_path, **change))


def test_all_faults_of_a_file_are_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        _read(*_files(tmp_path, answers=lambda rows: []))
    assert "answers" in str(caught.value)
    with pytest.raises(InputError) as caught:
        _read(*_files(tmp_path, answers=lambda r: [{"question_id": 1, "text": "x"}]))
    assert "2 faults" in str(caught.value)


def test_metrics_of_a_model_that_never_says_yes(tmp_path):
    """No yes: no precision; of two true ones none is found: recall 0, F1 0."""
    never = {"answers": lambda rows: [{**row, "text": "No"} for row in rows]}
    metrics = {r["name"]: r for r in pope_metrics(_read(*_files(tmp_path, **never)))}
    assert math.isnan(metrics["precision"]["value"]) and metrics["precision"]["n"] == 0
    assert metrics["recall"]["value"] == metrics["f1"]["value"] == 0.0
    assert metrics["accuracy"]["value"] == 0.0


def _lists(folder: Path, *names: str, **rows) -> dict[str, Path]:
    """Files by name: JSON lists for `names`, JSON lines for the others."""
    paths = {}
    for name, found in rows.items():
        paths[name] = folder / f"{name}.json"
        whole = json.dumps(found, indent=2)
        paths[name].write_text(whole if name in names else "\n".join(map(json.dumps, found)))
    return paths


TWICE = [
    {"question_id": 1, "image": "a.jpg", "text": "A cat?", "label": "no"},
    {"question_id": "b", "image": "a.jpg", "text": "A dog?", "label": "yes"},
    {"question_id": 3, "image": "a.jpg", "text": "A cat?", "label": "yes"},
]
SAID = [
    {"question_id": 3, "text": "Yes"},
    {"question_id": "b", "text": "No"},
    {"question_id": 1, "text": "No"},
]


@pytest.mark.parametrize("as_list", [(), ("labels",), ("labels", "answers")])
def test_a_question_under_two_ids_has_two_labels_joined_by_id(tmp_path, as_list):
    files = _lists(tmp_path, *as_list, labels=TWICE, answers=SAID)
    for questions in (None, files["labels"]):
        rows = _read(files["answers"], questions, files["labels"])
        assert [(r["question"], r["is_yes"], r["completion"]) for r in rows] == [
            ("A cat?", False, "No"),
            ("A dog?", True, "No"),
            ("A cat?", True, "Yes"),
        ]
        assert len({r["prompt_id"] for r in rows}) == 3


def test_equal_labels_of_a_repeated_question_need_no_ids(tmp_path):
    """Labels number the questions otherwise: each repetition keeps its own answer and prompt_id."""
    labels = [{**row, "label": "no", "question_id": 90 + i} for i, row in enumerate(TWICE)]
    files = _lists(tmp_path, labels=labels, questions=TWICE, answers=SAID)
    rows = _read(files["answers"], files["questions"], files["labels"])
    assert sorted((r["question"], r["completion"]) for r in rows) == [
        ("A cat?", "No"),
        ("A cat?", "Yes"),
        ("A dog?", "No"),
    ]
    turned = _lists(tmp_path, labels=labels[::-1], questions=TWICE[::-1], answers=SAID[::-1])
    again = _read(turned["answers"], turned["questions"], turned["labels"])
    assert {(r["prompt_id"], r["completion"]) for r in again} == {
        (r["prompt_id"], r["completion"]) for r in rows
    }


CATEGORIES = [
    {"question_id": i, "image": "a.jpg", "text": f"A {what}?{SUFFIX}", "category": category}
    for i, (category, what) in enumerate(
        [("easy", "cat"), ("easy", "dog"), ("hard", "cat"), ("hard", "cow")]
    )
]


def _of_categories(folder: Path) -> dict[str, Path]:
    labels = {
        name: [
            {"question_id": 1 + i, "image": "a.jpg", "text": f"A {what}?", "label": label}
            for i, (what, label) in enumerate(known)
        ]
        for name, known in {
            "easy": [("cat", "yes"), ("dog", "no")],
            "hard": [("cow", "no"), ("cat", "yes")],
        }.items()
    }
    said = ["Yes", "No", "No", "No"]
    answers = [{"question_id": i, "text": text} for i, text in enumerate(said)]
    return _lists(folder, "hard", questions=CATEGORIES, answers=answers, **labels)


def test_each_category_has_labels_of_its_own_and_all_stand_together(tmp_path):
    files = _of_categories(tmp_path)
    labels = {name: files[name] for name in ("easy", "hard")}
    found = read_pope(files["answers"], files["questions"], labels)
    accuracy = {
        row["dataset"]: row["value"]
        for row in pope_metrics(found.rows)
        if row["name"] == "accuracy"
    }
    assert accuracy == {"all": 0.75, "easy": 1.0, "hard": 0.5} and not found.other_categories
    assert len({row["prompt_id"] for row in found.rows}) == 4
    one = read_pope(files["answers"], files["questions"], {"hard": files["hard"]})
    assert one.other_categories == 2
    assert {row["dataset"] for row in pope_metrics(one.rows)} == {"all"}


def test_a_category_that_is_missing_or_unknown_is_named(tmp_path):
    files = _of_categories(tmp_path)
    pair = (files["answers"], files["questions"])
    with pytest.raises(ConfigError, match=r"(?s)categories easy, hard.*--labels easy=hard.json"):
        read_pope(*pair, {ANY: files["hard"]})
    with pytest.raises(ConfigError, match=r"category 'hrad': .* the categories easy, hard"):
        read_pope(*pair, {"hrad": files["hard"]})
    with pytest.raises(ConfigError, match="the file has no categories"):
        read_pope(files["answers"], None, {"hard": files["hard"]})
    with pytest.raises(ConfigError, match="give --questions"):
        read_pope(files["answers"], None, {name: files[name] for name in ("easy", "hard")})


def test_answers_with_neither_yes_nor_no_are_counted_and_popes_figures_stay(tmp_path):
    """Truth no, no, yes, no. POPE's script reads yes, yes, no, yes: none right. By the first yes
    or no: no, no, yes, neither: 3 of 4 right.
    """
    said = ["NO", "No! A sofa", "Yes, no doubt", "Hard to see"]
    labels = [
        {"question_id": i, "image": f"{i}.jpg", "text": "A cat?", "label": label}
        for i, label in enumerate(["no", "no", "yes", "no"])
    ]
    answers = [{"question_id": i, "text": text} for i, text in enumerate(said)]
    files = _lists(tmp_path, labels=labels, answers=answers)
    rows = _read(files["answers"], None, files["labels"])
    found = {row["name"]: row["value"] for row in pope_metrics(rows)}
    assert (found["accuracy"], found["accuracy_as_read"]) == (0.0, 0.75)
    assert (found["f1"], found["f1_as_read"], found["neither_rate"]) == (0.0, 1.0, 0.25)
    note = unread_note(rows)
    assert note is not None
    assert "2 as yes that say no, 1 as no that say yes, and 1 say neither" in note
    assert "'Hard to see'" in note and "accuracy 0.0 % -> 75.0 %; f1 0.0 % -> 100.0 %" in note


THOUGHTS = ["<think>No dog. Is it?</think>Yes", "<think>yes, surely", "No", "maybe</think>\nno."]


def _thinking(folder: Path) -> dict[str, Path]:
    """Truth yes, no, no, no."""
    labels = [
        {"question_id": i, "image": f"{i}.jpg", "text": "A dog?", "label": label}
        for i, label in enumerate(["yes", "no", "no", "no"])
    ]
    answers = [{"question_id": i, "text": text} for i, text in enumerate(THOUGHTS)]
    return _lists(folder, labels=labels, answers=answers)


@pytest.mark.parametrize(
    ("thinking", "answered", "right"),
    [
        ("auto", [True, False, True, True], [True, False, True, True]),
        ("opened", [True, False, False, True], [True, False, False, True]),
        # To POPE's script "<think>No" and "maybe</think>\nno" are words of their own: all say yes.
        ("none", [True, True, True, True], [True, False, True, False]),
    ],
)
def test_thoughts_are_no_answer_and_one_without_end_is_wrong(tmp_path, thinking, answered, right):
    files = _thinking(tmp_path)
    found = read_pope(files["answers"], None, {ANY: files["labels"]}, Reading(thinking=thinking))
    assert [row["is_answered"] for row in found.rows] == answered
    metrics = {row["name"]: row["value"] for row in pope_metrics(found.rows)}
    assert metrics["accuracy"] == sum(right) / 4
    assert [row["completion"] for row in found.rows] == THOUGHTS
    note = unread_note(found.rows)
    missing = answered.count(False)
    assert (f"{missing} end within a thought and are wrong" in (note or "")) == bool(missing)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 3),
    st.text(max_size=3),
    st.lists(st.none(), max_size=1),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "question_id": st.integers(0, 2) | VALUES,
            "image": st.sampled_from(["a.jpg", "b.jpg"]) | VALUES,
            "text": st.sampled_from(["yes", "A dog?", "A cat?\nNow."]) | VALUES,
            "label": st.sampled_from(["yes", "no"]) | VALUES,
        },
        optional={"category": st.sampled_from(["easy", "hard"]) | VALUES},
    ),
    max_size=3,
)


GOOD_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "question_id": st.integers(0, 9) | st.text(min_size=1, max_size=1),
            "image": st.sampled_from(["a.jpg", "b.jpg"]),
            "text": st.sampled_from(["yes", "A dog?", "A cat?\nNow.", "<think>"]),
            "label": st.sampled_from(["yes", "no"]),
            "category": st.just("easy"),
        }
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["question_id"],
)
# In a third of the draws all files hold the same rows, so that they fit.
FILES = st.one_of(
    st.tuples(ROWS, ROWS, ROWS),
    st.tuples(GOOD_ROWS, GOOD_ROWS, ROWS),
    GOOD_ROWS.flatmap(lambda rows: st.tuples(*[st.permutations(rows)] * 3)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=FILES, category=st.sampled_from([ANY, "easy"]), as_list=st.booleans())
def test_any_files_are_joined_or_refused(tmp_path, files, category, as_list):
    answers, questions, labels = files
    names = ("answers", "labels") if as_list else ()
    paths = _lists(tmp_path, *names, answers=answers, questions=questions, labels=labels)
    try:
        found = read_pope(paths["answers"], paths["questions"], {category: paths["labels"]})
    except PerpoError as error:
        assert error.what and error.fix
        return
    assert len(found.rows) == len(labels)
    assert len({row["prompt_id"] for row in found.rows}) == len(labels)
    assert all(
        0 <= row["value"] <= 1 or math.isnan(row["value"]) for row in pope_metrics(found.rows)
    )


@given(
    st.text()
    | st.lists(st.sampled_from(["yes", "No", "not", ".", ",", " ", "\ud800"])).map("".join)
)
def test_any_answer_is_read(answer):
    assert read_answer(answer) in ("yes", "no", None)
    if not says_yes(answer):
        assert read_answer(answer) is not None


def _run(*options: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["measure", "pope", *map(str, options)])
    return int(exit_.value.code or 0)


def test_the_command_takes_labels_by_category(tmp_path, capsys):
    files = _of_categories(tmp_path)
    given = ["--answers", files["answers"], "--questions", files["questions"], "--out", tmp_path]
    one, two = f"easy={files['easy']}", f"hard={files['hard']}"
    assert _run(*given, "--labels", one, "--labels", two) == 0
    assert "hard" in capsys.readouterr().out
    assert _run(*given, "--labels", one) == 0
    assert "2 questions of other categories are not measured" in capsys.readouterr().err
    for wrong in (["--labels", one, "--labels", one], ["--labels", one, "--labels", files["hard"]]):
        assert _run(*given, *wrong) == 2
        assert "need a category of their own" in capsys.readouterr().err
    assert _run(*given, "--labels", one, "--thinking", "opened") == 0
    assert "2 end within a thought and are wrong" in capsys.readouterr().err
    strange = tmp_path / "easy=1.json"
    strange.write_text(files["easy"].read_text())
    assert _run(*given, "--labels", strange) == 2  # the file exists: no category is named
    assert "the questions have the categories" in capsys.readouterr().err
