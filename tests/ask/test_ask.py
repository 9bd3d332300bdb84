"""`perpo ask` answers as `perpo eval` and `perpo sample` do, reads and measures the answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_openai_server import END, Json, Server, choice, make_like_vllm, without_ids
from PIL import Image
from tiny_adapters import save_adapter_artifact
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.ask.ask_model import choose_task
from perpo_pipeline.cli import main
from perpo_pipeline.config.file import load_config
from perpo_pipeline.evaluate.evaluate_model import evaluate
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.run import Run
from perpo_pipeline.store.prompt_images import images_of
from perpo_pipeline.vlm import several_images

NUM_PROMPTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared run of the testbed, the base's and an adapter's predictions, and the images."""
    root = tmp_path_factory.mktemp("ask")
    config = {
        "run": "r",
        "data_root": str(root / "data"),
        "model": {"id": "testbed", "dtype": "float32", "device": "cpu"},
        "prepare": {
            "train": {"source": "testbed", "num_prompts": 2},
            "test": {"source": "testbed", "num_prompts": NUM_PROMPTS},
        },
        "score": {"reward": "iou"},
        "train": {"methods": {"perpo": {}}},
        "eval": {"max_new_tokens": 48, "batch_size": NUM_PROMPTS, "allow_train_images": True},
    }
    (root / "r.yaml").write_text(yaml.safe_dump(config))
    adapter = save_adapter_artifact(Path("testbed"), root / "adapter", full=True)
    run = Run(load_config(root / "r.yaml"), inputs={"adapter": adapter}, quiet=True)
    prepare(run, "test")
    evaluate(run, "base@test")
    evaluate(run, "perpo@test")
    for number, row in enumerate(run.latest("prompts", "test").table().to_pylist()):
        (root / f"{number}.png").write_bytes(row["image"]["bytes"])
    return root


def ask(folder: Path, *arguments: str) -> int:
    try:
        main(["ask", *arguments, "--config", str(folder / "r.yaml"), "--quiet"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def rows_of(folder: Path, evaluation: str) -> Iterator[tuple[str, Any, Any]]:
    """Image, prompt and prediction of each prompt."""
    run = Run(load_config(folder / "r.yaml"), quiet=True)
    prompts = run.latest("prompts", "test").table().to_pylist()
    found = run.latest("predictions", evaluation).table().to_pylist()
    for number, (prompt, prediction) in enumerate(zip(prompts, found, strict=True)):
        assert prompt["prompt_id"] == prediction["prompt_id"]
        yield str(folder / f"{number}.png"), prompt, prediction


@pytest.mark.parametrize("model", ["base", "perpo"])
def test_the_answer_is_what_eval_predicts(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = [] if model == "base" else ["--adapter", str(folder / "adapter")]
    for image, prompt, prediction in rows_of(folder, f"{model}@test"):
        expression = prompt["prompt"].partition(": ")[2]
        truth = json.dumps(prompt["gt_box"])
        assert ask(folder, image, expression, *adapter, "--truth", truth, "--json") == 0
        (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert answer["completion"] == prediction["completion"]
        assert answer["finish_reason"] == prediction["finish_reason"]
        assert answer["reward"] == prediction["reward"]
        assert answer["parse_ok"] == prediction["parse_ok"]
        if prediction["box"] is None:
            assert answer["shapes"] == []
        else:
            x1, y1, x2, y2 = prediction["box"]
            assert answer["shapes"] == [[x1, y1, x2, y1, x2, y2, x1, y2]]


def test_the_adapter_makes_a_difference(folder: Path) -> None:
    base, other = ([p for _, _, p in rows_of(folder, f"{m}@test")] for m in ("base", "perpo"))
    assert [row["completion"] for row in base] != [row["completion"] for row in other]


def test_samples_are_drawn_read_and_measured_and_the_same_each_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, prompt, _ = next(rows_of(folder, "base@test"))
    truth = json.dumps(prompt["gt_box"])
    given = (image, "red circle", "--samples", "5", "--truth", truth, "--json")
    outputs = []
    for _ in range(2):
        assert ask(folder, *given, "--set", "sample.temperature=1.5") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    answers = [*map(json.loads, outputs[0].splitlines())]
    assert len(answers) == 5 and len({answer["completion"] for answer in answers}) > 1
    for answer in answers:
        if answer["shapes"]:
            x1, y1, _, _, x2, y2, _, _ = answer["shapes"][0]
            assert answer["reward"] == pytest.approx(
                iou_xyxy([[x1, y1, x2, y2]], [prompt["gt_box"]])[0]
            )
        else:
            assert answer["read"] == "no box could be read" and answer["reward"] == 0


def test_what_was_asked_is_said_and_the_picture_has_truth_and_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, prompt, prediction = next(rows_of(folder, "base@test"))
    expression = prompt["prompt"].partition(": ")[2]
    picture = folder / "pictures" / "seen.png"
    assert ask(folder, image, expression, "--truth", "[1, 2, 30, 40]", "--out", str(picture)) == 0
    said = capsys.readouterr()
    assert repr(prompt["prompt"]) in said.err and "task grounding" in said.err
    assert str(picture) in said.err and prediction["completion"] in said.out
    assert "in pixels of the image of 96 x 96" in said.out and "reward  " in said.out
    with Image.open(picture) as drawn:
        assert drawn.size == (480, 480)
        colours = {colour for _, colour in drawn.getcolors(1 << 20)}
    assert (0x0F, 0x60, 0x30) in colours and (0x1D, 0x5F, 0xD1) in colours


def test_a_picture_is_never_drawn_over_the_photo_or_another_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes((folder / "0.png").read_bytes())
    other = tmp_path / "other.png"
    other.write_bytes((folder / "1.png").read_bytes())
    before = photo.read_bytes(), other.read_bytes()
    for options, message in (
        (("--out", str(photo)), f"--out {photo}: this is the image {photo} itself"),
        (("--image", str(other), "--out", str(other)), f"this is the image {other} itself"),
        (("--out", str(other)), "was not written by perpo ask, and would be lost"),
    ):
        assert ask(folder, str(photo), "red circle", *options) == 2
        said = capsys.readouterr()
        assert message in said.err and "ask: " not in said.err.replace("perpo ask", "")
    assert (photo.read_bytes(), other.read_bytes()) == before
    for _ in range(2):  # its own picture is replaced
        assert ask(folder, str(photo), "red circle", "--out", str(tmp_path / "seen.jpg")) == 0


def test_a_text_is_asked_word_for_word_and_measured_as_a_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (str(folder / "0.png"), "What is this?", "--truth", "a cat")
    assert ask(folder, *given) == 2
    assert "score.reward iou measures against gt_box, but --truth gives gt_text" in (
        capsys.readouterr().err
    )
    assert ask(folder, *given, "--set", "score.reward=auto") == 0
    said = capsys.readouterr()
    assert "'What is this?' (task vqa, word for word" in said.err and "reward  " in said.out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--adapter", "nothing"), "one of base, perpo"),
        (("--adapter", "perpo"), "has no finished adapter 'perpo'"),
        (("--task", "reading"), "grounding, ocr, vqa"),
        (("--out", "seen.txt"), "no file name of a picture"),
        (("--samples", "100001"), "--samples 100001: at most 100,000 answers are drawn"),
        (("--truth", "[1, 2, 900, 3]"), "outside the image"),
    ],
)
def test_wrong_options_are_one_error_each(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], message: str
) -> None:
    assert ask(folder, str(folder / "0.png"), "circle", *wrong) == 2
    assert message in capsys.readouterr().err


def test_a_picture_too_long_for_its_format_is_refused_before_the_model_is_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (17_000, 40)).save(tmp_path / "long.png")
    out = tmp_path / "o.webp"
    assert ask(folder, str(tmp_path / "long.png"), "circle", "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert "the picture has 17000 x 40 pixels, and a .webp file has at most 16383" in said
    assert "end it in .png" in said and "ask: " not in said.replace("perpo ask", "")
    assert [file.name for file in tmp_path.iterdir()] == ["long.png"]


def test_several_images_are_asked_about_as_eval_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"source": "testbed", "num_prompts": 2, "images_per_prompt": 2}
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "model": {"id": "testbed", "dtype": "float32", "device": "cpu"},
        "prepare": {"train": source, "test": source},
        "eval": {"max_new_tokens": 48, "batch_size": 2, "allow_train_images": True},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(config))
    run = Run(load_config(tmp_path / "r.yaml"), quiet=True)
    prepare(run, "test")
    evaluate(run, "base@test")
    for _, prompt, prediction in rows_of(tmp_path, "base@test"):
        paths = [tmp_path / f"image{at}.png" for at in range(2)]
        for path, image in zip(paths, images_of(prompt), strict=True):
            path.write_bytes(image["bytes"])
        place = str(prompt["box_image"])
        given = [str(paths[0]), prompt["prompt"], "--image", str(paths[1]), "--verbatim"]
        given += ["--box-image", place, "--truth", json.dumps(prompt["gt_box"]), "--json"]
        assert ask(tmp_path, *given) == 0
        (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert answer["completion"] == prediction["completion"]
        assert answer["reward"] == prediction["reward"]
    monkeypatch.setattr(several_images, "_why_one_image", lambda vlm: "it sees the first")
    assert ask(tmp_path, *given) == 2
    said = capsys.readouterr().err
    assert "the prompt has several images, and this LLaVA-1.5 model takes one" in said
    assert ask(tmp_path, *given[:2]) == 0


def test_a_server_answers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What its answer would do to a terminal is written out."""
    model = save_tiny_llava(tmp_path / "model")
    like_vllm, said_by_model = make_like_vllm(model), "one\x1b[2J\u202e two"

    def answer(body: Json, number: int) -> Any:
        made = like_vllm(body, number)
        message = {"content": said_by_model}
        ended = choice(0, [5, END], message=message)
        return without_ids({**made, "choices": [ended]}) if isinstance(made, dict) else made

    server = Server(answer)
    noise_image(0).save(tmp_path / "a.png")
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "model": {
            "id": str(model),
            "dtype": "float32",
            "device": "cpu",
            "system_prompt": "Be kind.",
        },
        "prepare": {"test": {"source": "testbed", "num_prompts": 2}},
        "sample": {"split": "test"},
        "eval": {
            "backend": "openai",
            "served_model": "tiny",
            "base_url": server.url,
            "max_new_tokens": 6,
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(config))
    assert ask(tmp_path, str(tmp_path / "a.png"), "where is it?") == 0
    said = capsys.readouterr()
    assert "answer  one\u2039U+001B\u203a[2J\u2039U+202E\u203a two\n" in said.out
    assert "\x1b" not in said.out
    server.stop()
    (body,) = server.bodies
    assert "where is it?" in json.dumps(body["messages"]) and body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}


def test_a_run_with_both_tasks_asks_which_one_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [{"source": "testbed", "task": task, "num_prompts": 2} for task in ("grounding", "ocr")]
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "model": {"id": "testbed", "dtype": "float32", "device": "cpu"},
        "prepare": {"train": train, "test": {"source": "testbed", "num_prompts": 2}},
        "eval": {"max_new_tokens": {"grounding": 32}},
        "sample": {"max_new_tokens": {"grounding": 32, "ocr": 96}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(config))
    noise_image(64).save(tmp_path / "0.png")
    assert ask(tmp_path, str(tmp_path / "0.png"), "circle") == 2
    said = capsys.readouterr().err
    assert "tasks grounding and ocr" in said and "--task grounding or --task ocr" in said
    assert ask(tmp_path, str(tmp_path / "0.png"), "Read.", "--task", "ocr") == 2
    assert "eval.max_new_tokens names no value for ocr" in capsys.readouterr().err
    assert ask(tmp_path, str(tmp_path / "0.png"), "Hm?", "--task", "vqa", "--samples", "2") == 2
    assert "sample.max_new_tokens names no value for vqa" in capsys.readouterr().err
    run = Run(load_config(tmp_path / "r.yaml"), quiet=True)
    assert (choose_task(run, "[1, 2, 3, 4]"), choose_task(run, "a text")) == ("grounding", "ocr")
