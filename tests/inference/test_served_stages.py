"""`perpo sample` and `perpo eval` with servers that take thoughts away, ignore `n` or repeat."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai_server import (
    UNANSWERED,
    Answer,
    Json,
    Reply,
    Server,
    choice,
    ignores_n,
    with_thoughts,
    without_ids,
)
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.inference import failures
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.vlm import openai_server

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: jsonl, path: data.jsonl, task: grounding}
  test: {source: jsonl, path: data.jsonl, task: grounding}
sample: {num_samples: 3, max_new_tokens: 40, prompts_per_part: 2}
eval: {max_new_tokens: 40, prompts_per_part: 2, conditions: []}
"""
NUM = 3
WRONG, RIGHT = "[0.90, 0.90, 1.00, 1.00]", "[0.00, 0.00, 0.50, 0.50]"
THOUGHTS = f"Perhaps {WRONG}? It is left."
PLACES = {"sample": "data/r/samples/train", "eval": "data/r/predictions/base@test"}


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts about images of their own; the current directory is the run's; short waits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 0.02)
    for name in openai_server.KEY_NAMES:
        monkeypatch.delenv(name, raising=False)
    lines = []
    for number in range(NUM):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(
            f'{{"image": "{number}.png", "prompt": "p{number}", "gt_box": [0, 0, 16, 16]}}'
        )
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(CONFIG)
    assert perpo("prepare") == 0


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer, owned_by="someone", model="m"))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


def by_server(stage: str, server: Server | str, *more: str) -> int:
    url = server if isinstance(server, str) else server.url
    given = ["--evaluation", "base"] if stage == "eval" else []
    sets = [f"{stage}.{setting}" for setting in (f"base_url={url}", "served_model=m", *more)]
    options = [option for setting in sets for option in ("--set", setting)]
    return perpo(stage, *given, "--backend", "openai", *options)


def asked_of(body: Json) -> str:
    return str(body["messages"][0]["content"][1]["text"])


def made(stage: str) -> Version:
    return open_version(Path(PLACES[stage]))


def says(text: str) -> Answer:
    """The same text for every prompt; choices differ in what follows it."""

    def answer(body: Json, number: int) -> Json:
        start = body["seed"] % 100
        texts = [text + " " * (i > 0 or start > 50) * (i + start) for i in range(body["n"])]
        made = [choice(i, [], message={"content": t}) for i, t in enumerate(texts)]
        return without_ids({"choices": [one | {"finish_reason": "stop"} for one in made]})

    return answer


@pytest.mark.parametrize("stage", PLACES)
def test_an_answer_without_its_thoughts_ends_the_stage_and_the_mended_server_completes_it(
    stage: str, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def parsed(body: Json, number: int) -> Json:
        reply = says(RIGHT)(body, number)
        assert isinstance(reply, dict)
        return with_thoughts(reply, THOUGHTS)

    server = serve(parsed)
    assert by_server(stage, server, "concurrency=1") == 2
    message = capsys.readouterr().err
    assert "took the model's thoughts out of its answer" in message and server.url in message
    assert "--reasoning-parser" in message and len(server.bodies) == 1
    assert not list(Path(PLACES[stage]).glob("*/part-*"))
    server.answer = says(f"<think>{THOUGHTS}</think>\n\n{RIGHT}")
    assert by_server(stage, server) == 0
    completions = {row["completion"].rstrip() for row in made(stage).table().to_pylist()}
    assert completions == {f"<think>{THOUGHTS}</think>\n\n{RIGHT}"}, "as the model drew them"


def test_an_evaluation_reads_the_answer_after_the_thoughts(serve: Any) -> None:
    assert by_server("eval", serve(says(f"{THOUGHTS}\n</think>\n\n{RIGHT}"))) == 0
    rows = made("eval").table().to_pylist()
    assert [(row["reward"], row["parse_ok"]) for row in rows] == [(1.0, True)] * NUM


def test_a_greedy_request_asks_for_one_completion_at_temperature_0(serve: Any) -> None:
    server = serve(says(RIGHT))
    assert by_server("eval", server) == 0
    for body in server.bodies:
        assert (body["n"], body["temperature"], body["top_p"]) == (1, 0.0, 1.0)
        assert "logprobs" not in body


def test_a_server_that_ignores_n_is_reported_and_each_list_is_whole(
    serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(ignores_n(says(RIGHT)))
    assert by_server("sample", server, "concurrency=1") == 0
    assert "returned 1 of 3 choices: it gets one request for each" in capsys.readouterr().err
    assert [body["n"] for body in server.bodies] == [3, *[1] * (3 * NUM - 1)]
    assert made("sample").manifest["rows"] == 3 * NUM
    assert "returned 1 of 3" in made("sample").manifest["notes"]["single_requests"]


def test_notes_of_an_interrupted_sitting_are_printed_and_recorded(
    serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C comes while the second prompt of the first part is asked."""

    def answer(body: Json, number: int) -> Any:
        if len(server.bodies) > NUM:
            os.kill(os.getpid(), signal.SIGINT)
            return UNANSWERED
        return ignores_n(says(RIGHT))(body, number)

    server = serve(answer)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert by_server("sample", server, "concurrency=1") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "returned 1 of 3 choices" in capsys.readouterr().err
    (notes,) = Path(PLACES["sample"]).glob("*/notes.json")
    assert "returned 1 of 3" in json.loads(notes.read_text())["single_requests"]
    server.answer = says(RIGHT)  # gives all that are asked for
    assert by_server("sample", server) == 0
    assert "returned 1 of 3" in made("sample").manifest["notes"]["single_requests"]


def test_a_server_with_a_fault_ends_the_stage_before_the_part_ends(
    serve: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here as soon as one prompt fails; in earnest a few in a row, and the part is finished."""

    def broken(body: Json, number: int) -> Any:
        is_first = asked_of(body) == asked_of(server.bodies[0])
        return says(RIGHT)(body, number) if is_first else Reply(500, "no memory")

    server, whole = serve(broken), ("concurrency=1", "prompts_per_part=9")
    with monkeypatch.context() as patch:
        patch.setattr(failures, "FEWEST_IN_A_ROW", 1)
        assert by_server("sample", server, *whole) == 2
    message = capsys.readouterr().err
    assert "1 prompts in a row cannot be sampled (max_errors 0)" in message
    assert "HTTP 500: no memory" in message
    assert len(server.bodies) <= 1 + 6 + 1, "the other bad prompt is not tried 6 times, too"
    assert by_server("sample", server, *whole) == 2
    assert "2 prompts cannot be sampled (max_errors 0)" in capsys.readouterr().err
    kept, before = asked_of(server.bodies[0]), len(server.bodies)
    server.answer = says(RIGHT)
    assert by_server("sample", server, *whole) == 0
    assert kept not in {asked_of(body) for body in server.bodies[before:]}


def test_a_server_that_repeats_itself_is_reported_with_figures(
    serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def repeats(body: Json, number: int) -> Json:
        text = {"content": RIGHT}
        made = [choice(i, [], message=text, finish_reason="stop") for i in range(body["n"])]
        return without_ids({"choices": made})

    assert by_server("sample", serve(repeats)) == 0
    assert "all completions are equal for 2 of 2 prompts" in capsys.readouterr().err
    assert "2 of 2 prompts" in made("sample").manifest["notes"]["equal_completions"]
    assert by_server("eval", serve(repeats)) == 0
    assert "are equal" not in capsys.readouterr().err


def test_a_prompt_that_the_server_refuses_is_unanswered_under_max_errors(
    serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def picky(body: Json, number: int) -> Any:
        if body["messages"][0]["content"][1]["text"] == "p1":
            return Reply(400, {"error": {"message": "maximum context length is 10 tokens"}})
        return says(RIGHT)(body, number)

    server = serve(picky)
    assert by_server("eval", server) == 2
    message = capsys.readouterr().err
    assert "data.jsonl:2" in message and "maximum context length is 10 tokens" in message
    assert by_server("eval", server, "max_errors=1") == 0
    assert "1 of 3 prompts are unanswered" in capsys.readouterr().err
    rows = made("eval").table().to_pylist()
    assert [row["finish_reason"] for row in rows] == ["stop", "unanswered", "stop"]
    assert len([b for b in server.bodies if b["messages"][0]["content"][1]["text"] == "p2"]) == 1


@pytest.mark.parametrize("stage", PLACES)
def test_a_server_that_cannot_be_reached_is_named_at_once(
    stage: str, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(says(RIGHT))
    server.http.server_close()
    assert by_server(stage, server) == 2
    message = capsys.readouterr().err
    assert "cannot be reached" in message and server.url in message and "base_url" in message


@pytest.mark.parametrize("stage", PLACES)
def test_a_server_that_stops_between_parts_loses_no_finished_part(
    stage: str, serve: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = threading.Event()

    def once(body: Json, number: int) -> Any:
        if body["messages"][0]["content"][1]["text"] == "p2" and not stopping.is_set():
            stopping.set()
            threading.Thread(target=server.stop).start()
            return None
        return says(RIGHT)(body, number)

    server = serve(once)
    assert by_server(stage, server, "concurrency=1") == 2
    assert "the same command resumes where it stopped" in capsys.readouterr().err
    asked = len(server.bodies)
    server.start(server.http.server_port)
    assert by_server(stage, server) == 0
    assert len(server.bodies) == asked + 1
    assert made(stage).manifest["rows"] == {"sample": 3 * NUM, "eval": NUM}[stage]
