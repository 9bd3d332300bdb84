"""Kill a stage at every point where it touches the disk.

The parent imports everything once and never computes. Each attempt is a forked child. One attempt
runs to its end and copies its folder at each disk event: a copy holds what a SIGKILL at that event
leaves, since no handler runs then and no buffer is flushed. Some attempts do kill themselves with
SIGKILL, to compare what they leave with the copies.
"""

import gc
import hashlib
import importlib
import json
import os
import random
import re
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
KILL_EVERY = 16  # events between two that are killed for real

OnEvent = Callable[[int], None]


def kill_at(number: int) -> OnEvent:
    """Kills the process at this event."""

    def act(event: int) -> None:
        if event == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def copy_each_time(name: str) -> OnEvent:
    """Copies the folder `name` to `killed-<event>` beside the current folder at each event."""
    source, beside = Path(name).resolve(), Path.cwd().parent

    def act(event: int) -> None:
        copy(source, beside / f"killed-{event}" / name)

    return act


def do_nothing(event: int) -> None:
    pass


class DiskEvents:
    """Counts disk events (one before and one after each call) and calls `act` at each."""

    def __init__(self, act: OnEvent) -> None:
        self.act, self.seen, self.is_acting = act, 0, False

    def event(self) -> None:
        if self.is_acting:  # `act` itself touches the disk
            return
        self.seen += 1
        self.is_acting = True
        self.act(self.seen)
        self.is_acting = False

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


def attempt(arguments: list[str], act: OnEvent = do_nothing, count_file: Path | None = None) -> int:
    """Run the command in a forked child; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        if not os.environ.get("PERPO_KILLING_VERBOSE"):
            os.dup2(sink, 2)
        events = DiskEvents(act)
        events.install()
        status = 1
        try:
            cli.main([*arguments, "--quiet"])
            status = COMPLETED
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        finally:
            if count_file is not None:
                count_file.write_text(str(events.seen))
                _modules_file(count_file).write_text(json.dumps(list(sys.modules)))
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_everywhere(config: str, stage: str, output: str) -> None:
    """Run the stage once, and once more from each state in which a kill would leave the folder.

    A state that is byte by byte the one of an earlier event is gone on from there only. Works in
    the current directory, and writes the exit codes of all attempts to `output`.
    """
    workdir = Path.cwd()
    command = [stage, "--config", config]
    for name in ("data", config):
        copy(Path(name), Path("uninterrupted") / name)
    count_file = Path("events").resolve()
    os.chdir("uninterrupted")
    reference = attempt(command, copy_each_time("data"), count_file)
    os.chdir(workdir)
    events = int(count_file.read_text())
    import_modules_of(count_file)
    states = [digest(Path(f"killed-{event}/data")) for event in range(1, events + 1)]
    first = [states.index(state) + 1 for state in states]
    running: set[int] = set()
    for event in range(1, events + 1):
        if len(running) == (os.cpu_count() or 1):
            running.discard(os.wait()[0])
        at = (event, first[event - 1])
        running.add(in_background(lambda at=at: go_on(command, config, *at)))
    while running:
        running.discard(os.wait()[0])
    outcomes = [json.loads(Path(f"killed-{k}/outcome").read_text()) for k in range(1, events + 1)]
    for outcome in outcomes:
        outcome["resumed"] = outcomes[outcome["same_as"] - 1]["resumed"]
    Path(output).write_text(
        json.dumps({"reference": reference, "events": events, "outcomes": outcomes})
    )


def kill_at_random(command: list[str], seed: int, output: str) -> None:
    """Run a command in the folder `uninterrupted`, and in `killed` with three kills on the way.

    Both folders hold what it reads. The kills are SIGKILLs at disk events that `seed` draws from
    those of the first run; then the command runs to its end. Writes the exit codes to `output`.
    """
    workdir, count_file = Path.cwd(), Path("events").resolve()
    os.chdir("uninterrupted")
    codes = [attempt(command, do_nothing, count_file)]
    import_modules_of(count_file)
    events = int(count_file.read_text())
    # The last few are left out: a command that goes on may have written them already.
    moments = sorted(random.Random(seed).sample(range(1, events - 10), 3))
    os.chdir(workdir / "killed")
    for before, at in zip([0, *moments], moments, strict=False):
        codes.append(attempt(command, kill_at(at - before)))
    codes.append(attempt(command))
    os.chdir(workdir)
    Path(output).write_text(json.dumps({"codes": codes, "events": events, "moments": moments}))


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


def go_on(command: list[str], config: str, event: int, first: int) -> None:
    """Run the command again where a kill at `event` left off; at some events also kill it there.

    `first` is the first event with the same state: only from there it is run again.
    """
    record: dict[str, Any] = {"kill_at": event, "same_as": first}
    place = Path(f"killed-{event}").resolve()
    if event % KILL_EVERY == 0:
        record |= kill(command, config, event)
    if event == first:
        copy(Path(config), place / config)
        os.chdir(place)
        record["resumed"] = attempt(command)
    (place / "outcome").write_text(json.dumps(record))


def kill(command: list[str], config: str, event: int) -> dict[str, Any]:
    """Kill the command at `event`: its exit status, and whether it leaves the files of the copy."""
    workdir, place = Path.cwd(), Path(f"really-killed-{event}").resolve()
    for name in ("data", config):
        copy(Path(name), place / name)
    os.chdir(place)
    status = attempt(command, kill_at(event))
    os.chdir(workdir)
    left, copied = files_in(place / "data"), files_in(Path(f"killed-{event}/data"))
    return {"killed": status, "left": left, "copied": copied}


def files_in(folder: Path) -> list[str]:
    """The paths of all files, without the process number in the names of temporary ones."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(re.sub(r"\.\d+\.tmp$", ".tmp", str(file)) for file in files)


def digest(folder: Path) -> str:
    """The same for folders with the same paths and bytes."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a tree."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
