"""Speeds from manifests, computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import synthetic_config

from perpo_pipeline.planning.history import past_rates
from perpo_pipeline.planning.model import Model
from perpo_pipeline.run import Run
from perpo_pipeline.store.provenance import machine_kind

LORA = {"rank": 128, "alpha": 256}
MODEL = Model("hub/m", False, None, None, {}, None, "m", 0, "")
OF_MODEL = {"model": "m", "dtype": "float32"}
TRAINED = {**OF_MODEL, "method": "perpo", "tuning": "lora", "scope": ["language_model"]}
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
    made = {"settings": OF_MODEL, "wall_s": 20.0, "created_at": "2026-11-28T10:09:00Z"}
    write(run, "reference", "r", rows=40, inputs=lists, **made)
    found = past_rates(run, MODEL, {("train", "perpo"): 80, ("reference", ""): 40})
    assert found["train", "perpo"].low == pytest.approx(80 / 80 / 1.25)
    assert found["train", "perpo"].high == pytest.approx(80 / 80 * 1.25)
    assert found["reference", ""].high == pytest.approx(0.5 * 1.25)
    assert "1 finished version in" in found["train", "perpo"].source


def test_a_reference_behind_blank_images_has_a_speed_of_its_own(run: Run) -> None:
    blank = {**OF_MODEL, "shown_image": "blank"}
    write(run, "reference", "own", rows=40, settings=OF_MODEL, wall_s=20.0)
    write(run, "reference", "blank", rows=40, settings=blank, wall_s=4.0)
    found = past_rates(run, MODEL, {("reference", ""): 40, ("reference", "blank"): 40})
    assert found["reference", ""].low == pytest.approx(0.5 / 1.25)
    assert found["reference", "blank"].low == pytest.approx(0.1 / 1.25)


def test_other_models_methods_and_adapters_say_nothing(run: Run) -> None:
    counts = {"lists": 40}
    for name, other in (("m", {"model": "n"}), ("d", {"method": "dpo"}), ("r", {"lora": {}})):
        settings = {**TRAINED, "lora": LORA, **other}
        write(run, "adapter", name, settings=settings, wall_s=100.0, counts=counts)
    # A training on pages alone says nothing about one on all lists.
    settings = {**TRAINED, "lora": LORA, "tasks": ["ocr"]}
    write(run, "adapter", "t", settings=settings, wall_s=100.0, counts=counts)
    assert past_rates(run, MODEL, {("train", "perpo"): 40}) == {}


def test_versions_of_about_the_planned_size_come_first_and_span_the_range(run: Run) -> None:
    settings = {**OF_MODEL, "num_samples": 6, "max_new_tokens": 64}
    for name, rows, seconds in (("tiny", 6, 60.0), ("one", 600, 100.0), ("two", 1200, 240.0)):
        write(run, "samples", name, settings=settings, wall_s=seconds, rows=rows)
    near = past_rates(run, MODEL, {("sample", ""): 100})["sample", ""]
    assert near.low == pytest.approx(1.0 / 1.125) and near.high == pytest.approx(1.2 * 1.125)
    far = past_rates(run, MODEL, {("sample", ""): 100_000})["sample", ""]
    assert far.high == pytest.approx(1.2 * 2) and "much larger or smaller" in far.source


def test_a_computer_that_slept_does_not_make_times_long(run: Run) -> None:
    settings = {**OF_MODEL, "num_samples": 6, "max_new_tokens": 64}
    for name, seconds in enumerate((100.0, 110.0, 90.0, 120.0, 36_000.0)):
        write(run, "samples", str(name), settings=settings, wall_s=seconds, rows=600)
    found = past_rates(run, MODEL, {("sample", ""): 100})["sample", ""]
    assert found.low == pytest.approx(1.0 / 1.125) and found.high == pytest.approx(1.2 * 1.125)
    assert "5 finished versions" in found.source


def test_damaged_manifests_are_passed_over(run: Run) -> None:
    folder = run.config.data_root / "r" / "samples" / "train" / "x"
    folder.mkdir(parents=True)
    settings = {**OF_MODEL, "num_samples": 6, "max_new_tokens": 64}
    whole = {"artifact": "samples", "inputs": {}, "counts": {}, "created_at": END, "rows": 6}
    whole |= {"settings": settings, "wall_s": 6.0}
    damaged = [whole | {name: None} for name in whole] + [whole | {"machine": []}, [], {}, None]
    for text in ("{", *map(json.dumps, damaged)):
        (folder / "manifest.json").write_text(text)
        planned = {("sample", ""): 1, ("train", "perpo"): 1, ("reference", ""): 1}
        assert past_rates(run, MODEL, planned) == {}, text
    (folder / "manifest.json").write_text(json.dumps(whole))
    assert past_rates(run, MODEL, {("sample", ""): 1})


def test_answers_that_another_backend_or_an_older_version_made_say_nothing(run: Run) -> None:
    settings = {**OF_MODEL, "num_samples": 6, "max_new_tokens": run.config.sample.max_new_tokens}
    evaluated = {**OF_MODEL, "max_new_tokens": run.config.eval.max_new_tokens}
    made = {"wall_s": 9.0, "rows": 600}
    write(run, "samples", "v", settings=settings | {"backend": "vllm"}, **made)
    write(run, "predictions", "v", settings=evaluated | {"backend": "vllm"}, **made)
    taken = {"answers_from": "0123456789abcdef"}
    write(run, "predictions", "t", settings=evaluated, notes=taken, **made)
    planned = {("sample", ""): 100, ("eval", ""): 100}
    assert past_rates(run, MODEL, planned) == {}
    write(run, "predictions", "o", settings=evaluated | {"backend": "transformers"}, **made)
    assert [*past_rates(run, MODEL, planned)] == [("eval", "")]


def test_other_machines_and_number_formats_say_nothing(run: Run) -> None:
    settings = {**OF_MODEL, "num_samples": 6, "max_new_tokens": 64}
    there = {"cores": 10_000, "gpus": []}
    write(run, "samples", "there", settings=settings, wall_s=9.0, rows=600, machine=there)
    half = settings | {"dtype": "bfloat16"}
    write(run, "samples", "half", settings=half, wall_s=9.0, rows=600)
    assert past_rates(run, MODEL, {("sample", ""): 100}) == {}
    write(run, "samples", "here", settings=settings, wall_s=9.0, rows=600, machine=machine_kind())
    assert past_rates(run, MODEL, {("sample", ""): 100})
