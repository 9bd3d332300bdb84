"""The prompts of several sources as those of one split: the rows of one after those of another."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.collect import Prepared, RowsOnDemand
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.writing import Writer


def join_sources(sources: Sequence[Any], read: Sequence[Prepared]) -> Prepared:
    """What several sources gave, as if one had; the fingerprint has the facts of each.

    A note or a doubt begins with the number of its source in the run's file.
    """
    left_out: Counter[str] = Counter()
    for one in read:
        left_out.update(one.left_out)
        left_out["per_dataset"] += one.facts.get("left_out_by_per_dataset", 0)
    doubts = [f"source {i}: {one.doubt}" for i, one in enumerate(read) if one.doubt is not None]
    facts = [
        {**source.result_settings(), **one.facts} for source, one in zip(sources, read, strict=True)
    ]
    return Prepared(
        _joined([one.rows for one in read]),
        {"of": facts},
        left_out=dict(left_out),
        notes={
            f"{name} {i}": f"source {i}: {note}"
            for i, one in enumerate(read)
            for name, note in one.notes.items()
        },
        bad_rows=[row for one in read for row in one.bad_rows],
        doubt="; ".join(doubts) or None,
    )


def _joined(parts: Sequence[Sequence[Row]]) -> RowsOnDemand:
    """The rows of several sequences, one sequence after the other."""
    starts = [0, *accumulate(map(len, parts))]

    def build(index: int) -> Row:
        part = bisect_right(starts, index) - 1
        return parts[part][index - starts[part]]

    return RowsOnDemand(starts[-1], build)


def refuse_repeated(writer: Writer, split: str) -> None:
    """Raise InputError if two sources gave the same prompt."""
    seen: dict[str, Row] = {}
    for part in writer.read_rows(["prompt_id", "place", "dataset"]):
        for row in part.to_pylist():
            if (first := seen.setdefault(row["prompt_id"], row)) is not row:
                raise InputError(
                    f"two sources have the same prompt: {name_prompt(first)} and "
                    f"{name_prompt(row)}, both of dataset {row['dataset']}",
                    where=f"prepare.{split}",
                    fix="name each source once, or give the rows of one another `dataset` or `id`",
                )
