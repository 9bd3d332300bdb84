"""Which metrics the methods are compared in, on splits of one task and of several."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from perpo_pipeline.evaluate.ocr import FOX_METRICS
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page.headline import _paired
from perpo_pipeline.report.page.paired import _cell
from perpo_pipeline.report.page.wording import unsettled
from perpo_pipeline.report.paired import Comparison, Outcomes, compare

BASE, PERPO = (ReportedMethod(n, n, "#000000", n, (n,)) for n in ("base", "perpo"))


def test_each_task_of_a_mixed_split_is_compared_in_its_own_metrics_on_its_own_prompts():
    """Four boxes (IoU .2 -> .8 on two of them) and four pages (distance .4 -> .1)."""
    tasks = ["grounding", "ocr"] * 4
    keys = [str(at) for at in range(8)]
    prompts = pl.DataFrame({"prompt_id": keys, "image_sha256": keys, "task": tasks})
    before = np.array([0.2, 0.6] * 4)
    after = np.array([0.8, 0.9, 0.2, 0.9] * 2)
    is_page = np.array(tasks) == "ocr"
    pages = {
        name: {metric: np.where(is_page, value, np.nan) for metric in FOX_METRICS}
        for name, value in (("base", 0.4), ("perpo", 0.1))
    }
    mixed = Outcomes("test", prompts, {"base": before, "perpo": after}, pages)
    rows = {c.metric: c for c in compare(mixed, PERPO, [BASE], 200)}
    assert list(rows) == ["ap50", "miou", *FOX_METRICS, "mean_reward"]
    assert (rows["miou"].n, rows["miou"].difference) == (4, pytest.approx(0.3))
    assert (rows["ap50"].n, rows["ap50"].difference) == (4, pytest.approx(0.5))
    assert (rows["edit_distance"].n, rows["edit_distance"].difference) == (4, pytest.approx(-0.3))
    assert (rows["mean_reward"].n, rows["mean_reward"].difference) == (8, pytest.approx(0.3))
    assert [c.metric for c in compare(mixed.only("grounding"), PERPO, [BASE], 200)] == [
        "ap50",
        "mean_reward",
    ]


def test_seeds_that_all_answer_as_the_base_differ_from_it_by_nothing():
    """The mean of three equal numbers may differ from them in the last digit."""
    answers = np.random.default_rng(0).choice(np.round(np.random.default_rng(9).random(40), 2), 30)
    assert (np.mean([answers] * 3, axis=0) != answers).any()
    keys = [str(at) for at in range(30)]
    prompts = pl.DataFrame({"prompt_id": keys, "image_sha256": keys, "task": ["grounding"] * 30})
    seeds = ReportedMethod("perpo", "PerPO", "#000000", "perpo", ("p0", "p1", "p2"))
    rewards = {name: answers for name in ("base", *seeds.variants)}
    for row in compare(Outcomes("t", prompts, rewards), seeds, [BASE], 200):
        assert (row.difference, row.low, row.high, row.p_value) == (0, 0, 0, 1)
        assert unsettled(row) == "both gave the same result on each of the 30 prompts"


def _compared(tasks, before, after):
    keys = [str(at) for at in range(len(tasks))]
    prompts = pl.DataFrame({"prompt_id": keys, "image_sha256": keys, "task": tasks})
    rewards = {"base": np.array(before), "perpo": np.array(after)}
    return {c.metric: c for c in compare(Outcomes("t", prompts, rewards), PERPO, [BASE], 200)}


def test_a_metric_is_never_compared_on_the_prompts_of_another_task():
    """Boxes that become worse beside short answers that become better."""
    rows = _compared(["grounding", "vqa"] * 4, [0.6, 0.0] * 4, [0.4, 0.5] * 4)
    assert list(rows) == ["ap50", "miou", "edit_distance", "mean_reward"]
    assert (rows["ap50"].n, rows["ap50"].difference) == (4, -1)
    assert (rows["edit_distance"].n, rows["edit_distance"].difference) == (4, -0.5)
    sets = _compared(["grounding-set", "no-target"] * 4, [0.6, 0.0] * 4, [0.4, 1.0] * 4)
    assert list(sets) == ["mean_set_iou", "denial_rate", "mean_reward"]
    assert (sets["mean_set_iou"].n, round(sets["mean_set_iou"].difference, 6)) == (4, -0.2)
    assert list(_compared(["vqa"] * 4, [0.0] * 4, [0.5] * 4)) == ["edit_distance", "mean_reward"]


@pytest.mark.parametrize(
    ("metric", "tasks", "expected"),
    [
        ("ap50", ["grounding", "vqa"], "ap50"),
        ("mean_set_iou", ["grounding-set", "no-target"], "mean_set_iou"),
        ("mean_set_iou", ["grounding-set"] * 2, "mean_reward"),
        ("all_found", ["no-target"] * 2, "mean_reward"),
        ("all_found", ["no-target", "vqa"], "denial_rate"),
    ],
)
def test_the_headline_takes_a_difference_on_its_own_prompts(metric, tasks, expected):
    found = _compared(tasks * 2, [0.2, 0.4] * 2, [0.6, 0.1] * 2)
    prompts = pl.DataFrame({"prompt_id": tasks, "task": tasks})
    contents = SimpleNamespace(
        comparisons=list(found.values()), outcomes=Outcomes("t", prompts, {})
    )
    assert _paired(contents, metric).metric == expected


@pytest.mark.parametrize(
    ("p_value", "judged"), [(0.049, "better"), (0.058, "borderline"), (0.001, "better")]
)
def test_no_difference_is_called_better_beside_a_p_value_above_five_per_cent(p_value, judged):
    numbers = (-0.03, -0.058, -0.002, p_value, "paired bootstrap", 64)
    assert _cell(Comparison("edit_distance", "perpo", "base", *numbers, "test"))["judged"] == judged
