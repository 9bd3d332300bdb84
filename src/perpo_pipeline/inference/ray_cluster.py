"""Join or start a Ray cluster, place actors on it, and watch its machines."""

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

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, MissingDependencyError, ProcessError, first_line

INSTALL = advice.install("ray")
# Ray reads these when it is imported or started; values that the user has set stay.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # otherwise Ray writes its own log to our stderr
}
CHECK_EVERY_S, START_PATIENCE_S, END_PATIENCE_S = 10.0, 60.0, 30.0

Node = tuple[int, int]  # CPUs and GPUs


def import_ray(module: str) -> Any:
    """Import a module of Ray, after setting its environment variables.

    Raises MissingDependencyError if Ray or a part of it is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"Ray cannot be used: {first_line(error)}",
            fix=f"{INSTALL}, or set engine to local",
        ) from error


@contextmanager
def joined_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS; without either, start one here and end it.

    If this process has already joined a cluster, that one is used and left running. Raises
    ConfigError if the cluster cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise ConfigError(
            f"{address} is an address for Ray's client, but the command must run in the cluster",
            fix="run it on a machine of the cluster, with ray_address: auto",
        )
    own: dict[str, Any] = {}
    if address == "local":
        own["include_dashboard"] = False
        # Without a token in the environment Ray writes one to the home directory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        _check_reachable(address)
        with _stderr_closed():  # Ray's library prints that it has read RAY_BACKEND_LOG_LEVEL
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"the Ray cluster cannot be used: {first_line(error)}",
            where=address,
            fix="start it with `ray start`, or unset ray_address and RAY_ADDRESS to use a "
            "cluster on this machine",
        ) from error
    # When an actor dies, Ray prints half a page to stdout, which is for results only. The board
    # reports the death instead.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at host:port.

    Ray itself would retry for a quarter of an hour, even if the cluster that `auto` last found has
    ended.
    """
    if address == "auto":
        last = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        found = last.read_text(encoding="utf-8") if last.is_file() else address
        address = os.environ.get("RAY_ADDRESS") or found.strip()
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Discard everything written to stderr, C++ included."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def alive_nodes(ray: Any) -> list[Node]:
    """CPUs and GPUs of every machine that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]


def use_gpus(device: str, nodes: Sequence[Node]) -> bool:
    """Whether each actor takes a GPU; `auto` follows the driver's machine.

    Raises ConfigError if the driver has no GPU and the cluster has: its GPUs would stay idle.
    """
    import torch

    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if device == "auto" and not on_gpu and any(gpus for _, gpus in nodes):
        raise ConfigError(
            "the Ray cluster has GPUs and this machine has none, so model.device: auto is unclear",
            fix="set model.device to cuda (and model.dtype and the backend), or to cpu",
        )
    return on_gpu


def count_actors(nodes: Sequence[Node], wanted: int | None, parts: int, on_gpu: bool) -> int:
    """How many actors to start, at most one per part.

    The default is one per GPU, or one per machine on CPUs. Raises ConfigError if the cluster has
    no room for them.
    """
    default = sum(gpus if on_gpu else min(cpus, 1) for cpus, gpus in nodes)
    actors, room = min(wanted or default, parts), count_room(nodes, on_gpu)
    if 0 < actors <= room:
        return actors
    raise ConfigError(
        f"the Ray cluster has room for {room} actors with one {'GPU' if on_gpu else 'CPU'} each, "
        f"but {max(actors, 1)} are wanted",
        fix="lower num_actors, or add machines",
    )


def count_room(nodes: Sequence[Node], on_gpu: bool) -> int:
    """How many actors fit, with one CPU each and, if `on_gpu`, one GPU each."""
    return sum(min(cpus, gpus) if on_gpu else cpus for cpus, gpus in nodes)


def end_actors(ray: Any, board: Any) -> None:
    """Kill the actors of a run, and wait for those on this machine to end.

    Without this, an actor with vLLM ends seconds after the command, and the next stage finds the
    GPU's memory taken. A process that does not end within 30 s is left to Ray.
    """
    with suppress(ray.exceptions.RayError):
        started = ray.get(board.started_actors.remote(), timeout=END_PATIENCE_S)
        for _, handle in started:
            ray.kill(handle)
        end = time.monotonic() + END_PATIENCE_S
        here = socket.gethostname()
        pids = [actor.pid for actor, _ in started if actor.host == here]
        while any(map(_is_actor, pids)) and time.monotonic() < end:
            time.sleep(0.05)


def _is_actor(pid: int) -> bool:
    """Whether this process is still one of Ray's; an ended process has no command line."""
    import psutil

    with suppress(psutil.Error):
        return any(word.startswith("ray::") for word in psutil.Process(pid).cmdline())
    return False


class ClusterWatch:
    """Checks the cluster while no part arrives."""

    def __init__(self, ray: Any, actors: int, on_gpu: bool, say: Callable[[str], None]) -> None:
        self.ray, self.on_gpu, self.say = ray, on_gpu, say
        self.actors = self.room = actors
        self.began = self.checked = time.monotonic()
        self.has_reported_wait = False

    def check(self, *, is_started: bool) -> None:
        """Report if no actor starts for a minute, and machines that left the cluster.

        Other actors take over the parts of a lost machine. Raises ProcessError if no machine is
        left with room for an actor: Ray would wait forever.
        """
        now = time.monotonic()
        waited_s = now - self.began
        if not is_started and not self.has_reported_wait and waited_s > START_PATIENCE_S:
            self.has_reported_wait = True
            self.say(
                f"waiting for Ray to start {self.actors} actors "
                "(`ray status` shows what the cluster is doing)"
            )
        if now - self.checked >= CHECK_EVERY_S:
            self.checked = now
            self._compare(min(count_room(alive_nodes(self.ray), self.on_gpu), self.actors))

    def _compare(self, room: int) -> None:
        if room == 0:
            raise ProcessError(
                "all machines with room for an actor have left the Ray cluster",
                fix="the same command goes on from what is kept",
            )
        if room < self.room:
            self.say(
                "machines have left the Ray cluster, which now has room for "
                f"{room} of {self.actors} actors"
            )
        self.room = room
