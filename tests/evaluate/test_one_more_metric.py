"""A new entry of METRICS is measured, printed, compared and reported, without any other change.

The new metric is the share of boxes with an IoU of at least 0.9.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_judge import perpo
from synthetic_run import make_synthetic_run

from perpo_pipeline.evaluate.best_of_n import best_of_n_rows, best_of_n_table
from perpo_pipeline.evaluate.compare import (
    compare_predictions,
    compare_versions,
    comparison_table,
)
from perpo_pipeline.evaluate.judge.llava_bench import LLAVA_BENCH
from perpo_pipeline.evaluate.judge.mm_vet import MM_VET
from perpo_pipeline.evaluate.judge.mmhal import MMHAL
from perpo_pipeline.evaluate.judge.win_rate import WIN_RATE
from perpo_pipeline.evaluate.metric import FRACTION, Answers, Metric, Unit
from perpo_pipeline.evaluate.metrics import GROUNDING, METRICS, POPE, measured_metrics
from perpo_pipeline.evaluate.pope import pope_metrics
from perpo_pipeline.evaluate.printing import metrics_table
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.report.write_report import report
from perpo_pipeline.run import Console, Run

NEW = Metric(
    "ap90",
    "AP@90",
    (GROUNDING,),
    of_reward=lambda rewards: np.asarray(rewards >= 0.9, dtype=np.float64),
    compared_on=(GROUNDING,),
    unit=Unit("of 1000", 1000.0, 0),
    in_report=Unit("per mille", 1000.0, 2),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, NEW.name, NEW)
        return make_synthetic_run(tmp_path_factory.mktemp("run"), methods=("perpo",))


@pytest.fixture(autouse=True)
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, NEW.name, NEW)


def rewards_of(run: Run, model: str) -> list[float]:
    rewards: list[float] = run.latest("predictions", f"{model}@test").table()["reward"].to_pylist()
    return rewards


def share(rewards: list[float]) -> float:
    return sum(reward >= 0.9 for reward in rewards) / len(rewards)


def ap90(rows: list[dict[str, Any]], key: str = "name") -> list[dict[str, Any]]:
    return [row for row in rows if row[key] == "ap90"]


def test_metrics_rows_and_their_table_have_it_in_its_unit(run: Run) -> None:
    rows = run.latest("metrics", "perpo@test").table().to_pylist()
    (row,) = ap90(rows)
    expected = share(rewards_of(run, "perpo"))
    assert 0 < expected < 1
    assert row["value"] == pytest.approx(expected)
    (line,) = [line for line in metrics_table(rows).splitlines() if line.startswith("ap90")]
    assert f"{1000 * expected:.0f} of 1000" in line


def test_it_is_compared_pair_by_pair(run: Run) -> None:
    rows = compare_predictions(
        *(run.latest("predictions", name) for name in ("perpo@test", "base@test"))
    )
    (row,) = ap90(rows, "metric")
    difference = share(rewards_of(run, "perpo")) - share(rewards_of(run, "base"))
    assert row["difference"] == pytest.approx(difference)
    (line,) = [line for line in comparison_table(rows).splitlines() if line.startswith("ap90")]
    assert line.split()[1] == f"{1000 * difference:+.0f}"


def test_the_best_of_n_samples_is_measured_by_it(run: Run) -> None:
    scores = run.latest("scores", "train")
    rows = best_of_n_rows(scores, num_resamples=100)
    best: dict[str, float] = {}
    for row in scores.table().to_pylist():
        best[row["prompt_id"]] = max(row["reward"], best.get(row["prompt_id"], 0.0))
    last = ap90(rows)[-1]
    assert (last["best_of"], last["value"]) == (6, pytest.approx(share(list(best.values()))))
    assert best_of_n_table(rows).splitlines()[0].split() == ["best_of", "ap50", "miou", "ap90", "n"]


def test_a_metric_where_lower_is_better_has_no_best_of_n(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Metric(
        "miss",
        "miss",
        (GROUNDING,),
        of_reward=lambda rewards: 1.0 - rewards,
        compared_on=(GROUNDING,),
        higher_is_better=False,
    )
    monkeypatch.setitem(METRICS, worse.name, worse)
    rows = best_of_n_rows(run.latest("scores", "train"), num_resamples=100)
    assert {row["name"] for row in rows} == {"ap50", "miou", "ap90"}


def test_the_report_has_its_column_its_oracle_and_its_paired_difference(run: Run) -> None:
    version = report(run)
    html = (version.path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col">AP@90</th>' in html
    assert re.search(r"<h3>AP@90</h3>", html)
    value = share(rewards_of(run, "perpo"))
    assert f"{1000 * value:.2f}" in html
    sampled: dict[str, list[float]] = {}
    for row in run.latest("scores", "train").table().to_pylist():
        sampled.setdefault(row["prompt_id"], []).append(row["reward"])
    oracle = re.search(r'data-method="oracle".*?</tr>', html, re.DOTALL)
    assert oracle is not None
    assert f"{1000 * share([max(rewards) for rewards in sampled.values()]):.2f}" in oracle[0]
    assert "ap90" in version.table()["metric"].to_pylist()


def test_the_report_leaves_out_metrics_without_in_report(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = Metric("ap90", "AP@90", (GROUNDING,), of_reward=NEW.of_reward, in_report=None)
    monkeypatch.setitem(METRICS, "ap90", hidden)
    version = report(Run(run.config, quiet=True, out=tmp_path / "page"))
    assert "AP@90" not in (version.path / "report.html").read_text(encoding="utf-8")


def test_the_command_compare_prints_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    places = [run.latest("predictions", name).path for name in ("perpo@test", "base@test")]
    assert perpo("compare", *places) == 0
    assert "ap90" in capsys.readouterr().out


def test_what_was_written_before_it_was_added_is_not_up_to_date(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = [run.latest("predictions", name) for name in ("perpo@test", "base@test")]
    with monkeypatch.context() as patch:
        patch.delitem(METRICS, "ap90")
        before = compare_versions(*versions, out=tmp_path, console=Console(quiet=True))
        names = [metric.name for metric in measured_metrics([GROUNDING])]
    after = compare_versions(*versions, out=tmp_path, console=Console(quiet=True))
    assert {row["metric"] for row in after} - {row["metric"] for row in before} == {"ap90"}
    assert [metric.name for metric in measured_metrics([GROUNDING])] == [*names, "ap90"]


def test_every_measured_name_is_an_entry_for_its_task() -> None:
    """The names that POPE and the judged benchmarks measure are those of METRICS for their task."""
    row = {
        "says_yes": True,
        "reads": "yes",
        "is_yes": True,
        "image": "a",
        "category": "",
        "is_answered": True,
    }
    assert {r["name"] for r in pope_metrics([row])} == {
        metric.name for metric in METRICS.values() if POPE in metric.tasks
    }
    scores = {WIN_RATE: (2, 7), LLAVA_BENCH: (1, 2), MMHAL: (1, 1), MM_VET: (1, 1)}
    for task, (orders, numbers) in scores.items():
        names = {metric.name for metric in METRICS.values() if task.name in metric.tasks}
        measured = task.measure(np.ones((3, orders, numbers)))
        assert {*measured, "parse_rate"} == names


def test_every_key_is_the_name_of_its_record_and_labels_are_unique() -> None:
    assert all(metric.name == name for name, metric in METRICS.items())
    labels = [metric.label for metric in METRICS.values()]
    assert len(set(labels)) == len(labels)


def test_values_and_counts_have_one_row_per_prompt() -> None:
    answers = Answers(
        np.ones(3), np.ones(3, dtype=bool), ["a b", "", "c"], ["a", "x", "c"], np.zeros(3)
    )
    for metric in measured_metrics([GROUNDING, "ocr", "vqa"]):
        values = metric.measure(answers)
        assert len(values) == 3
        if metric.statistic is None:
            assert values.shape == (3,)
            assert mean_interval(values)[0] == pytest.approx(values.mean())
        else:
            assert metric.statistic(values).shape == (3,)
    assert METRICS["edit_distance"].in_report == FRACTION


def test_a_metric_that_is_compared_needs_its_values_per_prompt() -> None:
    with pytest.raises(ValueError, match="colour is compared pair by pair, which needs"):
        Metric("colour", "Colour", ("grounding",), compared_on=("grounding",))
