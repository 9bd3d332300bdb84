"""Three scored answers that show what the rewards mean: the best, the worst read, one unread."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import polars as pl

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.answers.truth import truth_in_words
from perpo_pipeline.lines import cut_for_log
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_lookup import PromptLookup
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.store.writing import Writer

BEST, WORST, UNREAD = "the best", "the worst that was read", "one that could not be read"
SHOWN = PROMPTS.pick("prompt_id", "place", "task", "prompt", role="truth")

Row = dict[str, Any]


def example_lines(writer: Writer, samples: Version, prompts: Version) -> list[str]:
    """The examples as lines, each cut to the terminal's width; none if there are no answers."""
    lookup = PromptLookup(prompts, SHOWN)
    tasks = prompts.table(columns=["task"])["task"].unique().to_pylist()
    lines = []
    for task in tasks:
        several = len(tasks) > 1
        own = partial(_of_task, lookup, task) if several else _all
        for title, row in choose_examples(writer, len(samples.parts()), own).items():
            shown = f"{task}, {title}" if several else title
            described = _describe(shown, _with_texts(row, samples, lookup))
            lines += [cut_for_log(line) for line in described]
    return lines


def _all(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def _of_task(lookup: PromptLookup, task: str, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(lookup.join(rows)["task"] == task)


def choose_examples(
    writer: Writer, num_parts: int, own: Callable[[pl.DataFrame], pl.DataFrame] = _all
) -> Mapping[str, Row]:
    """The rows to show by their titles, with the index of their part; the first of equal ones.

    `own` returns those of some rows that are looked at.
    """
    chosen: dict[str, Row] = {}
    columns = ["prompt_id", "sample_id", "reward", "parse_ok", "box"]
    for index in range(num_parts):
        rows = own(pl.DataFrame(writer.read_part(index, columns))).with_columns(part=pl.lit(index))
        read, unread = rows.filter("parse_ok"), rows.filter(~pl.col("parse_ok"))
        if UNREAD not in chosen and unread.height:
            chosen[UNREAD] = unread.row(0, named=True)
        if not read.height:
            continue
        best, worst = read["reward"].arg_max() or 0, read["reward"].arg_min() or 0
        if BEST not in chosen or read["reward"][best] > chosen[BEST]["reward"]:
            chosen[BEST] = read.row(best, named=True)
        if WORST not in chosen or read["reward"][worst] < chosen[WORST]["reward"]:
            chosen[WORST] = read.row(worst, named=True)
    if BEST in chosen and chosen[BEST]["reward"] == chosen[WORST]["reward"]:
        del chosen[WORST]
    return {title: chosen[title] for title in (BEST, WORST, UNREAD) if title in chosen}


def _with_texts(row: Row, samples: Version, lookup: PromptLookup) -> Row:
    """The scored row with its completion, and the question, place and truth of its prompt."""
    answers = pl.DataFrame(samples.part(row["part"], ["prompt_id", "sample_id", "completion"]))
    answer = answers.filter(prompt_id=row["prompt_id"], sample_id=row["sample_id"])
    return row | lookup.join(answer).row(0, named=True)


def _describe(title: str, row: Row) -> Iterator[str]:
    read = "" if row["box"] is None else f" = [{', '.join(f'{v:.1f}' for v in row['box'])}]"
    yield f"  {title}: reward {row['reward']:.3f}, sample {row['sample_id']} of {name_prompt(row)}"
    yield f"    question  {shown_question(row['prompt'])}"
    yield f"    truth     {truth_in_words(row)}"
    yield f"    answer    {row['completion'] or '(empty)'}{read}"
