"""Where prompts are answered: in this process, in one process per GPU, or on a Ray cluster."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import LastSampler, Row
from perpo_pipeline.inference.progress import Progress
from perpo_pipeline.interrupts import StopRequest
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS

Notes = Mapping[str, Any]
OnKept = Callable[[int, Sequence[Row]], None]


def check_engine(settings: InferenceConfig, model: ModelConfig) -> None:
    """Raise ConfigError if a setting has no meaning for the engine or the backend."""
    key = settings.key
    if settings.engine == "ray":
        from perpo_pipeline.inference.ray_engine import check_settings

        check_settings(settings, model)
    elif settings.num_actors is not None:
        raise ConfigError(
            "num_actors is for engine ray, and the engine is local",
            fix=f"set {key('engine')} to ray (--set {key('engine')}=ray)",
        )
    elif settings.backend == "openai" and settings.num_gpus > 1:
        raise ConfigError(
            "num_gpus has no meaning for the openai backend: the server has the GPUs",
            fix=f"remove it; {key('concurrency')} sets how many requests run at once",
        )


def answer_parts(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    *,
    progress: Progress,
    on_notes: Callable[[Notes], None],
    on_kept: OnKept,
    on_alone: Callable[[Sequence[Row]], None],
    should_stop: Callable[[], bool],
    kept: LastSampler | None = None,
) -> Generator[tuple[int, list[Row]]]:
    """Yield index and rows of every pending part as it is done; `on_notes` gets backends' notes.

    `on_kept` gets a part's index and those of its rows that a later sitting need not make again,
    `on_alone` all rows of a prompt that is answered independently of the others; it may raise.
    Once `should_stop` is true, no new part is begun; parts under way are finished and yielded.
    `kept` keeps the model of this process for the next call; other processes end with their parts.
    """
    if not pending:
        return
    progress.open()
    request = StopRequest(
        f"{progress.title}: the part under way is finished first, because all of its prompts "
        "decide its batches; Ctrl-C again ends at once and loses its answers"
    )
    elsewhere = _answer_elsewhere(
        setup,
        run_seed,
        pending,
        progress,
        on_kept,
        lambda: should_stop() or request.number is not None,
    )
    if elsewhere is not None:
        progress.begin()
        with request.listening() if setup.settings.backend == "vllm" else nullcontext():
            for index, rows, notes in elsewhere:
                on_notes(notes)
                progress.show(pending[index].select(TRUTH_COLUMNS).to_pylist(), rows)
                yield index, rows
        request.check()
        return
    with closing(LastSampler()) if kept is None else nullcontext(kept) as samplers:
        sampler = samplers.get(setup, run_seed)
        on_notes(sampler.backend.notes())

        def on_rows(prompts: Sequence[Row], rows: Sequence[Row]) -> None:
            on_notes(sampler.backend.notes())  # an interrupt may come before the part's end
            progress.add(prompts, rows)
            if sampler.backend.answers_alone:
                on_alone(rows)

        progress.begin()
        for index, part in pending.items():
            if should_stop():
                return
            whole = sampler.answers_whole_parts
            keep = None if whole else partial(on_kept, index)
            with request.listening() if whole else nullcontext():
                try:
                    rows = sampler.sample(part.to_pylist(), on_rows, keep)
                finally:
                    on_notes(sampler.backend.notes())
                yield index, rows
            request.check()


def _answer_elsewhere(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    progress: Progress,
    on_kept: OnKept,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, list[Row], dict[str, Any]]] | None:
    """Rows and notes of every part from Ray or other processes; None if this process answers."""
    if setup.settings.engine == "ray":
        from perpo_pipeline.inference.ray_engine import sample_with_ray

        return sample_with_ray(
            setup,
            run_seed,
            pending,
            on_progress=progress.update,
            on_kept=on_kept,
            should_stop=should_stop,
            say=lambda message: progress.run.say(f"{setup.settings.section}: {message}"),
        )
    processes = min(setup.settings.num_gpus, len(pending))
    wants_gpus = setup.settings.num_gpus > 1 and setup.model.device != "cpu"
    if wants_gpus and (note := _note_without_gpus(setup.settings, processes)):
        progress.run.say(note)
    if processes <= 1:
        return None
    from perpo_pipeline.inference.processes import sample_in_processes

    return sample_in_processes(
        setup,
        run_seed,
        pending,
        processes,
        on_progress=progress.update,
        on_kept=on_kept,
        should_stop=should_stop,
    )


def _note_without_gpus(settings: InferenceConfig, processes: int) -> str | None:
    """What happens where several GPUs are asked for and none is there, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    what = "one process answers" if processes <= 1 else f"{processes} processes share the CPUs"
    return f"{settings.section}: num_gpus is {settings.num_gpus}, but no GPU is visible: {what}" + (
        ", each with a model of its own" if processes > 1 else ""
    )
