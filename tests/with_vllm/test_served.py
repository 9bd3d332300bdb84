"""`perpo sample` with backend openai and a real vLLM server on loopback, killed and restarted.

All tests except that of the hostile generation_config.json share one server; one test restarts it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forked_commands import start_perpo
from tiny_models import noise_image
from with_vllm.forking import start_server
from with_vllm.test_vllm_backend import HOSTILE, drawn, load, running, worst_difference

from perpo_pipeline import cli
from perpo_pipeline.inference.backend import SampledList
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.vlm import openai_server
from perpo_pipeline.vlm.completion import Completion

Row = dict[str, Any]
HubModel = Callable[[str], Path]
NUM_PROMPTS, NUM_SAMPLES, PROMPTS_PER_PART, MAX_NEW_TOKENS, TEMPERATURE = 24, 20, 2, 12, 0.7
START_S = PART_S = 600
CONFIG = f"""
run: r
model: {{{{id: {{model}}, dtype: float32, device: cpu}}}}
prepare:
  train: {{{{source: jsonl, path: data.jsonl, task: vqa}}}}
  test: {{{{source: jsonl, path: data.jsonl, task: vqa}}}}
sample:
  {{{{served_model: tiny, num_samples: {NUM_SAMPLES}, max_new_tokens: {MAX_NEW_TOKENS},
    temperature: {TEMPERATURE}, prompts_per_part: {PROMPTS_PER_PART}, concurrency: 4}}}}
"""
AS_DOCUMENTED = ("--generation-config", "vllm")
SERVED_AS = (
    "--served-model-name",
    "tiny",
    "--mm-processor-kwargs",
    '{"use_fast": false}',
    "--dtype",
    "float32",
)
# What any server needs on this machine, beside what its user asks of it.
ON_THE_CPU = (
    "--host",
    "127.0.0.1",
    "--limit-mm-per-prompt",
    '{"image": 1}',
    "--enforce-eager",
    "--max-model-len",
    "512",
    "--max-num-seqs",
    "32",
    # Every prompt in one chunk: vLLM's CPU sampler fails on seeds if prompts are cut.
    "--max-num-batched-tokens",
    "16384",
    "--distributed-executor-backend",
    "uni",  # two processes instead of three
)
SERVER_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",  # an engine in this process has it changed
}


class Server:
    """vLLM's HTTP server with its engine, in its own process group, always at the same port."""

    def __init__(self, log: Path, *model_and_flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.arguments = log, ["--model", *model_and_flags, *ON_THE_CPU]
        self.arguments += ["--port", str(self.port)]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        environment = os.environ | SERVER_ENVIRONMENT
        self.process = start_server(self.arguments, environment=environment, log=self.log)
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server and its engine."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def prepare(folder: Path, model: Path, num_prompts: int) -> Path:
    """Fill the folder of a run with prepared prompts."""
    lines = []
    for number in range(num_prompts):
        noise_image(number, 40 + 17 * number % 101, 60).save(folder / f"{number}.png")
        prompt = "where is the red square? " * (1 + number % 4 * 5)
        lines.append(json.dumps({"image": f"{number}.png", "prompt": prompt, "gt_text": "x"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "r.yaml").write_text(CONFIG.format(model=model))
    perpo(folder, "prepare")
    return folder


def perpo(folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    assert not ended.value.code


def sampling(out: str, server: Server) -> list[str]:
    return ["sample", "--backend", "openai", "--base-url", server.url, "--out", out]


def sample(folder: Path, out: str, server: Server) -> Version:
    perpo(folder, *sampling(out, server))
    return open_version(folder / out)


def parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/part-*.parquet"))


def wait_for_part(folder: Path) -> Path:
    """The first part that a running stage has written."""
    deadline = time.monotonic() + PART_S
    while not (parts := parts_in(folder)):
        assert time.monotonic() < deadline, f"no part was written to {folder}"
        time.sleep(0.005)
    return parts[0]


def drawn_rows(version: Version) -> tuple[list[Row], list[float]]:
    """The rows without log-probabilities, and the log-probabilities, which depend on rounding."""
    rows: list[Row] = version.table().to_pylist()
    logprobs = [row.pop("sampler_logprob") for row in rows]
    return rows, logprobs


def assert_same_rows(one: Version, other: Version) -> None:
    (rows, logprobs), (other_rows, other_logprobs) = drawn_rows(one), drawn_rows(other)
    assert rows == other_rows
    assert logprobs == pytest.approx(other_logprobs, abs=1e-5)


def lists_of(version: Version) -> dict[str, SampledList]:
    """Every prompt's completions, by prompt_id."""
    found: dict[str, list[Completion]] = {}
    resized: dict[str, Any] = {}
    for row in version.table().to_pylist():
        assert row["sample_id"] == len(found.setdefault(row["prompt_id"], []))
        found[row["prompt_id"]].append(
            Completion(
                row["completion"],
                tuple(row["completion_token_ids"]),
                row["finish_reason"],
                row["sampler_logprob"],
            )
        )
        resized[row["prompt_id"]] = row["resized"]
    return {name: SampledList(some, resized[name]) for name, some in found.items()}


def prompts_in(folder: Path) -> list[Row]:
    rows: list[Row] = open_version(folder / "data/r/prompts/train").table().to_pylist()
    return rows


def assert_drawn_from(model: Path, folder: Path, version: Version) -> None:
    """Assert that the reported log-probabilities equal those that training computes."""
    vlm, lists = load(model), lists_of(version)
    preprocess = version.manifest["settings"]["preprocess"]
    worst = [
        worst_difference(vlm, row, lists[row["prompt_id"]], preprocess)
        for row in prompts_in(folder)
    ]
    assert max(worst) < 1e-4, worst


class TestRun:
    """One run against one server."""

    @pytest.fixture(scope="class")
    def model(self, hub_model: HubModel) -> Path:
        return hub_model("llava")

    @pytest.fixture(scope="class")
    def server(self, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        server = Server(
            tmp_path_factory.mktemp("server") / "log", str(model), *SERVED_AS, *AS_DOCUMENTED
        )
        yield server
        server.kill()

    @pytest.fixture(scope="class")
    def folder(self, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return prepare(tmp_path_factory.mktemp("run"), model, NUM_PROMPTS)

    @pytest.fixture(scope="class")
    def undisturbed(self, folder: Path, server: Server) -> Version:
        return sample(folder, "undisturbed", server)

    def test_every_prompt_has_its_list(self, folder: Path, undisturbed: Version) -> None:
        lists = lists_of(undisturbed)
        assert lists.keys() == {row["prompt_id"] for row in prompts_in(folder)}
        assert {len(one.completions) for one in lists.values()} == {NUM_SAMPLES}
        assert all(len(set(one.completions)) > NUM_SAMPLES / 2 for one in lists.values())
        assert undisturbed.manifest["settings"]["backend"] == "openai"
        assert not undisturbed.manifest["notes"].get("token_ids"), "the server sends them"

    def test_log_probabilities_equal_training(
        self, model: Path, folder: Path, undisturbed: Version
    ) -> None:
        assert_drawn_from(model, folder, undisturbed)

    def test_a_killed_and_restarted_client_gives_the_same_rows(
        self, folder: Path, server: Server, undisturbed: Version
    ) -> None:
        arguments = [*sampling("client", server), "--config", "r.yaml", "--quiet"]
        client = start_perpo(
            *arguments,
            folder=folder,
            environment=os.environ,
            out=folder / "client.log",
            err=folder / "client.log",
        )
        try:
            first = wait_for_part(folder / "client")
        finally:
            client.kill()
        assert client.wait() == -signal.SIGKILL
        assert len(parts_in(folder / "client")) < NUM_PROMPTS / PROMPTS_PER_PART
        written = first.stat().st_mtime_ns
        assert_same_rows(sample(folder, "client", server), undisturbed)
        assert first.stat().st_mtime_ns == written, "existing parts are kept"

    def test_a_killed_and_restarted_server_loses_no_row(
        self,
        folder: Path,
        server: Server,
        undisturbed: Version,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.5)
        monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 1.0)
        monkeypatch.setitem(openai_server.TRIES, "away", 10 * START_S)

        def restart() -> int:
            wait_for_part(folder / "server")
            server.kill()
            written = len(parts_in(folder / "server"))
            server.start()
            return written

        with ThreadPoolExecutor(1) as thread:
            written = thread.submit(restart)
            disturbed = sample(folder, "server", server)
        assert written.result() < NUM_PROMPTS / PROMPTS_PER_PART, "it was killed in mid-run"
        assert capfd.readouterr().err.count(f"waiting for {server.url}") == 1
        assert_same_rows(disturbed, undisturbed)


def name_thoughts(model: Path) -> None:
    """Give two bytes that no prompt has the names of the marks around thoughts."""
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    for byte, mark in (("\u0100", "<think>"), ("\u0101", "</think>")):
        number = vocab[mark] = vocab.pop(byte)
        tokenizer["added_tokens"].append(
            {"id": number, "content": mark, "special": False, "single_word": False}
            | dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
        )
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    file.write_text(json.dumps(tokenizer))


def message_of(server: Server) -> Row:
    """The message that the server sends for a short text."""
    body = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "where?"}]}
    request = urllib.request.Request(
        f"{server.url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PART_S) as reply:
        found: Row = json.load(reply)["choices"][0]["message"]
    return found


def test_a_hostile_generation_config_and_a_reasoning_parser_change_nothing(
    hub_model: HubModel, tmp_path: Path
) -> None:
    """The server reads the file, and the rows equal those of an engine without it in this process.

    The file has no max_new_tokens: no request can override it, and truncated answers are refused.
    The parser takes all of an answer for thoughts that never end; token ids say what was drawn.
    """
    model = hub_model("qwen3_vl")
    hostile = shutil.copytree(model, tmp_path / "hostile")
    file = hostile / "generation_config.json"
    wishes = {name: value for name, value in HOSTILE.items() if name != "max_new_tokens"}
    file.write_text(json.dumps(json.loads(file.read_text()) | wishes))
    (tmp_path / "run").mkdir()
    folder = prepare(tmp_path / "run", hostile, 6)
    name_thoughts(hostile)
    server = Server(tmp_path / "log", str(hostile), *SERVED_AS, "--reasoning-parser", "deepseek_r1")
    try:
        message = message_of(server)
        assert message["reasoning"] and not message["content"]
        version = sample(folder, "served", server)
    finally:
        server.kill()
    assert "Default vLLM sampling parameters have been overridden" in server.log.read_text()
    assert_drawn_from(model, folder, version)
    served, rows = lists_of(version), prompts_in(folder)
    seeds = {row["prompt_id"]: row["seed"] for row in version.table().to_pylist()}
    sampled = {"temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS}
    with running(model, tmp_path / "scratch", **sampled) as backend:
        expected = drawn(backend.sample(rows, [seeds[row["prompt_id"]] for row in rows]))
    for row, one in zip(rows, expected, strict=True):
        ids = [c.token_ids for c in served[row["prompt_id"]].completions]
        assert ids == [c.token_ids for c in one.completions]
