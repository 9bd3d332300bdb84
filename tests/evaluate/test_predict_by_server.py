"""`perpo eval --backend openai` against a server like vLLM: greedy requests, a kill, a refusal."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai_server import UNANSWERED, Json, Reply, Server, make_like_vllm
from forked_commands import ForkedCommand, start_perpo
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.store.artifacts import Version, open_version

NUM_PROMPTS = 8
CONFIG = """
run: r
model: {{id: {model}, dtype: float32, device: cpu}}
prepare:
  train: {{source: jsonl, path: data.jsonl, task: vqa}}
  test: {{source: jsonl, path: data.jsonl, task: vqa}}
eval:
  {{backend: openai, served_model: tiny, max_new_tokens: 6, prompts_per_part: 2, concurrency: 2,
    models: [base], conditions: []}}
"""


class Run:
    """A folder with prepared prompts, and the server that its commands ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = save_tiny_llava(folder / "model")
        self.like_vllm, self.refused = make_like_vllm(model), ""
        self.most_answers = 1000  # further requests wait for ever
        self.server = Server(self.answer)
        lines = []
        for number in range(NUM_PROMPTS):
            noise_image(number).save(folder / f"{number}.png")
            line = {"image": f"{number}.png", "prompt": f"where is {number}?", "gt_text": "x"}
            lines.append(json.dumps(line))
        (folder / "data.jsonl").write_text("\n".join(lines))
        (folder / "r.yaml").write_text(CONFIG.format(model=model))
        assert self.start("prepare").wait() == 0, self.said()

    def answer(self, body: Json, number: int) -> Any:
        if len(self.server.bodies) > self.most_answers:
            return UNANSWERED
        if self.refused and self.refused in json.dumps(body["messages"]):
            return Reply(400, {"error": {"message": "the prompt is too long"}})
        return self.like_vllm(body, number)

    def start(self, *arguments: str) -> ForkedCommand:
        out, err = self.folder / "out", self.folder / "err"
        command = (*arguments, "--config", "r.yaml", "--quiet")
        return start_perpo(*command, folder=self.folder, environment=os.environ, out=out, err=err)

    def evaluate(self, out: str, *arguments: str) -> ForkedCommand:
        asked = ("--evaluation", "base@test", "--base-url", self.server.url, "--out", out)
        return self.start("eval", *asked, *arguments)

    def said(self) -> str:
        return (self.folder / "err").read_text()

    def predictions(self, out: str) -> Version:
        return open_version(self.folder / out / "predictions")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(tmp_path_factory.mktemp("served"))
    yield made
    made.server.stop()


def test_requests_ask_for_one_greedy_answer(run: Run) -> None:
    assert run.evaluate("once").wait() == 0, run.said()
    bodies = run.server.bodies
    assert len(bodies) == NUM_PROMPTS
    assert {(body["temperature"], body["n"], body["max_tokens"]) for body in bodies} == {(0, 1, 6)}
    made = run.predictions("once")
    assert made.manifest["settings"]["backend"] == "openai"
    assert made.manifest["settings"]["served_model"] == "tiny"
    assert "batch_size" not in made.manifest["settings"]


def test_a_killed_evaluation_asks_only_for_what_is_missing(run: Run) -> None:
    """Four of eight answers make two of four parts."""
    expected = run.predictions("once").table().to_pylist()
    run.server.bodies.clear()
    run.most_answers = 4
    killed = run.evaluate("killed")
    place = run.folder / "killed/predictions"
    while len(list(place.glob("*/part-*.parquet"))) < 2 or len(run.server.bodies) < 5:
        assert killed.poll() is None, run.said()
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    run.server.bodies.clear()
    run.most_answers = 1000
    assert run.evaluate("killed").wait() == 0, run.said()
    assert len(run.server.bodies) == NUM_PROMPTS - 4
    assert run.predictions("killed").table().to_pylist() == expected


def test_a_prompt_that_the_server_refuses_is_unanswered(run: Run) -> None:
    run.refused = "where is 3?"
    assert run.evaluate("refused").wait() == 2
    assert "1 prompts cannot be answered (max_errors 0)" in run.said()
    assert "HTTP 400: the prompt is too long" in run.said()
    assert run.evaluate("refused", "--set", "eval.max_errors=1").wait() == 0, run.said()
    rows = run.predictions("refused").table().to_pylist()
    assert [row["finish_reason"] == "unanswered" for row in rows] == [
        number == 3 for number in range(NUM_PROMPTS)
    ]
    (error,) = run.predictions("refused").table("errors").to_pylist()
    assert "too long" in error["reason"]


def test_a_message_about_the_server_names_the_setting_of_eval(run: Run) -> None:
    assert run.evaluate("other", "--set", "eval.served_model=large").wait() == 2
    assert "correct base_url (it usually ends with /v1) or eval.served_model" in run.said()
