"""`perpo sample` with engine ray, on real actors: the same rows as one process, kills included."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from forked_commands import ForkedCommand, start_perpo
from PIL import Image
from ray_processes import (
    NICENESS,
    actors_of,
    command_of,
    processes_below,
    wait_until,
    without_cluster,
)

from perpo_pipeline.store.artifacts import Version, open_version

pytestmark = pytest.mark.distributed

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 24}
  test: {source: testbed, num_prompts: 2}
sample: {num_samples: 3, max_new_tokens: 20, batch_size: 2, prompts_per_part: 3}
"""
RAY = ["--set", "sample.engine=ray", "--set", "sample.num_actors=2"]
PATIENCE_S = 120


class Place:
    """A folder with a run; its commands see no cluster and use `home` as home directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        (folder / "r.yaml").write_text(CONFIG)

    def start(self, *arguments: str, **environment: str) -> ForkedCommand:
        """Start the command; `finish` waits for it. (Files, since Ray's agents keep pipes open.)"""
        own = {"HOME": str(self.home), "OMP_NUM_THREADS": "1"} | environment
        return start_perpo(
            *arguments,
            "--config",
            "r.yaml",
            "--quiet",
            folder=self.folder,
            environment=without_cluster() | own,
            out=self.folder / "out",
            err=self.folder / "err",
        )

    def finish(self, command: ForkedCommand) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        code = command.wait(timeout=3 * PATIENCE_S)
        return code, (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a command; returns exit code, stdout and stderr."""
        return self.finish(self.start(*arguments, **environment))

    def sampled(self) -> Version:
        return open_version(self.folder / "data/r/samples/train")

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("data/r/samples/train/*/part-*.parquet"))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run whose samples were drawn by one process."""
    place = Place(tmp_path_factory.mktemp("one"))
    for stage in ("prepare", "sample"):
        code, _, err = place.run(stage)
        assert code == 0, err
    return place


@pytest.fixture
def place(one_process: Place, tmp_path: Path) -> Place:
    """The same run, before sampling."""
    shutil.copytree(one_process.folder / "data/r/prompts", tmp_path / "data/r/prompts")
    return Place(tmp_path)


def assert_same(found: Version, expected: Version) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.table().num_rows == 72
    assert found.table().to_pylist() == expected.table().to_pylist()


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_two_actors_give_the_rows_of_one_process(one_process: Place, place: Place) -> None:
    driver = place.start("sample", *RAY)
    seen: set[psutil.Process] = set()
    while driver.poll() is None:
        seen |= set(actors_of(driver.pid))
        time.sleep(0.05)
    code, out, err = place.finish(driver)
    assert code == 0, err
    assert [_lives(actor) for actor in seen] == [False, False], "the next stage needs the GPU"
    assert_same(place.sampled(), one_process.sampled())
    # Only results on stdout, one message of ours on stderr, nothing in the home directory.
    assert out.splitlines() == [f"data/r/samples/train/{place.sampled().fingerprint}"]
    assert [line.split(":")[0] for line in err.splitlines()] == ["sample train"]
    assert list(place.home.iterdir()) == []


def test_the_actors_of_a_killed_driver_end_and_it_resumes(one_process: Place, place: Place) -> None:
    driver = place.start("sample", *RAY)
    wait_until(place.parts, driver, PATIENCE_S)
    actors = actors_of(driver.pid)
    assert len(actors) == 2
    driver.kill()
    driver.wait()
    end = time.monotonic() + 20
    while (alive := [actor for actor in actors if _lives(actor)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive == [], "with an accelerator, its memory would still be taken"
    kept = {part: part.stat().st_mtime_ns for part in place.parts()}
    assert 0 < len(kept) < 8
    code, _, err = place.run("sample", *RAY)
    assert code == 0, err
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert_same(place.sampled(), one_process.sampled())


# How a test disturbs the actors of its run. Each file is in the run's scratch folder.
# `poison` names a prompt: actors that sample it are killed (only once, if `once` does not exist);
# with `load` in it, actors end while they load the model.
# Ray also believes in GPUs that do not exist: actors that get one write a note and use the CPU.
DISTURBED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path

if "default_worker.py" in " ".join(sys.orig_argv):
    from perpo_pipeline.inference.part_sampler import PartSampler

    open_sampler, sample = PartSampler.__init__, PartSampler.sample

    def poison_of(scratch):
        file = Path(scratch, "poison")
        return file.read_text() if file.exists() else None

    def open_or_die(self, setup, run_seed):
        self.scratch = setup.scratch
        if poison_of(setup.scratch) == "load":
            os._exit(1)
        if setup.model.device == "cuda":
            note = Path(setup.scratch, f"gpu-of-{os.getpid()}")
            note.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            setup = replace(setup, model=setup.model.model_copy(update={"device": "cpu"}))
        open_sampler(self, setup, run_seed)

    def sample_or_die(self, prompts, *callbacks):
        poison = poison_of(self.scratch)
        if any(prompt["prompt_id"] == poison for prompt in prompts):
            once = Path(self.scratch, "once")
            if once.exists():
                once.rename(once.with_name("killed"))
                Path(self.scratch, "poison").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(self, prompts, *callbacks)

    PartSampler.__init__, PartSampler.sample = open_or_die, sample_or_die
"""


def is_ready(head: int, address: str) -> bool:
    """Whether the cluster can be joined: its head listens, and this machine has joined it."""
    host, port = address.split(":")
    with suppress(OSError):
        socket.create_connection((host, int(port)), timeout=1).close()
        below = processes_below(psutil.Process(head))
        return any("raylet/raylet" in command_of(process) for process in below)
    return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that was started outside the command, in another folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    home = tmp_path_factory.mktemp("cluster")
    (home / "sitecustomize.py").write_text(DISTURBED)
    path = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
    head = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--node-ip-address",
            "127.0.0.1",
            "--port",
            address.split(":")[1],
            "--num-cpus",
            "2",
            "--num-gpus",
            "2",
            "--include-dashboard",
            "false",
            "--disable-usage-stats",
        ],
        cwd=home,
        env=os.environ | {"HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | NICENESS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_ready(head.pid, address), head, PATIENCE_S)
        yield address
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        for process in [*below, psutil.Process(head.pid)]:
            with suppress(psutil.Error):
                process.kill()
        head.wait()


def poisoned(place: Place, cluster: str, what: str) -> tuple[int, str, str]:
    """Run where actors are killed at a prompt, or (`load`) while they load the model."""
    (place.folder / "data/r/poison").write_text(what)
    return place.run("sample", *RAY, "--set", f"sample.ray_address={cluster}")


def test_an_actor_killed_in_mid_run_changes_no_row(
    one_process: Place, place: Place, cluster: str
) -> None:
    prompts = one_process.sampled().table()["prompt_id"].unique().to_pylist()
    once = place.folder / "data/r/once"
    once.touch()
    code, _, err = poisoned(place, cluster, prompts[7])
    assert code == 0 and once.with_name("killed").exists(), err
    assert "the actor that answered part 2 died (process" in err
    assert_same(place.sampled(), one_process.sampled())


def test_a_killed_evaluation_resumes_with_the_rows_of_one_process(
    place: Place, cluster: str
) -> None:
    """The driver is killed; what its actors were at is answered again."""
    asked = ["--evaluation", "base", "--set", "eval.splits=train", "--set", "eval.conditions=[]"]
    command = ["eval", *asked, "--set", "eval.prompts_per_part=3"]
    ray = ["--set", "eval.engine=ray", "--set", "eval.num_actors=2"]
    ray += ["--set", f"eval.ray_address={cluster}"]
    predictions = place.folder / "data/r/predictions/base@train"
    driver = place.start(*command, *ray)
    wait_until(lambda: list(predictions.glob("*/part-*.parquet")), driver, PATIENCE_S)
    driver.kill()
    driver.wait()
    kept = {part: part.stat().st_mtime_ns for part in predictions.glob("*/part-*.parquet")}
    assert 0 < len(kept) < 8
    code, _, err = place.run(*command, *ray)
    assert code == 0, err
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    found = open_version(predictions)
    rows = found.table().to_pylist()
    shutil.rmtree(predictions)
    assert place.run(*command)[0] == 0
    assert open_version(predictions).fingerprint == found.fingerprint
    assert open_version(predictions).table().to_pylist() == rows and len(rows) == 24


def test_a_part_that_kills_its_actors_is_named_after_three_of_them(
    one_process: Place, place: Place, cluster: str
) -> None:
    prompts = one_process.sampled().table()["prompt_id"].unique().to_pylist()
    code, _, err = poisoned(place, cluster, prompts[7])
    assert code == 2, err
    assert "the actor that answers part 2 died 3 times, last as process" in err
    assert "lower num_actors first" in err and "another batch_size is another version" in err
    assert "part-00002.parquet" not in [part.name for part in place.parts()]


def test_actors_that_die_while_they_load_the_model_end_the_run(place: Place, cluster: str) -> None:
    code, _, err = poisoned(place, cluster, "load")
    assert code == 2, err
    assert "the actor that loads the model died 3 times, last as process" in err
    assert place.parts() == []


def test_a_running_cluster_is_joined_and_left_running(
    one_process: Place, place: Place, cluster: str
) -> None:
    for variable, flags in (
        ({}, ["--set", f"sample.ray_address={cluster}"]),
        ({"RAY_ADDRESS": cluster}, []),
    ):
        shutil.rmtree(place.folder / "data/r/samples", ignore_errors=True)
        driver = place.start("sample", *RAY, *flags, **variable)
        assert not [p for p in psutil.Process(driver.pid).children() if "raylet" in command_of(p)]
        code, _, err = place.finish(driver)
        assert code == 0, err
        assert_same(place.sampled(), one_process.sampled())


def test_actors_on_gpus_have_one_each(one_process: Place, place: Place, cluster: str) -> None:
    on_gpus = CONFIG.replace("device: cpu", "device: cuda").replace(
        "sample: {", "sample: {backend: transformers, "
    )
    (place.folder / "r.yaml").write_text(on_gpus)
    code, _, err = place.run(
        "sample", "--set", "sample.engine=ray", "--set", f"sample.ray_address={cluster}"
    )
    assert code == 0, err
    notes = place.folder.rglob("gpu-of-*")
    assert sorted(note.read_text() for note in notes) == ["0", "1"]
    assert_same(place.sampled(), one_process.sampled())


def test_more_actors_than_a_cluster_has_room_for_are_refused(place: Place, cluster: str) -> None:
    code, _, err = place.run(
        "sample",
        "--set",
        "sample.engine=ray",
        "--set",
        "sample.num_actors=3",
        "--set",
        f"sample.ray_address={cluster}",
    )
    assert code == 2
    assert "room for 2 actors with one CPU each, but 3 are wanted" in err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_an_unreachable_cluster_is_reported_at_once(address: str, place: Place) -> None:
    last = place.folder / "ray" / "ray_current_cluster"  # left by a cluster that has ended
    last.parent.mkdir()
    last.write_text("127.0.0.1:1")
    code, _, err = place.run(
        "sample", *RAY, "--set", f"sample.ray_address={address}", RAY_TMPDIR=str(place.folder)
    )
    assert code == 2
    assert "the Ray cluster cannot be used: [Errno 111] Connection refused" in err
    assert f"where: {address}" in err


def test_an_error_while_an_actor_opens_its_model_is_reported(place: Place, cluster: str) -> None:
    code, _, err = place.run(
        "sample", *RAY, "--backend", "vllm", "--set", f"sample.ray_address={cluster}"
    )
    assert code == 2
    assert "vLLM is not installed" in err or "vLLM is installed but cannot" in err


DAMAGED = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: jsonl, path: data.jsonl, task: vqa}
  test: {source: jsonl, path: data.jsonl, task: vqa}
sample: {num_samples: 2, max_new_tokens: 4, prompts_per_part: 2}
"""


def test_a_prompt_that_fails_in_an_actor_is_reported(tmp_path: Path, cluster: str) -> None:
    """Images are named by path, relative to the data; the actors run in another directory."""
    place = Place(tmp_path)
    (tmp_path / "r.yaml").write_text(DAMAGED)
    lines = []
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "prompt": "?", "gt_text": "x"}
        lines.append(json.dumps(row))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert place.run("prepare")[0] == 0
    (tmp_path / "2.png").write_bytes(b"damaged")
    ray = [*RAY, "--set", f"sample.ray_address={cluster}"]

    code, _, err = place.run("sample", *ray)
    assert code == 2
    assert "1 prompts cannot be sampled (max_errors 0)" in err
    assert "has changed since `perpo prepare`" in err and "2.png" in err

    assert place.run("sample", *ray, "--set", "sample.max_errors=1")[0] == 0
    version = place.sampled()
    assert version.manifest["rows"] == 10 and version.manifest["counts"]["failed"] == 1
    (error,) = version.table("errors").to_pylist()
    assert "has changed since `perpo prepare`" in error["reason"]
