"""The released lists: prompts, samples and scores, from which `perpo filter` goes on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import PerpoJsonSource
from perpo_pipeline.errors import ConfigError, InputError, Stopped
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.prepare import released
from perpo_pipeline.prepare.collect import Request
from perpo_pipeline.prepare.perpo_json import read_perpo_json
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights

RECORD = {
    "image_id": 1,
    "image_path": "coco/a.png",
    "question": "Where is the cup?",
    "answer": "[0.1, 0.2, 0.5, 0.8]",
    "answers_gen": ["[0.1, 0.2, 0.5, 0.8]", "I see none.", "[0.1, 0.2, 0.3, 0.8]"],
    "iou_scores": [1.0, 0.0, 0.5],
}


def dataset(tmp_path: Path, *records: Any) -> Path:
    (tmp_path / "coco").mkdir(exist_ok=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "coco" / "a.png")
    path = tmp_path / "released.json"
    path.write_text(json.dumps(records))
    return path


def a_run(path: Path, tmp_path: Path, out: Path | None = None, **settings: Any) -> Run:
    source = {"source": "perpo-json", "path": str(path), **settings}
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "model": {"id": "testbed", "device": "cpu"},
        "prepare": {"train": source},
        "eval": {"splits": ["train"]},
        "filter": {"min_margin": 0.8},
    }
    return Run(RunConfig.model_validate(config), out=out, quiet=True)


def test_a_record_becomes_a_prompt_and_its_samples_and_scores(tmp_path: Path) -> None:
    run = a_run(dataset(tmp_path, RECORD), tmp_path)
    (prompt,) = prepare(run, "train").table().to_pylist()
    assert prompt["gt_box"] == [20.0, 20.0, 100.0, 80.0]
    assert (prompt["prompt"], prompt["width"], prompt["height"]) == ("Where is the cup?", 200, 100)
    samples = run.latest("samples", "train").table().to_pylist()
    assert [row["completion"] for row in samples] == RECORD["answers_gen"]
    assert {row["prompt_id"] for row in samples} == {prompt["prompt_id"]}
    assert [row["sample_id"] for row in samples] == [0, 1, 2]
    assert {(row["seed"], row["sampler_logprob"], row["finish_reason"]) for row in samples} == {
        (0, None, "stop")
    }
    scores = run.latest("scores", "train").table().to_pylist()
    assert [row["reward"] for row in scores] == [1.0, 0.0, 0.5]
    assert [row["parse_ok"] for row in scores] == [True, False, True]
    assert [row["box"] for row in scores] == [[20, 20, 100, 80], None, [20, 20, 60, 80]]


def test_token_ids_are_the_tokenizers_with_the_end_token_and_the_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(dataset(tmp_path, RECORD), tmp_path)
    prepare(run, "train")
    vlm = load_without_weights(resolve_model("testbed"))
    version = run.latest("samples", "train")
    for row in version.table().to_pylist()[::2]:
        *ids, end = row["completion_token_ids"]
        assert vlm.tokenizer.decode(ids) == row["completion"] and end in vlm.eos_token_ids
    assert "the answers are tokenised from their text" in version.manifest["notes"]["token_ids"]
    assert version.manifest["notes"]["model_id"] == "testbed"
    assert "the answers are tokenised from their text" in capsys.readouterr().err


def test_the_official_sample_passes_filter_and_its_rounding_is_reported(
    realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest difference is worked out here in fractions, where IoU is the same."""
    (record,) = json.loads((realdata / "perpo_official_sample" / "data.json").read_text())
    image = tmp_path / "coco" / record["image_path"]
    image.parent.mkdir(parents=True)
    Image.new("RGB", (640, 424)).save(image)
    path = realdata / "perpo_official_sample" / "data.json"
    run = a_run(path, tmp_path, image_root=str(tmp_path / "coco"))
    (prompt,) = prepare(run, "train").table().to_pylist()
    assert prompt["gt_box"] == pytest.approx([0.61 * 640, 0.1 * 424, 0.77 * 640, 0.54 * 424])
    scores = run.latest("scores", "train")
    assert scores.table()["reward"].to_pylist() == record["iou_scores"]
    truth = json.loads(record["answer"])
    expected = max(
        abs(score - fraction_iou(json.loads(answer), truth))
        for answer, score in zip(record["answers_gen"], record["iou_scores"], strict=True)
    )
    assert 0.001 < expected < 0.05
    assert scores.manifest["counts"]["largest_difference_from_iou"] == pytest.approx(expected)
    message = capsys.readouterr().err
    assert f"in the mean, {expected:.4f} at most" in message and "WARNING" not in message
    (kept,) = filter_lists(run, "train").table().to_pylist()
    assert kept["margin"] == max(record["iou_scores"]) and sum(kept["counts"]) == 20
    assert kept["rewards"] == sorted(kept["rewards"], reverse=True)


def test_scores_that_do_not_fit_the_boxes_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The IoUs are 1, 0 (no box) and 0.5, so the differences 0.4, 0.2 and 0: 0.2 in the mean."""
    run = a_run(dataset(tmp_path, {**RECORD, "iou_scores": [0.6, 0.2, 0.5]}), tmp_path)
    prepare(run, "train")
    expected = (
        "WARNING: the released scores do not fit the boxes (mean difference 0.2000, largest "
        "0.4000): check model.box_format and box_frame, which are llava and full"
    )
    manifest = run.latest("scores", "train").manifest
    assert expected in capsys.readouterr().err
    assert expected in manifest["notes"]["released_scores"]
    assert manifest["counts"]["mean_difference_from_iou"] == pytest.approx(0.2)


def fraction_iou(a: list[float], b: list[float]) -> float:
    def area(box: list[float]) -> float:
        return (box[2] - box[0]) * (box[3] - box[1])

    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (area(a) + area(b) - shared)


def test_out_holds_a_folder_for_each_artifact_and_the_second_run_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset(tmp_path, RECORD, RECORD)
    run = a_run(path, tmp_path, out=tmp_path / "mine")
    prepare(run, "train")
    assert not (tmp_path / "data").exists()
    scores = open_version(tmp_path / "mine" / "scores", "scores")
    assert scores.manifest["rows"] == 6
    assert open_version(tmp_path / "mine" / "samples", "samples").manifest["rows"] == 6
    capsys.readouterr()
    prepare(run, "train")
    assert capsys.readouterr().err.count("up to date") == 3
    given = Run(run.config, inputs={"scores": tmp_path / "mine" / "scores"}, quiet=True)
    assert filter_lists(given, "train").manifest["rows"] == 2


def test_the_same_command_finishes_the_artifacts_after_a_stop_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dataset(tmp_path, *[RECORD] * 5)
    whole = a_run(path, tmp_path, out=tmp_path / "whole")
    prepare(whole, "train")
    monkeypatch.setattr("perpo_pipeline.prepare.prepare_prompts.PROMPTS_PER_PART", 2)
    halved = a_run(path, tmp_path, out=tmp_path / "halved")
    for function in ("_sample_rows", "_score_rows"):
        calls = iter([False, True])
        real = getattr(released, function)

        def stopping(*arguments: Any, real: Any = real, calls: Any = calls) -> Any:
            if next(calls):
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(released, function, stopping)
            with pytest.raises(Stopped):
                prepare(halved, "train")
    prepare(halved, "train")
    for name in ("prompts", "samples", "scores"):
        expected, found = (open_version(tmp_path / p / name, name) for p in ("whole", "halved"))
        assert found.table().equals(expected.table()) and len(found.parts()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iou_scores": [1.0, 0.0]}, "the record has 3 answers and 2 `iou_scores`"),
        ({"iou_scores": None}, "the record has 3 answers and no `iou_scores`"),
        ({"iou_scores": [1.0, 0.0, 1.01]}, "which is no number from 0 to 1"),
        ({"iou_scores": [1.0, 0.0, math.nan]}, "which is no number from 0 to 1"),
        ({"iou_scores": [1.0, 0.0, "0.5"]}, "which is no number from 0 to 1"),
        ({"answers_gen": []}, "not a list of answers"),
        ({"answers_gen": [None] * 3}, "an answer that is not text"),
        ({"answer": "on the left"}, "`answer` is not a box in the format llava, frame full"),
        ({"answer": "[0.5, 0.2, 0.1, 0.8]"}, "is inverted or empty"),
        ({"question": "<image>"}, "the question is empty"),
        ({"image_path": "none.png"}, "none.png: No such file"),
    ],
)
def test_a_bad_record_is_reported_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = a_run(dataset(tmp_path, RECORD, {**RECORD, **change}), tmp_path)
    with pytest.raises(InputError, match=r"^1 fault:") as caught:
        prepare(run, "train")
    assert "record 2: " in str(caught.value) and message in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_the_truth_is_clipped_to_the_image(tmp_path: Path) -> None:
    path = dataset(tmp_path, {**RECORD, "answer": "[-0.01, 0.2, 1.01, 1.0]"})
    source = PerpoJsonSource(source="perpo-json", path=path)
    prepared = read_perpo_json(source, Request("train"))
    assert prepared.rows[0]["gt_box"] == [0.0, 20.0, 200.0, 100.0]


def test_the_truth_is_read_in_the_runs_format_and_frame(tmp_path: Path) -> None:
    """In the square that pads 200x100, [0.1, 0.3, 0.5, 0.7] is [20, 60 - 50, 100, 140 - 50]."""
    path = dataset(tmp_path, {**RECORD, "answer": "[0.1, 0.3, 0.5, 0.7]"})
    source = PerpoJsonSource(source="perpo-json", path=path)
    prepared = read_perpo_json(source, Request("train", box_frame="pad"))
    assert prepared.rows[0]["gt_box"] == pytest.approx([20, 10, 100, 90])
    with pytest.raises(ConfigError, match="to which size its images were resized"):
        read_perpo_json(source, Request("train", box_frame="resized"))


def test_lists_stay_with_their_prompts_where_bad_records_are_left_out(tmp_path: Path) -> None:
    other = RECORD | {"answers_gen": ["[0, 0, 1, 1]"], "iou_scores": [0.24]}
    bad = [RECORD | {"image_path": "none.png"}, RECORD | {"answers_gen": []}]
    path = dataset(tmp_path, bad[0], RECORD, bad[1], other)
    run = a_run(path, tmp_path, leave_out_bad_rows=True)
    prompts = prepare(run, "train").table()["prompt_id"].to_pylist()
    samples = run.latest("samples", "train").table().to_pylist()
    assert [(row["prompt_id"], row["completion"]) for row in samples] == [
        *[(prompts[0], answer) for answer in RECORD["answers_gen"]],
        (prompts[1], "[0, 0, 1, 1]"),
    ]


def test_released_answers_are_read_as_the_runs_own_are(tmp_path: Path) -> None:
    answer = "<think>Not [0, 0, 1, 1].</think><answer>[0.1, 0.2, 0.5, 0.8]</answer>"
    record = RECORD | {"answers_gen": [answer, "<think>[0.1, 0.2, 0.5, 0.8]"]}
    run = a_run(dataset(tmp_path, record | {"iou_scores": [1.0, 0.0]}), tmp_path)
    prepare(run, "train")
    scores = run.latest("scores", "train").table().to_pylist()
    assert [row["box"] for row in scores] == [[20, 20, 100, 80], None]
