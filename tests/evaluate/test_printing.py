"""Tables of metrics for a terminal."""

import math
from typing import Any

from perpo_pipeline.evaluate.printing import metrics_table, splits_table


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
