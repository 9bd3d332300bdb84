"""Speeds from manifests, computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import synthetic_config

from perpo_pipeline.planning.history import past_rates
from perpo_pipeline.run import Run

LORA = {"rank": 128, "alpha": 256}
TRAINED = {"model": "m", "method": "perpo", "tuning": "lora", "scope": ["language_model"]}
END = "2026-11-28T10:10:00Z"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(synthetic_config(tmp_path, methods=("perpo",)))


def write(run: Run, artifact: str, name: str, **manifest: Any) -> None:
    folder = run.config.data_root / "earlier" / artifact / "x" / name
    folder.mkdir(parents=True)
    record = {"artifact": artifact, "inputs": {}, "counts": {}, "created_at": END, "rows": 0}
    (folder / "manifest.json").write_text(json.dumps(record | manifest))


def test_the_reference_that_was_made_during_a_training_is_not_counted_twice(run: Run) -> None:
    lists = {"preferences": {"fingerprint": "f"}}
    settings = {**TRAINED, "lora": LORA, "epochs": 2.0}
    write(run, "adapter", "a", settings=settings, wall_s=100.0, counts={"lists": 40}, inputs=lists)
    made = {"settings": {"model": "m"}, "wall_s": 20.0, "created_at": "2026-11-28T10:09:00Z"}
    write(run, "reference", "r", rows=40, inputs=lists, **made)
    found = past_rates(run, "m", {("train", "perpo"): 80, ("reference", ""): 40})
    assert found["train", "perpo"].low == pytest.approx(80 / 80 / 1.25)
    assert found["train", "perpo"].high == pytest.approx(80 / 80 * 1.25)
    assert found["reference", ""].high == pytest.approx(0.5 * 1.25)
    assert "1 finished version in" in found["train", "perpo"].source


def test_other_models_methods_and_adapters_say_nothing(run: Run) -> None:
    counts = {"lists": 40}
    for name, other in (("m", {"model": "n"}), ("d", {"method": "dpo"}), ("r", {"lora": {}})):
        settings = {**TRAINED, "lora": LORA, **other}
        write(run, "adapter", name, settings=settings, wall_s=100.0, counts=counts)
    assert past_rates(run, "m", {("train", "perpo"): 40}) == {}


def test_versions_of_about_the_planned_size_come_first_and_span_the_range(run: Run) -> None:
    settings = {"model": "m", "num_samples": 6, "max_new_tokens": 64}
    for name, rows, seconds in (("tiny", 6, 60.0), ("one", 600, 100.0), ("two", 1200, 240.0)):
        write(run, "samples", name, settings=settings, wall_s=seconds, rows=rows)
    near = past_rates(run, "m", {("sample", ""): 100})["sample", ""]
    assert near.low == pytest.approx(1.0 / 1.125) and near.high == pytest.approx(1.2 * 1.125)
    far = past_rates(run, "m", {("sample", ""): 100_000})["sample", ""]
    assert far.high == pytest.approx(1.2 * 2) and "much larger or smaller" in far.source


def test_damaged_manifests_are_passed_over(run: Run) -> None:
    folder = run.config.data_root / "r" / "samples" / "train" / "x"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    assert past_rates(run, "m", {("sample", ""): 1}) == {}
