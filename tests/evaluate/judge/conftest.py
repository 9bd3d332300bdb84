"""Servers that end with the test, and short waits."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_judge import Opinion, judge_server
from fake_openai_server import Server

from perpo_pipeline.vlm import openai_server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits; the keys of the user who runs the tests are removed."""
    monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 0.02)
    for name in openai_server.KEY_NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(opinion: Opinion, **settings: Any) -> Server:
        servers.append(judge_server(opinion, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
