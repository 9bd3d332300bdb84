"""`perpo judge win-rate` against judges with opinions on loopback."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from fake_judge import Opinion, between, endpoint, metrics, perpo, values
from fake_openai_server import UNANSWERED, Json, Reply, Server

from perpo_pipeline.evaluate.judge.judge_answers import REPLIES_PER_PART
from perpo_pipeline.evaluate.judge.win_rate import WIN_RATE, measure
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.writing import Writer

KEY = "sk-not-to-be-seen-4711"
FIRST, SECOND = 1, 2
ASPECTS = ("response_accuracy", "instruction_adherence", "hallucination_reduction")
Serve = Callable[[Opinion], Server]


def reply(better: int, first: int = 3, second: int = 3) -> str:
    lines = [
        f"{which} answer: accuracy {n}, adherence {n}, truthfulness {n}"
        for which, n in (("First", first), ("Second", second))
    ]
    return "\n".join([*lines, f"Better: {better}"])


def prefers(text: str) -> Opinion:
    """The answer with this text is better: 5 to 2."""

    def opinion(prompt: str) -> str:
        is_first = text in between(prompt, "FIRST ANSWER")
        return reply(FIRST, 5, 2) if is_first else reply(SECOND, 2, 5)

    return opinion


def likes_the_first(prompt: str) -> str:
    return reply(FIRST, 5, 1)


def write_lines(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_files(folder: Path, count: int, **more: Any) -> list[str | Path]:
    """Questions and both answers, B's in another order; the flags that name them."""
    folder.mkdir(exist_ok=True)
    asked = [
        {"question_id": i, "text": f"what is {i}?", "reference": f"it is {i}", **more}
        for i in range(count)
    ]
    of_a = [{"question_id": i, "text": f"A says {i}"} for i in range(count)]
    of_b = [{"question_id": str(i), "text": f"B says {i}"} for i in reversed(range(count))]
    return [
        "--questions",
        write_lines(folder / "q.jsonl", asked),
        "--answers",
        write_lines(folder / "a.jsonl", of_a),
        "--answers-b",
        write_lines(folder / "b.jsonl", of_b),
        "--out",
        folder / "out",
    ]


def judge(files: list[str | Path], server: Server, *more: str) -> int:
    return perpo("judge", "win-rate", *files, *endpoint(server), *more)


def judgements(folder: Path) -> Version:
    return open_version(folder / "out" / "judgements", "judgements")


def test_a_judge_that_always_prefers_the_first_answer_says_nothing_about_the_models(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(write_files(tmp_path, 6), serve(likes_the_first)) == 0
    found = values(tmp_path / "out")
    assert (found["win_rate"], found["order_disagreement"], found["tie_rate"]) == (0.5, 1, 0)
    assert found["response_accuracy_a"] == found["response_accuracy_b"] == 3
    assert found["parse_rate"] == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["metric", "split", "dataset", "value", "95", "%", "interval", "n"]
    assert shown[1].split()[:5] == ["win_rate", "win-rate", "all", "50.0", "%"]


@pytest.mark.parametrize(
    ("text", "win_rate", "of_a", "of_b"), [("A says", 1, 5, 2), ("B says", 0, 2, 5)]
)
def test_a_judge_that_prefers_one_models_text_finds_it_in_both_positions(
    text: str, win_rate: float, of_a: float, of_b: float, tmp_path: Path, serve: Serve
) -> None:
    assert judge(write_files(tmp_path, 5), serve(prefers(text))) == 0
    found = metrics(tmp_path / "out")
    assert found["win_rate", "all"]["value"] == win_rate
    assert found["order_disagreement", "all"]["value"] == 0
    for aspect in ASPECTS:
        assert found[f"{aspect}_a", "all"]["value"] == of_a
        assert found[f"{aspect}_b", "all"]["value"] == of_b
    # Five of five: Wilson's interval, 5 / (5 + 1.96^2) = 0.5655.
    ends = sorted(abs(found["win_rate", "all"][end] - win_rate) for end in ("low", "high"))
    assert ends == pytest.approx([0, 1 - 0.5655], abs=1e-4)
    assert found["win_rate", "all"]["n"] == 5


def test_points_are_halved_for_ties_and_averaged_over_both_orders() -> None:
    """Choices (A first, B first), A's points: (1, 2) 1; (1, 0) 3/4; (0, 0) 1/2; (2, 0) 1/4;
    (2, 2) 1/2. Sum 3. Ties: 4 of 10 replies. Only (1, 2) and (0, 0) agree."""
    choices = [(1, 2), (1, 0), (0, 0), (2, 0), (2, 2)]
    scores = np.array([[[5, 4, 3, 1, 2, 3, a], [1, 1, 1, 5, 5, 5, b]] for a, b in choices], float)
    found = measure(scores)
    assert found["win_rate"][0] == pytest.approx(3 / 5)
    assert found["tie_rate"][0] == pytest.approx(4 / 10)
    assert found["order_disagreement"][0] == pytest.approx(3 / 5)
    # A: (5 + 5) / 2, (4 + 5) / 2, (3 + 5) / 2; B: (1 + 1) / 2, (2 + 1) / 2, (3 + 1) / 2.
    assert [found[f"{name}_a"][0] for name in ASPECTS] == [5, 4.5, 4]
    assert [found[f"{name}_b"][0] for name in ASPECTS] == [1, 1.5, 2]


def test_both_orders_are_asked_with_the_answers_of_the_same_id_at_temperature_0(
    tmp_path: Path, serve: Serve
) -> None:
    server = serve(likes_the_first)
    assert judge(write_files(tmp_path, 3), server, "--max-tokens", "77") == 0
    pairs = Counter()
    for body in server.bodies:
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 77, "judge")
        prompt = body["messages"][0]["content"]
        number = between(prompt, "QUESTION").removeprefix("what is ").removesuffix("?")
        assert between(prompt, "REFERENCE") == f"it is {number}"
        sides = between(prompt, "FIRST ANSWER"), between(prompt, "SECOND ANSWER")
        assert sorted(sides) == [f"A says {number}", f"B says {number}"]
        pairs[sides[0][0], number] += 1
    assert pairs == {(side, str(i)): 1 for side in "AB" for i in range(3)}


def test_replies_are_kept_as_they_came_with_scores_and_order(tmp_path: Path, serve: Serve) -> None:
    judge(write_files(tmp_path, 2, dataset="boxes"), serve(prefers("A says")))
    version = judgements(tmp_path)
    rows = {(row["item_id"], row["order"]): row for row in version.table().to_pylist()}
    assert sorted(rows) == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert rows["1", 1]["reply"] == reply(SECOND, 2, 5)
    assert rows["1", 1]["scores"] == [2, 2, 2, 5, 5, 5, 2]
    assert (rows["1", 1]["model"], rows["1", 1]["groups"]) == ("judge", ["boxes"])
    assert len({row["prompt_sha256"] for row in rows.values()}) == 4
    settings = version.manifest["settings"]
    assert settings["prompt_sha256"] == WIN_RATE.prompt_sha256()
    assert set(settings["files_sha256"]) == {"questions", "answers", "answers_b"}
    assert version.manifest["notes"]["base_url"].startswith("http://127.0.0.1")


def test_each_dataset_has_its_own_win_rate(tmp_path: Path, serve: Serve) -> None:
    files = write_files(tmp_path, 4)
    rows = [
        {
            "question_id": i,
            "text": f"what is {i}?",
            "reference": "r",
            "dataset": "pages" if i else "boxes",
        }
        for i in range(4)
    ]
    write_lines(tmp_path / "q.jsonl", rows)

    def opinion(prompt: str) -> str:
        return prefers("A says" if "what is 0" in prompt else "B says")(prompt)

    assert judge(files, serve(opinion)) == 0
    found = metrics(tmp_path / "out")
    assert found["win_rate", "boxes"]["value"] == 1 and found["win_rate", "boxes"]["n"] == 1
    assert found["win_rate", "pages"]["value"] == 0 and found["win_rate", "pages"]["n"] == 3
    assert found["win_rate", "all"]["value"] == 0.25


def test_a_second_call_asks_nobody(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    files, server = write_files(tmp_path, 3), serve(likes_the_first)
    judge(files, server)
    first, asked = capsys.readouterr(), len(server.paths)
    assert judge(files, server) == 0
    second = capsys.readouterr()
    assert len(server.paths) == asked == 7  # the models, and six questions
    assert second.out == first.out and second.err.count("up to date") == 2


def test_a_new_answer_or_judge_asks_again_and_a_new_address_does_not(
    tmp_path: Path, serve: Serve
) -> None:
    files, server, other = write_files(tmp_path, 2), serve(likes_the_first), serve(likes_the_first)
    judge(files, server)
    judge(files, other)
    assert not other.bodies
    write_lines(tmp_path / "a.jsonl", [{"question_id": i, "text": "new"} for i in range(2)])
    judge(files, other)
    assert len(other.bodies) == 4
    judge(files, other, "--judge-model", "another")
    assert len(other.bodies) == 8


def test_unparsed_replies_are_counted_and_their_questions_left_out(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the eight replies says nothing: its question is out, the other three are won."""

    def opinion(prompt: str) -> str:
        if "what is 2" in prompt and between(prompt, "FIRST ANSWER") == "B says 2":
            return "I would rather not say."
        return prefers("A says")(prompt)

    assert judge(write_files(tmp_path, 4), serve(opinion)) == 0
    found = metrics(tmp_path / "out")
    assert (found["win_rate", "all"]["value"], found["win_rate", "all"]["n"]) == (1, 3)
    assert found["parse_rate", "all"]["value"] == 7 / 8
    assert "1 of 4 questions count only in parse_rate" in capsys.readouterr().err


def test_without_one_definite_reply_there_is_a_parse_rate_alone(
    tmp_path: Path, serve: Serve
) -> None:
    assert judge(write_files(tmp_path, 2), serve(lambda _: "?")) == 0
    assert values(tmp_path / "out") == {"parse_rate": 0}


def test_a_refused_question_ends_with_2_and_only_it_is_asked_again(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    refusals = [Reply(400, {"error": {"message": "not with me"}})]

    def opinion(prompt: str) -> str | Reply:
        if "what is 9?" in prompt and prompt.find("A says") < prompt.find("B says") and refusals:
            return refusals[0]
        return reply(FIRST)

    files, server = write_files(tmp_path, 10), serve(opinion)
    assert judge(files, server, "--concurrency", "1") == 2
    message = capsys.readouterr().err
    assert "'9': the server refused the request (HTTP 400: not with me)" in message
    assert "the same command asks only the other questions" in message
    asked = len(server.bodies)
    assert asked == 19  # after the refusal nothing more is asked
    refusals.clear()
    assert judge(files, server) == 0
    assert len(server.bodies) == asked + 2
    assert judgements(tmp_path).manifest["rows"] == 20


def test_max_errors_continues_without_a_reply_and_counts_it(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def opinion(prompt: str) -> str | Reply:
        return Reply(400, "never") if "what is 1?" in prompt else reply(FIRST)

    files, server = write_files(tmp_path, 4), serve(opinion)
    assert judge(files, server) == 2
    assert judge(files, server, "--max-errors", "2") == 0
    assert "2 missing" in capsys.readouterr().err
    assert values(tmp_path / "out")["parse_rate"] == 6 / 8
    failures = [row["failure"] for row in judgements(tmp_path).table().to_pylist()]
    assert sum(failure is not None and "never" in failure for failure in failures) == 2


def test_a_kill_after_failures_were_written_asks_these_questions_again(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows say that there is no reply; a part that held nothing else is used again."""
    replies = [Reply(400, "not now")]

    def opinion(prompt: str) -> str | Reply:
        return replies[0] if "what is 1?" in prompt and replies else reply(FIRST)

    files, server = write_files(tmp_path, 2), serve(opinion)
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Writer, "finish", Mock(side_effect=SystemError("killed")))
        judge(files, server, "--max-errors", "2")
    assert len(server.bodies) == 4
    replies.clear()
    assert judge(files, server) == 0
    assert len(server.bodies) == 6
    rows = judgements(tmp_path).table().to_pylist()
    assert [row["failure"] for row in rows] == [None] * 4 and all(r["parse_ok"] for r in rows)
    assert len({(row["item_id"], row["order"]) for row in rows}) == 4


def test_an_empty_reply_is_reported_with_the_token_limit(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(write_files(tmp_path, 1), serve(lambda _: "")) == 2
    assert "more than --max-tokens 1024" in capsys.readouterr().err


def test_a_busy_server_is_asked_again(tmp_path: Path, serve: Serve) -> None:
    busy = [Reply(503, "wait", Retry_After="0")] * 3

    def opinion(prompt: str) -> str | Reply:
        return busy.pop() if busy else reply(FIRST)

    assert judge(write_files(tmp_path, 2), serve(opinion), "--concurrency", "1") == 0


@pytest.mark.parametrize(
    ("kill", "code", "kept"),
    [(signal.SIGKILL, -signal.SIGKILL, REPLIES_PER_PART), (signal.SIGINT, 130, 40)],
)
def test_a_killed_judgement_asks_only_what_is_missing(
    kill: signal.Signals, code: int, kept: int, tmp_path: Path, serve: Serve
) -> None:
    """A kill loses less than a part, Ctrl-C nothing that had come in."""
    is_held = [True]

    def opinion(prompt: str) -> str | Reply:
        return UNANSWERED if is_held and len(server.bodies) > 40 else likes_the_first(prompt)

    server = serve(opinion)
    files = write_files(tmp_path, 40)
    command = ["judge", "win-rate", *map(str, files), *endpoint(server), "--concurrency", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "perpo_pipeline.cli", *command],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's test
    )
    try:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 41 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(kill)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()
    assert len(server.bodies) == 41
    is_held.clear()
    assert judge(files, server) == 0
    assert len(server.bodies) == 41 + 80 - kept
    rows = judgements(tmp_path).table().to_pylist()
    assert len({(row["item_id"], row["order"]) for row in rows}) == len(rows) == 80


def test_the_key_goes_to_the_server_and_is_shown_nowhere(
    tmp_path: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERPO_API_KEY", KEY)
    server = serve(lambda _: Reply(400, f"what is {KEY}?"))
    files = write_files(tmp_path, 2)
    assert judge(files, server) == 2
    server.answer = serve(likes_the_first).answer
    assert judge(files, server) == 0
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    shown = capsys.readouterr()
    assert KEY not in shown.out + shown.err
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_a_refused_key_names_the_model_and_where_the_key_belongs(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(write_files(tmp_path, 1), serve(lambda _: Reply(401, "no"))) == 2
    message = capsys.readouterr().err
    assert "PERPO_API_KEY" in message and "'judge'" in message


def test_a_wrong_judge_name_points_to_its_option(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda _: Reply(404, "no such model"))
    assert judge(write_files(tmp_path, 1), server, "--judge-model", "jugde") == 2
    message = capsys.readouterr().err
    assert "--judge-model" in message and "it has judge" in message


def test_all_faults_of_all_files_are_reported_at_once_and_nobody_is_asked(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    files, server = write_files(tmp_path, 3), serve(likes_the_first)
    (tmp_path / "q.jsonl").write_text(
        '{"question_id": 0, "text": "a"}\n\n{"question_id": 0, "text": "b"}\n{"text": "c"}\n'
        '{"question_id": 1, "text": 5}\n{"question_id": 2, "text": "\\ud800"}\n{"question_id"\n[]\n'
        '{"question_id": 7, "text": "d", "dataset": "all"}\n'
        '{"question_id": 8, "question_id": 9, "text": "d"}\n'
    )
    (tmp_path / "b.jsonl").write_text("")
    assert judge(files, server) == 2
    message = capsys.readouterr().err
    for fault in (
        "q.jsonl line 3: question_id '0' occurs twice",
        "q.jsonl line 4: `question_id` is None; it must be text or a whole number",
        "q.jsonl line 5: `text` is not text: 5",
        "q.jsonl line 6: `text` holds half a character",
        "q.jsonl line 7: not JSON",
        "q.jsonl line 8: not a JSON object",
        "q.jsonl line 9, question '7': `dataset` is 'all'",
        "q.jsonl line 10: not JSON: the key 'question_id' is given twice",
        "a.jsonl: no answer to question '7' (",
        "q.jsonl line 9)",
        "b.jsonl: the file holds no row",
        "b.jsonl: no answer to question '0'",
    ):
        assert fault in message
    assert not server.paths and not (tmp_path / "out").exists()


def test_many_faults_are_counted_beyond_the_first_twenty(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path, 30)
    write_lines(tmp_path / "a.jsonl", [{"question_id": 0, "text": ""}])
    assert judge(files, serve(likes_the_first)) == 2
    message = capsys.readouterr().err
    assert (
        "29 faults" in message and message.count("no answer") == 20 and "... and 9 more" in message
    )


def test_answers_without_a_question_and_missing_references_are_reported(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    files, server = write_files(tmp_path, 3), serve(likes_the_first)
    write_lines(tmp_path / "q.jsonl", [{"question_id": 1, "text": "?"}])
    assert judge(files, server) == 0
    message = capsys.readouterr().err
    assert message.count("2 answers in") == 2 and "1 of 1 questions have no `reference`" in message
    assert len(server.bodies) == 2


def test_placeholders_in_an_answer_are_not_filled(tmp_path: Path, serve: Serve) -> None:
    files, server = write_files(tmp_path, 1), serve(likes_the_first)
    write_lines(tmp_path / "a.jsonl", [{"question_id": 0, "text": "{{second}} {{nothing}}"}])
    assert judge(files, server) == 0
    assert "{{second}} {{nothing}}" in server.bodies[0]["messages"][0]["content"]
