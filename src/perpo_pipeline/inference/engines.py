"""Where parts are sampled: in this process, in one process per GPU, or on a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import PartSampler, Row
from perpo_pipeline.inference.progress import SampleProgress
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS

Notes = Mapping[str, Any]


def check_engine(config: RunConfig) -> None:
    """Raise ConfigError if a setting has no meaning for the engine or backend of this run."""
    sample = config.sample
    if sample.engine == "ray":
        from perpo_pipeline.inference.ray_engine import check_settings

        check_settings(config)
    elif sample.num_actors is not None:
        raise ConfigError(
            "num_actors is for engine ray, and the engine is local",
            fix="set sample.engine to ray (--set sample.engine=ray)",
        )
    elif sample.backend == "openai" and sample.num_gpus > 1:
        raise ConfigError(
            "num_gpus has no meaning for the openai backend: the server has the GPUs",
            fix="remove it; sample.concurrency sets how many requests run at once",
        )


def sample_parts(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    *,
    progress: SampleProgress,
    on_notes: Callable[[Notes], None],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, list[Row]]]:
    """Yield index and rows of every pending part as it is done; `on_notes` gets backends' notes.

    Once `should_stop` is true, no new part is begun; parts under way are finished and yielded.
    """
    if not pending:
        return
    elsewhere = _sample_elsewhere(setup, run_seed, pending, progress, should_stop)
    if elsewhere is not None:
        progress.begin()
        for index, rows, notes in elsewhere:
            on_notes(notes)
            progress.preview.add(pending[index].select(TRUTH_COLUMNS).to_pylist(), rows)
            yield index, rows
        return
    sampler = PartSampler(setup, run_seed)
    on_notes(sampler.backend.notes())
    progress.begin()
    for index, part in pending.items():
        if should_stop():
            return
        rows = sampler.sample(part.to_pylist(), progress.add)
        on_notes(sampler.backend.notes())
        yield index, rows


def _sample_elsewhere(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    progress: SampleProgress,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, list[Row], dict[str, Any]]] | None:
    """Rows and notes of every part from Ray or other processes; None if this process samples."""
    if setup.sample.engine == "ray":
        from perpo_pipeline.inference.ray_engine import sample_with_ray

        return sample_with_ray(
            setup,
            run_seed,
            pending,
            on_progress=progress.update,
            should_stop=should_stop,
            say=progress.run.say,
        )
    processes = min(setup.sample.num_gpus, len(pending))
    if processes <= 1:
        return None
    from perpo_pipeline.inference.processes import sample_in_processes

    return sample_in_processes(
        setup,
        run_seed,
        pending,
        processes,
        on_progress=progress.update,
        should_stop=should_stop,
    )
