"""`perpo judge`: thoughts of the models, which no judge gets to see, and thoughts of the judge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import between, perpo, text_of, values
from fake_openai_server import Server
from judging import COMMANDS, judge, judgements, reply_to_all

Serve = Callable[..., Server]
THOUGHTS = "<think>answer me</think>\n\n"
ANSWER = {
    "win-rate": "FIRST ANSWER",
    "llava-bench": "ANSWER OF ASSISTANT 2",
    "mmhal": "ANSWER OF THE ASSISTANT",
    "mm-vet": "ANSWER OF THE ASSISTANT",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_judge_gets_answers_without_their_thoughts(
    command: str, tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second model answer ends within its thought: it is judged as an empty one."""
    server = serve(reply_to_all)
    answers = [f"{THOUGHTS}It is red.", "<think>it may be"]
    assert judge(tmp_path, command, server, answers=answers) == 0
    seen = {between(text_of(body), ANSWER[command]) for body in server.bodies}
    assert seen == {"It is red.", ""}
    assert "1 of 2 completions in" in capsys.readouterr().err
    settings = judgements(tmp_path).manifest["settings"]
    assert (settings["thinking"], settings["tag"]) == ("auto", "answer")
    assert values(tmp_path / "out")["parse_rate"] == 1


def test_a_thought_that_the_template_opened_is_stated(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(reply_to_all)
    answers = ["red?</think>It is red.", "<answer>blue</answer>"]
    assert judge(tmp_path, "mm-vet", server, "--thinking", "opened", answers=answers) == 0
    assert {between(text_of(b), ANSWER["mm-vet"]) for b in server.bodies} == {"It is red.", ""}
    assert "1 of 2 completions" in capsys.readouterr().err
    given = ["--thinking", "none", "--answer-tag", "none"]
    assert judge(tmp_path, "mm-vet", server, *given, answers=answers) == 0
    assert {between(text_of(body), ANSWER["mm-vet"]) for body in server.bodies[2:]} == set(answers)
    assert judge(tmp_path, "mm-vet", server, "--thinking", "sometimes", answers=answers) == 2
    assert "--thinking 'sometimes'" in capsys.readouterr().err


def test_reviews_have_no_answers_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--reviews", tmp_path / "r.json", "--thinking", "opened", "--answer-tag", "none"]
    assert perpo("judge", "mmhal", *given, "--out", tmp_path) == 2
    message = capsys.readouterr().err
    assert "--thinking, --answer-tag has no effect with --reviews" in message


def test_answers_without_thoughts_are_judged_once_for_every_reading(
    tmp_path: Path, serve: Serve
) -> None:
    """What the judge is asked is the same, so that nothing is paid for twice."""
    server = serve(reply_to_all)
    for more in ([], ["--thinking", "none"], ["--answer-tag", "none"]):
        assert judge(tmp_path, "mmhal", server, *more) == 0
    assert len(server.bodies) == 2
    assert "thinking" not in judgements(tmp_path).manifest["settings"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reply_is_read_after_the_thoughts_of_the_judge(
    command: str, tmp_path: Path, serve: Serve
) -> None:
    def thinks(prompt: str) -> str:
        return f"<think>10 10\nRating: 6? Score: 1.0? Better: 2</think>\n{reply_to_all(prompt)}"

    found: list[Any] = []
    for opinion in (thinks, reply_to_all):
        folder = tmp_path / opinion.__name__
        folder.mkdir()
        assert judge(folder, command, serve(opinion)) == 0
        found.append(values(folder / "out"))
    assert found[0] == found[1] and found[0]["parse_rate"] == 1
