"""Kill a stage at every point where it touches the disk.

The parent imports everything once and never computes. Each attempt is a forked child that kills
itself with SIGKILL at its k-th disk event, so no handler runs and no buffer is flushed.
"""

import gc
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import TrainerState

import perpo_pipeline.evaluate.evaluate_model
import perpo_pipeline.report.write_report
import perpo_pipeline.sample.sample_prompts
import perpo_pipeline.train.train_adapter
import perpo_pipeline.train.trainer
import perpo_pipeline.vlm.decoding
import perpo_pipeline.vlm.loading  # noqa: F401
from perpo_pipeline import cli

COMPLETED = 0


class Killer:
    """Counts disk events (one before and one after each call) and kills the process at one."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen = at, 0

    def event(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return wrapped

    def install(self) -> None:
        os.replace = self.around(os.replace)
        os.fsync = self.around(os.fsync)
        shutil.rmtree = self.around(shutil.rmtree)  # type: ignore[assignment]
        torch.save = self.around(torch.save)
        safetensors.torch.save_file = self.around(safetensors.torch.save_file)
        TrainerState.save_to_json = self.around(TrainerState.save_to_json)  # type: ignore[method-assign]


def attempt(arguments: list[str], kill_at: int | None, count_file: Path | None = None) -> int:
    """Run the command in a forked child; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        if not os.environ.get("PERPO_KILLING_VERBOSE"):
            os.dup2(sink, 2)
        killer = Killer(kill_at)
        killer.install()
        status = 1
        try:
            cli.main([*arguments, "--quiet"])
            status = COMPLETED
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        finally:
            if count_file is not None:
                count_file.write_text(str(killer.seen))
                _modules_file(count_file).write_text(json.dumps(list(sys.modules)))
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_everywhere(config: str, stage: str, output: str) -> None:
    """Run the stage once, then once per disk event with a kill there and a second run.

    Works in the current directory, and writes the exit codes of all attempts to `output`.
    """
    workdir = Path.cwd()
    command = [stage, "--config", config]
    for name in ("data", config):
        copy(Path(name), Path("uninterrupted") / name)
    count_file = Path("events").resolve()
    os.chdir("uninterrupted")
    reference = attempt(command, None, count_file)
    os.chdir(workdir)
    events = int(count_file.read_text())
    import_modules_of(count_file)
    running: set[int] = set()
    for kill_at in range(1, events + 1):
        if len(running) == (os.cpu_count() or 1):
            running.discard(os.wait()[0])
        running.add(in_background(lambda k=kill_at: kill_and_resume(command, config, k)))
    while running:
        running.discard(os.wait()[0])
    outcomes = [json.loads(Path(f"killed-{k}/outcome").read_text()) for k in range(1, events + 1)]
    Path(output).write_text(
        json.dumps({"reference": reference, "events": events, "outcomes": outcomes})
    )


def import_modules_of(count_file: Path) -> None:
    """Import what the first attempt has imported, so that no other attempt has to.

    The modules' objects are frozen, so that garbage collection in an attempt skips them.
    """
    for name in json.loads(_modules_file(count_file).read_text()):
        with suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def _modules_file(count_file: Path) -> Path:
    return count_file.with_suffix(".modules")


def in_background(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def kill_and_resume(command: list[str], config: str, kill_at: int) -> None:
    """Kill the command once and run it again, in a directory of its own."""
    place = Path(f"killed-{kill_at}").resolve()
    for name in ("data", config):
        copy(Path(name), place / name)
    os.chdir(place)
    killed = attempt(command, kill_at)
    resumed = attempt(command, None)
    record = {"kill_at": kill_at, "killed": killed, "resumed": resumed}
    (place / "outcome").write_text(json.dumps(record))


def copy(source: Path, target: Path) -> None:
    """Copy a file or a tree."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
