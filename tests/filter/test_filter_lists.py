"""`perpo filter` over many parts: the same lists, all that is dropped kept aside."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter import filter_lists as stage
from perpo_pipeline.filter.filter_lists import Sampled, filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.writing import Recipe, open_writer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_synthetic_run(tmp_path, num_prompts=30, methods=("perpo",))


def with_filter(run: Run, **settings: object) -> Run:
    changed = run.config.filter.model_copy(update=settings)
    return Run(run.config.model_copy(update={"filter": changed}), quiet=True)


def test_every_list_is_kept_or_dropped_with_its_reason(run: Run) -> None:
    version = filter_lists(with_filter(run, min_margin=0.3), "train")
    kept = version.table()["prompt_id"].to_pylist()
    dropped = pl.DataFrame(version.table("dropped"))
    counts = version.manifest["counts"]
    lists = dropped.filter(pl.col("sample_id").is_null())
    assert not set(kept) & set(lists["prompt_id"])
    assert len(kept) + lists.height == counts["lists"] == 30
    assert counts["dropped"] == dict(lists["reason"].value_counts().rows())
    assert sum(counts["histogram"]) == 30


def test_the_size_of_the_parts_changes_no_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filter_lists(with_filter(run, min_margin=0.2, drop_unparsed=True), "train")
    monkeypatch.setattr(stage, "LISTS_PER_PART", 3)
    small = filter_lists(
        Run(
            with_filter(run, min_margin=0.2, drop_unparsed=True).config,
            quiet=True,
            out=run.config.run_dir / "again",
        ),
        "train",
    )
    assert len(small.parts()) > 1
    assert small.table().equals(whole.table())
    key = ["prompt_id", "sample_id"]
    aside = [pl.DataFrame(v.table("dropped")).sort(key) for v in (small, whole)]
    assert aside[0].equals(aside[1])
    assert small.manifest["counts"] == whole.manifest["counts"]


def test_the_margins_are_shown_with_what_each_threshold_would_keep(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    filter_lists(with_filter(run, min_margin=0.25), "train")
    said = capsys.readouterr().err
    assert "kept with this min_margin" in said and "0.9-1.0" in said
    assert "0.24-0.25" in said  # the bins show the threshold itself


def test_too_few_lists_are_warned_of_each_time_with_what_would_help(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time it is up to date
        version = filter_lists(with_filter(run, min_margin=0.7), "train")
        said = capsys.readouterr().err
        rows = version.manifest["rows"]
        assert f"filter: {rows} lists make {-(-rows // 8)} optimiser steps of perpo" in said
        assert f"{rows} of 30 gave a list" in said
        lower = version.manifest["counts"]["kept_at"]["0.6"]
        assert f"filter.min_margin 0.6 keeps {lower} lists" in said


def test_no_list_left_names_the_reasons(run: Run) -> None:
    with pytest.raises(ArtifactError, match=r"none of 30 lists is left.*margin_too_small"):
        filter_lists(with_filter(run, min_margin=1.0), "train")


def test_scores_of_other_samples_are_refused(run: Run, tmp_path: Path) -> None:
    scores, samples = run.latest("scores", "train"), run.latest("samples", "train")
    table = scores.table()
    assert Sampled(samples, scores).rewards(0).height == table.num_rows

    inputs = {"samples": samples}
    other = write(tmp_path / "short", Recipe("scores", "t", "s", 1, {"a": 1}, inputs), [table[1:]])
    with pytest.raises(ArtifactError, match="not have the same rows"):
        Sampled(samples, other).rewards(0)


def test_scores_of_another_sampling_of_the_same_prompts_are_refused(
    run: Run, tmp_path: Path
) -> None:
    """Their keys are the same, their completions are not."""
    samples = run.latest("samples", "train")
    inputs = {"prompts": input_of(samples, "prompts")}
    again = write(
        tmp_path / "again",
        Recipe("samples", "train", "sample", 1, {"a": 1}, inputs),
        [samples.table()],
    )
    with pytest.raises(ArtifactError, match="the scores belong to other samples"):
        filter_lists(Run(run.config, quiet=True, inputs={"samples": again.path}), "train")


def test_scores_without_any_part_say_so(run: Run, tmp_path: Path) -> None:
    samples = run.latest("samples", "train")
    inputs = {"prompts": input_of(samples, "prompts")}
    none = write(tmp_path / "none", Recipe("samples", "train", "sample", 1, {"a": 2}, inputs), [])
    inputs = {"samples": none, **inputs}
    empty = write(tmp_path / "empty", Recipe("scores", "train", "score", 1, {"a": 1}, inputs), [])
    with pytest.raises(ArtifactError, match="the artifact holds no scores"):
        filter_lists(Run(run.config, quiet=True, inputs={"scores": empty.path}), "train")


def write(place: Path, recipe: Recipe, parts: list[pa.Table]) -> Version:
    with open_writer(place, recipe) as writer:
        for index, part in enumerate(parts):
            writer.write_part(index, part)
        return writer.finish()
