"""A run of two tasks: each list is judged by the margin of its own task, and counted with it."""

from pathlib import Path

import polars as pl
import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.filter.margins import reasons_to_drop
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer, open_writer


def lists(*margins: tuple[str, float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(len(margins))],
            "completions": 2,
            "first": 2,
            "task": pl.Series([task for task, _ in margins], dtype=pl.Categorical),
            "margin": [margin for _, margin in margins],
            "dataset": [f"of-{task}" for task, _ in margins],
        }
    )


def test_each_list_has_the_limits_of_its_task() -> None:
    given = lists(
        ("grounding", 0.8), ("grounding", 0.5), ("ocr", 0.05), ("ocr", 0.03), ("ocr", 0.7)
    )
    config = FilterConfig(
        min_margin={"grounding": 0.8, "ocr": 0.04}, max_margin={"grounding": None, "ocr": 0.5}
    )
    small, large = "margin_too_small", "margin_too_large"
    assert reasons_to_drop(given, config).to_list() == [None, small, None, small, large]


def test_a_cap_by_task_is_one_for_the_lists_of_each() -> None:
    given = lists(*[("grounding", 0.9)] * 5, *[("ocr", 0.1)] * 7, *[("vqa", 0.1)] * 3)
    config = FilterConfig(min_margin=0.05, max_lists={"grounding": 2, "ocr": 4, "vqa": None})
    kept = given.filter(reasons_to_drop(given, config).is_null())["task"].value_counts()
    assert dict(kept.rows()) == {"grounding": 2, "ocr": 4, "vqa": 3}
    # A cap for all of them draws from all of them, as it always has.
    config = FilterConfig(min_margin=0.05, max_lists=6)
    assert reasons_to_drop(given, config).null_count() == 6
    # Equal amounts per dataset, within each task.
    config = FilterConfig(
        min_margin=0.05, max_lists={"grounding": 2, "ocr": 4, "vqa": 2}, equal_datasets=True
    )
    assert reasons_to_drop(given, config).null_count() == 8


def with_pages(run: Run, folder: Path) -> Run:
    """The run's scores as those of two tasks: every other prompt is a page."""
    prompts, samples, scores = (run.latest(name, "train") for name in CHAIN)
    rows = prompts.table().to_pylist()
    for row in rows[::2]:
        row |= {"task": "ocr", "gt_text": "text", "gt_box": None}
    made = write(folder / "prompts", prompts, rows, {})
    sampled = write(folder / "samples", samples, samples.table().to_pylist(), {"prompts": made})
    inputs = {"samples": sampled, "prompts": made}
    scored = write(folder / "scores", scores, scores.table().to_pylist(), inputs)
    return Run(run.config, inputs={"scores": scored.path}, out=folder / "out")


CHAIN = ("prompts", "samples", "scores")


def write(
    place: Path, like: Version, rows: list[dict[str, object]], inputs: dict[str, Version]
) -> Version:
    settings = {**like.manifest["settings"], "mixed": True}
    recipe = Recipe(like.artifact, "train", like.manifest["stage"], 1, settings, inputs)
    with open_writer(place, recipe) as writer:
        assert isinstance(writer, Writer)
        writer.write_part(0, rows)
        return writer.finish({})


def filtered(run: Run, **settings: object) -> Version:
    changed = run.config.filter.model_copy(update=settings)
    config = run.config.model_copy(update={"filter": changed})
    return filter_lists(Run(config, inputs=run.inputs, out=run.out), "train")


def test_a_mixed_run_prints_and_records_each_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_synthetic_run(tmp_path, num_prompts=30, methods=("perpo",))
    both = with_pages(run, tmp_path / "both")
    capsys.readouterr()
    made = filtered(both, min_margin={"grounding": 0.7, "ocr": 0.1}, max_lists=None)
    said = capsys.readouterr().err
    counts = made.manifest["counts"]
    tasks = counts["tasks"]
    assert "filter: ocr, 15 lists, min_margin 0.1\n" in said
    assert "filter: grounding, 15 lists, min_margin 0.7\n" in said
    for task in ("ocr", "grounding"):
        assert f"filter: {tasks[task]['kept']} of 15 lists of {task} kept" in said
        assert f"filter: {task} alone: {tasks[task]['kept']} lists make" in said
    assert f"filter: {made.manifest['rows']} of 30 lists kept" in said
    assert counts["kept"] == sum(one["kept"] for one in tasks.values()) == made.manifest["rows"]
    assert "0.1" in tasks["ocr"]["kept_at"] and "kept_at" not in counts
    kept = pl.DataFrame(made.table(columns=["task", "margin"]))
    assert kept.filter(task="grounding")["margin"].min() >= 0.7  # type: ignore[operator]
    mean = kept["margin"].mean()
    assert counts["mean_margin"] == pytest.approx(mean)
    # One number is the margin of all tasks; their counts stay apart.
    whole = filtered(both, min_margin=0.7, max_lists=None)
    assert whole.manifest["settings"]["min_margin"] == 0.7
    assert set(whole.manifest["counts"]["tasks"]) == {"ocr", "grounding"}
    # The same cap for each task is no cap for both together.
    capped = filtered(both, min_margin=0.1, max_lists={"grounding": 5, "ocr": 5})
    assert [capped.manifest["counts"]["tasks"][task]["kept"] for task in tasks] == [5, 5]


def test_a_task_without_a_margin_stops_the_stage_and_one_task_needs_no_mapping(
    tmp_path: Path,
) -> None:
    run = make_synthetic_run(tmp_path, num_prompts=12, methods=("perpo",))
    both = with_pages(run, tmp_path / "both")
    with pytest.raises(
        ConfigError, match=r"filter\.min_margin names no value for ocr, a task of p"
    ):
        filtered(both, min_margin={"grounding": 0.7})
    alone = Run(run.config, inputs={}, out=tmp_path / "alone", quiet=True)
    made = filtered(alone, min_margin={"grounding": 0.6, "ocr": 0.04})
    assert made.fingerprint == filtered(alone, min_margin=0.6).fingerprint
    assert "tasks" not in made.manifest["counts"]
