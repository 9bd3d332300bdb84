"""Steps of a sweep side by side, one process per device: each takes the next step that is ready.

Processes end with their parent. Ctrl-C and SIGTERM reach them through the parent, and a training
saves its step before it ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import BeingWrittenError, ConfigError, ProcessError, Stopped
from perpo_pipeline.inference.processes import visible_devices
from perpo_pipeline.interrupts import signal_of, sigterm_like_ctrl_c
from perpo_pipeline.machine import cores, environment
from perpo_pipeline.run import Console
from perpo_pipeline.sweep.make_steps import Made, Progress, Versions, do_step
from perpo_pipeline.sweep.steps import Step

THREADS = "OMP_NUM_THREADS"
WAIT_S = 0.5  # between two looks at a version that another process writes
Do = Callable[..., Versions]


@dataclass(frozen=True)
class _Running:
    """A step under way, and when it began."""

    step: Step
    began: float


def check_jobs(jobs: int, configs: Iterable[RunConfig]) -> None:
    """Raise `ConfigError` unless each of the jobs can have a device of its own."""
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}", fix="give 1 or more")
    for config in configs if jobs > 1 else ():
        visible_devices(jobs, config.model.device, "--jobs")
        numbers = {
            "sample.num_gpus": config.sample.num_gpus,
            "eval.num_gpus": config.eval.num_gpus,
            "train.num_processes": processes_of_trainings(config),
        }
        if several := {key: number for key, number in numbers.items() if number > 1}:
            shown = " and ".join(f"{key} is {number}" for key, number in several.items())
            sets = " ".join(f"--set {key}=1" for key in several)
            raise ConfigError(
                f"{shown}, and each of the {jobs} jobs has one device",
                fix=f"give {sets} (or `set` in the sweep's file), or --jobs 1",
            )


def processes_of_trainings(config: RunConfig) -> int:
    """The most processes that a training of the run is set to have."""
    return max((one.num_processes for one in config.train.variants().values()), default=1)


def make_side_by_side(
    steps: Iterable[Step], made: Made, progress: Progress, jobs: int, do: Do = do_step
) -> None:
    """Make the steps that are not finished, `jobs` at a time; each process has its own device.

    After an error no further step begins. Those under way are ended as by SIGTERM: the same command
    goes on from what they keep. Raises ProcessError if a process dies.
    """
    every = [*steps]
    if all(step.id in made.versions for step in every):
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    devices = context.SimpleQueue()
    for device in visible_devices(jobs, every[0].config.model.device, "--jobs"):
        devices.put(device)
    threads = os.environ.get(THREADS) or str(max(1, cores() // jobs))
    with environment({THREADS: threads}):
        executor = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_open, initargs=(devices, advice.current())
        )
        try:
            _make_all(executor, every, made, progress, jobs, do)
        except BrokenProcessPool as error:
            raise ProcessError(
                "a process of the sweep ended (its own message is above; often memory ran out)",
                fix="the same command goes on from what is kept; lower --jobs if memory ran out",
            ) from error
        except BaseException as error:
            for process in [*executor._processes.values()]:
                process.terminate()
            executor.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise _stopped(progress, made, error) from None
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _make_all(
    executor: ProcessPoolExecutor,
    every: list[Step],
    made: Made,
    progress: Progress,
    jobs: int,
    do: Do,
) -> None:
    todo = [step for step in every if step.id not in made.versions]
    running: dict[Future[Versions], _Running] = {}
    while todo or running:
        while len(running) < jobs:
            under_way = [one.step for one in running.values()]
            if (step := _next(todo, under_way, every, made)) is None:
                break
            todo.remove(step)
            progress.begin(step)
            job = executor.submit(
                _do, do, step, made.inputs(step), progress.sweep, advice.current()
            )
            running[job] = _Running(step, time.monotonic())
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            done = running.pop(job)
            made.versions[done.step.id] = job.result()
            made.seconds[done.step.id] = time.monotonic() - done.began


def _next(todo: list[Step], under_way: list[Step], every: list[Step], made: Made) -> Step | None:
    """The first step whose inputs are finished, and that no step under way holds up."""
    for step in todo:
        if made.is_ready(step) and not _waits_for_reference(step, under_way, every, made):
            return step
    return None


def _waits_for_reference(step: Step, under_way: list[Step], every: list[Step], made: Made) -> bool:
    """Whether another training computes reference log-probabilities now that this one reads.

    One process alone can write them; once one training has ended, all others find them.
    """
    for wanted in step.references:
        alike = [one for one in every if wanted in one.references]
        is_there = any(one.id in made.versions for one in alike)
        if not is_there and any(one in alike for one in under_way):
            return True
    return False


def _stopped(progress: Progress, made: Made, interrupt: BaseException) -> Stopped:
    return Stopped(
        f"sweep {progress.sweep} interrupted; {progress.finished + len(made.seconds)} of "
        f"{progress.number} calls of stages are finished, the same command goes on from there",
        signal_of(interrupt),
    )


def _open(devices: Any, given: advice.Invocation) -> None:
    """Take a device; runs first in each process, before CUDA is used there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while it waits; `_do` listens to it
    advice.adopt(given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(do: Do, step: Step, inputs: Versions, sweep: str, given: advice.Invocation) -> Versions:
    """One step in this process; its bars would overwrite those of the others.

    Steps with different settings may need the same version (a setting without effect beside the
    others): while another process writes it, this one waits, and then finds it.
    """
    is_announced = False
    with sigterm_like_ctrl_c():
        while True:
            try:
                return do(step, inputs, sweep, quiet=True, only_find=False)
            except BeingWrittenError as error:
                if not is_announced:
                    Console().say(
                        f"sweep {sweep}: {step.title} waits: {error.what} ({error.where})"
                    )
                is_announced = True
            time.sleep(WAIT_S)
