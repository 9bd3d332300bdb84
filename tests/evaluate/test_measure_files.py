"""`perpo measure`: published figures of answers that others made, and the artifacts."""

import json
from pathlib import Path

import pytest
from fake_judge import perpo

from perpo_pipeline.config.model import AnswerConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.evaluate import measure_files, metrics
from perpo_pipeline.evaluate.measure_files import (
    measure_answers,
    measure_boxes,
    measure_pages,
    measure_pope,
    parse_frame,
)
from perpo_pipeline.run import Console
from perpo_pipeline.store.artifacts import Version, damaged_files, input_of, open_version

GROUNDING = {
    "completion": "[0.1, 0.2, 0.3, 0.4]",
    "gt_box": [10, 20, 30, 40],
    "width": 100,
    "height": 100,
}


def write(path: Path, rows) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def values(version: Version, dataset: str = "all") -> dict[str, float]:
    return {r["name"]: r["value"] for r in version.table().to_pylist() if r["dataset"] == dataset}


def xyxy(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]


@pytest.mark.parametrize(
    ("frame", "ap50", "within"),
    [("full", 0.4891139240506329, 1e-12), ("crop", 0.522, 5e-4), ("pad", 0.254, 5e-4)],
)
def test_llavas_published_answers_have_their_published_score(
    realdata: Path, tmp_path, frame, ap50, within
):
    text = (realdata / "rec_predictions" / "llava15_refcoco_testA.jsonl").read_text()
    published = [json.loads(line) for line in text.splitlines()]
    rows = [
        {
            "completion": row["raw_response"],
            "gt_box": xyxy(row["gt_xywh"]),
            "width": row["width"],
            "height": row["height"],
            "id": row["img_id"],
        }
        for row in published
    ]
    found = measure_boxes(
        write(tmp_path / "llava.jsonl", rows),
        out=tmp_path,
        box_format="llava",
        frame=frame,
    )
    assert values(found)["ap50"] == pytest.approx(ap50, abs=within)
    assert found.table()["n"].to_pylist() == [1975] * 5
    if frame == "full":
        rewards = input_of(found, "predictions").table()["reward"].to_pylist()
        assert [reward >= 0.5 for reward in rewards] == [
            bool(row["published_correct"]) for row in published
        ]


def test_internvls_published_boxes_have_their_published_score(realdata: Path, tmp_path):
    """20 of the 1,975 answers hold no box and two boxes are inverted: all stay in."""
    folder = realdata / "rec_predictions"
    answers = json.loads((folder / "internvl25_refcoco_testA.json").read_text())
    truth = json.loads((realdata / "refcoco_gt" / "refcoco_testA.json").read_text())
    refs = list({row["img_id"]: row for row in reversed(truth)}.values())[::-1]
    answered = [entry["prediction"] for entry in answers["lmms-lab/RefCOCO"]["internvl"]]
    rows = [
        {
            "completion": str(said.get("box") or said["text"]),
            "gt_box": xyxy(ref["bbox"]),
            "width": ref["width"],
            "height": ref["height"],
            "id": ref["img_id"],
        }
        for said, ref in zip(answered, refs, strict=True)
    ]
    found = measure_boxes(
        write(tmp_path / "internvl.jsonl", rows),
        out=tmp_path,
        box_format="pixel",
        frame="full",
    )
    assert values(found)["ap50"] == 0.8941772151898734
    assert values(found)["parse_rate"] == pytest.approx(1955 / 1975)


@pytest.mark.parametrize(
    ("fox_compat", "order"), [(True, "official_call_order"), (False, "corrected_order")]
)
def test_foxs_result_file_is_measured_as_it_is(realdata: Path, tmp_path, fox_compat, order):
    folder = realdata / "ocr_fox"
    expected = json.loads((folder / "expected.json").read_text())[f"mean_{order}"]
    found = values(
        measure_pages(folder / "results_final.json", out=tmp_path, fox_compat=fox_compat)
    )
    for theirs, ours in (
        ("bleu", "bleu"),
        ("f_measure", "f1"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("edit_dist", "edit_distance"),
    ):
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-9)


def test_popes_published_f1_is_reproduced(realdata: Path, tmp_path):
    folder = realdata / "pope"
    found = measure_pope(
        folder / "answers_llava-v1.5-13b_popular.jsonl",
        questions=folder / "questions_popular.jsonl",
        labels=folder / "coco_pope_popular.json",
        out=tmp_path,
    )
    assert values(found)["f1"] == pytest.approx(0.8624590, abs=5e-8)
    rewards = input_of(found, "predictions").table()["reward"].to_pylist()
    assert sum(rewards) == 1182 + 1441


def test_predictions_and_metrics_are_artifacts_with_their_settings(tmp_path):
    rows = [
        GROUNDING,
        {**GROUNDING, "completion": "nowhere", "image": "1.jpg"},
        {**GROUNDING, "image": "1.jpg"},
    ]
    file = write(tmp_path / "mine.jsonl", rows)
    found = measure_boxes(file, out=tmp_path / "o", box_format="llava", frame="full")
    assert values(found) == pytest.approx(
        {
            "ap50": 2 / 3,
            "ap75": 2 / 3,
            "miou": 2 / 3,
            "parse_rate": 2 / 3,
            "out_of_frame_rate": 0,
        }
    )
    predictions = open_version(tmp_path / "o" / "predictions", "predictions")
    assert predictions.fingerprint == input_of(found, "predictions").fingerprint
    assert damaged_files(predictions) == damaged_files(found) == []
    settings = predictions.manifest["settings"]
    assert (settings["task"], settings["box_format"], settings["frame"]) == (
        "grounding",
        "llava",
        "full",
    )
    table = predictions.table().to_pylist()
    assert [row["box"] for row in table] == [[10, 20, 30, 40], None, [10, 20, 30, 40]]
    assert [row["parse_ok"] for row in table] == [True, False, True]
    assert {row["finish_reason"] for row in table} == {"unknown"}
    own, *named = [row["image_prompt_id"] for row in table]
    assert own == table[0]["prompt_id"] and named[0] == named[1] != own


def test_a_second_call_is_up_to_date_and_another_frame_or_file_is_not(tmp_path, capsys):
    file = write(tmp_path / "mine.jsonl", [GROUNDING])

    def evaluate(frame):
        measure_boxes(file, out=tmp_path / "o", box_format="llava", frame=frame)
        return capsys.readouterr().err.count("up to date")

    assert [evaluate("full"), evaluate("full"), evaluate("crop"), evaluate("full")] == [0, 2, 0, 2]
    write(file, [{**GROUNDING, "completion": "[0, 0, 1, 1]"}])
    assert evaluate("full") == 0


def test_foxs_order_changes_the_metrics_and_not_the_predictions(tmp_path, capsys):
    file = write(tmp_path / "pages.jsonl", [{"completion": "a b", "gt_text": "a b c d"}])
    first = measure_pages(file, out=tmp_path / "o")
    second = measure_pages(file, out=tmp_path / "o", fox_compat=True)
    assert capsys.readouterr().err.count("up to date") == 1
    assert (values(first)["precision"], values(second)["precision"]) == (1.0, 0.5)


def test_splits_and_datasets_are_measured_apart(tmp_path):
    wrong = {**GROUNDING, "completion": "[0.8, 0.8, 0.9, 0.9]"}
    rows = [
        {**GROUNDING, "split": "testA", "dataset": "refcoco"},
        {**wrong, "split": "testA", "dataset": "refcocog"},
        {**wrong, "split": "val", "dataset": "refcoco"},
    ]
    found = measure_boxes(
        write(tmp_path / "m.jsonl", rows),
        out=tmp_path,
        box_format="llava",
        frame="full",
    )
    ap50 = {
        (r["split"], r["dataset"]): r["value"]
        for r in found.table().to_pylist()
        if r["name"] == "ap50"
    }
    assert ap50 == {
        ("testA", "all"): 0.5,
        ("testA", "refcoco"): 1.0,
        ("testA", "refcocog"): 0.0,
        ("val", "all"): 0.0,
    }


def test_boxes_that_reach_out_of_the_image_are_measured_as_they_stand(tmp_path, capsys):
    """Against the true box (0, 0, 50, 100) of an image of 100 x 100.

    (-10, 0, 50, 100): 5000 / 6000. (0, 0, 50, 105): 5000 / 5250. (0, 0, 50, 100): 1, inside.
    (200, 0, 300, 100): far outside. The last holds no box.
    """
    boxes = ["[-0.1, 0, 0.5, 1]", "[0, 0, 0.5, 1.05]", "[0, 0, 0.5, 1]", "[2, 0, 3, 1]", "none"]
    rows = [{**GROUNDING, "completion": box, "gt_box": [0, 0, 50, 100]} for box in boxes]
    file = write(tmp_path / "m.jsonl", rows)
    found = measure_boxes(file, out=tmp_path, box_format="llava", frame="full")
    made = input_of(found, "predictions").table().to_pylist()
    assert [row["reward"] for row in made] == pytest.approx([5 / 6, 20 / 21, 1.0, 0.0, 0.0])
    assert [row["parse_ok"] for row in made] == [True] * 4 + [False]
    assert values(found) == pytest.approx(
        {
            "ap50": 3 / 5,
            "ap75": 3 / 5,
            "miou": (5 / 6 + 20 / 21 + 1) / 5,
            "parse_rate": 4 / 5,
            "out_of_frame_rate": 3 / 5,
        }
    )
    assert "likely" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box_format", "completions", "warning"),
    [
        (
            "llava",
            ["[10, 20, 30, 40]", "[0, 5, 3, 9]", "[0, 0, 1, 1]"],
            "2 of 3 regions reach out of the frame, half of these by more than 23.5 times its size",
        ),
        ("pixel", ["[0.1, 0.2, 0.3, 0.4]"] * 9 + ["[1, 2, 30, 40]"], "9 of 10 regions lie within"),
        ("qwen2-vl", ["[100, 200, 300, 400]"], "only 0 of 1 answers could be read"),
    ],
)
def test_a_wrong_format_is_warned_of_with_figures(
    tmp_path, capsys, box_format, completions, warning
):
    """Beyond the frame by 39 and 8 of its sizes: the median is 23.5."""
    file = write(tmp_path / "m.jsonl", [{**GROUNDING, "completion": c} for c in completions])
    measure_boxes(file, out=tmp_path, box_format=box_format, frame="full")
    message = capsys.readouterr().err
    assert warning in message and f"box_format {box_format}, box_frame full" in message


THOUGHT = "<think>maybe [0.5, 0.5, 0.6, 0.6], or 7</think>\n<answer>{}</answer>"


def test_boxes_after_thoughts_are_measured_and_a_cut_off_thought_is_unparsed(tmp_path):
    box = GROUNDING["completion"]
    completions = [THOUGHT.format(box), f"maybe [0, 0, 1, 1]\n</think>{box}", f"<think>{box}", box]
    file = write(tmp_path / "m.jsonl", [{**GROUNDING, "completion": c} for c in completions])

    def measure(**answer):
        found = measure_boxes(
            file,
            out=tmp_path,
            box_format="llava",
            frame="full",
            answer=AnswerConfig(**answer),
        )
        return [row["reward"] == 1 for row in input_of(found, "predictions").table().to_pylist()]

    assert measure() == [True, True, False, True]
    assert measure(thinking="opened") == [True, True, False, False]
    assert measure(thinking="none", tag=None) == [False, False, True, True]
    assert measure(thinking="none", tag=None, which="last") == [True, True, True, True]


def test_texts_after_thoughts_are_measured_without_them(tmp_path):
    rows = [{"completion": c, "gt_text": "4"} for c in (THOUGHT.format("4"), "4", "<think>4")]
    file = write(tmp_path / "m.jsonl", rows)
    assert values(measure_answers(file, out=tmp_path / "a"))["exact_match"] == pytest.approx(2 / 3)
    assert values(measure_pages(file, out=tmp_path / "p"))["cer"] == pytest.approx(1 / 3)
    (_, _, cut_off) = (
        open_version(tmp_path / "a" / "predictions", "predictions").table().to_pylist()
    )
    assert not cut_off["parse_ok"] and cut_off["reward"] == 0
    assert cut_off["completion"] == "<think>4"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--thinking", "open"), ("--which", "second"), ("--answer-tag", "a b")],
)
def test_a_way_of_reading_that_does_not_exist_is_refused(tmp_path, capsys, option, value):
    file = write(tmp_path / "m.jsonl", [GROUNDING])
    settings = ["--box-format", "llava", "--frame", "full", "--out", tmp_path / "o"]
    assert perpo("measure", "boxes", file, *settings, option, value) == 2
    assert f"{option} '{value}'" in capsys.readouterr().err
    assert perpo("measure", "boxes", file, *settings, "--answer-tag", "none") == 0
    made = open_version(tmp_path / "o" / "predictions", "predictions")
    assert made.manifest["settings"]["tag"] is None


@pytest.mark.parametrize(
    ("frame", "extra"), [("resized:200x50", {}), ("resized", {"resized": [200, 50]})]
)
def test_pixels_of_a_resized_image_are_read_with_its_size(tmp_path, frame, extra):
    row = {**GROUNDING, **extra, "completion": '{"bbox_2d": [20, 10, 60, 20]}'}
    found = measure_boxes(
        write(tmp_path / "q.jsonl", [row]),
        out=tmp_path,
        box_format="qwen2.5-vl",
        frame=frame,
    )
    (made,) = input_of(found, "predictions").table().to_pylist()
    assert made["box"] == pytest.approx([10, 20, 30, 40])
    assert (made["resized"], values(found)["miou"]) == ([200, 50], pytest.approx(1.0))


@pytest.mark.parametrize("text", ["Full", "resized:", "resized:0x5", "resized:5", "resized:5x5x5"])
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(ConfigError, match="no frame"):
        parse_frame(text)


@pytest.mark.parametrize(
    ("box_format", "frame", "message"),
    [
        (None, None, "how its boxes are written"),
        ("llava", None, "how its boxes are written"),
        (None, "full", "how its boxes are written"),
        ("lava", "full", "no box format 'lava'"),
        ("llava", "half", "no frame 'half'"),
    ],
)
def test_a_box_format_and_a_frame_are_needed_and_must_be_known(
    tmp_path, box_format, frame, message
):
    with pytest.raises(ConfigError, match=message):
        measure_boxes(tmp_path / "absent.jsonl", out=tmp_path, box_format=box_format, frame=frame)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["pages", "FILE", "--frame", "full"], "--frame"),
        (["answers", "FILE", "--fox-compat"], "--fox-compat"),
        (["boxes", "FILE", "--task", "pope"], "--task"),
    ],
)
def test_options_that_do_not_fit_the_command_are_refused(tmp_path, capsys, command, option):
    assert perpo("measure", *command, "--out", tmp_path / "o") == 2
    assert f"No such option: {option}" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_texts_are_normalised_if_asked_and_the_run_says_so(tmp_path, capsys):
    rows = [{"completion": "# cafe\u0301  au", "gt_text": "caf\u00e9 au"}]
    file, made = write(tmp_path / "pages.jsonl", rows), {}
    for forms in ("none", "whitespace,nfc,markdown", "nfc"):
        out = tmp_path / forms
        assert perpo("measure", "pages", file, "--out", out, "--normalise", forms) == 0
        said = capsys.readouterr().err
        assert ("texts are normalised before they are compared (nfc" in said) == (forms != "none")
        made[forms] = open_version(out / "metrics")
    assert values(made["whitespace,nfc,markdown"])["cer"] == 0
    assert 0 < values(made["nfc"])["cer"] < values(made["none"])["cer"]
    predictions = input_of(made["whitespace,nfc,markdown"], "predictions")
    assert predictions.manifest["settings"]["normalise"] == ["nfc", "markdown", "whitespace"]
    assert predictions.table()["reward"].to_pylist() == [1.0]
    assert len({version.fingerprint for version in made.values()}) == 3


@pytest.mark.parametrize("forms", ["upper", "nfc,nfc", "nfc,none", ""])
def test_a_normal_form_that_does_not_exist_is_refused(tmp_path, capsys, forms):
    assert perpo("measure", "answers", "FILE", "--out", tmp_path / "o", "--normalise", forms) == 2
    assert f"--normalise {forms!r} cannot be read" in capsys.readouterr().err


def test_any_number_of_boxes_is_measured_with_and_without_targets(tmp_path, capsys):
    """Of three rows with targets one names no box; of two without, one denies."""
    size = {"width": 100, "height": 100}
    two = {"gt_boxes": [[0, 0, 50, 50], [60, 60, 100, 100]], **size}
    rows = [
        {"completion": "[0.6, 0.6, 1, 1] [0, 0, 0.5, 0.5]", **two},
        {"completion": "[0, 0, 0.5, 0.5]", **two},
        {"completion": "[]", **two},
        {"completion": "There is no dog in the image.", "gt_boxes": [], **size},
        {"completion": "[0, 0, 1, 1]", "gt_boxes": [], **size},
    ]
    made = measure_boxes(
        write(tmp_path / "f.jsonl", rows), out=tmp_path / "o", box_format="llava", frame="full"
    )
    found = values(made)
    assert found["mean_set_iou"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["detection_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert (found["t_acc"], found["n_acc"], found["denial_rate"]) == (2 / 3, 1 / 2, 1 / 2)
    assert (found["all_found"], found["parse_rate"]) == (2 / 5, 1)
    assert "ap50" not in found
    predictions = input_of(made, "predictions")
    assert predictions.manifest["settings"]["task"] == "mixed"
    only = measure_boxes(
        write(tmp_path / "g.jsonl", rows[3:]), out=tmp_path / "p", box_format="llava", frame="full"
    )
    assert input_of(only, "predictions").manifest["settings"]["task"] == "no-target"


def test_two_kinds_of_truth_on_a_line_are_refused(tmp_path):
    file = write(tmp_path / "f.jsonl", [{**GROUNDING, "gt_boxes": []}])
    with pytest.raises(InputError, match=r"line 1: unknown keys \['gt_boxes'\]"):
        measure_boxes(file, out=tmp_path / "o", box_format="llava", frame="full")
    bad = {key: value for key, value in GROUNDING.items() if key != "gt_box"}
    for boxes, fault in (("x", "is not a list of boxes"), ([[3, 3, 1, 1]], r"\[0\] is inverted")):
        file = write(tmp_path / "f.jsonl", [{**bad, "gt_boxes": boxes}])
        with pytest.raises(InputError, match=f"line 1: gt_boxes ?{fault}"):
            measure_boxes(file, out=tmp_path / "o", box_format="llava", frame="full")


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    file = write(tmp_path / "bad.jsonl", [GROUNDING, {**GROUNDING, "gt_box": [3, 3, 1, 1]}])
    with pytest.raises(InputError, match="line 2"):
        measure_boxes(file, out=tmp_path / "o", box_format="llava", frame="full")
    assert not (tmp_path / "o").exists()


def test_mended_completions_are_reported_and_counted(tmp_path, capsys):
    rows = [{"completion": "a\ud800", "gt_text": "a"}, {"completion": "b", "gt_text": "b"}]
    found = measure_answers(write(tmp_path / "v.jsonl", rows), out=tmp_path / "o")
    assert "1 completions hold halves of characters" in capsys.readouterr().err
    predictions = input_of(found, "predictions")
    assert predictions.manifest["counts"] == {"mended_completions": 1, "indistinct_rows": 0}
    assert predictions.table()["completion"].to_pylist() == ["a\ufffd", "b"]
    assert values(found)["exact_match"] == 0.5


def test_metrics_without_meteor_say_so_and_are_made_again_once_wordnet_is_there(
    tmp_path, capsys, monkeypatch
):
    file = write(tmp_path / "pages.jsonl", [{"completion": "a b", "gt_text": "a b"}])
    with monkeypatch.context() as patch:
        for module in (metrics, metrics.ocr):
            patch.setattr(module, "find_wordnet", lambda: None)
        without = measure_pages(file, out=tmp_path / "o")
    assert "METEOR is left out" in capsys.readouterr().err
    assert "meteor" not in values(without)
    if metrics.find_wordnet() is not None:
        assert "meteor" in values(measure_pages(file, out=tmp_path / "o"))


def test_a_console_that_is_passed_in_gets_the_messages(tmp_path, capsys):
    heard = []

    class Ear(Console):
        def say(self, message: str) -> None:
            heard.append(message)

    file = write(tmp_path / "v.jsonl", [{"completion": "a", "gt_text": "a"}])
    measure_files.measure_answers(file, out=tmp_path / "o", console=Ear())
    assert len(heard) == 2 and capsys.readouterr().err == ""
