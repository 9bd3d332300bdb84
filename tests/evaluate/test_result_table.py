"""The table that an evaluation ends with."""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate import result_table as module
from perpo_pipeline.evaluate.result_table import result_table
from perpo_pipeline.store.schemas import METRICS


@dataclass
class Measured:
    """A metrics artifact: values by metric, with intervals of +-0.02."""

    variant: str
    values: dict[str, float]

    def table(self) -> pa.Table:
        more = {"split": "test", "dataset": "all", "slice_column": None, "slice_value": None}
        rows = [
            {"name": name, "value": v, "low": v - 0.02, "high": v + 0.02, "n": 2048, **more}
            for name, v in self.values.items()
        ]
        rows.append({**rows[0], "value": 0.0, "dataset": "category=dog"})
        return pa.Table.from_pylist(rows, METRICS.columns)


GROUNDING = {"ap50": 0.614, "ap75": 0.593, "miou": 0.566, "parse_rate": 1.0}
ALL = [
    Measured("base@test", GROUNDING),
    Measured("base-other-image@test", {"ap50": 0.025}),
    Measured("base-blank-image@test", {"ap50": 0.014}),
    Measured("perpo@test", {name: value + 0.08 for name, value in GROUNDING.items()}),
    Measured("perpo-other-image@test", {"ap50": 0.023}),
]


@pytest.fixture(autouse=True)
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Paired differences without artifacts: those of `dpo` cannot be had."""
    asked: list[tuple[str, str]] = []

    def compare(better: str, worse: str, num_resamples: int) -> list[dict[str, Any]]:
        asked.append((better, worse))
        if better.startswith("dpo"):
            raise ArtifactError("the predictions have different prompts")
        difference = {"difference": 0.08, "low": 0.06, "high": 0.1}
        return [{"metric": name, **difference} for name in ("ap50", "miou")]

    monkeypatch.setattr(module, "input_of", lambda version, artifact: version.variant)
    monkeypatch.setattr(module, "compare_predictions", compare)
    return asked


def test_methods_are_crossed_with_metrics_main_ones_first_and_differences_below(
    compared: list[tuple[str, str]],
) -> None:
    shown = result_table(ALL)  # type: ignore[arg-type]
    assert shown.splitlines() == [
        "test, 2,048 prompts  ap50, %             miou, %             other/blank image",
        "base                 61.4 [59.4, 63.4]   56.6 [54.6, 58.6]   2.5 / 1.4",
        "perpo                69.4 [67.4, 71.4]   64.6 [62.6, 66.6]   2.3 / -",
        "  - base             +8.0 [+6.0, +10.0]  +8.0 [+6.0, +10.0]",
        "[ ]: 95 % interval; - base: the paired difference to the base",
        "other/blank image: ap50 where another prompt's or a blank image is shown",
        "2 more metrics: perpo eval --details, or --json",
    ]
    assert max(map(len, shown.splitlines())) <= 80
    assert compared == [("perpo@test", "base@test")]


def test_a_wider_terminal_shows_more_metrics() -> None:
    head = result_table(ALL, columns=130).splitlines()[0]  # type: ignore[arg-type]
    assert head.split(" image")[1].split() == ["ap75,", "%", "parse_rate,", "%"]


def test_the_title_counts_every_prompt_where_the_main_metric_has_fewer() -> None:
    class Half(Measured):
        def table(self) -> pa.Table:
            rows = super().table().to_pylist()
            few = [{**row, "n": 400} if row["name"] == "mean_set_iou" else row for row in rows]
            return pa.Table.from_pylist(few, METRICS.columns)

    text = result_table([Half("base@testA", {"mean_set_iou": 0.5, "n_acc": 0.2})])  # type: ignore[list-item]
    assert text.startswith("testA, 2,048 prompts: 400 with mean_set_iou")
    both = {"mean_set_iou": 0.5, "out_of_frame_rate": 0.2, "edit_distance": 0.1, "mean_reward": 0.7}
    text = result_table([Half("base@t", both)])  # type: ignore[list-item]
    assert text.startswith("t, 4,096 prompts: 400 with mean_set_iou and 2,048 with edit_distance")


def test_without_the_base_there_are_no_differences_and_splits_have_blocks_of_their_own() -> None:
    pages = Measured("perpo@pages", {"edit_distance": 0.25, "bleu": math.nan})
    blocks = result_table([ALL[3], pages]).split("\n\n")  # type: ignore[list-item]
    assert [block.splitlines()[0].split(",")[0] for block in blocks] == ["test", "pages"]
    assert "25.0 [23.0, 27.0]" in blocks[1] and "- base" not in blocks[1]
    assert "lower is better: edit_distance" in blocks[1].splitlines() and "lower" not in blocks[0]


def test_a_difference_that_cannot_be_had_says_why() -> None:
    dpo = Measured("dpo@test", GROUNDING)
    shown = result_table([ALL[0], dpo, ALL[3]])  # type: ignore[list-item]
    assert "dpo - base: the predictions have different prompts" in shown.splitlines()
    lines = [line.split()[0] for line in shown.splitlines()[:5]]
    assert lines == ["test,", "base", "dpo", "perpo", "-"]
