"""perpo score shows three of its answers: the best, the worst that was read, one unread."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.artifacts import MANIFEST, Version, input_of
from perpo_pipeline.store.writing import Recipe, open_writer


def rewritten(run: Run, place: Path, texts: dict[int, str], rows: int = 30) -> Version:
    """The run's samples with other texts in some rows, in parts of `rows`."""
    samples = run.latest("samples", "train")
    table = samples.table().to_pylist()
    for row, text in texts.items():
        table[row]["completion"] = text
    recipe = Recipe("samples", "train", "sample", 1, {}, {"prompts": input_of(samples, "prompts")})
    with open_writer(place, recipe) as writer:
        for index, start in enumerate(range(0, len(table), rows)):
            writer.write_part(index, table[start : start + rows])
        return writer.finish()


def scored(run: Run, samples: Version, out: Path) -> Version:
    auto = run.config.model_copy(update={"score": ScoreConfig()})
    return score(Run(auto, quiet=True, inputs={"samples": samples.path}, out=out), "train")


def test_the_examples_are_the_extremes_with_question_truth_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_synthetic_run(tmp_path / "data", num_prompts=12, methods=("perpo",))
    prompts = run.latest("prompts", "train").table().to_pylist()
    samples = run.latest("samples", "train").table().to_pylist()
    first = next(row for row in prompts if row["prompt_id"] == samples[40]["prompt_id"])
    sides = (first["width"], first["height"]) * 2
    exact = [round(v / side, 2) for v, side in zip(first["gt_box"], sides, strict=True)]
    texts = {40: str(exact), 50: "[0.00, 0.00, 0.00, 0.00]", 65: "no box\nhere " * 50}
    made = rewritten(run, tmp_path / "samples", texts)
    capsys.readouterr()
    table = pl.DataFrame(scored(run, made, tmp_path / "out").table())
    lines = capsys.readouterr().err.splitlines()
    start = lines.index("score train: examples")
    best, question, truth, answer, worst, *rest = lines[start + 1 : start + 13]
    reward = table.filter("parse_ok")["reward"].max()
    assert best.startswith(f"  the best: reward {reward:.3f}, sample ")
    assert first["place"] in best
    assert question == f"    question  {first['prompt'].partition(': ')[2]}"
    assert truth == "    truth     [" + ", ".join(f"{v:g}" for v in first["gt_box"]) + "]"
    assert answer.startswith(f"    answer    {exact} = [")
    assert worst.startswith("  the worst that was read: reward 0.000, sample ")
    assert rest[3].startswith("  one that could not be read: reward 0.000, sample ")
    assert all(len(line) <= 160 for line in rest)
    unread = pl.DataFrame(made.table()).filter(~table["parse_ok"])["completion"][0]
    if len(unread) > 140:
        assert "\\n" in rest[6] and "… (+" in rest[6]


def test_equal_rewards_are_one_example_and_no_answers_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_synthetic_run(tmp_path / "data", num_prompts=2, methods=("perpo",), task="ocr")
    count = run.latest("samples", "train").manifest["rows"]
    made = rewritten(run, tmp_path / "samples", dict.fromkeys(range(count), "§"))
    capsys.readouterr()
    scored(run, made, tmp_path / "out")
    said = capsys.readouterr().err
    assert said.count("the best: reward 0.000") == 1 and "worst" not in said


def test_empty_answers_are_not_counted_as_parsed_also_after_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_synthetic_run(tmp_path / "data", num_prompts=2, methods=("perpo",), task="ocr")
    rows: Any = run.latest("samples", "train").table().num_rows
    made = rewritten(run, tmp_path / "samples", {0: "", 1: " \n", rows - 1: ""}, rows=2)
    for _ in range(2):
        capsys.readouterr()
        version = scored(run, made, tmp_path / "out")
        said = capsys.readouterr().err
        share = 3 / rows
        assert f"{1 - share:.1%} of the answers parsed, {share:.1%} empty" in said
        assert f"3 of {rows} answers are empty" in said
        assert version.manifest["counts"]["empty"] == 3
        assert version.table()["parse_ok"].to_pylist() == [True] * rows, "rows stay as they were"
        (version.path / MANIFEST).unlink()
        version.parts()[-1].unlink()
