"""Run a function in a process of its own, and measure its processor seconds.

All processes are forked from one that has imported what stages and trainers need, so that no way
pays for imports. (A stage of ours would pay for them once each, a trainer of TRL once in all.)
"""

import gc
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SHOWN = 2_000  # characters of a failed process's log
PRELOADED = [
    "perpo_pipeline.cli",
    "perpo_pipeline.prepare.prepare_prompts",
    "perpo_pipeline.sample.sample_prompts",
    "perpo_pipeline.inference.transformers_backend",
    "perpo_pipeline.score.score_answers",
    "perpo_pipeline.filter.filter_lists",
    "perpo_pipeline.train.train_adapter",
    "perpo_pipeline.train.fit",
    "perpo_pipeline.merge.merge_adapter",
    "perpo_pipeline.evaluate.evaluate_model",
    "trl.trainer.grpo_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
    "datasets",
    "peft",
    "deepspeed",  # where it is installed, every trainer imports it
]


def start_server(threads: int) -> None:
    """Start the process from which all others are forked, with so many threads each."""
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def run_apart(log: Path, function: Callable[..., Any], *arguments: Any) -> float:
    """Processor seconds (user and system) of the call and of all processes that it started.

    What it prints goes to the file `log`. Raises SystemExit with the end of it if the call fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(log, sender, function, arguments))
    process.start()
    sender.close()
    try:
        seconds: float = receiver.recv()
    except BaseException as error:
        process.terminate()
        process.join()
        if not isinstance(error, EOFError):  # Ctrl-C: what is unfinished is made again
            raise
        tail = log.read_text(encoding="utf-8", errors="replace")[-SHOWN:]
        raise SystemExit(f"{tail}\n{function.__name__} failed; its log is {log}") from None
    process.join()
    return seconds


def processor_seconds() -> float:
    """Of this process and of its children that have ended, since it was forked."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _run(
    log: Path, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a fork has no threads yet
    gc.freeze()  # its garbage collections need not visit what it was forked with
    try:
        function(*arguments)
    except SystemExit as ended:  # how the command line ends
        if ended.code:
            raise
    sys.stdout.flush()
    sender.send(processor_seconds())
