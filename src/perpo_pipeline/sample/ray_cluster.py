"""Join a Ray cluster or start one on this machine, and see what has room there."""

import importlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ConfigError, MissingDependencyError, ProcessError, first_line

INSTALL = "pip install -c constraints.txt -e '.[ray]'"
# Read by Ray when it is imported or started; what the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else it writes of its own affairs to our stderr
}
LOOK_S, PATIENCE_S, END_S = 10.0, 60.0, 10.0

Node = tuple[int, int]  # CPUs and GPUs


def import_ray(module: str) -> Any:
    """A module of Ray, which is optional; raises MissingDependencyError where it is not whole."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"Ray cannot be used: {first_line(error)}",
            fix=f"{INSTALL}, or set sample.engine to local",
        ) from error


@contextmanager
def joined_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine and end it.

    Where this process has joined one already, that is used and left as it is. Raises ConfigError
    for a cluster that cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise ConfigError(
            f"{address} is an address for Ray's client; the command must be part of the cluster",
            fix="run it on a machine of the cluster, with --set sample.ray_address=auto",
        )
    own: dict[str, Any] = {}
    if address == "local":
        own["include_dashboard"] = False
        # Without one in the environment Ray keeps a token in the home directory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        _reach(address)
        with _stderr_closed():  # Ray's library tells that it has read RAY_BACKEND_LOG_LEVEL
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"the Ray cluster cannot be used: {first_line(error)}",
            where=address,
            fix="start it with `ray start`, or leave out sample.ray_address and RAY_ADDRESS for "
            "one on this machine",
        ) from error
    # Of an actor's death Ray prints half a page to stdout, which is for results; the board tells.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at host:port: Ray itself would try for a quarter of an
    hour, also where the cluster that `auto` found last has ended."""
    if address == "auto":
        last = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        found = last.read_text(encoding="utf-8") if last.is_file() else address
        address = os.environ.get("RAY_ADDRESS") or found.strip()
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Let nothing through to stderr, not even from C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def nodes_of(ray: Any) -> list[Node]:
    """CPUs and GPUs of every machine that is there."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]


def is_on_gpu(device: str, nodes: Sequence[Node]) -> bool:
    """Whether actors take a GPU each; `auto` is what the driver has.

    Raises ConfigError where it has none and the cluster does: nobody wants 8 idle GPUs.
    """
    import torch

    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if device == "auto" and not on_gpu and any(gpus for _, gpus in nodes):
        raise ConfigError(
            "the Ray cluster has GPUs and this machine has none: say which to use",
            fix="set model.device to cuda (and model.dtype and sample.backend), or to cpu",
        )
    return on_gpu


def place_actors(nodes: Sequence[Node], wanted: int | None, parts: int, on_gpu: bool) -> int:
    """How many actors: by default one a GPU, or one a machine on CPUs, and not more than parts.

    Raises ConfigError where the cluster has no room for them.
    """
    default = sum(gpus if on_gpu else min(cpus, 1) for cpus, gpus in nodes)
    actors, there = min(wanted or default, parts), room(nodes, on_gpu)
    if 0 < actors <= there:
        return actors
    raise ConfigError(
        f"the Ray cluster has room for {there} actors with a {'GPU' if on_gpu else 'CPU'} each, "
        f"{max(actors, 1)} are wanted",
        fix="lower sample.num_actors (--set sample.num_actors=N), or add machines",
    )


def room(nodes: Sequence[Node], on_gpu: bool) -> int:
    """How many actors with a CPU each, and a GPU where they are `on_gpu`, have room."""
    return sum(min(cpus, gpus) if on_gpu else cpus for cpus, gpus in nodes)


def end_actors(ray: Any, board: Any) -> None:
    """Kill the actors of a run, and wait for those on this machine.

    By itself one that holds vLLM ends seconds after the command, whose next stage would find the
    GPU's memory taken. A process that does not end within 10 s is left to Ray.
    """
    with suppress(ray.exceptions.RayError):
        started = ray.get(board.started.remote(), timeout=END_S)
        for _, handle in started:
            ray.kill(handle)
        end = time.monotonic() + END_S
        here = socket.gethostname()
        pids = [who.pid for who, _ in started if who.host == here]
        while any(map(_is_actor, pids)) and time.monotonic() < end:
            time.sleep(0.05)


def _is_actor(pid: int) -> bool:
    """Whether this is (still) a process of Ray's; one that has ended has no command line."""
    import psutil

    with suppress(psutil.Error):
        return any(word.startswith("ray::") for word in psutil.Process(pid).cmdline())
    return False


class Watch:
    """Looks after the cluster while nothing comes of it."""

    def __init__(self, ray: Any, actors: int, on_gpu: bool, say: Callable[[str], None]) -> None:
        self.ray, self.on_gpu, self.say = ray, on_gpu, say
        self.actors = self.left = actors
        self.began = self.looked = time.monotonic()
        self.has_said = False

    def look(self, *, is_started: bool) -> None:
        """Say where no actor starts or machines have left, whose parts others take over.

        Raises ProcessError where none is left that has room for an actor: Ray would wait.
        """
        now = time.monotonic()
        if not is_started and not self.has_said and now - self.began > PATIENCE_S:
            self.has_said = True
            self.say(
                f"sample: waiting for Ray to start {self.actors} actors "
                "(`ray status` shows what the cluster is doing)"
            )
        if now - self.looked >= LOOK_S:
            self.looked = now
            self._count(min(room(nodes_of(self.ray), self.on_gpu), self.actors))

    def _count(self, left: int) -> None:
        if left == 0:
            raise ProcessError(
                "all machines with room for an actor have left the Ray cluster",
                fix="the same command goes on after the last whole part",
            )
        if left < self.left:
            self.say(
                "sample: machines have left the Ray cluster, which has room for "
                f"{left} of {self.actors} actors now"
            )
        self.left = left
