"""What runs on a Ray cluster: actors that sample whole parts, and the board where they report.

An actor may run on any machine of the cluster and be started again on another one; what it needs
(package, model, adapter, images that are not embedded) must be the same there as on the driver's.
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

from perpo_pipeline import errors
from perpo_pipeline.errors import ConfigError, InputError, PerpoError, ProcessError
from perpo_pipeline.sample.backend import BackendSetup
from perpo_pipeline.sample.parts import PartSampler, Row, count_tokens
from perpo_pipeline.store.provenance import package_versions
from perpo_pipeline.vlm.files import ResolvedModel, model_identity, resolve_model
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE

TRIES = 3  # of a part, and of an actor's start, before the run ends with an error
# Another release of one of these may draw other completions.
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


class Progress(NamedTuple):
    """Prompts and tokens done so far, whether any actor was started, and messages."""

    prompts: int
    tokens: int
    is_started: bool
    news: list[str]


class Who(NamedTuple):
    """The process of an actor."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Board:
    """Counts what the actors of a run begin and have done; it is an actor itself, one a run.

    It keeps their handles, too: an actor that nobody has a handle of ends by itself, but with vLLM
    only after seconds, and `end_actors` could not end it sooner.
    """

    def __init__(self) -> None:
        self.tries: Counter[int] = Counter()
        self.starts = 0  # of actors, since a model was last loaded
        self.last: dict[int | None, str] = {}  # who began a part, or (None) was started, last
        self.counts: dict[int, tuple[int, int]] = {}
        self.news: list[str] = []
        self.actors: dict[Who, Any] = {}
        self.is_stopped = False

    def start(self, who: Who, handle: Any) -> tuple[int, str]:
        """An actor begins to load its model: how many did since one had it, and who did last."""
        self.actors[who] = handle
        self.starts += 1
        return self.starts, self._before(None, who)

    def begin(self, index: int, who: Who) -> tuple[int, str]:
        """A part is begun: for which time, and by whom the last time; 0 if it must not be."""
        if self.is_stopped:
            return 0, ""
        self.starts = 0
        self.tries[index] += 1
        self.counts[index] = (0, 0)
        before = self._before(index, who)
        if before:
            self.news.append(f"the actor that sampled part {index} has died ({before}); again")
        return self.tries[index], before

    def _before(self, what: int | None, who: Who) -> str:
        before, self.last[what] = self.last.get(what, ""), str(who)
        return before

    def count(self, index: int, prompts: int, tokens: int) -> None:
        """So many more prompts and tokens of a part are done."""
        before = self.counts[index]
        self.counts[index] = (before[0] + prompts, before[1] + tokens)

    def progress(self) -> Progress:
        """How far the run is; what is new is told once."""
        news, self.news = self.news, []
        prompts = sum(prompts for prompts, _ in self.counts.values())
        tokens = sum(tokens for _, tokens in self.counts.values())
        return Progress(prompts, tokens, bool(self.last), news)

    def stop(self) -> None:
        """No other part may be begun."""
        self.is_stopped = True

    def started(self) -> list[tuple[Who, Any]]:
        """Process and handle of every actor that was started, also of those that have died."""
        return list(self.actors.items())


@dataclass(frozen=True)
class ActorSetup:
    """What every actor is started with; `versions` are the driver's packages.

    `threads` are torch's on the driver (None on GPUs): with another number of them a CPU rounds
    otherwise, and Ray would choose them by the number of actors.
    """

    backend: BackendSetup
    run_seed: int
    actors: int
    versions: Mapping[str, str]
    threads: int | None


class PartActor:
    """A backend on its machine; Ray calls it with a table of one row, a part (`as_row`).

    Nothing is raised through Ray, which would show its own stack around it: what went wrong
    travels with the result and is raised by `read_found` at the driver.
    """

    def __init__(self, setup: ActorSetup, board: Any) -> None:
        self.ray: Any = importlib.import_module("ray")
        self.board, self.who = board, Who(os.getpid(), socket.gethostname())
        self.sampler: PartSampler | None = None
        self.fault: dict[str, Any] = {}
        try:
            context = self.ray.get_runtime_context()
            starts, last = self.ray.get(board.start.remote(self.who, context.current_actor))
            if starts > setup.actors * TRIES:
                raise _died("loads the model", last)
            _use_threads(setup.threads)
            there = Path(context.get_temp_dir()) / "perpo"
            self.sampler = PartSampler(
                on_this_machine(setup.backend, setup.versions, there), setup.run_seed
            )
        except Exception as error:  # noqa: BLE001 - the driver raises it
            self.fault = _fault(error)

    def __call__(self, part: pa.Table) -> pa.Table:
        """One row: the part's number, and what was found as JSON (null: it was not begun)."""
        (row,) = part.to_pylist()
        index, prompts = row["part"], row["prompts"]
        found = {**self._sample(index, prompts), "prompts": len(prompts)}
        return pa.table({"part": [index], "found": [json.dumps(found)]})

    def _sample(self, index: int, prompts: list[Row]) -> dict[str, Any]:
        if self.sampler is None:
            return {"fault": self.fault}

        def tell(prompts: Sequence[Row], rows: Sequence[Row]) -> None:
            self.board.count.remote(index, len(prompts), count_tokens(rows))

        try:
            tries, last = self.ray.get(self.board.begin.remote(index, self.who))
            if tries == 0:
                return {"stopped": True}
            if tries > TRIES:
                raise _died(f"samples part {index}", last)
            rows = self.sampler.sample(prompts, tell)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return {"fault": _fault(error)}
        return {"rows": rows, "notes": self.sampler.backend.notes()}


def read_found(text: str) -> dict[str, Any]:
    """What `PartActor` found: `rows` and `notes`, or `stopped`; raises what went wrong there."""
    found: dict[str, Any] = json.loads(text)
    if "fault" not in found:
        return found
    kind, what, where, fix = (found["fault"][name] for name in ("kind", "what", "where", "fix"))
    if kind is None:
        raise RuntimeError(f"an actor failed:\n{what}")
    raise getattr(errors, kind, InputError)(what, where=where, fix=fix)


def _fault(error: Exception) -> dict[str, Any]:
    if not isinstance(error, PerpoError):
        return {"kind": None, "what": traceback.format_exc(), "where": None, "fix": None}
    what, where, fix = error.parts()
    return {"kind": type(error).__name__, "what": what, "where": where, "fix": fix}


def _died(doing: str, last: str) -> ProcessError:
    return ProcessError(
        f"the actor that {doing} has died {TRIES} times, last as {last}",
        where="logs/ in Ray's folder of the session there",
        fix="often memory ran out: lower sample.batch_size or sample.num_actors; the same command "
        "goes on after the last whole part",
    )


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is loaded later
    import torch

    torch.set_num_threads(threads)


def on_this_machine(setup: BackendSetup, versions: Mapping[str, str], own: Path) -> BackendSetup:
    """The setup with this machine's model files, scratch in `own` if the run's folder is not here.

    Raises ConfigError for packages of other releases than the driver's, InputError for a model or
    an adapter that is not here, or not the same.
    """
    host = socket.gethostname()
    differing = [
        f"{name} {here} (not {wanted})"
        for name, wanted in versions.items()
        if name in SAME_EVERYWHERE
        and (here := package_versions().get(name, "missing")).split("+")[0] != wanted.split("+")[0]
    ]
    if differing:
        raise ConfigError(
            f"the packages on {host} are not those where the run was started: "
            + ", ".join(differing),
            fix="install the same everywhere",
        )
    if setup.adapter is not None and not setup.adapter.is_dir():
        raise InputError(
            f"the adapter is not there on {host}",
            where=str(setup.adapter),
            fix="put it at the same path on every machine",
        )
    scratch = setup.scratch if setup.scratch.is_dir() else own
    resolved = _model_here(setup.resolved)
    if model_identity(resolved, scratch / IDENTITY_CACHE) != setup.model_settings["model"]:
        raise InputError(
            f"the model on {host} is another one",
            where=str(resolved.path),
            fix="put the same files on every machine",
        )
    return replace(setup, resolved=resolved, scratch=scratch)


def _model_here(there: ResolvedModel) -> ResolvedModel:
    """The same hub snapshot, the model of the package, or the same path."""
    if there.commit is not None or there.model_id == "testbed":
        return resolve_model(there.model_id, there.commit)
    return resolve_model(str(there.path))
