"""What recorded settings of older rules mean today."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perpo_pipeline.store.finding import reuse_complete
from perpo_pipeline.store.old_rules import RULES, as_today, same_settings
from perpo_pipeline.store.schemas import ALL
from perpo_pipeline.store.writing import Recipe, open_writer

JSONL = {"source": "jsonl", "task": "grounding", "per_dataset": None, "file_sha256": "feb9"}
TODAY = {**JSONL, "columns": {}, "box": "xyxy", "unit": None, "leave_out_bad_rows": False}
SCENES = {"source": "testbed", "preset": "small", "scene_seed": 1, "num_prompts": 2}
SAMPLED = {"backend": "transformers", "temperature": 0.5, "seed": 0}
PREDICTED = {"image": "matching", "reward": {"auto": 1.0}, "max_new_tokens": 64}

# Artifact, stage, settings as some older program recorded them, settings as they are today.
SAME: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("prompts", "prepare", JSONL, TODAY),
    ("prompts", "prepare", {**JSONL, "gt_unit": None, "leave_out_bad_rows": False}, TODAY),
    ("prompts", "prepare", {**JSONL, "gt_unit": "fraction"}, {**TODAY, "unit": "norm"}),
    ("prompts", "prepare", {**JSONL, "gt_unit": "thousandths"}, {**TODAY, "unit": "thousandths"}),
    ("prompts", "prepare", SCENES, {**SCENES, "task": "grounding", "testbed_version": 1}),
    ("samples", "sample", SAMPLED, {**SAMPLED, "top_k": None, "top_p": 1, "repetition_penalty": 1}),
    ("scores", "score", {"reward": "iou"}, {"reward": {"iou": 1.0}, "own_rewards": {}}),
    ("scores", "score", {"reward": {"iou": 1.0}}, {"reward": {"iou": 1.0}, "which": "first"}),
    ("preferences", "filter", {"min_margin": 0.8}, {"min_margin": 0.8, "strategy": "lists"}),
    ("reference", "reference", {"forward": "concatenated"}, {"forward": "separate"}),
    ("predictions", "eval", {**PREDICTED, "reward": "iou", "split": "test"}, PREDICTED),
    (
        "predictions",
        "eval",
        {**PREDICTED, "image": "other", "other_image_prompts": 512},
        {**PREDICTED, "image": "other", "condition_prompts": 512, "tag": "answer"},
    ),
]
OTHER: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("prompts", "prepare", JSONL, {**TODAY, "box": "xywh"}),
    ("prompts", "prepare", {**JSONL, "gt_unit": "fraction"}, TODAY),
    ("prompts", "prepare", SCENES, {**SCENES, "task": "ocr", "testbed_version": 1}),
    ("prompts", "prepare", SCENES, {**SCENES, "task": "grounding", "testbed_version": 2}),
    ("samples", "sample", SAMPLED, {**SAMPLED, "top_k": 5}),
    ("samples", "sample", SAMPLED, {**SAMPLED, "seed": 1}),
    ("scores", "score", {"reward": "iou"}, {"reward": {"giou": 1.0}}),
    ("scores", "score", {"reward": {"iou": 1.0}}, {"reward": {"iou": 1.0}, "which": "last"}),
    ("preferences", "filter", {"min_margin": 0.8}, {"min_margin": 0.8, "drop_unparsed": True}),
    ("predictions", "eval", {**PREDICTED, "backend": "vllm"}, PREDICTED),
    # An artifact without a rule: nothing is assumed.
    ("metrics", "eval", {"metrics": ["ap50"]}, {"metrics": ["ap50"], "by": []}),
]


@pytest.mark.parametrize(("artifact", "stage", "older", "today"), SAME)
def test_settings_that_change_nothing_are_the_same(
    artifact: str, stage: str, older: dict[str, Any], today: dict[str, Any]
) -> None:
    assert same_settings(artifact, stage, older, today)
    assert same_settings(artifact, stage, today, older)


@pytest.mark.parametrize(("artifact", "stage", "older", "today"), OTHER)
def test_settings_that_change_the_content_are_others(
    artifact: str, stage: str, older: dict[str, Any], today: dict[str, Any]
) -> None:
    assert not same_settings(artifact, stage, older, today)


def test_recorded_settings_are_read_under_todays_names() -> None:
    assert as_today("scores", "score", {"reward": "iou"}) == {"reward": {"iou": 1.0}}
    assert as_today("adapter", "train", {"forward": "concatenated"}) == {"forward": "separate"}
    assert as_today("metrics", "eval", {"a": 1}) == {"a": 1}


def test_rules_are_about_artifacts_that_exist() -> None:
    assert {artifact for artifact, _ in RULES} <= set(ALL)


def test_metrics_without_slices_are_found_again_and_those_with_slices_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = ALL["metrics"]
    second = replace(today, version=2, columns=pa.schema(list(today.columns)[:7]))
    recipe = Recipe("metrics", "base@test", "eval", 4, {"metrics": ["ap50"]})
    row = {"name": "ap50", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    with monkeypatch.context() as patched:
        patched.setitem(ALL, "metrics", second)
        with open_writer(tmp_path, recipe) as writer:
            writer.write_part(0, [{**row, "split": "test", "dataset": "all"}])
            made = writer.finish()
    assert recipe.fingerprint != made.fingerprint
    sliced = replace(recipe, settings={**recipe.settings, "by": ["category"]})
    assert reuse_complete(tmp_path, sliced) is None
    found = reuse_complete(tmp_path, recipe)
    assert found is not None and found.path == made.path
    assert found.table()["slice_column"].to_pylist() == [None]
