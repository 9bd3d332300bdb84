"""`perpo train` in two real processes on the CPU: the same result as in one, whatever happens.

Trainings with `python=` start a new Python for each process, as a user's do: one to its end under
ZeRO-3, one under torchrun, and one without ZeRO that is ended by SIGTERM. The others are forked.
"""

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest
from distributed.starting import (
    CONFIG,
    PERPO,
    STEPS,
    TORCHRUN,
    Ended,
    Training,
    checkpoints,
    largest_difference,
    log_of,
    loss_difference,
    perpo,
    prepare_run,
    run_training,
    train_here,
    trained,
    weights_of,
)

from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.vlm.adapters import attach_adapter
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm

pytestmark = pytest.mark.distributed

TWO = ("--num-processes", "2")
ZERO3 = (*TWO, "--deepspeed", "zero3")
PARALLEL = {"ddp": TWO, "zero2": (*TWO, "--deepspeed", "zero2"), "zero3": ZERO3}
OTHERS = CONFIG.replace("epochs: 2", "epochs: 1").replace(
    "methods: {perpo: {beta: 1.0}}",
    """methods:
    full: {method: perpo, beta: 1.0, tuning: full}
    projector: {method: perpo, beta: 1.0, scope: [language_model, projector]}
    uneven: {method: perpo, beta: 1.0, batch_size: 3, max_tokens_per_forward: 1}
    blank: {method: mdpo, beta: 1.0, order: widest-first}""",
)
OTHER_METHODS = ["full", "projector", "uneven", "blank"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its preferences."""
    folder = tmp_path_factory.mktemp("distributed")
    prepare_run(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def single(workdir: Path) -> Version:
    """Trained in one process, without interruption."""
    return train_here(workdir, "single")


@pytest.fixture(scope="module")
def zero3(workdir: Path) -> Version:
    """Trained by two processes under ZeRO-3, without interruption, on a machine without g++."""
    without = {"PATH": "", "TORCH_EXTENSIONS_DIR": str(workdir / "compiled")}
    return run_training(workdir, "zero3", *ZERO3, python=PERPO, **without)


@pytest.mark.parametrize("how", ["ddp", "zero2", "zero3"])
def test_two_processes_train_as_one(
    workdir: Path, single: Version, how: str, request: pytest.FixtureRequest
) -> None:
    if how == "zero3":
        version: Version = request.getfixturevalue("zero3")
    else:
        version = run_training(workdir, how, *PARALLEL[how])
    assert version.fingerprint == single.fingerprint
    assert len(log_of(single)) == STEPS
    assert loss_difference(version, single) < 1e-5
    assert largest_difference(version, single) < 1e-4
    assert max(float(w.abs().max()) for n, w in weights_of(single).items() if "lora_B" in n) > 1e-3
    ours, theirs = log_of(version), log_of(single)
    for column in ("kl", "implicit_margin", "best_logp", "worst_logp"):  # sums over both processes
        assert (ours[column] - theirs[column]).abs().max() < 1e-3, column
    assert ours["tokens"].to_list() == theirs["tokens"].to_list()
    for column in ("grad_norm", "learning_rate", "epoch"):
        assert (ours[column] - theirs[column]).abs().max() < 1e-4, column
    assert reference_difference(version, single) < 1e-4


def reference(place: Path) -> pl.DataFrame:
    """The reference log-probabilities, one row per list."""
    return pl.read_parquet(place / "*/part-*.parquet")


def reference_difference(ours: Version, theirs: Version) -> float:
    """Largest over all completions of lists in the same order."""
    a, b = (reference(version.path.parent / "reference") for version in (ours, theirs))
    assert a["prompt_id"].to_list() == b["prompt_id"].to_list()
    return float((a["ref_logps"].explode() - b["ref_logps"].explode()).abs().max())  # type: ignore[arg-type]


def test_zero_compiles_nothing(workdir: Path, zero3: Version) -> None:
    assert not (workdir / "compiled").exists()


def test_one_process_loads_an_adapter_of_several(zero3: Version) -> None:
    from peft import get_peft_model_state_dict

    vlm = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu")
    loaded = get_peft_model_state_dict(attach_adapter(vlm, zero3.path).model)
    saved = weights_of(zero3)
    assert loaded.keys() == saved.keys()
    assert all((loaded[name] == weight).all() for name, weight in saved.items())


def test_with_deepspeed_installed_stdout_has_only_results(workdir: Path, zero3: Version) -> None:
    merged = subprocess.run(
        [
            sys.executable,
            "-m",
            "perpo_pipeline.cli",
            "merge",
            "--adapter",
            str(zero3.path),
            "--out",
            "merged",
            "--quiet",
        ],
        cwd=workdir,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (merged.returncode, merged.stdout) == (0, "merged\n"), merged.stderr


def copy_of(workdir: Path, name: str, config: str) -> Path:
    """A folder of this name with the run up to its preferences, and `config` as its file."""
    folder = workdir / name
    folder.mkdir()
    shutil.copytree(workdir / "data", folder / "data")
    (folder / "d.yaml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def others(workdir: Path) -> tuple[Path, Path]:
    """Several methods trained in one process, and by two that torchrun started under ZeRO-3.

    One start trains all of them, one after the other.
    """
    alone = copy_of(workdir, "others-alone", OTHERS)
    together = copy_of(workdir, "others-together", OTHERS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(alone)
        assert perpo("train") == 0
    ended = Training(together, None, "--deepspeed", "zero3", python=TORCHRUN).end()
    assert ended.code == 0, ended.stderr
    versions = [trained(together / "data/d/adapter" / method).path for method in OTHER_METHODS]
    assert ended.stdout.split() == [str(path.relative_to(together)) for path in versions]
    return alone / "data/d", together / "data/d"


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_settings_train_sharded_as_in_one_process(
    others: tuple[Path, Path], method: str
) -> None:
    """`uneven` has 3 lists per step, each in its own forward: 2 forwards in one process, 1 in the
    other; the last of its 7 steps has one list for both."""
    alone, together = (trained(folder / "adapter" / method) for folder in others)
    assert len(log_of(alone)) == (7 if method == "uneven" else 5)
    assert loss_difference(together, alone) < 1e-5
    assert largest_difference(together, alone) < 1e-4


def test_a_blank_image_and_an_order_train_without_zero_as_in_one_process(
    workdir: Path, others: tuple[Path, Path]
) -> None:
    only_blank = re.sub(r" {4}(full|projector|uneven): .*\n", "", OTHERS)
    folder = copy_of(workdir, "others-ddp", only_blank)
    ended = Training(folder, None, *TWO).end()
    assert ended.code == 0, ended.stderr
    alone, sharded = others
    ours, theirs = (trained(run / "adapter/blank") for run in (folder / "data/d", alone))
    assert ended.stdout.strip() == str(ours.path.relative_to(folder))
    assert ours.fingerprint == theirs.fingerprint
    assert loss_difference(ours, theirs) < 1e-5
    assert largest_difference(ours, theirs) < 1e-4
    expected = reference(alone / "reference/train-blank-image")["ref_logps"].explode()
    assert len(expected) == 19  # the best completion of each list
    for run in (folder / "data/d", sharded):
        found = reference(run / "reference/train-blank-image")["ref_logps"].explode()
        assert (found - expected).abs().max() < 1e-4  # type: ignore[operator]


@pytest.fixture(scope="module")
def terminated(workdir: Path) -> Ended:
    """Two processes under ZeRO-3, SIGTERM to the command after its first checkpoint."""
    return Training(workdir, "interrupted", *ZERO3).terminate_at(3)


@pytest.fixture(scope="module")
def killed(workdir: Path, terminated: Ended) -> Ended:
    """The same command resumes, and one of its processes is killed after another checkpoint."""
    last = checkpoints(workdir / "interrupted")[-1]
    training = Training(workdir, "interrupted", *ZERO3)
    training.wait_for_checkpoint(last + 1)
    training.worker(rank=1).kill()
    return training.end()


def test_sigterm_ends_all_processes_after_a_step_with_a_checkpoint(
    workdir: Path, terminated: Ended
) -> None:
    assert terminated.code == 143, terminated.stderr
    assert "stopped by SIGTERM after step" in terminated.stderr
    assert "Traceback" not in terminated.stderr
    step = int(terminated.stderr.split("after step ")[1].split()[0])
    assert step < STEPS and step in checkpoints(workdir / "interrupted")


def test_a_killed_process_ends_the_others_within_a_minute_with_its_error(killed: Ended) -> None:
    assert killed.code == 2
    assert killed.seconds < 60
    assert "process 1 " in killed.stderr and "was killed by SIGKILL" in killed.stderr
    assert "the same command resumes from the last checkpoint" in killed.stderr


def test_after_both_the_same_command_ends_as_if_nothing_had_happened(
    workdir: Path, killed: Ended, zero3: Version
) -> None:
    version = run_training(workdir, "interrupted", *ZERO3)
    assert loss_difference(version, zero3) < 1e-6
    assert largest_difference(version, zero3) < 1e-6


@pytest.fixture(scope="module")
def stopped_alone(workdir: Path) -> Ended:
    """One process that SIGTERM ends after a checkpoint; `changed` has a copy of its files."""
    ended = Training(workdir, "alone").terminate_at(3)
    shutil.copytree(workdir / "alone", workdir / "changed")
    return ended


def test_sigterm_and_resume_in_one_process(
    workdir: Path, single: Version, stopped_alone: Ended
) -> None:
    assert stopped_alone.code == 143, stopped_alone.stderr
    assert "stopped by SIGTERM after step" in stopped_alone.stderr
    version = train_here(workdir, "alone")
    assert loss_difference(version, single) == 0
    assert largest_difference(version, single) == 0


def test_sigterm_to_every_process_does_not_lose_the_image_workers(
    workdir: Path,
) -> None:
    (workdir / "workers.yaml").write_text(
        CONFIG.replace("  epochs: 2", "  epochs: 9\n  num_workers: 1")
    )
    training = Training(workdir, "workers", *TWO, "--config", "workers.yaml", python=PERPO)
    training.wait_for_checkpoint(3)
    command = psutil.Process(training.process.pid)
    everyone = [*command.children(recursive=True), command]
    assert len(everyone) >= 5, "the command, two processes and one worker each"
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    ended = training.end()
    assert ended.code == 143, ended.stderr
    assert "stopped by SIGTERM after step" in ended.stderr and "Traceback" not in ended.stderr


def test_checkpoints_of_other_processes_are_refused_under_zero_and_used_without(
    workdir: Path, single: Version, stopped_alone: Ended
) -> None:
    """Started in one process without ZeRO: two processes resume it, but not under ZeRO."""
    assert stopped_alone.code == 143
    refused = Training(workdir, "changed", *ZERO3).end()
    assert refused.code == 2
    assert "started by 1 process without ZeRO" in refused.stderr
    assert "cannot be resumed by 2 processes with ZeRO-3" in refused.stderr
    version = run_training(workdir, "changed", *TWO)
    assert loss_difference(version, single) < 1e-5
    assert trained(workdir / "changed").path == version.path
