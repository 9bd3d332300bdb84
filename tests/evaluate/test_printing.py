"""Tables of metrics for a terminal."""

import math
from typing import Any

from perpo_pipeline.evaluate.metrics import main_metrics
from perpo_pipeline.evaluate.printing import (
    has_several_tasks,
    metrics_table,
    splits_table,
    tasks_table,
)


def row(name: str, value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "low": low,
        "high": high,
        "n": 12,
        "split": "test",
        "dataset": "all",
        **more,
    }


def test_shares_are_per_cent_and_ratings_on_their_own_scale_in_aligned_columns() -> None:
    shown = metrics_table(
        [
            row("ap50", 0.647, 0.5, 1.0),
            row("mmhal_score", 2.26, 2.1, 2.4, dataset="other", n=96),
            row("cer", 1.5, math.nan, math.nan),
        ]
    )
    assert shown.splitlines() == [
        "metric       split  dataset  value       95 % interval   n",
        "ap50         test   all       64.7 %     [50.0, 100.0]  12",
        "mmhal_score  test   other     2.26 of 6   [2.10, 2.40]  96",
        "cer          test   all      150.0 %                 -  12",
    ]


def test_no_metrics_are_a_heading_alone() -> None:
    assert len(metrics_table([]).splitlines()) == 1


def test_models_and_splits_are_crossed_by_main_metric_and_domain() -> None:
    """Boxes and pages have no metric in common; `dpo` was not evaluated on the pages."""
    boxes = [
        row("ap50", value, 0.0, 1.0, model=model, split=split, n=n)
        for model, values in {"base": (0.5, 0.25, 1.0), "dpo": (0.625, 0.5, 0.0)}.items()
        for value, split, n in zip(values, ("val", "testA", "far"), (2048, 12, 4), strict=True)
    ]
    pages = row("edit_distance", 0.25, 0.0, 1.0, model="base", split="pages")
    unanswered = row("unanswered_rate", 0.1, 0.0, 1.0, model="base", split="pages")
    also = row("miou", 0.3, 0.0, 1.0, model="base", split="val")
    assert splits_table([*boxes, unanswered, pages, also], out_of_domain=["far"]).splitlines() == [
        "ap50, %   val  testA",
        "base     50.0   25.0",
        "dpo      62.5   50.0",
        "n        2048     12",
        "",
        "ap50, % (out of domain)    far",
        "base                     100.0",
        "dpo                        0.0",
        "n                            4",
        "",
        "edit_distance, %  pages",
        "base               25.0",
        "n                    12",
    ]


def of_task(model: str, split: str, name: str, value: float, n: int) -> dict[str, Any]:
    return {
        "model": model,
        "split": split,
        "name": name,
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "n": n,
    }


def test_the_tasks_of_a_run_stand_in_one_table_with_their_intervals() -> None:
    rows = [
        of_task("base", "boxes", "ap50", 0.6, 1024),
        of_task("base", "boxes", "miou", 0.5, 1024),
        of_task("base", "pages", "edit_distance", 0.25, 512),
        of_task("base", "pages", "f1", 0.8, 512),
        of_task("perpo-both", "boxes", "ap50", 0.7, 1024),
        of_task("perpo-both", "pages", "edit_distance", 0.15, 512),
    ]
    assert has_several_tasks(rows)
    assert tasks_table(rows).splitlines() == [
        "            boxes: ap50, %     pages: edit_distance, % (lower is better)",
        "base        60.0 [58.0, 62.0]  25.0 [23.0, 27.0]",
        "perpo-both  70.0 [68.0, 72.0]  15.0 [13.0, 17.0]",
        "n           1,024              512",
    ]
    assert not has_several_tasks(rows[:2])
    wide = [{**row, "split": f"{row['split']}{i}"} for i in range(3) for row in rows]
    assert not has_several_tasks(wide)  # six columns: splits_table has blocks
    # One split of both tasks has a column for each.
    mixed = [{**row, "split": "test"} for row in rows]
    assert has_several_tasks(mixed)
    assert "test: ap50, %" in tasks_table(mixed) and "test: edit_distance" in tasks_table(mixed)


def test_each_task_has_its_own_main_metric() -> None:
    assert main_metrics(["f1", "edit_distance", "miou", "ap50"]) == ["ap50", "edit_distance"]
    assert main_metrics(["miou", "ap50"]) == ["ap50"]
    assert main_metrics(["mean_reward"]) == ["mean_reward"]
    assert main_metrics(["somebody's"]) == ["somebody's"]
