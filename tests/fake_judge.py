"""A judge on loopback that answers with an opinion, and helpers for tests of `perpo`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_openai_server import Answer, Json, Reply, Server

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import open_version

Said = str | Reply
Opinion = Callable[[str], Said]  # from the text of a prompt


def judge_server(opinion: Opinion, *, refusal: Reply | None = None) -> Server:
    """A judge; it answers a message with an image with `refusal` if that is given."""
    return Server(_answer_with(opinion, refusal), owned_by="someone", model="judge")


def text_of(body: Json) -> str:
    """The text of a request's message, beside an image or alone."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[1]["text"]


def _answer_with(opinion: Opinion, refusal: Reply | None) -> Answer:
    def answer(body: Json, number: int) -> Any:
        (message,) = body["messages"]
        if refusal is not None and not isinstance(message["content"], str):
            return refusal
        said = opinion(text_of(body))
        if isinstance(said, Reply):
            return said
        message = {"role": "assistant", "content": said}
        return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}

    return answer


def between(prompt: str, title: str) -> str:
    """The text below a title of a prompt."""
    found = re.search(rf"^{title}\n(.*?)\nEND OF {title}$", prompt, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def endpoint(server: Server) -> list[str]:
    return ["--base-url", server.url, "--judge-model", "judge", "--quiet"]


def perpo(*arguments: str | Path) -> int:
    """Run `perpo` with these arguments; returns the exit code."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def metrics(out: Path) -> dict[tuple[str, str], Json]:
    """Metrics rows by name and dataset."""
    rows = open_version(out / "metrics").table().to_pylist()
    found = {(row["name"], row["dataset"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def values(out: Path, dataset: str = "all") -> dict[str, float]:
    return {name: row["value"] for (name, of), row in metrics(out).items() if of == dataset}
