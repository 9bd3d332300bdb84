"""Finished logs of lmms-eval and VLMEvalKit: taken over, measured, and refused."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_judge import perpo
from harness_logs import sample, write_lmms_eval, write_tsv, write_xlsx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perpo_pipeline.errors import ArtifactError, InputError, MissingDependencyError, PerpoError
from perpo_pipeline.evaluate.harness.compare_harness import compare_harness, find_harness
from perpo_pipeline.evaluate.harness.measure_logs import measure_logs
from perpo_pipeline.evaluate.harness.read_logs import read_logs
from perpo_pipeline.evaluate.measure_files import measure_answers
from perpo_pipeline.evaluate.metrics import find_metric
from perpo_pipeline.evaluate.statistics import wilson_interval
from perpo_pipeline.store.artifacts import Version, input_of

Row = dict[str, Any]
RIGHT = [1, 1, 0, 1, 0, 1, 1, 1]


def measured(path: Path, out: Path) -> dict[str, Row]:
    return {row["name"]: row for row in measure_logs(path, out=out).table().to_pylist()}


def accuracy(right: list[int]) -> tuple[Row, list[Row]]:
    """A task whose only metric is the mean of right and wrong."""
    return {"acc": sum(right) / len(right)}, [{"acc": float(r)} for r in right]


def harness_of(path: Path) -> Version:
    found = find_harness(path)
    assert found is not None
    return found


def test_a_mean_of_right_and_wrong_gets_wilsons_interval(tmp_path: Path) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": accuracy(RIGHT)})
    row = measured(tmp_path / "logs", tmp_path / "out")["quiz/acc"]
    share, low, high = wilson_interval(6, 8)
    assert (row["value"], row["low"], row["high"], row["n"]) == (share, low, high, 8)
    assert (row["split"], row["dataset"]) == ("lmms-eval", "quiz")


def test_a_mean_in_per_cent_keeps_the_harness_s_unit(tmp_path: Path) -> None:
    """MM-Vet's score: 100 times the mean of scores in [0, 1], inside an object."""
    values = [0.2, 0.8, 0.5, 1.0]
    questions = [{"gpt_eval_score": {"question_id": i, "score": v}} for i, v in enumerate(values)]
    task = ({"gpt_eval_score": 62.5}, questions)
    write_lmms_eval(tmp_path / "logs", {"mmvet": task}, aggregation="<function at 0x7f>")
    metrics = measure_logs(tmp_path / "logs", out=tmp_path / "out")
    row = metrics.table().to_pylist()[0]
    assert row["value"] == 62.5
    assert 0 < row["low"] < 62.5 < row["high"] <= 110
    scores = input_of(metrics, "harness").table().to_pylist()
    assert [s["score"] for s in scores] == pytest.approx([20, 80, 50, 100])


def test_zero_has_no_interval_where_the_log_does_not_say_its_unit(tmp_path: Path) -> None:
    """0 is 0 as a fraction and in per cent; the upper end of an interval is not the same."""
    questions = [{"score": {"score": 0.0}}] * 4
    write_lmms_eval(tmp_path / "logs", {"t": ({"score": 0.0}, questions)}, aggregation="<function>")
    assert math.isnan(measured(tmp_path / "logs", tmp_path / "out")["t/score"]["high"])
    write_lmms_eval(tmp_path / "plain", {"t": ({"score": 0.0}, questions)})
    found = measured(tmp_path / "plain", tmp_path / "plain-out")["t/score"]
    assert found["high"] == wilson_interval(0, 4)[2]


def pope_value(prediction: str, truth: str) -> Row:
    return {"score": float(prediction == truth), "prediction": prediction, "ground_truth": truth}


def test_pope_s_f1_has_an_interval_and_its_ratio_of_true_answers_has_none(tmp_path: Path) -> None:
    """3 right yes, 1 wrong yes, 2 missed: F1 = 6 / 9, precision 3/4, recall 3/5, accuracy 5/8.

    lmms-eval's yes ratio counts the true answers instead of the model's: no rule makes it of them.
    A word of which "f1" is a part is the F1, or else the mean of the scores.
    """
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 2
    values = [pope_value(*pair) for pair in pairs]
    numbers = {
        "pope_accuracy": 5 / 8,
        "pope_precision": 3 / 4,
        "pope_recall": 3 / 5,
        "pope_f1_score": 6 / 9,
        "F1Score": 6 / 9,
        "f1score": 5 / 8,
        "pope_yes_ratio": 0.625,
    }
    questions = [dict.fromkeys(numbers, value) for value in values]
    write_lmms_eval(tmp_path / "l", {"pope": (numbers, questions)}, aggregation="<function>")
    rows = measured(tmp_path / "l", tmp_path / "out")
    for name, value in numbers.items():
        row = rows[f"pope/{name}"]
        assert row["value"] == value
        assert math.isnan(row["low"]) == (name == "pope_yes_ratio")
        assert name == "pope_yes_ratio" or row["low"] < value < row["high"]


def test_an_f1_of_each_question_has_a_mean_and_words_are_whole(tmp_path: Path) -> None:
    """`eyes_acc` is no share of yes. The mean of -1 and 1 is 0 in any unit, so none is stored."""
    numbers = {"f1": 0.75, "macro_recall": 0.75, "eyes_acc": 0.75, "change": 0.0}
    questions = [dict.fromkeys(numbers, 1.0), dict.fromkeys(numbers, 0.5)]
    for question, change in zip(questions, (-1.0, 1.0), strict=True):
        question["change"] = change
    write_lmms_eval(tmp_path / "l", {"t": (numbers, questions)}, aggregation="<function>")
    metrics = measure_logs(tmp_path / "l", out=tmp_path / "out")
    rows = {row["name"]: row for row in metrics.table().to_pylist()}
    assert [(rows[f"t/{n}"]["low"], rows[f"t/{n}"]["high"]) for n in numbers][:3] == [(0.5, 1)] * 3
    assert math.isnan(rows["t/change"]["low"])
    stored = input_of(metrics, "harness").table()["metric"].to_pylist()
    assert set(stored) == {"f1", "macro_recall", "eyes_acc"}


def test_nan_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, questions = accuracy(RIGHT)
    write_lmms_eval(tmp_path / "l", {"quiz": (numbers | {"other": math.nan}, questions)})
    assert list(measured(tmp_path / "l", tmp_path / "out")) == ["quiz/acc"]
    assert "other has no number in the log and is left out" in capsys.readouterr().err
    numbers = {"split": "dev", "Overall": 0.75, "OCR": "nan"}
    write_tsv(tmp_path / "m" / "m_Quiz_acc.csv", [numbers, numbers | {"split": "val"}], ",")
    found = measured(tmp_path / "m", tmp_path / "out2")
    assert list(found) == ["Quiz/Overall [dev]", "Quiz/Overall [val]"]


def test_llava_bench_s_ratio_leaves_out_other_categories(tmp_path: Path) -> None:
    """Ratings 8 and 6, 10 and 9: 7.5 / 9 = 83.3 %."""
    ratings = [[8, 6], [-999, -999], [10, 9]]
    questions = [{"gpt_eval_llava_conv": {"scores": pair, "review": "..."}} for pair in ratings]
    task = ({"gpt_eval_llava_conv": 83.3}, questions)
    write_lmms_eval(tmp_path / "l", {"llava_in_the_wild": task}, aggregation="<function>")
    row = measured(tmp_path / "l", tmp_path / "out")["llava_in_the_wild/gpt_eval_llava_conv"]
    assert row["n"] == 2
    assert row["low"] <= 83.3 <= row["high"]


def test_a_sum_and_a_log_without_samples_have_no_interval(tmp_path: Path) -> None:
    """MME adds up categories; nothing is claimed about its spread."""
    questions = [{"mme_perception_score": {"category": "OCR", "score": 1.0}}] * 4
    tasks = {"mme": ({"mme_perception_score": 1510.7}, questions), "other": ({"acc": 0.5}, None)}
    write_lmms_eval(tmp_path / "logs", tasks, aggregation="<function>")
    metrics = measure_logs(tmp_path / "logs", out=tmp_path / "out")
    rows = {row["name"]: row for row in metrics.table().to_pylist()}
    assert rows["mme/mme_perception_score"]["value"] == 1510.7
    assert all(math.isnan(row["low"]) for row in rows.values())
    assert rows["other/acc"]["n"] == 12
    assert input_of(metrics, "harness").manifest["notes"]["without_interval"] == list(rows)


def test_versions_hashes_and_directions_are_recorded(tmp_path: Path) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": accuracy(RIGHT)})
    metrics = measure_logs(tmp_path / "logs", out=tmp_path / "out")
    notes = input_of(metrics, "harness").manifest["notes"]
    assert (notes["harness"], notes["harness_version"]) == ("lmms-eval", "0.7.3")
    assert notes["model"] == "models/m"
    assert notes["tasks"]["quiz"] == {
        "version": "1.0",
        "task_hash": "ab12",
        "questions": 8,
        "higher_is_better": {"acc": True},
    }


def test_images_inside_the_log_are_known_by_their_hash(tmp_path: Path) -> None:
    """Four questions about two images, which lmms-eval writes into the log as data URLs."""
    urls = ["data:image/png;base64," + letter * 5000 for letter in "aabb"]
    questions = [{"acc": float(i < 3), "input_media": [url]} for i, url in enumerate(urls)]
    write_lmms_eval(tmp_path / "logs", {"quiz": ({"acc": 0.75}, questions)})
    metrics = measure_logs(tmp_path / "logs", out=tmp_path / "out")
    images = input_of(metrics, "harness").table()["image"].to_pylist()
    assert images[0] == images[1] != images[2] == images[3]
    assert max(map(len, images)) == 64
    (row,) = metrics.table().to_pylist()
    assert (row["low"], row["high"]) == (0.5, 1.0), "drawn by image"


def test_a_limited_run_and_a_number_that_is_missing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, questions = accuracy(RIGHT)
    write_lmms_eval(
        tmp_path / "logs",
        {"quiz": (numbers | {"submission": None}, questions)},
        **{"n-samples": {"quiz": {"original": 9000, "effective": 8}}, "config": {"limit": 8.0}},
    )
    measure_logs(tmp_path / "logs", out=tmp_path / "out")
    said = capsys.readouterr().err
    assert "quiz: 8 of 9000 questions were asked (--limit)" in said
    assert "submission has no number in the log and is left out" in said
    assert "does not name the images of quiz: the intervals take its questions as" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": 3, "acc": 1.0', "line 4: not JSON"),
        ('{"acc": 1.0}', "line 4: `doc_id` is missing"),
        ('{"doc_id": 0, "acc": 1.0, "input": "", "target": ""}', "occur several times"),
        (None, "3 of 4 questions: the log is unfinished"),
    ],
)
def test_a_damaged_file_of_samples_is_refused(
    tmp_path: Path, line: str | None, message: str
) -> None:
    file = write_lmms_eval(tmp_path / "logs", {"quiz": accuracy([1, 0, 1, 1])})
    samples = file.with_name(file.name.replace("_results.json", "_samples_quiz.jsonl"))
    kept = samples.read_text().splitlines()[:3]
    samples.write_text("\n".join([*kept, *([] if line is None else [line])]))
    with pytest.raises(InputError, match=message) as caught:
        measure_logs(tmp_path / "logs", out=tmp_path / "out")
    assert str(samples) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unfinished_empty_and_mixed_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no finished logs"):
        measure_logs(tmp_path / "empty", out=tmp_path / "out")
    file = write_lmms_eval(tmp_path / "logs", {"quiz": accuracy(RIGHT)})
    file.rename(tmp_path / "results")
    with pytest.raises(InputError, match="lmms-eval has not finished"):
        measure_logs(tmp_path / "logs", out=tmp_path / "out")
    write_lmms_eval(tmp_path / "two" / "a", {"quiz": accuracy(RIGHT)})
    write_lmms_eval(tmp_path / "two" / "b", {"quiz": accuracy(RIGHT)}, model_name="models/n")
    with pytest.raises(InputError, match="logs of 2 models"):
        measure_logs(tmp_path / "two", out=tmp_path / "out")
    write_lmms_eval(tmp_path / "again", {"quiz": accuracy(RIGHT)})
    write_lmms_eval(tmp_path / "again", {"quiz": accuracy(RIGHT)}, stamp="20261129_000000")
    with pytest.raises(InputError, match="the task quiz has two logs"):
        measure_logs(tmp_path / "again", out=tmp_path / "out")
    broken = write_lmms_eval(tmp_path / "broken", {"quiz": accuracy(RIGHT)})
    broken.write_text('{"results": ')
    with pytest.raises(InputError, match="not JSON"):
        measure_logs(tmp_path / "broken", out=tmp_path / "out")


@pytest.mark.parametrize("limit", [None, -1])
def test_fewer_questions_than_were_asked_are_an_unfinished_log_unless_a_limit_says_so(
    tmp_path: Path, limit: int | None
) -> None:
    file = write_lmms_eval(tmp_path / "l", {"quiz": accuracy(RIGHT)}, config={"limit": limit})
    samples = file.with_name(file.name.replace("_results.json", "_samples_quiz.jsonl"))
    samples.write_text("\n".join(samples.read_text().splitlines()[:6]))
    with pytest.raises(InputError, match="6 of 8 questions: the log is unfinished"):
        measure_logs(tmp_path / "l", out=tmp_path / "out")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"limit": 6}}))
    assert measured(tmp_path / "l", tmp_path / "out")["quiz/acc"]["n"] == 6


def test_questions_about_one_image_are_drawn_together(tmp_path: Path) -> None:
    """Pairs that are right or wrong together are worth half as many: the interval is wider."""
    right = [1, 1, 0, 0] * 10
    value, questions = accuracy(right)
    pictured = [q | {"input_media": [f"{i // 2}.jpg"]} for i, q in enumerate(questions)]
    rows = {}
    for name, asked in (("alone", questions), ("pairs", pictured)):
        write_lmms_eval(tmp_path / name, {"quiz": (value, asked)})
        rows[name] = measured(tmp_path / name, tmp_path / f"{name}-out")["quiz/acc"]
    widths = {name: row["high"] - row["low"] for name, row in rows.items()}
    assert widths["pairs"] > 1.2 * widths["alone"]
    images = harness_of(tmp_path / "pairs-out").table()["image"].to_pylist()
    assert images == [f"{i // 2}.jpg" for i in range(40)]


# --- VLMEvalKit -----------------------------------------------------------------------------------


def mmbench(folder: Path, hits: list[int], write: Any = write_tsv, ending: str = "tsv") -> None:
    """One benchmark: hits of each question, and its numbers as fractions."""
    rows = [
        {"index": i, "question": f"q{i}", "A": "yes", "answer": "A", "hit": hit, "category": "OCR"}
        for i, hit in enumerate(hits)
    ]
    write(folder / f"{folder.name}_MMBench_DEV_EN_gpt4_result.{ending}", rows)
    numbers = {"split": "dev", "Overall": sum(hits) / len(hits), "OCR": 0.25}
    write_tsv(folder / f"{folder.name}_MMBench_DEV_EN_acc.csv", [numbers], ",")
    (folder / f"{folder.name}_MMBench_DEV_EN.xlsx").write_bytes(b"the answers: not needed")


def test_vlmevalkit_s_folder_is_read(tmp_path: Path) -> None:
    mmbench(tmp_path / "m", RIGHT)
    (tmp_path / "m" / "m_MMBench_DEV_EN_gpt4_result.pkl").write_bytes(b"never read")
    rows = measured(tmp_path / "m", tmp_path / "out")
    overall = rows["MMBench_DEV_EN/Overall"]
    assert (overall["value"], overall["n"], overall["split"]) == (0.75, 8, "vlmevalkit")
    assert (overall["low"], overall["high"]) == wilson_interval(6, 8)[1:]
    assert math.isnan(rows["MMBench_DEV_EN/OCR"]["low"])  # a category: some of the questions


EN, V11 = "MMBench_DEV_EN", "MMBench_DEV_EN_V11"


def outputs(folder: Path, task: str, hits: list[int], *parts: str) -> None:
    """Some files of a benchmark: `answers`, `numbers`, `scores`, or scores in a `pickle`."""
    start, judge = f"{folder.name}_{task}", "exact_matching_result"
    rows: list[Row] = [{"index": i, "question": f"q{i}", "answer": "A"} for i in range(len(hits))]
    if "answers" in parts:
        write_tsv(folder / f"{start}.tsv", [row | {"prediction": "A"} for row in rows])
    if "numbers" in parts:
        overall = [{"split": "dev", "Overall": sum(hits) / len(hits)}]
        write_tsv(folder / f"{start}_acc.csv", overall, ",")
    if "scores" in parts:
        judged = [row | {"hit": hit} for row, hit in zip(rows, hits, strict=True)]
        write_tsv(folder / f"{start}_{judge}.tsv", judged)
    if "pickle" in parts:
        (folder / f"{start}_{judge}.pkl").write_bytes(b"never read")


WHOLE = ("answers", "numbers", "scores")
BOTH_DONE = {"model_name": "M[1]", "datasets": {name: {"status": "done"} for name in (EN, V11)}}


@pytest.mark.parametrize("status", [None, BOTH_DONE])
@pytest.mark.parametrize(
    ("of_en", "expected"),
    [
        (WHOLE, {EN: (3, True), V11: (4, True)}),
        (("answers",), {V11: (4, True)}),
        (("answers", "numbers"), {EN: (0, False), V11: (4, True)}),
        (("answers", "numbers", "pickle"), {EN: (0, False), V11: (4, True)}),
        (("numbers", "scores"), {EN: (3, True), V11: (4, True)}),
    ],
)
def test_a_benchmark_whose_name_begins_another_s_has_its_own_files(
    tmp_path: Path, of_en: Sequence[str], expected: Row, status: Row | None
) -> None:
    """Both have questions 0 to 2 and the same answers to them; the accuracies are 2/3 and 1/2."""
    folder = tmp_path / "M[1]"
    outputs(folder, V11, [1, 1, 0, 0], *WHOLE)
    outputs(folder, EN, [1, 0, 1], *of_en)
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    logs = read_logs(folder)
    found = {log.task: (log.num_questions, log.asked is not None) for log in logs.tasks}
    assert found == expected
    values = {log.task: log.aggregates[0].value for log in logs.tasks}
    assert values == {task: {EN: 2 / 3, V11: 1 / 2}[task] for task in expected}
    notes = [note for log in logs.tasks for note in log.notes]
    assert len(notes) == list(expected.values()).count((0, False))
    assert all(("only in a .pkl file" in note) == ("pickle" in of_en) for note in notes)


def test_results_filed_under_another_benchmark_are_not_taken_for_these(tmp_path: Path) -> None:
    """An earlier program made other tables of the same files: they have another fingerprint."""
    outputs(tmp_path / "m", V11, [1, 1, 0, 0], *WHOLE)
    measure_logs(tmp_path / "m", out=tmp_path / "out")
    assert "told_apart" not in harness_of(tmp_path / "out").manifest["settings"]
    outputs(tmp_path / "m", EN, [1, 0, 1], "answers")
    measure_logs(tmp_path / "m", out=tmp_path / "out")
    assert harness_of(tmp_path / "out").manifest["settings"]["told_apart"] == [EN, V11]


def test_what_a_judge_writes_beside_the_answers_is_no_other_benchmark(tmp_path: Path) -> None:
    """MathVista's file of a judge has the answers, too, and its numbers are named after it."""
    folder = tmp_path / "m"
    outputs(folder, "MathVista_MINI", [1, 0, 1], "answers")
    rows = [{"index": f"{i}.0", "question": f"q{i}", "prediction": "A", "res": i} for i in range(3)]
    write_tsv(folder / "m_MathVista_MINI_gpt-4-turbo.tsv", rows)
    write_tsv(folder / "m_MathVista_MINI_gpt-4-turbo_score.csv", [{"Overall": 66.7}], ",")
    assert [log.task for log in read_logs(folder).tasks] == ["MathVista_MINI"]
    rows = [row | {"prediction": f"step by step {i}"} for i, row in enumerate(rows)]
    write_tsv(folder / "m_MathVista_MINI_gpt-4-turbo.tsv", rows)
    assert [log.task for log in read_logs(folder).tasks] == ["MathVista_MINI"]
    rows = [row | {"question": f"another {i}"} for i, row in enumerate(rows)]
    write_tsv(folder / "m_MathVista_MINI_gpt-4-turbo.tsv", rows)
    assert [log.task for log in read_logs(folder).tasks] == ["MathVista_MINI_gpt-4-turbo"]


def test_answers_that_a_judge_rewrites_are_no_benchmark_unless_both_have_numbers(
    tmp_path: Path,
) -> None:
    """AI2D_TEST_NO_MASK asks the questions of AI2D_TEST about other images."""
    folder = tmp_path / "m"
    outputs(folder, "X", [1, 0, 1], "answers", "numbers")
    rows = [{"index": i, "question": f"q{i}", "prediction": f"it is {i}"} for i in range(3)]
    write_tsv(folder / "m_X_extract.tsv", rows)
    write_tsv(folder / "m_X_extract_result.tsv", [row | {"hit": row["index"] % 2} for row in rows])
    (log,) = read_logs(folder).tasks
    assert (log.task, log.num_questions) == ("X", 3) and log.asked is not None
    write_tsv(folder / "m_X_extract_acc.csv", [{"split": "dev", "Overall": 1 / 3}], ",")
    logs = read_logs(folder).tasks
    assert [(log.task, log.num_questions) for log in logs] == [("X", 0), ("X_extract", 3)]


def test_precision_that_equals_the_accuracy_by_chance_has_no_interval(tmp_path: Path) -> None:
    """Without the extracted answers nothing shows which questions it counts."""
    outputs(tmp_path / "m", "Quiz", [1, 0, 1], "scores")
    numbers = {"split": "dev", "acc": 2 / 3, "precision": 2 / 3}
    write_tsv(tmp_path / "m" / "m_Quiz_acc.csv", [numbers], ",")
    found = measured(tmp_path / "m", tmp_path / "out")
    assert math.isnan(found["Quiz/precision"]["low"]) and found["Quiz/acc"]["low"] > 0


def test_xlsx_is_read_with_calamine_and_refused_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmbench(tmp_path / "m", RIGHT, write_xlsx, "xlsx")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "python_calamine", None)
        with pytest.raises(MissingDependencyError, match="python-calamine"):
            measure_logs(tmp_path / "m", out=tmp_path / "out")
    pytest.importorskip("python_calamine")
    row = measured(tmp_path / "m", tmp_path / "out")["MMBench_DEV_EN/Overall"]
    assert (row["low"], row["high"]) == wilson_interval(6, 8)[1:]


@pytest.mark.parametrize("form", ["rows", "columns", "lists"])
def test_vlmevalkit_s_json_is_read_in_each_of_its_forms(tmp_path: Path, form: str) -> None:
    rows = [{"index": i, "question": f"q{i}", "hit": hit} for i, hit in enumerate(RIGHT)]
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    split = {"columns": list(lists), "data": [list(row.values()) for row in rows]}
    (tmp_path / "m").mkdir()
    shown = {"rows": rows, "columns": split, "lists": lists}[form]
    (tmp_path / "m" / "m_Quiz_result.json").write_text(json.dumps(shown))
    (tmp_path / "m" / "m_Quiz_acc.json").write_text(json.dumps({"Overall": 0.75}))
    row = measured(tmp_path / "m", tmp_path / "out")["Quiz/Overall"]
    assert (row["value"], row["low"], row["high"]) == wilson_interval(6, 8)
    for bad, message in ((7, "neither rows nor columns: 7"), ({**split, "data": [3]}, "row 1: 3")):
        (tmp_path / "m" / "m_Quiz_result.json").write_text(json.dumps(bad))
        with pytest.raises(InputError, match=message):
            measure_logs(tmp_path / "m", out=tmp_path / "out")


def test_outputs_of_several_runs_or_judges_are_refused(tmp_path: Path) -> None:
    mmbench(tmp_path / "two" / "m", RIGHT)
    mmbench(tmp_path / "two" / "n", RIGHT)
    with pytest.raises(InputError, match="results in 2 folders"):
        measure_logs(tmp_path / "two", out=tmp_path / "out")
    folder = tmp_path / "two" / "m"
    scores = folder / "m_MMBench_DEV_EN_gpt4_result.tsv"
    other = scores.with_name("m_MMBench_DEV_EN_exact_result.tsv")
    other.write_bytes(scores.read_bytes())
    with pytest.raises(InputError, match="2 files have a score for each question") as caught:
        measure_logs(folder, out=tmp_path / "out")
    assert scores.name in caught.value.what and other.name in caught.value.what
    other.unlink()
    numbers = folder / "m_MMBench_DEV_EN_acc.csv"
    numbers.with_name("m_MMBench_DEV_EN_score.csv").write_bytes(numbers.read_bytes())
    with pytest.raises(InputError, match="MMBench_DEV_EN has two files of numbers"):
        measure_logs(folder, out=tmp_path / "out")


def test_vlmevalkit_s_pope_and_llava_bench(tmp_path: Path) -> None:
    """`Overall` of POPE is F1: 3 right yes, 1 wrong, 2 missed; LLaVA-Bench is a ratio, rounded."""
    pairs = [("Yes", "Yes")] * 3 + [("Yes", "No")] + [("No", "Yes")] * 2 + [("No", "No")] * 2
    rows = [
        {"index": i, "question": "q", "answer": truth, "extracted": said, "score": said == truth}
        for i, (said, truth) in enumerate(pairs)
    ]
    write_tsv(tmp_path / "m" / "m_POPE_auxmatch.tsv", rows)
    both = {"Overall": 100 * 6 / 9, "acc": 62.5, "precision": 75.0, "recall": 60.0}
    lines = [{"split": s} | both for s in ("Overall", "random")]
    write_tsv(tmp_path / "m" / "m_POPE_score.csv", lines, ",")
    judged = [
        {"index": i, "gpt4_score": g, "score": s} for i, (g, s) in enumerate([(8, 6), (9, 9)])
    ]
    write_tsv(tmp_path / "m" / "m_LLaVABench_openai_result.tsv", judged)
    numbers = {"split": "overall", "Relative Score (main)": 88.2, "VLM Score": 75.0}
    write_tsv(tmp_path / "m" / "m_LLaVABench_score.csv", [numbers], ",")
    found = measured(tmp_path / "m", tmp_path / "out")
    with_interval = {name for name, row in found.items() if not math.isnan(row["low"])}
    whole = {f"POPE/{name}" for name in both}
    assert with_interval == whole | {"LLaVABench/Relative Score (main)"}
    assert found["POPE/Overall"]["low"] < 100 * 6 / 9 < found["POPE/Overall"]["high"] <= 100
    assert found["POPE/acc [random]"]["value"] == 62.5


def test_vlmevalkit_s_questions_in_json_are_no_results_of_lmms_eval(tmp_path: Path) -> None:
    file = tmp_path / "m" / "m_MMX_results.json"
    write_tsv(tmp_path / "m" / "m_MMX_acc.csv", [{"split": "none", "Overall": 0.75}], ",")
    questions = [{"index": i, "hit": hit} for i, hit in enumerate(RIGHT)]
    split = {"columns": ["index", "hit"], "data": [list(row.values()) for row in questions]}
    for content in (questions, split):
        file.write_text(json.dumps(content))
        row = measured(tmp_path / "m", tmp_path / "out")["MMX/Overall"]
        assert (row["low"], row["high"]) == wilson_interval(6, 8)[1:]
    damaged = (
        ([{"index": 1, "hit": 1}, {"hit": 0}], "question 2: no `index`"),
        ({"columns": ["index", "hit"], "data": [[1, 1], [2]]}, "row 2: 1 cells under 2 columns"),
        ({"columns": ["index", "hit"], "data": [5]}, "row 1: 5 is no list of cells"),
    )
    for wrong, message in damaged:
        file.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            measure_logs(tmp_path / "m", out=tmp_path / "out")


def test_status_names_what_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "T20261128-120000"
    write_tsv(folder / "m_MMStar_acc.csv", [{"split": "none", "Overall": 0.5}], ",")
    status = {"model_name": "m", "datasets": {"MMStar": {"status": "infer"}}}
    (folder / "status.json").write_text(json.dumps(status))
    with pytest.raises(InputError, match=r"MMStar is not done \(status: infer\)"):
        measure_logs(folder, out=tmp_path / "out")
    status["datasets"] = {"MMStar": {"status": "done"}}
    (folder / "status.json").write_text(json.dumps(status))
    assert measured(folder, tmp_path / "out")["MMStar/Overall"]["value"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"index","hit"\n"0","1","2"\n', "line 2: 3 cells under 2"),
        ('"index","hit"\n"0","x"\n', "no `hit`"),
        ('"index","hit"\n"0",""\n', "question 1: no `hit`"),
        ('"index","hit"\n"","1"\n', "question 1: no `index`"),
        ('"index","hit"\n"0","1"\n"0","1"\n', "question 2: the index 0 occurs twice"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    mmbench(tmp_path / "m", RIGHT)
    (tmp_path / "m" / "m_MMBench_DEV_EN_gpt4_result.tsv").write_text(text.replace(",", "\t"))
    with pytest.raises(InputError, match=message):
        measure_logs(tmp_path / "m", out=tmp_path / "out")


# --- any bytes ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ODD = st.sampled_from([10**400, "\ud800", float("nan"), float("inf"), {"score": 10**400}, [[]]])
ANYTHING = JSON | ODD


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    number=ANYTHING,
    values=st.lists(ANYTHING, min_size=1, max_size=4),
    names=st.tuples(st.sampled_from(["quiz", "\ud800", "../x", ""]), st.text(max_size=4)),
    more=st.dictionaries(
        st.sampled_from(["configs", "n-samples", "config", "versions", "higher_is_better"]),
        ANYTHING,
    ),
    row=st.dictionaries(st.sampled_from(["doc_id", "input", "input_media"]), ANYTHING),
)
def test_odd_logs_are_measured_or_refused_in_one_message(
    tmp_path: Path,
    number: Any,
    values: list[Any],
    names: tuple[str, str],
    more: Row,
    row: Row,
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    task, metric = names
    file = write_lmms_eval(folder / "logs", {"quiz": ({metric: number}, [{}])})
    results = json.loads(file.read_text()) | more
    results["results"] = {task: {f"{metric},none": number}}
    file.write_text(json.dumps(results))
    lines = [json.dumps(sample(i, {metric: value}) | row) for i, value in enumerate(values)]
    next((folder / "logs").glob("*.jsonl")).write_text("\n".join(lines))
    try:
        metrics = measure_logs(folder / "logs", out=folder / "out")
    except PerpoError as error:
        assert error.what and error.fix
        assert not list(folder.glob("out/*/current")), "nothing of a refused log is taken over"
        return
    (measured,) = metrics.table().to_pylist()
    assert measured["name"] == f"{task}/{metric}".replace("\ud800", "\ufffd")
    assert math.isnan(measured["low"]) == math.isnan(measured["high"])
    assert math.isnan(measured["low"]) or measured["low"] <= measured["value"] <= measured["high"]


# --- pairs ----------------------------------------------------------------------------------------


def test_two_models_are_paired_question_by_question(tmp_path: Path) -> None:
    """The second is right where the first is, and on one more: the difference is 1 / 8."""
    after = [1, 1, 1, 1, 0, 1, 1, 1]
    for name, right in (("base", RIGHT), ("perpo", after)):
        write_lmms_eval(tmp_path / name, {"quiz": accuracy(right), name: accuracy(right)})
        measure_logs(tmp_path / name, out=tmp_path / f"{name}-out")
    versions = [harness_of(tmp_path / f"{name}-out") for name in ("perpo", "base")]
    rows, single = compare_harness(*versions)
    assert single == ["base/acc", "perpo/acc"]
    assert [row["metric"] for row in rows] == ["quiz/acc"]
    assert (rows[0]["better"], rows[0]["worse"]) == ("perpo", "base")
    assert rows[0]["difference"] == 0.125
    assert (rows[0]["test"], rows[0]["n"]) == ("mcnemar", 8)
    assert harness_of(tmp_path / "base-out" / "harness").path == versions[1].path
    assert find_harness(tmp_path) is find_harness(tmp_path / "base-out" / "metrics") is None


def test_right_and_wrong_in_per_cent_get_the_exact_test(tmp_path: Path) -> None:
    """Right on 5 questions that the other misses, and never worse: 2 * 0.5^5 = 0.0625."""
    for name, right in (("base", [0] * 5 + [1]), ("perpo", [1] * 6)):
        questions = [{"score": {"score": r}} for r in right]
        task = ({"score": 100 * sum(right) / 6}, questions)
        write_lmms_eval(tmp_path / name, {"quiz": task}, aggregation="<function>")
        measure_logs(tmp_path / name, out=tmp_path / f"{name}-out")
    rows, _ = compare_harness(*(harness_of(tmp_path / f"{n}-out") for n in ("perpo", "base")))
    assert (rows[0]["test"], rows[0]["p_value"]) == ("mcnemar", 0.0625)
    assert rows[0]["difference"] == pytest.approx(100 * 5 / 6)


def test_other_questions_are_an_error(tmp_path: Path) -> None:
    write_lmms_eval(tmp_path / "a", {"quiz": accuracy(RIGHT)})
    write_lmms_eval(tmp_path / "b", {"quiz": accuracy(RIGHT[:7])})
    file = write_lmms_eval(tmp_path / "c", {"quiz": accuracy(RIGHT)})
    samples = file.with_name(file.name.replace("_results.json", "_samples_quiz.jsonl"))
    samples.write_text(samples.read_text().replace("truth 3", "truth III"))
    for name in "abc":
        measure_logs(tmp_path / name, out=tmp_path / f"{name}-out")
    first, second, third = (harness_of(tmp_path / f"{name}-out") for name in "abc")
    with pytest.raises(ArtifactError, match="1 of 8 are only in the first"):
        compare_harness(first, second)
    with pytest.raises(ArtifactError, match=r"1 of 8 questions have another text .* first 3"):
        compare_harness(first, third)


def test_a_harness_s_scores_are_not_compared_with_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": accuracy(RIGHT)})
    measure_logs(tmp_path / "logs", out=tmp_path / "scores")
    (tmp_path / "answers.jsonl").write_text('{"completion": "a", "gt_text": "a"}')
    measure_answers(tmp_path / "answers.jsonl", out=tmp_path / "answers")
    assert perpo("compare", tmp_path / "scores", tmp_path / "answers") == 2
    assert "holds the scores of a harness" in capsys.readouterr().err
    assert perpo("compare", tmp_path / "nowhere", tmp_path / "scores") == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_harness_s_metric_is_written_as_reported() -> None:
    metric = find_metric("mme/mme_perception_score")
    assert metric.unit.number(1510.7) == "1510.700"
    assert metric.higher_is_better is None
