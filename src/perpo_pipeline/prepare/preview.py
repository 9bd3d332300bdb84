"""`perpo prepare --preview`: a contact sheet of some prompts, with their truths on the images."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from perpo_pipeline.answers.truth import truth_in_words
from perpo_pipeline.drawing.marks import Mark, describe, truth_marks
from perpo_pipeline.drawing.overlay import data_uri, overlay
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.own_files import check_page, page_mark
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.templates import html_environment
from perpo_pipeline.vlm.image_place import history_of
from perpo_pipeline.vlm.inputs import prompt_image
from perpo_pipeline.vlm.thumbnails import Thumbnail, thumbnails

COMMAND = "prepare"
SHOWN = 24
SHORT_TEXT = 280  # characters of a true text that are shown before it is unfolded
COLUMNS = PROMPTS.pick("prompt_id", "place", "task", "image_sha256", role="size")
SHOWN_COLUMNS = [
    *PROMPTS.pick(*COLUMNS, "image_notes", "dataset", "prompt", "history", role="truth"),
    *(name for name in PROMPTS.role("image") if name not in COLUMNS),
]
TRUTHS = PROMPTS.role("truth")

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One prompt on the page; `image` is a data URI, `marks` an SVG element.

    `more` are its other images, if it has several, `history` (role, text) of its earlier turns.
    """

    place: str
    task: str
    question: str
    image: str
    alt: str
    width: int
    height: int
    marks: Markup
    truth: str
    notes: str
    more: Sequence[Thumbnail]
    history: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Sheet:
    """One split on the page: how many prompts it has, some of them, and its figures in words."""

    split: str
    doubt: str | None
    counts: Sequence[str]
    facts: Sequence[str]
    shown: Sequence[Shown]


def check_preview(file: Path) -> None:
    """Raise ConfigError if the page cannot be written to `file`."""
    check_page(file, "--preview", COMMAND)


def write_preview(file: Path, sheets: Sequence[Sheet], run_name: str) -> None:
    """Write one self-contained HTML file."""
    environment = html_environment(Path(__file__).parent)
    shown = [one for sheet in sheets for one in sheet.shown]
    page = environment.get_template("preview.html").render(
        generator=Markup(page_mark(COMMAND)),
        sheets=sheets,
        run=run_name,
        short_text=SHORT_TEXT,
        has_outlines=any(one.marks for one in shown),
        has_pages=any(one.task == "ocr" for one in shown),
    )
    write_atomically(file, lambda sink: sink.write(page.encode()))


def make_sheet(prompts: Version, seed: int, doubt: str | None, bar: Any) -> Sheet:
    """The sheet of a split: SHOWN prompts, drawn with the seed, the same number of each task.

    Raises ArtifactError if an image has changed since it was prepared.
    """
    table = pl.DataFrame(prompts.table(columns=list(dict.fromkeys([*COLUMNS, *TRUTHS]))))
    chosen = choose(table.select("prompt_id", "task").rows(), seed)
    rows = _rows(prompts, chosen)
    counts = [
        f"{sum(row['task'] == task for row in rows):,} of {count:,} {task} prompts"
        for task, count in table["task"].value_counts().sort("task").iter_rows()
    ]
    shown = [_shown(row) for row in bar(rows, f"preview {prompts.variant}", len(rows))]
    left_out = prompts.manifest["counts"].get("left_out") or {}
    facts = [f"Rows that were left out: {n:,} ({why})." for why, n in left_out.items()]
    return Sheet(prompts.variant, doubt, counts, facts + facts_of(table), shown)


def choose(keys: Sequence[tuple[str, str]], seed: int) -> list[str]:
    """The prompt_ids to show among (prompt_id, task): those with the smallest hashes.

    The tasks take turns, so that a rare one is shown, too; the order of the rows does not matter.
    """
    drawn: dict[str, list[str]] = {}
    for prompt_id, task in sorted(keys, key=lambda one: _draw(seed, one[0])):
        drawn.setdefault(task, []).append(prompt_id)
    most = max(map(len, drawn.values()), default=0)
    turns = (
        drawn[task][turn]
        for turn in range(most)
        for task in sorted(drawn)
        if turn < len(drawn[task])
    )
    return [prompt_id for _, prompt_id in zip(range(SHOWN), turns, strict=False)]


def _draw(seed: int, prompt_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).digest()


def facts_of(table: pl.DataFrame) -> list[str]:
    """The images and the true boxes of all prompts in figures, one sentence each."""
    if not table.height:
        return []
    images = table.unique("image_sha256")
    smallest, largest = (
        images.sort(pl.col("width") * pl.col("height")).row(at, named=True) for at in (0, -1)
    )
    least_size, most_size = (f"{one['width']} x {one['height']}" for one in (smallest, largest))
    sizes_of = (
        f"all {most_size}"
        if images.select("width", "height").n_unique() == 1
        else (f"from {least_size} to {most_size}")
    )
    facts = [f"{images.height:,} different images, {sizes_of} pixels."]
    boxes, sizes = _all_boxes(table)
    if len(boxes):
        sides = boxes[:, 2:] - boxes[:, :2]
        shares = np.median(sides / sizes, axis=0)
        least, most = (float(np.quantile(sides.min(axis=1), q)) for q in (0, 0.5))
        facts.append(
            f"{len(boxes):,} true boxes: the median one has {shares[0]:.0%} of its image's width "
            f"and {shares[1]:.0%} of its height; its shorter side is {most:.0f} pixels, that of "
            f"the smallest {least:.0f}."
        )
    texts = table["gt_text"].drop_nulls()
    if len(texts):
        lengths = texts.str.len_chars().to_numpy()
        shortest, longest, empty = lengths.min(), lengths.max(), int((lengths == 0).sum())
        facts.append(
            f"{len(texts):,} true texts, from {shortest:,} to {longest:,} characters; "
            f"empty ones: {empty:,}."
        )
    return facts


def _all_boxes(table: pl.DataFrame) -> tuple[Any, Any]:
    """All true boxes `(n, 4)`, and the sizes of their images `(n, 2)`."""
    single = table.filter(pl.col("gt_box").is_not_null()).select("gt_box", "width", "height")
    several = (
        table.filter(pl.col("gt_box").is_null() & (pl.col("gt_boxes").list.len() > 0))
        .explode("gt_boxes")
        .select(pl.col("gt_boxes").alias("gt_box"), "width", "height")
    )
    both = pl.concat([single, several])
    flat = both["gt_box"].list.explode().to_numpy() if both.height else np.empty(0)
    return flat.reshape(-1, 4), both.select("width", "height").to_numpy()


def _rows(prompts: Version, chosen: Sequence[str]) -> list[Row]:
    """The rows of these prompts, in this order; only their images are kept in memory."""
    wanted = set(chosen)
    found = {
        row["prompt_id"]: row
        for batch in prompts.batches(SHOWN_COLUMNS)
        for row in pl.DataFrame(batch)
        .filter(pl.col("prompt_id").is_in(wanted))
        .iter_rows(named=True)
    }
    return [found[key] for key in chosen]


def _shown(row: Row) -> Shown:
    marks = truth_marks(row, label="")
    width, height = row["width"], row["height"]
    return Shown(
        place=row["place"],
        task=row["task"],
        question=row["prompt"],
        image=data_uri(prompt_image(row)),
        alt=_alt(row, marks),
        width=width,
        height=height,
        marks=Markup(overlay(marks, width, height) if marks else ""),
        truth=truth_in_words(row),
        notes=", ".join(row["image_notes"]),
        more=thumbnails(row),
        history=history_of(row),
    )


def _alt(row: Row, marks: Iterable[Mark]) -> str:
    drawn = describe(marks)
    return f"{row['width']} x {row['height']} pixels" + (f"; {drawn}" if drawn else "")
