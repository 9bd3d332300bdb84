"""`perpo sample` with engine ray on real actors: the rows of one process, whoever is killed."""

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
from PIL import Image
from ray_processes import actors_of, command_of, wait_until, without_cluster

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
    """A folder with a run; its commands see no cluster and write to no home but `home`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        (folder / "r.yaml").write_text(CONFIG)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        """The command; `finish` waits for it. (Files, since Ray's agents hold pipes for long.)"""
        own = {"HOME": str(self.home), "OMP_NUM_THREADS": "1"} | environment
        with (self.folder / "out").open("w") as out, (self.folder / "told").open("w") as told:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "perpo_pipeline.cli",
                    *arguments,
                    "--config",
                    "r.yaml",
                    "--quiet",
                ],
                cwd=self.folder,
                stdout=out,
                stderr=told,
                env=without_cluster() | own,
            )

    def finish(self, process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        code = process.wait(timeout=3 * PATIENCE_S)
        return code, (self.folder / "out").read_text(), (self.folder / "told").read_text()

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        return self.finish(self.start(*arguments, **environment))

    def sampled(self) -> Version:
        return open_version(self.folder / "data/r/samples/train")

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("data/r/samples/train/*/part-*.parquet"))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run whose samples one process has drawn."""
    place = Place(tmp_path_factory.mktemp("one"))
    for stage in ("prepare", "sample"):
        code, _, told = place.run(stage)
        assert code == 0, told
    return place


@pytest.fixture
def place(one_process: Place, tmp_path: Path) -> Place:
    """The same run before it was sampled."""
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
    code, out, told = place.finish(driver)
    assert code == 0, told
    assert [_lives(actor) for actor in seen] == [False, False], "the next stage needs the GPU"
    assert_same(place.sampled(), one_process.sampled())
    # Results alone on stdout, one message of ours on stderr, nothing in the home directory.
    assert out.splitlines() == [f"data/r/samples/train/{place.sampled().fingerprint}"]
    assert [line.split(":")[0] for line in told.splitlines()] == ["sample train"]
    assert list(place.home.iterdir()) == []


def test_a_killed_driver_takes_its_actors_along_and_resumes(
    one_process: Place, place: Place
) -> None:
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
    code, _, told = place.run("sample", *RAY)
    assert code == 0, told
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert_same(place.sampled(), one_process.sampled())


POISON = """
import os, signal, sys

if "default_worker.py" in " ".join(sys.orig_argv):
    from perpo_pipeline.sample.sample_prompts import PartSampler

    sample = PartSampler.sample

    def die_or_sample(self, prompts, tell):
        wanted, once = os.environ["POISON"], os.environ.get("ONCE")
        if any(prompt["prompt_id"] == wanted for prompt in prompts):
            if once is None or not os.path.exists(once):
                if once is not None:
                    open(once, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return sample(self, prompts, tell)

    def die(self, setup, run_seed):
        os._exit(1)

    PartSampler.sample = die_or_sample
    if os.environ["POISON"] == "load":
        PartSampler.__init__ = die
"""


def poisoned(place: Place, what: str, **environment: str) -> tuple[int, str, str]:
    """Run where actors are killed at a prompt (only ONCE, if that names a file), or (`load`) as
    they load the model."""
    (place.folder / "sitecustomize.py").write_text(POISON)
    path = os.pathsep.join([str(place.folder), os.environ.get("PYTHONPATH", "")])
    return place.run("sample", *RAY, PYTHONPATH=path, POISON=what, **environment)


def test_an_actor_killed_in_mid_run_changes_no_row(one_process: Place, place: Place) -> None:
    prompts = one_process.sampled().table()["prompt_id"].unique().to_pylist()
    once = place.folder / "killed"
    code, _, told = poisoned(place, prompts[7], ONCE=str(once))
    assert code == 0 and once.exists(), told
    assert "the actor that sampled part 2 has died (process" in told
    assert_same(place.sampled(), one_process.sampled())


def test_a_part_that_kills_its_actors_is_named_after_three_of_them(
    one_process: Place, place: Place
) -> None:
    prompts = one_process.sampled().table()["prompt_id"].unique().to_pylist()
    code, _, told = poisoned(place, prompts[7])
    assert code == 2, told
    assert "the actor that samples part 2 has died 3 times, last as process" in told
    assert "lower sample.batch_size" in told
    assert "part-00002.parquet" not in [part.name for part in place.parts()]


def test_actors_that_die_while_they_load_the_model_end_the_run(place: Place) -> None:
    code, _, told = poisoned(place, "load")
    assert code == 2, told
    assert "the actor that loads the model has died 3 times, last as process" in told
    assert place.parts() == []


# Ray believes in GPUs that it is told of; the actors that get one note which, and use the CPU.
INVENTED_GPUS = """
import os, sys
from dataclasses import replace
from pathlib import Path

if "default_worker.py" in " ".join(sys.orig_argv):
    from perpo_pipeline.sample.sample_prompts import PartSampler

    open_sampler = PartSampler.__init__

    def open_on_cpu(self, setup, run_seed):
        if setup.model.device == "cuda":
            note = Path(setup.scratch, f"gpu-of-{os.getpid()}")
            note.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            setup = replace(setup, model=setup.model.model_copy(update={"device": "cpu"}))
        open_sampler(self, setup, run_seed)

    PartSampler.__init__ = open_on_cpu
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that was started elsewhere, in another folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    home = tmp_path_factory.mktemp("cluster")
    (home / "sitecustomize.py").write_text(INVENTED_GPUS)
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
        env=os.environ | {"HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        for process in [*below, psutil.Process(head.pid)]:
            with suppress(psutil.Error):
                process.kill()
        head.wait()


def test_a_cluster_that_is_there_is_joined_and_left(
    one_process: Place, place: Place, cluster: str
) -> None:
    for variable, flags in (
        ({}, ["--set", f"sample.ray_address={cluster}"]),
        ({"RAY_ADDRESS": cluster}, []),
    ):
        shutil.rmtree(place.folder / "data/r/samples", ignore_errors=True)
        driver = place.start("sample", *RAY, *flags, **variable)
        assert not [p for p in psutil.Process(driver.pid).children() if "raylet" in command_of(p)]
        code, _, told = place.finish(driver)
        assert code == 0, told
        assert_same(place.sampled(), one_process.sampled())


def test_actors_on_gpus_have_one_each(one_process: Place, place: Place, cluster: str) -> None:
    on_gpus = CONFIG.replace("device: cpu", "device: cuda").replace(
        "sample: {", "sample: {backend: transformers, "
    )
    (place.folder / "r.yaml").write_text(on_gpus)
    code, _, told = place.run(
        "sample", "--set", "sample.engine=ray", "--set", f"sample.ray_address={cluster}"
    )
    assert code == 0, told
    notes = place.folder.rglob("gpu-of-*")
    assert sorted(note.read_text() for note in notes) == ["0", "1"]
    assert_same(place.sampled(), one_process.sampled())


def test_more_actors_than_a_cluster_has_room_for_are_refused(place: Place, cluster: str) -> None:
    code, _, told = place.run(
        "sample",
        "--set",
        "sample.engine=ray",
        "--set",
        "sample.num_actors=3",
        "--set",
        f"sample.ray_address={cluster}",
    )
    assert code == 2
    assert "room for 2 actors with a CPU each, 3 are wanted" in told


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str, place: Place) -> None:
    last = place.folder / "ray" / "ray_current_cluster"  # as a cluster that has ended leaves it
    last.parent.mkdir()
    last.write_text("127.0.0.1:1")
    code, _, told = place.run(
        "sample", *RAY, "--set", f"sample.ray_address={address}", RAY_TMPDIR=str(place.folder)
    )
    assert code == 2
    assert "the Ray cluster cannot be used: [Errno 111] Connection refused" in told
    assert f"where: {address}" in told


def test_why_an_actor_cannot_open_its_model_is_told(place: Place, cluster: str) -> None:
    code, _, told = place.run(
        "sample", *RAY, "--backend", "vllm", "--set", f"sample.ray_address={cluster}"
    )
    assert code == 2
    assert "vLLM is not installed" in told or "vLLM is installed but cannot" in told


DAMAGED = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: jsonl, path: data.jsonl, task: vqa}
  test: {source: jsonl, path: data.jsonl, task: vqa}
sample: {num_samples: 2, max_new_tokens: 4, prompts_per_part: 2}
"""


def test_a_prompt_that_fails_in_an_actor_is_told_and_repaired(tmp_path: Path, cluster: str) -> None:
    """Images by path, relative to the data; the actors have another working directory."""
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

    code, _, told = place.run("sample", *ray)
    assert code == 2
    assert "1 prompts cannot be sampled (max_errors 0)" in told
    assert "has changed since `perpo prepare`" in told and "2.png" in told

    assert place.run("sample", *ray, "--set", "sample.max_errors=1")[0] == 0
    version = place.sampled()
    assert version.manifest["rows"] == 10 and version.manifest["counts"]["failed"] == 1
    (error,) = version.table("errors").to_pylist()
    assert "has changed since `perpo prepare`" in error["reason"]
