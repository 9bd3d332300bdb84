"""What is started for which flags, under which launcher, and how its end is reported."""

import errno
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from perpo_pipeline.errors import ConfigError, InputError, LostContactError, ProcessError, Stopped
from perpo_pipeline.train import launch as launching
from perpo_pipeline.train import processes
from perpo_pipeline.train.launch import (
    ERROR_FILE,
    LAUNCHED,
    Launch,
    choose_launch,
    command_line,
    write_failure,
)
from perpo_pipeline.train.processes import (
    World,
    is_lost_contact,
    join_world,
    placed_by_launcher,
)

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "45678",
    "SLURM_STEP_NODELIST": "gpu[03-04,11]",
}


def test_without_flags_nothing_is_started() -> None:
    assert choose_launch(None, None, None, None, {}) is None
    assert choose_launch(1, None, None, None, {}) is None
    assert choose_launch(1, None, None, None, {}, 4) is None
    assert choose_launch(None, None, None, None, {"SLURM_PROCID": "0"}) is None  # an sbatch file
    assert placed_by_launcher({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


def test_one_node_finds_its_own_port() -> None:
    assert choose_launch(None, None, None, None, {}, 4) == Launch(4, 1, 0, None)
    launch = choose_launch(8, None, None, None, {}, 4)
    assert launch == Launch(8)
    assert launch.torchrun_arguments() == ["--standalone", "--nproc-per-node", "8"]


def test_several_nodes_meet_at_the_master() -> None:
    launch = choose_launch(8, 2, 1, "node0:29500", {})
    assert launch == Launch(8, 2, 1, "node0:29500") and launch.world_size == 16
    assert launch.torchrun_arguments() == [
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--master-addr",
        "node0",
        "--master-port",
        "29500",
        "--nproc-per-node",
        "8",
    ]


def test_slurm_numbers_one_task_per_node() -> None:
    environment = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1"}
    assert choose_launch(4, 2, None, "gpu03:29500", environment) == Launch(4, 2, 1, "gpu03:29500")


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_under_a_launcher_nothing_else_is_started(environment: dict[str, str]) -> None:
    assert choose_launch(None, None, None, None, environment) is None
    assert choose_launch(8, None, None, None, environment) is None
    assert choose_launch(None, None, None, None, environment, 4) is None
    with pytest.raises(ConfigError, match="8 processes, but the flags ask for 2"):
        choose_launch(2, None, None, None, environment)


def test_the_processes_that_torchrun_started_know_the_flags_of_all_nodes() -> None:
    environment = {**TORCHRUN, "WORLD_SIZE": "16"}
    assert choose_launch(8, 2, 1, "node0:29500", environment) is None


def test_sruns_variables_become_torchs() -> None:
    assert placed_by_launcher(SRUN) == {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": str(20_000 + 45678 % 20_000),
    }
    plain = placed_by_launcher({**SRUN, "SLURM_STEP_NODELIST": "login1,gpu3", "MASTER_PORT": "7"})
    assert plain is not None
    assert (plain["MASTER_ADDR"], plain["MASTER_PORT"]) == ("login1", "7")


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ((0, None, None, None), "at least 1"),
        ((8, 0, None, None), "at least 1"),
        ((8, 2, 0, None), "--master HOST:PORT"),
        ((None, 2, 0, "h:1"), "--num-processes"),
        ((8, 2, 2, "h:1"), "--node-rank is 2, but must be from 0 to 1"),
        ((8, None, 1, None), "--node-rank is 1, but must be from 0 to 0"),
        ((8, 2, 0, "host"), "not HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags: tuple[Any, ...], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_launch(*flags, {})
    assert fault in str(caught.value)


def test_nodes_without_a_rank_are_refused_outside_slurm() -> None:
    with pytest.raises(ConfigError, match="needs --node-rank outside SLURM"):
        choose_launch(8, 2, None, "h:1", {})
    in_slurm = {"SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert choose_launch(8, 2, None, "h:1", in_slurm) == Launch(8, 2, 1, "h:1")


def test_more_tasks_than_nodes_are_refused() -> None:
    """With one task per GPU, as is usual, 8 x 8 processes would start on a node."""
    with pytest.raises(ConfigError, match="srun has started 8 tasks, but --num-nodes is 2"):
        choose_launch(8, 2, None, "h:1", {**SRUN, "SLURM_NODEID": "0"})


def test_a_task_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --gpus-per-task=1: SLURM_LOCALID is 3, and the task sees only GPU 0."""
    for gpus, local in ((1, "0"), (8, "3")):
        environment = {"LOCAL_RANK": "3"}
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        processes._use_only_gpu(environment)
        assert environment["LOCAL_RANK"] == local


def test_only_errors_about_another_process_count_as_lost_contact() -> None:
    lost = [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
        "NCCL communicator was aborted on rank 3.",
        "ncclRemoteError: remote process exited",
    ]
    own = ["NCCL error: ncclInvalidUsage: Duplicate GPU detected", "no space left on device"]
    assert all(is_lost_contact(RuntimeError(text)) for text in lost)
    assert not any(is_lost_contact(RuntimeError(text)) for text in own)


def test_torchrun_reads_the_command_line_as_it_was_given() -> None:
    """torchrun's own parser is the oracle; it would read --run as its own option."""
    from torch.distributed.run import parse_args

    given = ["train", "--config", "my run.yaml", "--run", "r", "--num-processes", "2"]
    line = command_line(Launch(2), given)
    assert line.startswith("torchrun --standalone --nproc-per-node 2 ") and "'my run.yaml'" in line
    assert command_line(None, given[:3]) == "perpo train --config 'my run.yaml'"
    import shlex

    parsed = parse_args(shlex.split(line)[1:])
    assert (parsed.module, parsed.training_script) == (True, "perpo_pipeline.cli")
    assert [a for a in parsed.training_script_args if a != "--"] == given
    assert parsed.nproc_per_node == "2" and parsed.shutdown_timeout == 600


def test_a_single_process_exchanges_values_with_itself() -> None:
    world = World()
    assert world.broadcast("a") == "a" and world.gather(1) == [1] and world.sum([2.0]) == [2.0]
    assert world.any(True) and not world.any(False) and world.is_first
    assert join_world(on_cuda=False, with_deepspeed=False) == world


def failure(rank: int, code: int, folder: Path, error: Exception | None = None) -> ProcessFailure:
    path = folder / f"{rank}.json"
    if error is not None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(ERROR_FILE, str(path))
            patched.setenv(LAUNCHED, "1")
            assert write_failure(error)  # type: ignore[arg-type]
        assert json.loads(path.read_text())
    return ProcessFailure(local_rank=rank, pid=10 + rank, exitcode=code, error_file=str(path))


def explained(*failures: ProcessFailure, signals: Sequence[int] = ()) -> Exception:
    return launching._explained({f.local_rank: f for f in failures}, signals)


def test_the_failure_that_caused_the_others_is_reported(tmp_path: Path) -> None:
    lost = failure(0, 2, tmp_path, LostContactError("another process of this run has ended"))
    found = explained(lost, failure(1, -signal.SIGKILL, tmp_path), failure(2, -15, tmp_path))
    assert isinstance(found, ProcessError)
    assert "process 1 (pid 11) was killed by SIGKILL" in str(found)
    assert "memory runs out" in str(found)
    found = explained(failure(1, -signal.SIGABRT, tmp_path / "none"))
    assert "was killed by SIGABRT" in str(found) and "memory runs out" not in str(found)
    own = failure(3, 2, tmp_path, InputError("the loss is nan", where="prompts a", fix="lower it"))
    found = explained(lost, own, failure(2, -15, tmp_path))
    assert isinstance(found, ProcessError)
    assert found.parts() == ("the loss is nan", "prompts a", "lower it")
    found = explained(lost, failure(1, 1, tmp_path), failure(2, -15, tmp_path))
    assert "process 1 (pid 11) failed with exit code 1" in str(found)
    assert "process 0: another process" in str(explained(lost, failure(2, -15, tmp_path)))
    aborted = failure(0, -signal.SIGABRT, tmp_path / "none")  # by torch: it lost another
    found = explained(aborted, failure(1, -signal.SIGKILL, tmp_path))
    assert "process 1 (pid 11) was killed by SIGKILL" in str(found) and "memory runs out" in str(
        found
    )
    assert "memory runs out" not in str(explained(failure(1, -signal.SIGSEGV, tmp_path)))


def test_a_request_to_stop_is_not_a_failure(tmp_path: Path) -> None:
    stopped = failure(0, 143, tmp_path, Stopped("stopped by SIGTERM after step 3"))
    found = explained(stopped, failure(1, -15, tmp_path), signals=[15])
    assert isinstance(found, Stopped) and str(found) == "stopped by SIGTERM after step 3"
    assert isinstance(found, Stopped) and found.exit_code == 143
    found = explained(failure(0, -15, tmp_path / "none"), signals=[15])
    assert isinstance(found, Stopped) and found.exit_code == 143
    interrupted = failure(0, 130, tmp_path, Stopped("interrupted after step 3", signal.SIGINT))
    found = explained(interrupted, failure(1, -15, tmp_path), signals=[2])
    assert isinstance(found, Stopped) and found.exit_code == 130


def test_a_process_of_another_launcher_prints_its_own_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "e"))
    monkeypatch.delenv(LAUNCHED, raising=False)
    assert not write_failure(InputError("x"))
    assert not (tmp_path / "e").exists()


def test_on_a_full_disk_the_process_prints_its_error_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The parent could not read an incomplete file."""

    def write_a_part(path: Path, text: str) -> None:
        path.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "e"))
    monkeypatch.setenv(LAUNCHED, "1")
    monkeypatch.setattr(Path, "write_text", write_a_part)
    assert not write_failure(InputError("x"))
    assert not (tmp_path / "e").exists()


def test_a_signal_that_comes_as_a_process_ends_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Ended:
        def send_signal(self, number: int) -> None:
            raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(psutil.Process, "children", lambda self: [Ended()])
    with launching._passing_on_signals() as signals:
        signal.raise_signal(signal.SIGTERM)
    assert signals == [signal.SIGTERM]
