"""What runs on a Ray cluster: actors that answer whole parts, and the board they report to.

An actor may run on any machine of the cluster, and Ray may restart it on another one. The package,
the model, the adapter and images that are not embedded must be the same on every machine.
"""

import importlib
import json
import os
import socket
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from perpo_pipeline import advice, errors
from perpo_pipeline.errors import ConfigError, InputError, PerpoError, ProcessError
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import PartSampler, Row, count_tokens
from perpo_pipeline.store.provenance import package_versions
from perpo_pipeline.vlm.files import ResolvedModel, compute_identity, resolve_model
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE

TRIES = 3  # per part, and per actor's start, before the run ends with an error
# A different release of one of these packages may draw different completions.
SAME_EVERYWHERE = (
    "perpo-pipeline",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "vllm",
    "pillow",
    "numpy",
)
SAME_IF_QUANTISED = (*SAME_EVERYWHERE, "bitsandbytes")


class Progress(NamedTuple):
    """Prompts and tokens done so far, whether any actor has started; new messages and rows.

    `kept` has rows of parts under way, each with its part's index.
    """

    prompts: int
    tokens: int
    is_started: bool
    messages: list[str]
    kept: list[tuple[int, list[Row]]]


class ActorProcess(NamedTuple):
    """The process that an actor runs in."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Board:
    """Counts what the actors of a run begin and finish; it is an actor itself, one per run.

    It also keeps the actors' handles, so that `end_actors` can kill them. An actor without any
    handle ends by itself, but with vLLM only after seconds.
    """

    def __init__(self) -> None:
        self.tries: Counter[int] = Counter()
        self.starts = 0  # of actors, since one of them last loaded its model
        self.last_start = ""  # the actor that last began to load its model
        self.last_try: dict[int, str] = {}  # by part, the actor that last began it
        self.counts: dict[int, tuple[int, int]] = {}
        self.messages: list[str] = []
        self.kept: list[tuple[int, list[Row]]] = []
        self.actors: dict[ActorProcess, Any] = {}
        self.is_stopped = False

    def start_actor(self, actor: ActorProcess, handle: Any) -> tuple[int, str]:
        """Record that an actor begins to load its model.

        Returns how many actors have begun since one of them last loaded its model, and the
        previous actor.
        """
        self.actors[actor] = handle
        self.starts += 1
        previous, self.last_start = self.last_start, str(actor)
        return self.starts, previous

    def begin_part(self, index: int, actor: ActorProcess) -> tuple[int, str]:
        """Record that an actor begins a part.

        Returns the number of this try and the actor of the previous one; 0 if the run has stopped
        and the part must not be begun.
        """
        if self.is_stopped:
            return 0, ""
        self.starts = 0
        self.tries[index] += 1
        self.counts[index] = (0, 0)
        previous, self.last_try[index] = self.last_try.get(index, ""), str(actor)
        if previous:
            self.messages.append(
                f"the actor that answered part {index} died ({previous}); retrying the part"
            )
        return self.tries[index], previous

    def count(self, index: int, prompts: int, tokens: int) -> None:
        """Add finished prompts and tokens of a part."""
        before = self.counts[index]
        self.counts[index] = (before[0] + prompts, before[1] + tokens)

    def keep(self, index: int, rows: list[Row]) -> None:
        """Take rows of a part under way that a later sitting need not make again."""
        self.kept.append((index, rows))

    def take_progress(self) -> Progress:
        """The run's progress, with the messages and the rows since the last call."""
        messages, self.messages = self.messages, []
        kept, self.kept = self.kept, []
        prompts = sum(prompts for prompts, _ in self.counts.values())
        tokens = sum(tokens for _, tokens in self.counts.values())
        return Progress(prompts, tokens, bool(self.actors), messages, kept)

    def stop(self) -> None:
        """Let no actor begin another part."""
        self.is_stopped = True

    def started_actors(self) -> list[tuple[ActorProcess, Any]]:
        """Process and handle of every actor that was started, dead ones included."""
        return list(self.actors.items())


@dataclass(frozen=True)
class ActorSetup:
    """What every actor is started with; `versions` are the driver's packages.

    `threads` is torch's number of threads on the driver (None on GPUs). A CPU rounds differently
    with another number of threads, and Ray would choose it by the number of actors.
    """

    backend: BackendSetup
    run_seed: int
    actors: int
    versions: Mapping[str, str]
    threads: int | None
    given: advice.Invocation


class PartActor:
    """A backend on one machine; Ray calls it with a table of one row, a part (`as_row`).

    It raises nothing through Ray, which would wrap its own stack trace around the error. The error
    travels in the result, and `unpack_result` raises it on the driver.
    """

    def __init__(self, setup: ActorSetup, board: Any) -> None:
        advice.adopt(setup.given)
        self.ray: Any = importlib.import_module("ray")
        self.board, self.actor = board, ActorProcess(os.getpid(), socket.gethostname())
        self.sampler: PartSampler | None = None
        self.error: dict[str, Any] = {}
        try:
            context = self.ray.get_runtime_context()
            start = board.start_actor.remote(self.actor, context.current_actor)
            starts, previous = self.ray.get(start)
            if starts > setup.actors * TRIES:
                raise _died_too_often("loads the model", previous)
            _use_threads(setup.threads)
            scratch = Path(context.get_temp_dir()) / "perpo"
            self.sampler = PartSampler(
                on_this_machine(setup.backend, setup.versions, scratch), setup.run_seed
            )
        except Exception as error:  # noqa: BLE001 - the driver raises it
            self.error = _pack_error(error)

    def __call__(self, part: pa.Table) -> pa.Table:
        """One row: the part's number, and the result as JSON (see `unpack_result`)."""
        (row,) = part.to_pylist()
        index, prompts = row["part"], row["prompts"]
        result = {**self._sample(index, prompts), "prompts": len(prompts)}
        return pa.table({"part": [index], "result": [json.dumps(result)]})

    def _sample(self, index: int, prompts: list[Row]) -> dict[str, Any]:
        if self.sampler is None:
            return {"error": self.error}

        def count(prompts: Sequence[Row], rows: Sequence[Row]) -> None:
            self.board.count.remote(index, len(prompts), count_tokens(rows))

        def keep(rows: Sequence[Row]) -> None:
            self.board.keep.remote(index, [*rows])

        whole = self.sampler.answers_whole_parts
        try:
            tries, previous = self.ray.get(self.board.begin_part.remote(index, self.actor))
            if tries == 0:
                return {"stopped": True}
            if tries > TRIES:
                raise _died_too_often(f"answers part {index}", previous)
            rows = self.sampler.sample(prompts, count, None if whole else keep)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return {"error": _pack_error(error)}
        return {"rows": rows, "notes": self.sampler.backend.notes()}


def unpack_result(text: str) -> dict[str, Any]:
    """The result of a `PartActor`: `rows` and `notes`, or `stopped`.

    Raises the actor's PerpoError as it was, any other error as RuntimeError with its traceback.
    """
    result: dict[str, Any] = json.loads(text)
    if "error" not in result:
        return result
    kind, what, where, fix = (result["error"][name] for name in ("kind", "what", "where", "fix"))
    if kind is None:
        raise RuntimeError(f"an actor failed:\n{what}")
    raise getattr(errors, kind, InputError)(what, where=where, fix=fix)


def _pack_error(error: Exception) -> dict[str, Any]:
    if not isinstance(error, PerpoError):
        return {"kind": None, "what": traceback.format_exc(), "where": None, "fix": None}
    what, where, fix = error.parts()
    return {"kind": type(error).__name__, "what": what, "where": where, "fix": fix}


def _died_too_often(doing: str, last: str) -> ProcessError:
    return ProcessError(
        f"the actor that {doing} died {TRIES} times, last as {last}",
        where="logs/ in Ray's session folder on that machine",
        fix="the same command goes on from what is kept. Often memory ran out: lower num_actors "
        "first, fewer actors make the same rows (another batch_size is another version, which is "
        "begun from its first prompt)",
    )


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that are loaded later
    import torch

    torch.set_num_threads(threads)


def on_this_machine(setup: BackendSetup, versions: Mapping[str, str], own: Path) -> BackendSetup:
    """The setup with this machine's model files; scratch is `own` if it lacks the run's folder.

    Raises ConfigError if packages differ from the driver's, InputError if the model or the adapter
    is missing or different.
    """
    host = socket.gethostname()
    used = SAME_EVERYWHERE if setup.resolved.quantization is None else SAME_IF_QUANTISED
    differing = [
        f"{name} {here} (not {wanted})"
        for name, wanted in versions.items()
        if name in used
        and (here := package_versions().get(name, "missing")).split("+")[0] != wanted.split("+")[0]
    ]
    if differing:
        raise ConfigError(
            f"the packages on {host} differ from those on the machine that started the run: "
            + ", ".join(differing),
            fix="install the same packages on every machine",
        )
    if setup.adapter is not None and not setup.adapter.is_dir():
        raise InputError(
            f"the adapter does not exist on {host}",
            where=str(setup.adapter),
            fix="put it at the same path on every machine",
        )
    scratch = setup.scratch if setup.scratch.is_dir() else own
    resolved = _model_here(setup.resolved)
    if compute_identity(resolved, scratch / IDENTITY_CACHE) != setup.model_settings["model"]:
        raise InputError(
            f"the model on {host} is a different one",
            where=str(resolved.path),
            fix="put the same files on every machine",
        )
    return replace(setup, resolved=resolved, scratch=scratch)


def _model_here(driver: ResolvedModel) -> ResolvedModel:
    """The driver's model on this machine: by hub snapshot, from the package, or by path."""
    if driver.commit is not None or driver.model_id == "testbed":
        found = resolve_model(driver.model_id, driver.commit, trust_remote_code=driver.own_code)
    else:
        found = resolve_model(str(driver.path), trust_remote_code=driver.own_code)
    return replace(
        found,
        chat=driver.chat,
        own_marks=driver.own_marks,
        limits=driver.limits,
        quantization=driver.quantization,
    )
