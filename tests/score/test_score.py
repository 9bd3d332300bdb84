"""Scores: the right truth for each row, unparsed answers as 0, nothing re-ordered."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.writing import Recipe, open_writer

LLAVA = {"reading": Reading()}
TRUTHS = ("gt_text", "gt_box", "gt_boxes", "gt_polygon", "gt_point")


def samples(*rows: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "prompt_id": [key for key, _ in rows],
            "sample_id": pa.array(range(len(rows)), pa.int32()),
            "completion": [text for _, text in rows],
        }
    )


def prompt(key: str, task: str = "grounding", **truth: object) -> dict[str, object]:
    row = {"prompt_id": key, "task": task, "width": 100, "height": 100}
    return {**row, **dict.fromkeys(TRUTHS), **truth}


def prompts(*rows: dict[str, object]) -> pa.Table:
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("task", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("gt_text", pa.string()),
            ("gt_box", pa.list_(pa.float64())),
            ("gt_boxes", pa.list_(pa.list_(pa.float64()))),
            ("gt_polygon", pa.list_(pa.float64())),
            ("gt_point", pa.list_(pa.float64())),
            ("dataset", pa.string()),
            ("prompt", pa.string()),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema)


def test_each_answer_is_measured_against_the_truth_of_its_own_prompt() -> None:
    """Half of the box is right: intersection 0.2*0.4, union 0.4*0.4, IoU 0.5; then a full hit."""
    truth = prompts(prompt("a", gt_box=[0, 0, 40, 40]), prompt("b", gt_box=[50, 50, 90, 90]))
    given = samples(
        ("b", "[0.50, 0.50, 0.90, 0.90]"),
        ("a", "[0.00, 0.00, 0.20, 0.40]"),
        ("b", "[0.00, 0.00, 0.20, 0.40]"),
        ("a", "no box at all"),
    )
    scored = score_samples(given, truth, reward="iou", **LLAVA)
    assert scored["prompt_id"].to_pylist() == ["b", "a", "b", "a"]
    assert scored["reward"].to_pylist() == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert scored["parse_ok"].to_pylist() == [True, True, True, False]
    assert scored["box"].to_pylist()[1] == pytest.approx([0, 0, 20, 40])
    assert scored["box"].to_pylist()[3] is None


def test_auto_takes_the_measure_of_each_rows_task() -> None:
    truth = prompts(prompt("a", gt_box=[0, 0, 40, 40]), prompt("t", task="ocr", gt_text="abcd"))
    given = samples(("t", "abcx"), ("a", "[0.00, 0.00, 0.40, 0.40]"))
    scored = score_samples(given, truth, reward="auto", **LLAVA)
    assert scored["reward"].to_pylist() == pytest.approx([0.75, 1.0])


def test_a_sample_without_its_prompt_is_an_error_not_a_zero() -> None:
    with pytest.raises(ArtifactError, match="belong to no prompt, the first to x"):
        score_samples(
            samples(("x", "")), prompts(prompt("a", gt_box=[0, 0, 1, 1])), reward="iou", **LLAVA
        )


def test_a_reward_without_its_truth_is_an_error_not_a_zero() -> None:
    with pytest.raises(ArtifactError, match="no truth to measure against"):
        score_samples(
            samples(("a", "x")),
            prompts(prompt("a", gt_box=[0, 0, 1, 1])),
            reward="edit_similarity",
            **LLAVA,
        )


def resized_samples(*rows: tuple[str, str, tuple[int, int] | None]) -> pa.Table:
    sizes = pa.array([size for *_, size in rows], pa.list_(pa.int32()))
    return samples(*[(key, text) for key, text, _ in rows]).append_column("resized", sizes)


RESIZED = {"reading": Reading("qwen2.5-vl", "resized")}


def test_pixels_of_the_resized_image_are_read_by_each_rows_own_size() -> None:
    """The same text is (0, 0, 50, 50) of 100 x 100 seen at 56 x 56, (0, 0, 25, 50) at 112 x 56."""
    truth = prompts(prompt("a", gt_box=[0, 0, 50, 50]), prompt("b", gt_box=[0, 0, 50, 50]))
    text = '```json\n[{"bbox_2d": [0, 0, 28, 28], "label": "cat"}]\n```'
    given = resized_samples(("b", text, (112, 56)), ("a", text, (56, 56)), ("a", "?", (56, 56)))
    scored = score_samples(given, truth, reward="iou", **RESIZED)
    assert scored["box"].to_pylist()[:2] == [[0, 0, 25, 50], [0, 0, 50, 50]]
    assert scored["reward"].to_pylist() == pytest.approx([0.5, 1.0, 0.0])


def test_an_answer_without_the_size_that_its_frame_needs_names_the_stage_to_rerun() -> None:
    truth = prompts(prompt("a", gt_box=[0, 0, 50, 50]), prompt("t", task="ocr", gt_text="abcd"))
    given = resized_samples(("a", "?", (56, 56)), ("a", "?", None), ("t", "abcd", None))
    with pytest.raises(ArtifactError, match="1 answers lack, the first of prompt a") as caught:
        score_samples(given, truth, reward="auto", **RESIZED)
    assert "sample again: perpo sample;" in str(caught.value)
    scored = score_samples(given[2:], truth, reward="auto", **RESIZED)
    assert scored["reward"].to_pylist() == [1.0]  # a text needs none


def test_the_official_sample_is_reproduced_to_1e9(realdata: Path) -> None:
    """The released record's 20 IoUs, with the unrounded truth in the full-image frame."""
    record = json.loads((realdata / "perpo_official_sample/data.json").read_text())[0]
    truth = prompts({**prompt("p", gt_box=[389, 43, 494, 229]), "width": 640, "height": 424})
    given = samples(*[("p", text) for text in record["answers_gen"]])
    scored = score_samples(given, truth, reward="iou", **LLAVA)
    assert scored["reward"].to_pylist() == pytest.approx(record["iou_scores"], abs=1e-9)


MARKED = """
def longest(completions, **columns):
    return [min(1.0, len(text) / 100) for text in completions]


def fails_late(completions, **columns):
    if any("cannot" in text for text in completions):
        raise ValueError("a bad row")
    return [0.5] * len(completions)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "score_marks.py").write_text(MARKED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return make_synthetic_run(tmp_path / "data", num_prompts=12, methods=("perpo",))


def scored_with(run: Run, reward: object) -> Version:
    section = ScoreConfig.model_validate({"reward": reward})
    return score(Run(run.config.model_copy(update={"score": section}), quiet=True), "train")


def test_parts_are_scored_in_order_whatever_the_number_of_cores(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples = split_samples(run, tmp_path / "split", 7)
    whole = run.latest("scores", "train")
    inputs = {"samples": samples.path}
    one = score(Run(run.config, quiet=True, inputs=inputs, out=tmp_path / "one"), "train")
    monkeypatch.setattr("perpo_pipeline.score.score_answers.cores", lambda: 5)
    five = score(Run(run.config, quiet=True, inputs=inputs, out=tmp_path / "five"), "train")
    assert len(one.parts()) == len(five.parts()) == 11
    assert one.table().equals(whole.table()) and five.table().equals(whole.table())


def split_samples(run: Run, place: Path, rows: int) -> Version:
    """The run's 72 samples in parts of so many rows."""
    samples = run.latest("samples", "train")
    recipe = Recipe("samples", "train", "sample", 1, {}, {"prompts": input_of(samples, "prompts")})
    with open_writer(place, recipe) as writer:
        for index, start in enumerate(range(0, samples.manifest["rows"], rows)):
            writer.write_part(index, samples.table().slice(start, rows))
        return writer.finish()


def test_a_reward_by_import_path_is_recorded_with_its_source(run: Run) -> None:
    version = scored_with(run, {"score_marks:longest": 1, "iou": 1})
    settings = version.manifest["settings"]
    assert settings["reward"] == {"score_marks:longest": 1.0, "iou": 1.0}
    assert len(settings["own_rewards"]["score_marks:longest"]) == 64


def test_a_reward_that_fails_at_start_leaves_nothing_that_counts(run: Run) -> None:
    with pytest.raises(InputError, match="ValueError: a bad row"):
        scored_with(run, "score_marks:fails_late")
    assert not list(run.config.run_dir.glob("scores/train/*/part-*.tmp"))
    assert run.latest("scores", "train").table().num_rows == 72


def test_two_rows_with_one_key_are_refused(run: Run, tmp_path: Path) -> None:
    samples = run.latest("samples", "train")
    recipe = Recipe("samples", "train", "sample", 1, {}, {"prompts": input_of(samples, "prompts")})
    with open_writer(tmp_path / "twice", recipe) as writer:
        writer.write_part(0, pa.concat_tables([samples.table(), samples.table().slice(0, 1)]))
        twice = writer.finish()
    with pytest.raises(ArtifactError, match="2 rows share their key \\(prompt_id, sample_id\\)"):
        score(Run(run.config, quiet=True, inputs={"samples": twice.path}), "train")


def test_an_error_of_a_reward_names_the_prompt_by_its_place_in_the_dataset(run: Run) -> None:
    first = r"in 72 rows, the first of drawn, box 0 \(prompt [0-9a-f]{16}\)"
    with pytest.raises(ArtifactError, match=first):
        scored_with(run, "count_match")
