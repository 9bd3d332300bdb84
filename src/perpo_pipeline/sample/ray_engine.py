"""Sampling on a Ray cluster: Ray Data hands whole parts to actors, the driver writes them.

A row of the data set is one whole part, and a batch is one row, so batches are composed as in one
process. Parts come back in any order. Ray starts an actor that died again, on any machine, and
hands it its part again; after so many times (ray_actors.py) the run ends with an error.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError, ProcessError, first_line
from perpo_pipeline.sample.backend import BackendSetup
from perpo_pipeline.sample.parts import PROMPT_COLUMNS, Row
from perpo_pipeline.sample.ray_actors import ActorSetup, Board, PartActor, read_found
from perpo_pipeline.sample.ray_cluster import (
    Watch,
    end_actors,
    import_ray,
    is_on_gpu,
    joined_cluster,
    nodes_of,
    place_actors,
)
from perpo_pipeline.store.provenance import package_versions

POLL_S, CLOSE_S = 0.5, 10.0

Found = tuple[int, list[Row], dict[str, Any]]


def check_settings(config: RunConfig) -> None:
    """Raise ConfigError for what engine ray cannot do, or cannot tell on this machine."""
    sample, model = config.sample, config.model
    if sample.backend == "openai":
        raise ConfigError(
            "engine ray has no meaning for the openai backend: one process asks the server",
            fix="set sample.engine to local",
        )
    if sample.num_gpus > 1:
        raise ConfigError(
            "num_gpus is for the GPUs of one machine, without Ray",
            fix="set sample.num_actors (--set sample.num_actors=N) instead",
        )
    chosen = {"model.dtype": model.dtype, "sample.backend": sample.backend}
    unknown = [f"{name}: auto" for name, value in chosen.items() if value == "auto"]
    if model.device != "cuda" or not unknown:
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{' and '.join(unknown)} cannot be told on this machine, which has no GPU",
            fix="name them in the configuration, such as bfloat16 and vllm",
        )


def sample_with_ray(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    *,
    tell: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[Found]:
    """Index, rows and notes of every part, as they are done.

    `tell` gets prompts and tokens done so far, about twice a second. Once `should_stop`, parts that
    are under way are ended and yielded, and no other begun. Raises MissingDependencyError without
    Ray, ConfigError for a cluster that cannot be joined or lacks room, ProcessError where actors
    die too often or machines leave, and what an actor raises.
    """
    import torch

    ray = import_ray("ray")
    with joined_cluster(ray, setup.sample.ray_address):
        nodes = nodes_of(ray)
        on_gpu = is_on_gpu(setup.model.device, nodes)
        actors = place_actors(nodes, setup.sample.num_actors, len(pending), on_gpu)
        threads = None if on_gpu else torch.get_num_threads()
        board = _board(ray)
        sampled = _Sampled(
            ActorSetup(_anywhere(setup, on_gpu), run_seed, actors, package_versions(), threads),
            board,
            pending,
            int(on_gpu),
        )
        watch = Watch(ray, actors, on_gpu, say)
        try:
            while (found := sampled.next()) != {}:
                if should_stop():
                    board.stop.remote()
                progress = ray.get(board.progress.remote())
                tell(progress.prompts, progress.tokens)
                for what in progress.news:
                    say(f"sample: {what}")
                if found is None:
                    watch.look(is_started=progress.is_started)
                elif part := _part_of(found, pending):
                    yield part
        except ray.exceptions.RayError as error:
            raise ProcessError(
                f"Ray has ended the run: {first_line(error)}",
                fix="the same command goes on after the last whole part",
            ) from error
        finally:
            sampled.close()
            end_actors(ray, board)


def _anywhere(setup: BackendSetup, on_gpu: bool) -> BackendSetup:
    """The setup as another process in another folder understands it."""
    device = "cuda" if on_gpu else "cpu"
    return replace(
        setup,
        model=setup.model.model_copy(update={"device": device}),
        scratch=setup.scratch.absolute(),
        adapter=setup.adapter.absolute() if setup.adapter else None,
    )


def _board(ray: Any) -> Any:
    """Start the board on the driver's machine: it lives as long as the run."""
    strategies = import_ray("ray.util.scheduling_strategies")
    here = ray.get_runtime_context().get_node_id()
    strategy = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(Board).remote()


class _Sampled:
    """The parts that Ray Data has sampled, taken from it by a thread: it has no way to wait for the
    next one for some time only.

    Ray Data starts actors that died again, and their parts, without end; the board counts them.
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
            # Without prefetch_batches Ray would keep a result until the next one is there.
            for batch in self.dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for row in batch.to_pylist():
                    self.results.put(row)
            self.results.put({})
        except Exception as error:  # noqa: BLE001 - `next` raises it
            self.results.put(error)

    def next(self) -> dict[str, Any] | None:
        """The next row of `PartActor`, {} after the last, None if there is none yet; raises what
        has ended Ray Data."""
        try:
            found = self.results.get(timeout=POLL_S)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End Ray Data's own threads; it lets go of the actors.

        Where these threads still ask when Ray is shut down, Ray ends the process, without a word.
        """
        executor = getattr(self.dataset, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)
        self.thread.join(timeout=CLOSE_S)


def as_row(index: int, part: pa.Table) -> pa.Table:
    """A part as one row: its number, and the list of its prompts.

    Where GPUs are asked for Ray Data wants to know the rows of a batch, and parts differ in theirs.
    """
    prompts = pa.concat_arrays(part.select(PROMPT_COLUMNS).to_struct_array().chunks)
    listed = pa.LargeListArray.from_arrays([0, len(prompts)], prompts)
    return pa.table({"part": [index], "prompts": listed})


def _quieten(data: Any) -> None:
    """Ray Data tells of its work in its own log; the bar and the messages are ours."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _part_of(row: Mapping[str, Any], pending: Mapping[int, pa.Table]) -> Found | None:
    index, found = row["part"], read_found(row["found"])
    if found["prompts"] != pending[index].num_rows:
        raise RuntimeError(f"Ray gave an actor something else than part {index}")
    return (index, found["rows"], found["notes"]) if "rows" in found else None
