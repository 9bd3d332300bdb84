"""`train.levers`: names, what they need, and where they count."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perpo_pipeline.config.fingerprints import counts_in
from perpo_pipeline.config.levers import LEVERS
from perpo_pipeline.config.train import TrainConfig, TrainSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_no_lever_is_on_by_default_and_none_counts_in_a_fingerprint() -> None:
    assert TrainSettings().levers == []
    assert counts_in("train.levers") == []
    plain, lean = TrainSettings(), TrainSettings(levers=sorted(LEVERS)[:1])
    assert lean.result_settings() == plain.result_settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"levers": ["lora-adm"]},
            "there is no lever 'lora-adm'; did you mean 'lora-addmm'\\?; one of flash-parts",
        ),
        (
            {"levers": ["compiled-tower"], "deepspeed": "zero3-offload"},
            "compiled-tower, which reads weights that ZeRO-3 shards; remove it, or use deepspeed",
        ),
        (
            {"levers": ["flex-autotune"], "deepspeed": "zero3"},
            "flex-autotune, which needs compiled layers, and ZeRO-3 compiles none; remove it",
        ),
        ({"levers": ["warp"]}, "there is no lever 'warp'; one of flash-parts, flex-autotune"),
        ({"levers": ["lora-addmm", "lora-addmm"]}, "lora-addmm is named twice"),
        (
            {"levers": ["lora-addmm"], "tuning": "full"},
            "methods.perpo: levers has lora-addmm, which needs tuning: lora; remove it",
        ),
        (
            {"levers": ["last-layer"], "forward": "separate"},
            "levers has last-layer, which needs a shared prefix",
        ),
        ({"levers": ["flash-parts", "flex-autotune"]}, "of which one can be used; remove one"),
        ({"levers": ["flex-autotune"], "compile": False}, "which needs compiled layers"),
        (
            {"levers": ["flash-parts"], "row_lengths": "bucketed"},
            "levers has flash-parts, which needs row_lengths: any",
        ),
    ],
)
def test_a_lever_that_cannot_be_used_is_an_error_of_the_settings(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(settings)


def test_the_manual_has_a_row_for_each_lever_with_the_expected_saving() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and line.count("|") == 5
    ]
    shown = {row[0].strip("`"): row for row in rows if row[0].strip("`") in LEVERS}
    assert list(shown) == list(LEVERS)
    for name, lever in LEVERS.items():
        low, high = lever.saves_ms
        assert shown[name][2] == (f"{low:g}" if low == high else f"{low:g} to {high:g}")
        assert shown[name][3].startswith(lever.source)
