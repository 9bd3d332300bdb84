"""Answers that an older rule's predictions hold: taken over and measured as today, not decoded."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.finding import older_versions
from perpo_pipeline.store.old_rules import Trust
from perpo_pipeline.store.schemas import PREDICTIONS, UNANSWERED
from perpo_pipeline.store.writing import Writer

Row = dict[str, Any]
ANSWERS = PREDICTIONS.pick(
    "prompt_id", "image_prompt_id", "completion", "completion_token_ids", "finish_reason", "resized"
)


def take_older_answers(
    run: Run,
    title: str,
    writer: Writer,
    shown: pa.Table,
    size: int,
    rows_of: Callable[[pa.Table, list[Row]], Sequence[Row]],
) -> None:
    """Write the parts that are not there yet from the answers of an older version, if there is one.

    `shown` are the prompts with the image that each is shown, `size` of them per part. An answer
    counts where its prompt was shown the same image; prompts without one are left to be answered.
    """
    older = _with_answers(writer)
    starts = range(0, shown.num_rows, size)
    todo = [index for index in range(len(starts)) if not writer.has_part(index)]
    if older is None or not todo:
        return
    answers = {row["prompt_id"]: row for row in older.table(columns=ANSWERS).to_pylist()}
    taken = 0
    for index in todo:
        part = shown.slice(starts[index], size)
        found = list(_of_part(part, answers))
        if found:
            keys = pa.array([row["prompt_id"] for row in found])
            known = part.filter(pc.is_in(part["prompt_id"], keys))
            writer.write_part(index, list(rows_of(known, found)))
            taken += len(found)
    if taken:
        writer.note("answers_from", older.fingerprint)
        run.say(
            f"{title}: {taken} of {shown.num_rows} answers are those of {older.path}, made by an "
            "older rule; they are measured anew"
        )


def _with_answers(writer: Writer) -> Version | None:
    found = older_versions(writer.root, writer.recipe)
    return next((o.version for o in found if o.trust is Trust.ANSWERS), None)


def _of_part(part: pa.Table, answers: dict[str, Row]) -> list[Row]:
    """SAMPLES rows of the prompts that have an answer about the same image."""
    rows = []
    for key, image in zip(
        part["prompt_id"].to_pylist(), part["image_prompt_id"].to_pylist(), strict=True
    ):
        answer = answers.get(key)
        if answer is None or answer["finish_reason"] == UNANSWERED:
            continue
        if answer["image_prompt_id"] == image:
            known = {name: answer[name] for name in ANSWERS if name != "image_prompt_id"}
            rows.append({**known, "sample_id": 0, "seed": 0, "sampler_logprob": None})
    return rows
