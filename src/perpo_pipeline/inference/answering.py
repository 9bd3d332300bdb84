"""Answer the prompts of an artifact part by part: what is there stays, what failed is retried.

A part is written when all of its prompts are done; until then a journal keeps what is answered
(journal.py). The number of processes and restarts does not change how batches are composed, so the
same seed gives the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from perpo_pipeline.errors import Stopped
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.engines import answer_parts
from perpo_pipeline.inference.failures import Failures
from perpo_pipeline.inference.part_sampler import LastSampler, Row
from perpo_pipeline.inference.parts import Parts
from perpo_pipeline.inference.progress import Preview, Progress
from perpo_pipeline.interrupts import signal_of
from perpo_pipeline.run import Run
from perpo_pipeline.store.prompt_images import most_images
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.vlm.families import family_of, unusual_boxes
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE

# (prompts of a part, SAMPLES and ERRORS rows) -> rows of the artifact, and ERRORS rows
RowsOf = Callable[[pa.Table, list[Row]], Sequence[Row]]


@dataclass(frozen=True)
class Task:
    """One version to write: `title` names it in the progress bar, `done` what becomes of a prompt.

    `rows_of` makes the artifact's rows from the backend's.
    """

    title: str
    done: str
    rows_of: RowsOf
    preview: Preview | None = None


def answer_prompts(
    run: Run,
    writer: Writer,
    prompts: pa.Table,
    setup: BackendSetup,
    *,
    seed: int,
    task: Task,
    kept: LastSampler | None = None,
) -> Mapping[str, Any]:
    """Answer the prompts that have no answer yet; returns the counts for the manifest.

    A prompt that fails goes to `errors` with its reason. Once more than `max_errors` have failed,
    no new part is begun and InputError is raised; finished parts are kept. `kept` keeps the model
    for further calls. Raises InputError first for several images where the model takes one.
    """
    setup = with_most_images(setup, prompts)
    parts = Parts(writer, prompts, setup.settings.prompts_per_part)
    unwritten = parts.unwritten()
    pending = {index: parts.unanswered(index, part) for index, part in unwritten.items()}
    failures = Failures(setup.settings.max_errors, str(writer.path), task.done)
    done = prompts.num_rows - sum(part.num_rows for part in pending.values())
    name = f"{writer.recipe.stage} {writer.recipe.variant}"
    if done:
        run.say(f"{name}: {done:,} of {prompts.num_rows:,} prompts are done already")

    def write(index: int, rows: Sequence[Row]) -> None:
        part = unwritten[index]
        found = task.rows_of(part, parts.with_kept(index, part, rows))
        failures.add(parts.write(index, found))

    for index, part in pending.items():
        if not part.num_rows:  # a kill came between its last answer and the part
            write(index, [])
    progress = Progress(
        run, task.title, prompts.num_rows, setup.settings, done=done, preview=task.preview
    )
    answered = answer_parts(
        setup,
        seed,
        {index: part for index, part in pending.items() if part.num_rows},
        progress=progress,
        on_notes=partial(_record_notes, run, writer),
        on_kept=partial(_keep, parts),
        on_alone=lambda rows: failures.watch(rows, setup.settings.concurrency),
        should_stop=lambda: failures.too_many,
        kept=kept,
    )
    with _kept_if_interrupted(parts, name), closing(progress), closing(answered):
        for index, rows in answered:
            write(index, rows)
    failures.check()
    return {"prompts": prompts.num_rows, "failed": failures.count}


def with_most_images(setup: BackendSetup, prompts: pa.Table) -> BackendSetup:
    """The setup for these prompts; raises InputError if the model does not take their images."""
    most = most_images(prompts)
    if most > 1:
        from perpo_pipeline.vlm.loading import load_without_weights
        from perpo_pipeline.vlm.several_images import refuse_several_images

        cache = setup.scratch / IDENTITY_CACHE
        refuse_several_images(load_without_weights(setup.resolved, identity_cache=cache), prompts)
    return replace(setup, most_images=most)


def _keep(parts: Parts, index: int, rows: Sequence[Row]) -> None:
    parts.journal.add(index, rows)
    parts.writer.keep_time()


@contextmanager
def _kept_if_interrupted(parts: Parts, name: str) -> Iterator[None]:
    """Bring what is answered to disk, however the work ends; Stopped says how much that is."""
    try:
        try:
            yield
        finally:
            parts.journal.flush()
    except KeyboardInterrupt as interrupt:
        left = sum(parts.unanswered(*item).num_rows for item in parts.unwritten().items())
        total = parts.prompts.num_rows
        raise Stopped(
            f"{name} interrupted; {total - left:,} of {total:,} prompts are kept, the same "
            "command goes on from there",
            signal_of(interrupt),
        ) from None


def warn_of_boxes(run: Run, title: str, setup: BackendSetup, prompts: pa.Table) -> None:
    """Print a warning if boxes are asked for in a way that is unusual for this model's family.

    `prompts` has the column task; `title` names the version in the message.
    """
    doubt = unusual_boxes(family_of(setup.resolved), run.config.model)
    if doubt and "grounding" in prompts["task"].to_pylist():
        run.say(f"{title}: {doubt}")


def _record_notes(run: Run, writer: Writer, notes: Mapping[str, Any]) -> None:
    """Print a backend's notes and record them for the manifest, each only once."""
    for name, note in notes.items():
        if writer.learned.get(name) != note:
            writer.note(name, note)
            run.say(f"{writer.recipe.stage}: {note}")
