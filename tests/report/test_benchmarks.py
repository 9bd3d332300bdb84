"""The report's table of general benchmarks: what is paired, and what it claims."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness_logs import write_lmms_eval
from html_page import Page
from synthetic_run import make_synthetic_run

from perpo_pipeline.evaluate.harness.measure_logs import file_logs
from perpo_pipeline.report.benchmarks import (
    BETTER,
    NO_DIRECTION,
    NOT_SHOWN,
    NOT_WORSE,
    WORSE,
    verdict,
)
from perpo_pipeline.report.results import Estimate
from perpo_pipeline.report.write_report import report
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.writing import Recipe


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, BETTER),
        (-0.009, 0.02, NOT_WORSE),
        (-0.009, -0.001, NOT_WORSE),  # a loss for sure, but within the margin
        (-0.011, 0.02, NOT_SHOWN),
        (-0.03, -0.001, WORSE),
        (0.0, 0.0, NOT_WORSE),
        (math.nan, math.nan, NOT_SHOWN),
    ],
)
def test_a_verdict_is_as_firm_as_the_interval(low: float, high: float, expected: str) -> None:
    difference = Estimate((low + high) / 2, low, high, 100)
    assert verdict(difference, 0.01, True) == expected
    mirrored = Estimate(-(low + high) / 2, -high, -low, 100)
    assert verdict(mirrored, 0.01, False) == expected
    assert verdict(difference, 0.01, None) == NO_DIRECTION


def right(count: int, wrong: int) -> list[dict[str, Any]]:
    return [{"acc": 1.0}] * count + [{"acc": 0.0}] * wrong


def quiz(questions: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"acc": sum(q["acc"] for q in questions) / len(questions)}, questions


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_synthetic_run(tmp_path / "run", methods=("perpo",), pictures=0)


def page(run: Run) -> Page:
    return Page((report(run).path / "report.html").read_text(encoding="utf-8"))


def test_base_and_trained_model_are_compared_on_the_same_questions(
    run: Run, tmp_path: Path
) -> None:
    """The same scores of 400 questions; 20 lost of 90; and an aggregate without its questions.

    No change among 400 questions: at most 1 - 0.025^(1/400) = 0.0092, within 2 % of 0.9.
    """
    same, lost = quiz(right(360, 40)), quiz(right(70, 30))
    tasks = {"keeps": same, "loses": quiz(right(90, 10)), "mme": ({"score": 1510.7}, None)}
    write_lmms_eval(tmp_path / "base", tasks)
    write_lmms_eval(tmp_path / "perpo", tasks | {"loses": lost, "mme": ({"score": 1490.0}, None)})
    for model in ("base", "perpo"):
        file_logs(tmp_path / model, run, model)
    found = page(run)
    keeps = found.row("data-benchmark", "perpo keeps/acc")
    assert keeps[2:7] == [
        "0.900 [0.867, 0.926]",
        "0.900 [0.867, 0.926]",
        "+0.000 [-0.009, +0.009]",
        "400",
        "not worse",
    ]
    loses = found.row("data-benchmark", "perpo loses/acc")
    assert loses[3].startswith("0.700")
    assert loses[4].startswith("-0.200 [")
    assert loses[6:] == ["worse", "lmms-eval, 1.0"]
    mme = found.row("data-benchmark", "perpo mme/score")
    assert mme[2:7] == ["1510.700", "1490.000", "–", "12", "no scores of single questions"]
    text = " ".join(" ".join(found.text).split())
    assert "Of 3 numbers: 1 not worse, 1 worse, 1 not judged." in text
    assert "a loss of 2 % of the base's value" in text.replace("\u00a0", " ")


def test_a_few_questions_without_a_change_show_nothing(run: Run, tmp_path: Path) -> None:
    """1 - 0.025^(1/10) = 0.308: ten equal answers are no evidence."""
    write_lmms_eval(tmp_path / "logs", {"quiz": quiz(right(9, 1))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / "logs", run, model)
    cells = page(run).row("data-benchmark", "perpo quiz/acc")
    assert (cells[4], cells[6]) == ("+0.000 [-0.308, +0.308]", "not shown")


def test_one_gain_among_a_few_questions_does_not_show_that_nothing_is_lost(
    run: Run, tmp_path: Path
) -> None:
    """No loss among 10: up to 0.308 of them may be; the bootstrap alone ends at 0."""
    write_lmms_eval(tmp_path / "base", {"quiz": quiz(right(4, 6))})
    write_lmms_eval(tmp_path / "perpo", {"quiz": quiz(right(5, 5))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / model, run, model)
    cells = page(run).row("data-benchmark", "perpo quiz/acc")
    assert cells[4].startswith("+0.100 [-0.308, +0.") and cells[6] == "not shown"


def test_questions_about_one_image_count_as_one_where_nothing_changed(
    run: Run, tmp_path: Path
) -> None:
    """400 equal answers about 10 images: 1 - 0.025^(1/10) = 0.308 of the images may change."""
    asked = [q | {"input_media": [f"{i % 10}.png"]} for i, q in enumerate(right(360, 40))]
    write_lmms_eval(tmp_path / "logs", {"quiz": quiz(asked)})
    for model in ("base", "perpo"):
        file_logs(tmp_path / "logs", run, model)
    cells = page(run).row("data-benchmark", "perpo quiz/acc")
    assert cells[4:7] == ["+0.000 [-0.308, +0.308]", "400", "not shown"]


def test_answers_that_are_all_wrong_show_nothing(run: Run, tmp_path: Path) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": quiz(right(0, 3))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / "logs", run, model)
    cells = page(run).row("data-benchmark", "perpo quiz/acc")
    assert cells[4].startswith("+0.000 [-0.708, ") and cells[6] == "not shown"


def test_other_questions_of_one_task_leave_the_other_tasks_paired(run: Run, tmp_path: Path) -> None:
    same = quiz(right(360, 40))
    write_lmms_eval(tmp_path / "base", {"quiz": same, "test": quiz(right(9, 1))})
    write_lmms_eval(tmp_path / "perpo", {"quiz": same, "test": quiz(right(9, 0))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / model, run, model)
    found = page(run)
    verdicts = [found.row("data-benchmark", f"perpo {task}/acc")[6] for task in ("quiz", "test")]
    assert verdicts == ["not worse", "other questions"]


def test_a_run_without_benchmarks_has_no_such_section(run: Run) -> None:
    assert "Did anything else get worse?" not in "".join(page(run).text)


def test_other_questions_are_not_judged(run: Run, tmp_path: Path) -> None:
    write_lmms_eval(tmp_path / "base", {"quiz": quiz(right(9, 1))})
    write_lmms_eval(tmp_path / "perpo", {"quiz": quiz(right(9, 0))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / model, run, model)
    cells = page(run).row("data-benchmark", "perpo quiz/acc")
    assert (cells[4], cells[6]) == ("–", "other questions")


def test_results_of_an_older_adapter_are_named_and_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": quiz(right(9, 1))})
    for model in ("base", "perpo"):
        file_logs(tmp_path / "logs", run, model)
    place = run.place("adapter", "perpo")
    version = place / (place / "current").read_text().strip()
    newer = version.with_name("0" * 16)
    shutil.copytree(version, newer)
    evaluated = run.latest("predictions", "perpo@test").path
    for made in (newer, evaluated):
        manifest = (made / "manifest.json").read_text()
        (made / "manifest.json").write_text(manifest.replace(version.name, newer.name))
    (place / "current").write_text(newer.name)
    found = page(replace(run, allow_stale=True))  # the wrong images were shown to the older one
    assert "perpo@lmms-eval is about an older adapter and is left out" in capsys.readouterr().err
    assert "Did anything else get worse?" not in "".join(found.text)


def test_a_trained_model_without_the_base_is_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lmms_eval(tmp_path / "logs", {"quiz": quiz(right(9, 1))})
    file_logs(tmp_path / "logs", run, "perpo")
    page(run)
    assert "the base was not measured on lmms-eval" in capsys.readouterr().err


def test_models_that_were_asked_in_other_ways_are_named_and_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, limit in (("base", 10), ("perpo", 20)):
        variant = f"{model}@lmms-eval-quiz"
        inputs = {} if model == "base" else {"adapter": run.latest("adapter", model)}
        settings = {"harness": "lmms-eval", "arguments": ["--limit", str(limit)]}
        recipe = Recipe("harness", variant, "eval", 1, settings, inputs)
        made = make(run, recipe, lambda writer: writer.write_part(0, []))
        recipe = Recipe("metrics", variant, "eval", 1, {}, {"harness": made})
        make(run, recipe, lambda writer: writer.write_part(0, []))
    page(run)
    said = capsys.readouterr().err
    assert "base and perpo were measured on lmms-eval-quiz with different arguments" in said


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lmms_eval_version": "0.8.0"}, "harness_version"),
        ({"versions": {"quiz": 2.0}}, "version of quiz"),
    ],
)
def test_other_versions_of_the_harness_or_of_a_task_are_not_compared(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    named: str,
) -> None:
    tasks = {"quiz": quiz(right(9, 1))}
    write_lmms_eval(tmp_path / "base", tasks)
    write_lmms_eval(tmp_path / "perpo", tasks, **changed)
    for model in ("base", "perpo"):
        file_logs(tmp_path / model, run, model)
    assert "Did anything else get worse?" not in "".join(page(run).text)
    said = capsys.readouterr().err
    assert f"base and perpo were measured on lmms-eval with different {named}, so" in said
