"""The samples of a run of two tasks: each has its own best of n, rewards, margins and threshold."""

import numpy as np
import pytest
from synthetic_run import BOTH, make_synthetic_run

from perpo_pipeline.report.inputs import open_inputs
from perpo_pipeline.report.page.samples import samples
from perpo_pipeline.report.ranked import read_ranked
from perpo_pipeline.report.sampled import oracle, read_sampled
from perpo_pipeline.report.write_report import report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_synthetic_run(
        tmp_path_factory.mktemp("both"), task=BOTH, num_prompts=30, methods=("perpo",)
    )


@pytest.fixture(scope="module")
def sampled(run):
    return read_sampled(open_inputs(run))


@pytest.fixture(scope="module")
def page(run):
    return (report(run).path / "report.html").read_text(encoding="utf-8")


def test_each_task_has_its_own_lists_and_threshold(run, sampled):
    counts = run.latest("preferences", "train").manifest["counts"]["tasks"]
    assert list(sampled) == ["grounding", "ocr"]
    for task, one in sampled.items():
        dropped = {reason: len(margins) for reason, margins in one.dropped_margins.items()}
        assert one.rewards.shape == (30, 6) == one.parse_ok.shape
        assert dropped == counts[task]["dropped"] != {}
        assert len(one.kept_margins) == counts[task]["kept"] > 0
        assert one.kept_margins.min() >= one.min_margin == {"grounding": 0.6, "ocr": 0.2}[task]
        assert one.kept_by_unparsed_only == counts[task]["kept_by_unparsed_only"]


def test_each_task_is_measured_in_its_own_metric(sampled):
    boxes, pages = samples(sampled, "train")["tasks"]
    best = {task: one.rewards.max(axis=1) for task, one in sampled.items()}
    assert (boxes["name"], boxes["best_label"]) == ("grounding", "AP@50")
    assert (pages["name"], pages["best_label"]) == ("ocr", "edit distance")
    assert float(boxes["best_last"]) == round(100 * float(np.mean(best["grounding"] >= 0.5)), 1)
    assert float(pages["best_last"]) == round(float(np.mean(1 - best["ocr"])), 3)


def test_the_upper_bound_is_that_of_the_task_of_the_test(sampled):
    found = oracle([sampled["grounding"]], 50)
    assert found.lists == 30
    assert found.metrics["ap50"].value == np.mean(sampled["grounding"].rewards.max(axis=1) >= 0.5)
    assert oracle(sampled.values(), 50) is None


def test_the_page_has_a_part_for_each_task(page):
    assert "best of 6*" in page
    assert page.count("<h3>grounding</h3>") == page.count("<h3>ocr</h3>") == 1
    assert page.count("Exact mean over all subsets of n samples.") == 2


@pytest.mark.parametrize("tasks", [["grounding"], ["ocr"], None])
def test_the_shown_lists_are_of_the_tasks_that_the_method_was_trained_on(run, tasks):
    settings = {"method": "perpo", "gamma": 1.0, "tasks": tasks}
    shown = read_ranked(open_inputs(run), settings, 60)
    counts = run.latest("preferences", "train").manifest["counts"]["tasks"]
    wanted = tasks or ["grounding", "ocr"]
    assert {"ocr" if one.prompt["gt_text"] else "grounding" for one in shown} == set(wanted)
    assert len(shown) == sum(counts[task]["kept"] for task in wanted)
