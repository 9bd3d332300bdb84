"""`perpo sample`: failed prompts are counted with a reason and can be retried."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from forked_commands import forked_processes
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.bars import Bar
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.backend import BackendSetup, OnDone, Row, SampledList
from perpo_pipeline.inference.engines import _note_without_gpus
from perpo_pipeline.inference.processes import visible_devices
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.vlm.completion import Completion

CONFIG = """
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: jsonl, path: data.jsonl, task: vqa}}
  test: {{source: jsonl, path: data.jsonl, task: vqa}}
sample:
  {{num_samples: 2, max_new_tokens: 4, batch_size: 1, prompts_per_part: 2,
    max_errors: {max_errors}}}
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare four prompts, then damage the third image; returns that image."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"image": "{number}.png", "prompt": "?", "gt_text": "x"}}')
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(CONFIG.format(max_errors=0))
    assert run("prepare") == 0
    (tmp_path / "2.png").write_bytes(b"damaged")
    return tmp_path / "2.png"


def test_one_failure_too_many_keeps_finished_rows_and_can_be_repaired(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Path("data/r/samples/train")
    assert run("sample") == 2
    message = capsys.readouterr().err
    assert "1 prompts cannot be sampled (max_errors 0)" in message and "has changed" in message
    assert "for example data.jsonl:3 (prompt " in message and f"(image {broken})" in message
    kept = [pq.read_table(part)["prompt_id"].to_pylist() for part in sorted(parts.glob("*/part-*"))]
    assert [len(keys) for keys in kept] == [4, 2], "the other prompt of its part is also kept"
    assert run("sample") == 2, "the same fault is reported again"
    Image.new("RGB", (8, 8), (2, 0, 0)).save(broken)
    assert run("sample") == 0
    version = open_version(parts)
    assert version.manifest["rows"] == 8 and version.manifest["counts"]["failed"] == 0
    assert version.table("errors").num_rows == 0
    keys = [(row["prompt_id"], row["sample_id"]) for row in version.table().to_pylist()]
    prompts = open_version(Path("data/r/prompts/train")).table()["prompt_id"].to_pylist()
    assert keys == [(prompt_id, number) for prompt_id in prompts for number in range(2)]
    shutil.rmtree(parts)
    assert run("sample") == 0
    assert open_version(parts).table().to_pylist() == version.table().to_pylist()


def test_no_part_is_begun_after_one_failure_too_many(broken: Path) -> None:
    (broken.parent / "0.png").write_bytes(b"damaged")
    assert run("sample") == 2
    assert len(list(Path("data/r/samples/train").glob("*/part-*.parquet"))) == 1


def test_an_error_in_another_process_is_reported_and_parts_under_way_are_kept(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken.parent / "0.png").write_bytes(b"damaged")
    with forked_processes():
        assert run("sample", "--set", "sample.num_gpus=2") == 2
    assert "has changed since `perpo prepare`" in capsys.readouterr().err
    assert len(list(Path("data/r/samples/train").glob("*/part-*.parquet"))) == 2


def test_a_repaired_fault_leaves_no_error_row(broken: Path) -> None:
    """The state after a kill between writing a part's errors and the part itself."""
    assert run("sample") == 2
    (part,) = Path("data/r/samples/train").glob("*/part-00001.parquet")
    part.unlink()
    Image.new("RGB", (8, 8), (2, 0, 0)).save(broken)
    assert run("sample") == 0
    version = open_version(Path("data/r/samples/train"))
    assert version.table("errors").num_rows == 0 and version.manifest["rows"] == 8
    assert version.manifest["counts"]["failed"] == 0


def test_allowed_failures_are_written_to_errors_with_their_reason(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(CONFIG.format(max_errors=1))
    assert run("sample") == 0
    assert "1 of 4 prompts could not be sampled" in capsys.readouterr().err
    version = open_version(Path("data/r/samples/train"))
    assert version.manifest["rows"] == 6 and version.manifest["counts"]["failed"] == 1
    (error,) = version.table("errors").to_pylist()
    assert error["reason"] == f"the image has changed since `perpo prepare` (image {broken})"
    assert error["place"] == "data.jsonl:3"
    assert run("sample", "--set", "sample.max_errors=0") == 2, "fewer failures are allowed now"
    message = capsys.readouterr().err
    assert "1 of 4 prompts could not be sampled" in message
    assert "remove this directory" in message


TESTBED = """
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 10}}
  test: {{source: testbed, num_prompts: 2}}
sample: {{num_samples: 3, max_new_tokens: 20, batch_size: 2, prompts_per_part: 4{more}}}
filter: {{min_margin: 0.01}}
train: {{batch_size: 4, learning_rate: 1.0e-2, lora: {{rank: 2, alpha: 4}}}}
"""


@pytest.fixture(scope="module")
def sampled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose prompts are prepared and sampled."""
    folder = tmp_path_factory.mktemp("testbed")
    (folder / "r.yaml").write_text(TESTBED.format(more=""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("prepare") == 0
        assert run("sample") == 0
    return folder


@pytest.fixture
def testbed(sampled_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current directory."""
    shutil.copytree(sampled_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled() -> Version:
    return open_version(Path("data/r/samples/train"))


def test_several_processes_and_a_restart_give_the_same_rows(testbed: Path) -> None:
    one = sampled()
    expected = one.table().to_pylist()
    assert len(one.parts()) == 3
    shutil.rmtree("data/r/samples")
    assert run("sample", "--set", "sample.num_gpus=2") == 0
    assert sampled().fingerprint == one.fingerprint
    assert sampled().table().to_pylist() == expected
    # The state after a kill: no manifest, and the middle part is missing.
    (sampled().path / "manifest.json").unlink()
    (one.path / "part-00001.parquet").unlink()
    kept = one.path / "part-00000.parquet"
    written = kept.stat().st_mtime_ns
    assert run("sample") == 0
    assert sampled().table().to_pylist() == expected
    assert kept.stat().st_mtime_ns == written


def test_the_seed_and_the_distribution_count_in_the_fingerprint(testbed: Path) -> None:
    names = {sampled().fingerprint}
    other_seed = ["--seed", "1", "--allow-stale"]  # the prompts were rendered with seed 0
    for extra in (other_seed, ["--temperature", "0.6"], ["--num-samples", "4"]):
        assert run("sample", *extra) == 0
        names.add(sampled().fingerprint)
    (testbed / "r.yaml").write_text(TESTBED.format(more=", top_k: 1"))
    assert run("sample") == 0
    names.add(sampled().fingerprint)
    assert len(names) == 5
    answers = sampled().table().to_pylist()
    by_prompt: dict[str, set[str]] = {}
    for row in answers:
        by_prompt.setdefault(row["prompt_id"], set()).add(row["completion"])
    assert all(len(texts) == 1 for texts in by_prompt.values())  # top_k 1 is greedy


def test_the_preview_equals_the_scores(
    testbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score") == 0
    scores = open_version(Path("data/r/scores/train")).table().to_pydict()
    shown: list[dict[str, str]] = []
    update = Bar.update

    def updated(bar: Bar, items: int, figures: Mapping[str, str]) -> None:
        shown.append(dict(figures))
        update(bar, items, figures)

    monkeypatch.setattr(Bar, "update", updated)
    shutil.rmtree("data/r/samples")
    assert run("sample", "--set", "sample.preview_reward=iou") == 0
    mean = sum(scores["reward"]) / len(scores["reward"])
    assert shown[-1]["reward"] == f"{mean:.3f}" and shown[-1]["parsed"].endswith("%")
    assert float(shown[-1]["tokens/s"].replace(",", "")) > 0


def test_an_adapter_is_sampled_and_recorded_in_the_lineage(testbed: Path) -> None:
    base = sampled()
    for stage in ("score", "filter"):
        assert run(stage) == 0
    assert run("train") == 0
    adapter = open_version(Path("data/r/adapter/perpo"))
    assert run("sample", "--adapter", str(adapter.path)) == 0
    tuned = sampled()
    assert tuned.manifest["inputs"]["adapter"]["fingerprint"] == adapter.fingerprint
    assert tuned.table()["sampler_logprob"] != base.table()["sampler_logprob"]


def test_a_server_needs_its_url(testbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "--backend", "openai") == 2
    assert "--base-url" in capsys.readouterr().err


def test_a_server_has_its_own_gpus(testbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--base-url", "http://127.0.0.1:1/v1"]
    assert run("sample", "--backend", "openai", *url, "--set", "sample.num_gpus=2") == 2
    assert "num_gpus has no meaning for the openai backend" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("visible", "found"), [(None, ["0", "1"]), ("3,5,7", ["3", "5"]), ("3", None)]
)
def test_each_process_gets_its_own_gpu(
    visible: str | None, found: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if found is not None:
        assert visible_devices(2, "auto", "num_gpus") == found
        return
    with pytest.raises(ConfigError, match="num_gpus is 2, and 1 GPUs are visible"):
        visible_devices(2, "cuda", "num_gpus")
    assert visible_devices(2, "cpu", "num_gpus") == ["", ""]


def test_several_processes_without_a_gpu_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    two = SampleConfig(num_gpus=2)
    assert _note_without_gpus(two, 2) == (
        "sample: num_gpus is 2, but no GPU is visible: 2 processes share the CPUs, each with a "
        "model of its own"
    )
    assert str(_note_without_gpus(two, 1)).endswith("no GPU is visible: one process answers")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _note_without_gpus(two, 2) is None


def test_a_setting_that_the_backend_ignores_does_not_count(
    testbed: Path,
) -> None:
    (testbed / "r.yaml").write_text(TESTBED.format(more=", served_model: other"))
    before = sampled()
    assert run("sample") == 0
    assert sampled().path == before.path


class NotingBackend:
    """A backend that has a note only after its first call."""

    prompts_per_call = 0
    answers_alone = True

    def __init__(self, setup: BackendSetup) -> None:
        self.known: dict[str, str] = {}

    def notes(self) -> dict[str, str]:
        return self.known

    def sample(self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone) -> None:
        self.known = {"server": "it is slow"}
        for index in range(len(rows)):
            on_done(index, SampledList([Completion("x", (5,), "stop", None)] * 3, None))

    def close(self) -> None:
        pass


def test_a_note_of_a_killed_process_is_in_the_manifest(
    testbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perpo_pipeline.inference.part_sampler.open_backend", NotingBackend)
    shutil.rmtree("data/r/samples")
    capsys.readouterr()
    assert run("sample") == 0
    assert capsys.readouterr().err.count("it is slow") == 1
    first = sampled()
    (first.path / "manifest.json").unlink()
    assert run("sample") == 0
    assert sampled().manifest["notes"]["server"] == "it is slow"
    assert sampled().manifest == first.manifest | {
        name: sampled().manifest[name] for name in ("created_at", "wall_s")
    }


class WholeParts(NotingBackend):
    """As vLLM: a part's prompts are answered together, and Ctrl-C comes meanwhile."""

    answers_alone = False
    times = 1

    def sample(self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        super().sample(rows, seeds, on_done)


@pytest.mark.parametrize(("times", "kept"), [(1, 4), (2, 0)])
def test_a_part_that_is_answered_as_a_whole_is_finished_before_ctrl_c_ends_the_stage(
    testbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: int,
    kept: int,
) -> None:
    monkeypatch.setattr(WholeParts, "times", times)
    monkeypatch.setattr("perpo_pipeline.inference.part_sampler.open_backend", WholeParts)
    shutil.rmtree("data/r/samples")
    assert run("sample") == 130
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "the part under way is finished first" in first and "Ctrl-C again" in first
    assert f"{kept} of 10 prompts are kept" in last
    assert len(list(Path("data/r/samples/train").glob("*/part-*"))) == kept // 4


def test_an_error_while_another_process_opens_the_model_is_reported(
    testbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("data/r/samples")
    with forked_processes():
        assert run("sample", "--backend", "vllm", "--set", "sample.num_gpus=2") == 2
    assert "vLLM is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(testbed: Path, signal_: signal.Signals) -> None:
    shutil.rmtree("data/r/samples")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "perpo_pipeline.cli",
            "sample",
            "--config",
            "r.yaml",
            "--set",
            "sample.num_gpus=2",
            "--max-new-tokens",
            "400",
            "--quiet",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        while len(children) < 3 and parent.poll() is None:  # one of them is multiprocessing's own
            children = psutil.Process(parent.pid).children(recursive=True)
            time.sleep(0.05)
    assert len(children) >= 3
    parent.send_signal(signal_)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
