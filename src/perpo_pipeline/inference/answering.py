"""Answer the prompts of an artifact part by part: what is there stays, what failed is retried.

A part is answered as one unit and written when all of its prompts are done. The number of processes
and restarts does not change how batches are composed, so the same seed gives the same rows.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.engines import answer_parts
from perpo_pipeline.inference.failures import Failures
from perpo_pipeline.inference.part_sampler import LastSampler, Row
from perpo_pipeline.inference.parts import Parts
from perpo_pipeline.inference.progress import Preview, Progress
from perpo_pipeline.run import Run
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.vlm.families import family_of, unusual_boxes

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
    for further calls.
    """
    parts = Parts(writer, prompts, setup.settings.prompts_per_part)
    pending = parts.pending()
    failures = Failures(setup.settings.max_errors, str(writer.path), task.done)
    done = prompts.num_rows - sum(part.num_rows for part in pending.values())
    progress = Progress(run, task.title, prompts.num_rows, done=done, preview=task.preview)
    with closing(progress):
        for index, rows in answer_parts(
            setup,
            seed,
            pending,
            progress=progress,
            on_notes=partial(_record_notes, run, writer),
            should_stop=lambda: failures.too_many,
            kept=kept,
        ):
            failures.add(parts.write(index, task.rows_of(pending[index], rows)))
    failures.check()
    return {"prompts": prompts.num_rows, "failed": failures.count}


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
