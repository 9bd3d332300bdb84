"""A Ray cluster: Ray Data sends whole parts to actors, the driver writes what they return.

A row of the data set is one whole part, and a batch is one row, so batches are composed as in one
process. Parts return in any order. Ray restarts a dead actor on any machine and sends its part
again; after TRIES deaths (ray_actors.py) the run ends with an error.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from perpo_pipeline import advice
from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, ProcessError, first_line
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, PROMPT_COLUMNS, Row
from perpo_pipeline.inference.ray_actors import ActorSetup, Board, PartActor, unpack_result
from perpo_pipeline.inference.ray_cluster import (
    ClusterWatch,
    alive_nodes,
    count_actors,
    end_actors,
    import_ray,
    joined_cluster,
    use_gpus,
)
from perpo_pipeline.store.provenance import package_versions

POLL_S, CLOSE_S = 0.5, 10.0

SampledPart = tuple[int, list[Row], dict[str, Any]]  # index, rows, the backend's notes


def check_settings(settings: InferenceConfig, model: ModelConfig) -> None:
    """Raise ConfigError for settings that engine ray cannot honour, or cannot resolve here."""
    if settings.backend == "openai":
        raise ConfigError(
            "engine ray has no meaning for the openai backend: one process sends all requests",
            fix=f"set {settings.key('engine')} to local",
        )
    if settings.num_gpus > 1:
        raise ConfigError(
            "num_gpus is for the GPUs of one machine, without Ray",
            fix=f"set {settings.key('num_actors')} instead",
        )
    chosen = {"model.dtype": model.dtype, settings.key("backend"): settings.backend}
    unknown = [f"{name}: auto" for name, value in chosen.items() if value == "auto"]
    if model.device != "cuda" or not unknown:
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{' and '.join(unknown)} cannot be resolved on this machine, which has no GPU",
            fix="set them in the configuration, for example to bfloat16 and vllm",
        )


def sample_with_ray(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    *,
    on_progress: Callable[[int, int], None],
    on_kept: Callable[[int, Sequence[Row]], None],
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[SampledPart]:
    """Yield index, rows and notes of every part as it is done.

    `on_progress` gets the prompts and tokens done so far, about twice a second, `on_kept` a part's
    index and those of its rows that a later sitting need not make again. Once `should_stop`
    is true, no new part is begun; parts under way are finished and yielded. Raises
    MissingDependencyError without Ray, ConfigError if the cluster cannot be joined or lacks room,
    ProcessError if actors die too often or all machines leave, and any error that an actor raises.
    """
    import torch

    ray = import_ray("ray")
    with joined_cluster(ray, setup.settings.ray_address):
        nodes = alive_nodes(ray)
        on_gpu = use_gpus(setup.model.device, nodes)
        actors = count_actors(nodes, setup.settings.num_actors, len(pending), on_gpu)
        threads = None if on_gpu else torch.get_num_threads()
        board = _start_board(ray)
        results = _RayResults(
            ActorSetup(
                portable(setup, on_gpu),
                run_seed,
                actors,
                package_versions(),
                threads,
                advice.current(),
            ),
            board,
            pending,
            int(on_gpu),
        )
        watch = ClusterWatch(ray, actors, on_gpu, say)
        try:
            while (row := results.next()) != {}:
                if should_stop():
                    board.stop.remote()
                progress = ray.get(board.take_progress.remote())
                on_progress(progress.prompts, progress.tokens)
                for kept in progress.kept:
                    on_kept(*kept)
                for message in progress.messages:
                    say(message)
                if row is None:
                    watch.check(is_started=progress.is_started)
                elif part := _part_of(row, pending):
                    yield part
        except KeyboardInterrupt:
            for kept in ray.get(board.take_progress.remote()).kept:
                on_kept(*kept)
            raise
        except ray.exceptions.RayError as error:
            raise ProcessError(
                f"Ray ended the run: {first_line(error)}",
                fix="the same command goes on from what is kept",
            ) from error
        finally:
            results.close()
            end_actors(ray, board)


def portable(setup: BackendSetup, on_gpu: bool) -> BackendSetup:
    """The setup with absolute paths and a definite device, for processes in other folders."""
    device = "cuda" if on_gpu else "cpu"
    return replace(
        setup,
        model=setup.model.model_copy(update={"device": device}),
        scratch=setup.scratch.absolute(),
        adapter=setup.adapter.absolute() if setup.adapter else None,
    )


def _start_board(ray: Any) -> Any:
    """Start the board on the driver's machine, where it lives as long as the run."""
    strategies = import_ray("ray.util.scheduling_strategies")
    here = ray.get_runtime_context().get_node_id()
    strategy = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(Board).remote()


class _RayResults:
    """The results of Ray Data, read by a thread: Ray Data cannot wait for one with a timeout.

    Ray Data restarts dead actors and their parts without limit; the board counts the tries.
    """

    def __init__(
        self, setup: ActorSetup, board: Any, pending: Mapping[int, pa.Table], gpus: int
    ) -> None:
        data = import_ray("ray.data")
        _quieten(data)
        parts = [as_row(index, part) for index, part in pending.items()]
        self.dataset = data.from_arrow(parts).map_batches(
            PartActor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(setup, board),
            compute=data.ActorPoolStrategy(size=setup.actors),
            num_cpus=1,
            num_gpus=gpus,
        )
        self.results: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self) -> None:
        try:
            # With prefetching, Ray would hold back a result until the next one is there.
            for batch in self.dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for row in batch.to_pylist():
                    self.results.put(row)
            self.results.put({})
        except Exception as error:  # noqa: BLE001 - `next` raises it
            self.results.put(error)

    def next(self) -> dict[str, Any] | None:
        """The next row of `PartActor`: {} after the last, None if none arrived in time.

        Raises the error that ended Ray Data.
        """
        try:
            row = self.results.get(timeout=POLL_S)
        except queue.Empty:
            return None
        if isinstance(row, Exception):
            raise row
        return row

    def close(self) -> None:
        """End Ray Data's own threads, which also releases the actors.

        If these threads still send requests when Ray shuts down, Ray silently ends the process.
        """
        executor = getattr(self.dataset, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)
        self.thread.join(timeout=CLOSE_S)


def as_row(index: int, part: pa.Table) -> pa.Table:
    """A part as one row: its number, and the list of its prompts.

    Ray Data needs a fixed number of rows per batch if actors use GPUs, and parts differ in theirs.
    """
    columns = [*PROMPT_COLUMNS, PLACE_IN_PART]
    prompts = pa.concat_arrays(part.select(columns).to_struct_array().chunks)
    listed = pa.LargeListArray.from_arrays([0, len(prompts)], prompts)
    return pa.table({"part": [index], "prompts": listed})


def _quieten(data: Any) -> None:
    """Keep Ray Data's bars and messages off the terminal; its own log file still gets them."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _part_of(row: Mapping[str, Any], pending: Mapping[int, pa.Table]) -> SampledPart | None:
    """The part in a row of `PartActor`; None if the actor did not begin it."""
    index, result = row["part"], unpack_result(row["result"])
    if result["prompts"] != pending[index].num_rows:
        raise RuntimeError(f"an actor of Ray answered other prompts than those of part {index}")
    return (index, result["rows"], result["notes"]) if "rows" in result else None
