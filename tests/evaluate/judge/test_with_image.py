"""`perpo judge ... --with-image`: what the judge gets to see, and servers that take no images."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_judge import endpoint, perpo, text_of
from fake_openai_server import Json, Reply, Server
from judging import (
    COMMANDS,
    IMAGES,
    REPLY,
    judge,
    judgements,
    options,
    reply_to_all,
    save_images,
    write,
)
from PIL import Image
from tiny_models import noise_image

from perpo_pipeline.evaluate.judge.mm_vet import MM_VET
from perpo_pipeline.evaluate.judge.task import Task

Serve = Callable[..., Server]


def sent_image(body: Json) -> bytes:
    picture, text = body["messages"][0]["content"]
    assert (picture["type"], text["type"]) == ("image_url", "text")
    return base64.b64decode(picture["image_url"]["url"].partition(";base64,")[2], validate=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_question_is_asked_with_its_own_image(
    command: str, tmp_path: Path, serve: Serve
) -> None:
    save_images(tmp_path)
    server = serve(reply_to_all)
    assert judge(tmp_path, command, server, "--with-image") == 0
    assert len(server.bodies) == 2 * COMMANDS[command].orders
    for body in server.bodies:
        number = re.search(r"question (\d)", text_of(body))
        assert number is not None
        assert sent_image(body) == (tmp_path / IMAGES[int(number[1])]).read_bytes()
        assert "image is attached" in text_of(body) or "which is attached" in text_of(body)
        assert "not shown" not in text_of(body)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_option_requests_and_settings_are_as_before(
    command: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(reply_to_all)
    assert judge(tmp_path, command, server) == 0
    task = COMMANDS[command]
    for body in server.bodies:
        assert set(body) == {"model", "messages", "temperature", "max_tokens"}
        ((role, content),) = [tuple(message.values()) for message in body["messages"]]
        assert role == "user" and isinstance(content, str) and "attached" not in content
    settings = judgements(tmp_path).manifest["settings"]
    assert settings["prompt_sha256"] == task.prompt_sha256()
    assert set(settings) == {
        "task",
        "judge_model",
        "files_sha256",
        "prompt_sha256",
        "temperature",
        "max_tokens",
    }


@pytest.mark.parametrize("task", COMMANDS.values(), ids=list(COMMANDS))
def test_both_prompts_of_a_task_have_the_same_places(task: Task) -> None:
    plain, shown = (task.prompt_file(which).read_text() for which in (False, True))
    assert re.findall(r"{{\w+}}", plain) == re.findall(r"{{\w+}}", shown)
    assert plain.split("\n")[-2:] == shown.split("\n")[-2:]  # the form of the reply


def test_an_image_is_part_of_the_fingerprint_and_of_each_prompts_hash(
    tmp_path: Path, serve: Serve
) -> None:
    save_images(tmp_path)
    server = serve(reply_to_all)
    asked, hashes = [], []
    for change in ("blind", "seeing", "other image", "same"):
        if change == "other image":
            noise_image(9, 20, 10).save(tmp_path / IMAGES[0])
        judge(tmp_path, "mm-vet", server, *([] if change == "blind" else ["--with-image"]))
        asked.append(len(server.bodies))
        rows = judgements(tmp_path).table().to_pylist()
        hashes.append({row["item_id"]: row["prompt_sha256"] for row in rows})
    assert asked == [2, 4, 6, 6]
    settings = judgements(tmp_path).manifest["settings"]
    assert settings["prompt_sha256"] == MM_VET.prompt_sha256(with_image=True)
    assert len(settings["images_sha256"]) == 64
    assert len({found["v1_0"] for found in hashes[:3]}) == 3
    assert hashes[1]["v1_1"] == hashes[2]["v1_1"] != hashes[0]["v1_1"]


def test_a_turned_image_is_sent_as_upright_pixels(tmp_path: Path, serve: Serve) -> None:
    save_images(tmp_path)
    turned = noise_image(5, 20, 10)
    exif = turned.getexif()
    exif[0x0112] = 6  # the row of pixels 0 is the right side
    turned.save(tmp_path / "0.png", exif=exif)
    server = serve(reply_to_all)
    assert judge(tmp_path, "mm-vet", server, "--with-image", "--concurrency", "1") == 0
    sent = Image.open(io.BytesIO(sent_image(server.bodies[0])))
    assert np.array_equal(np.asarray(sent), np.rot90(np.asarray(turned), -1))


def test_images_may_lie_in_another_folder(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "images")
    server = serve(reply_to_all)
    given = ["--with-image", "--image-dir", tmp_path / "images"]
    assert judge(tmp_path, "llava-bench", server, *given) == 0
    assert judge(tmp_path, "llava-bench", server, *given[1:]) == 2
    assert "--image-dir has no effect without --with-image" in capsys.readouterr().err
    assert judge(tmp_path, "llava-bench", server, *given[:2], tmp_path / "pictures") == 2
    assert "--image-dir is no directory" in capsys.readouterr().err
    reviews = write(tmp_path / "v.jsonl", [])
    assert perpo("judge", "mmhal", "--reviews", reviews, "--with-image", "--out", tmp_path) == 2
    assert "--with-image has no effect with --reviews" in capsys.readouterr().err


def test_missing_and_damaged_images_are_reported_with_their_places_before_any_question(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / IMAGES[0]).write_bytes(b"no image")
    server = serve(reply_to_all)
    assert judge(tmp_path, "win-rate", server, "--with-image") == 2
    message = capsys.readouterr().err
    assert "2 faults" in message
    assert "q.jsonl line 1, question '0': image" in message and "not an image" in message
    assert (
        "q.jsonl line 2, question '1': image" in message
        and "1.jpg: the image file does not" in message
    )
    asked = write(tmp_path / "q.jsonl", [{"question_id": 0, "text": "t"}])
    files = options(tmp_path, "win-rate")
    write(asked, [{"question_id": i, "text": "t", "image": i or None} for i in range(2)])
    given = [*files, "--out", tmp_path, *endpoint(server), "--with-image"]
    assert perpo("judge", "win-rate", *given) == 2
    message = capsys.readouterr().err
    assert (
        "q.jsonl line 1, question '0': --with-image needs the name of its image, not None"
        in message
    )
    assert (
        "q.jsonl line 2, question '1': --with-image needs the name of its image, not 1" in message
    )
    assert not server.paths


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(400, {"error": {"message": "judge is not a multimodal model"}}),
        Reply(404, {"error": {"message": "judge is not a multimodal model"}}),
        Reply(500, "judge is not a multimodal model"),
    ],
    ids=["400", "404", "500"],
)
def test_a_server_that_takes_no_images_ends_the_command_with_the_fix(
    refusal: Reply, tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path)
    server = serve(reply_to_all, refusal=refusal)
    assert judge(tmp_path, "mmhal", server, "--with-image", "--max-errors", "1") == 2
    message = capsys.readouterr().err
    assert "the judge 'judge' answers a text, but not a text with an image" in message
    assert "judge is not a multimodal model" in message
    assert "--judge-model that takes images" in message and "leave out --with-image" in message


def test_one_refused_image_counts_alone(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first image is too large for this server, whatever it says of a small one."""
    save_images(tmp_path)

    def picky(prompt: str) -> str | Reply:
        return Reply(400, "too large") if "question 0" in prompt else REPLY

    server = serve(picky)
    given = ["--with-image", "--concurrency", "1", "--max-errors", "1"]
    assert judge(tmp_path, "mm-vet", server, *given) == 0
    assert "1 missing" in capsys.readouterr().err
    assert len(server.bodies) == 3  # the refused one, a small image, the other one


def test_a_refusal_that_has_nothing_to_do_with_the_image_is_shown_as_it_is(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path)
    server = serve(lambda _: Reply(400, "not today"))
    assert judge(tmp_path, "mm-vet", server, "--with-image") == 2
    message = capsys.readouterr().err
    assert "HTTP 400: not today" in message and "with an image" not in message
