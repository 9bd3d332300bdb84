"""lmms-eval itself: its recorded logs, and a run of it where $PERPO_LMMS_EVAL_PYTHON has it.

`recorded/` was made by record.py with lmms-eval 0.7.3: the embedded model and one trained with
PerPO on 240 prompts, on 24 questions of the task in tests/lmms_eval_task.py.
"""

import json
import os
from pathlib import Path

import pytest
from lmms_eval_task import TASK, write_task

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.evaluate.evaluate_model import evaluate
from perpo_pipeline.evaluate.harness.compare_harness import compare_harness, find_harness
from perpo_pipeline.evaluate.harness.lmms_eval_program import PYTHON, find_lmms_eval
from perpo_pipeline.evaluate.harness.measure_logs import measure_logs
from perpo_pipeline.evaluate.harness.run_lmms_eval import Asked, run_lmms_eval
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of

RECORDED = Path(__file__).parent / "recorded"
QUESTIONS = 24


def values_of(metrics: Version) -> dict[str, float]:
    return {row["name"].partition("/")[2]: row["value"] for row in metrics.table().to_pylist()}


@pytest.mark.parametrize("model", ["base", "perpo"])
def test_recorded_logs_are_measured_with_intervals_for_all_three_metrics(
    tmp_path: Path, model: str
) -> None:
    """The means of the samples' own values, read here in another way."""
    lines = next((RECORDED / model).glob("*.jsonl")).read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    metrics = measure_logs(RECORDED / model, out=tmp_path)
    assert values_of(metrics) == pytest.approx(
        {
            "iou": sum(s["iou"] for s in samples) / QUESTIONS,
            "right": sum(s["right"] for s in samples) / QUESTIONS,
            "answered": 100 * sum(s["answered"]["score"] for s in samples) / QUESTIONS,
        }
    )
    for row in metrics.table().to_pylist():
        assert row["n"] == QUESTIONS
        assert row["low"] <= row["value"] <= row["high"]
    notes = input_of(metrics, "harness").manifest["notes"]
    assert notes["without_interval"] == []
    assert notes["tasks"][TASK]["version"] == "1.0"


def test_recorded_logs_of_two_models_are_paired(tmp_path: Path) -> None:
    found = []
    for model in ("perpo", "base"):
        measure_logs(RECORDED / model, out=tmp_path / model)
        version = find_harness(tmp_path / model)
        assert version is not None
        found.append(version)
    rows, single = compare_harness(*found)
    assert not single
    assert {row["metric"] for row in rows} == {f"{TASK}/{m}" for m in ("iou", "right", "answered")}
    assert all(row["n"] == QUESTIONS for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no python with lmms-eval")
def test_lmms_eval_gives_the_figures_of_perpo_eval_on_the_same_questions(tmp_path: Path) -> None:
    """The same scenes, the same words and greedy decoding: the same mean IoU and AP@50."""
    scenes = write_task(tmp_path / "task", QUESTIONS)
    rows = [json.loads(line) for line in scenes.read_text().splitlines()]
    wanted = ("image", "prompt", "gt_box")
    own = [{"task": "grounding"} | {key: row[key] for key in wanted} for row in rows]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, own)))
    source = {"source": "jsonl", "path": str(tmp_path / "own.jsonl")}
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "model": {"id": "testbed", "dtype": "float32", "device": "cpu"},
        "prepare": {"test": source, "train": source},
        "eval": {"max_new_tokens": 32},
    }
    run = Run(RunConfig.model_validate(config), quiet=True)
    prepare(run, "test")
    ours = {row["name"]: row["value"] for row in evaluate(run, "base@test").table().to_pylist()}
    include = ("--include_path", str(tmp_path / "task"))
    asked = Asked(find_lmms_eval(None), arguments=include)
    theirs = values_of(run_lmms_eval(run, "base", TASK, asked))
    assert theirs["iou"] == pytest.approx(ours["miou"], abs=1e-6)
    assert theirs["right"] == ours["ap50"]
    assert theirs["answered"] == 100 * ours["parse_rate"]
