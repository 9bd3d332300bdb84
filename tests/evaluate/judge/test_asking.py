"""What a judge's server may send: a reply, or a reason why there is none."""

from typing import Any

import pytest
from fake_openai_server import Reply as Response
from fake_openai_server import Server as FakeServer
from fuzzed_replies import BODIES
from hypothesis import given, settings

from perpo_pipeline.evaluate.judge.asking import Judge, Reply, ask_all
from perpo_pipeline.evaluate.judge.task import Question


@pytest.fixture(scope="module")
def server() -> Any:
    found = FakeServer(lambda *_: None, owned_by="someone", model="judge")
    yield found
    found.stop()


@settings(max_examples=30, deadline=None)
@given(body=BODIES)
def test_any_body_is_a_reply_or_a_reason(body: str, server: Any) -> None:
    server.answer = lambda *_: Response(200, body)
    judge = Judge(server.url, "judge", max_tokens=5, concurrency=1, max_errors=1)
    replies: list[Reply] = []
    failures = ask_all(judge, [Question("1", "?")], lambda _, reply: replies.append(reply))
    assert len(replies) + len(failures) == 1
    assert all(reply.text for reply in replies) and all(reason for _, reason in failures)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_beside_the_content_are_ignored(name: str, server: Any) -> None:
    message = {"content": "Rating: 3", name: "Rating: 6?"}
    server.answer = lambda *_: {"choices": [{"message": message, "finish_reason": "stop"}]}
    judge = Judge(server.url, "judge", max_tokens=5, concurrency=1, max_errors=0)
    replies: list[Reply] = []
    assert not ask_all(judge, [Question("1", "?")], lambda _, reply: replies.append(reply))
    assert [reply.text for reply in replies] == ["Rating: 3"]


def test_thoughts_in_parts_of_the_content_are_ignored(server: Any) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Rating: 3"}, 5]
    server.answer = lambda *_: {"choices": [{"message": {"content": parts}}]}
    judge = Judge(server.url, "judge", max_tokens=5, concurrency=1, max_errors=0)
    replies: list[Reply] = []
    assert not ask_all(judge, [Question("1", "?")], lambda _, reply: replies.append(reply))
    assert [reply.text for reply in replies] == ["Rating: 3"]


def test_thoughts_alone_are_no_reply_and_the_limit_is_named(server: Any) -> None:
    message = {"content": None, "reasoning_content": "let me see"}
    server.answer = lambda *_: {"choices": [{"message": message, "finish_reason": "length"}]}
    judge = Judge(server.url, "judge", max_tokens=5, concurrency=1, max_errors=1)
    ((_, reason),) = ask_all(judge, [Question("1", "?")], lambda *_: None)
    assert "finish_reason length" in reason and "more than --max-tokens 5" in reason
