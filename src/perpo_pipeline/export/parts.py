"""A run's lists or prompts, part by part, as what a target writes of them.

Memory holds one part of the lists, the keys of all prompts, and the other columns of a few parts of
prompts. What is written at once is cut so that it holds 64 MB of images or less, or one list.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.export.images import ExportedImages
from perpo_pipeline.export.pairs import PAIRS, Pairs, best_of_lists
from perpo_pipeline.export.targets import ABOUT, TRUTHS, Needs, Part
from perpo_pipeline.store.artifacts import Version, read_part
from perpo_pipeline.store.list_prompts import prompts_with_lists
from perpo_pipeline.store.prompt_images import images_of
from perpo_pipeline.store.prompt_lookup import PromptLookup
from perpo_pipeline.store.schemas import PROMPTS

ROWS_AT_ONCE, IMAGE_BYTES_AT_ONCE = 16_384, 64_000_000
ASKED = tuple(dict.fromkeys([*PROMPTS.role("asked"), *PROMPTS.role("image")]))
IMAGES = ("image", "more_images")  # of 1,024 lists more than an Arrow array of bytes holds
READ_IN_PYTHON = ("prompt_id", "place", "image_notes", *ASKED)
PROMPT_COLUMNS = tuple(dict.fromkeys([*ABOUT, *READ_IN_PYTHON]))
LIST_COLUMNS = (
    *("prompt_id", "completions", "finish_reasons", "rewards", "parse_ok", "counts", "margin"),
)

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Which rows are exported: how pairs are formed, and their least difference of rewards."""

    pairs: str = "best-worst"
    min_margin: float = 0.0


@dataclass(frozen=True)
class Reader:
    """Reads the parts of an export; `images` and `system_prompt` are those of `Part`."""

    needs: Needs
    chosen: Chosen
    images: ExportedImages
    system_prompt: str | None

    def prompts(self, prompts: Version) -> Iterator[Part]:
        """The prompts of a split."""
        columns = [*PROMPT_COLUMNS, "width", "height", *TRUTHS, "extra"]
        for batch in prompts.batches(columns):
            rows, each = _python_rows(pl.DataFrame(batch)), np.arange(batch.num_rows)
            for start, end in self._cuts(rows, np.ones(len(rows), np.int64)):
                part = batch.slice(start, end - start)
                yield self._part(part, rows[start:end], each[: end - start], {}, {})

    def lists(self, preferences: Version) -> Iterator[Part]:
        """The lists of a split, with their prompts; raises `ArtifactError` if one is missing."""
        truths = TRUTHS if self.needs == "lists" else ()
        lookup = _Prompts(preferences, [*PROMPT_COLUMNS, *truths])
        for path in preferences.parts():
            table = read_part(path, LIST_COLUMNS, preferences.artifact)
            if table.num_rows:
                yield from self._of_table(_Lists(path, table), lookup.of_lists(table))

    def _of_table(self, lists: "_Lists", prompts: pl.DataFrame) -> Iterator[Part]:
        rows, whole = _python_rows(prompts), _as_arrow(prompts.drop(IMAGES))
        picks = self._pick(lists)
        per_list = np.bincount(picks["of_list"], minlength=len(rows))
        ends = np.concatenate([[0], np.cumsum(per_list)])
        for start, end in self._cuts(rows, per_list):
            cut = slice(ends[start], ends[end])
            names = [name for name in picks if name != "of_list"]
            places = {name: pa.array(picks[name][cut]) for name in names}
            yield self._part(
                whole.slice(start, end - start),
                rows[start:end],
                picks["of_list"][cut] - start,
                {name: lists.texts.take(at) for name, at in places.items()},
                {name: pa.array(lists.rewards).take(at) for name, at in places.items()},
                lists.table.slice(start, end - start) if self.needs == "lists" else None,
                int(lists.cut[picks["chosen"][cut]].sum()) if "chosen" in picks else 0,
            )

    def _pick(self, lists: "_Lists") -> dict[str, Places]:
        """`of_list`, and the places of what is exported of each list."""
        every = np.arange(len(lists.offsets) - 1)
        if self.needs == "lists":
            return {"of_list": every}
        if self.needs == "best":
            best = best_of_lists(lists.rewards, lists.offsets, lists.token_ids)
            return {"of_list": every, "chosen": best}
        form: Callable[..., Pairs] = PAIRS[self.chosen.pairs]
        found = form(lists.rewards, lists.offsets, lists.token_ids, self.chosen.min_margin)
        return {"of_list": found.of_list, "chosen": found.chosen, "rejected": found.rejected}

    def _part(
        self,
        prompts: pa.Table,
        rows: Sequence[Any],
        of_prompt: Places,
        answers: dict[str, pa.Array],
        rewards: dict[str, pa.Array],
        lists: pa.Table | None = None,
        cut: int = 0,
    ) -> Part:
        # A prompt without a row has no image to write.
        used = np.unique(of_prompt)
        if len(used) < len(rows):
            prompts, rows = prompts.take(pa.array(used)), [rows[i] for i in used]
            of_prompt = np.searchsorted(used, of_prompt)
        return Part(
            prompts, rows, of_prompt, self.images, self.system_prompt, answers, rewards, lists, cut
        )

    def _cuts(self, rows: Sequence[Any], counts: Places) -> Iterator[tuple[int, int]]:
        """From and to of the prompts that are written at once; `counts` are their rows, `(P,)`."""
        weights = counts * np.array([self._image_bytes(row) for row in rows], dtype=np.int64)
        start, held, size = 0, 0, 0
        for at, (count, weight) in enumerate(zip(counts.tolist(), weights.tolist(), strict=True)):
            over = held + count > ROWS_AT_ONCE or size + weight > IMAGE_BYTES_AT_ONCE
            if at > start and over:
                yield start, at
                start, held, size = at, 0, 0
            held, size = held + count, size + weight
        yield start, len(rows)

    def _image_bytes(self, row: Any) -> int:
        """The bytes of a prompt's images that a table would hold."""
        by_path = not self.images.embed
        if by_path and row["image"]["bytes"] is None and not row.get("more_images"):
            return 0
        return sum(_size(image, by_path) for image in images_of(row))


def _size(image: Any, by_path: bool) -> int:
    if image["bytes"] is not None:
        return len(image["bytes"])
    if by_path:
        return 0
    return os.path.getsize(image["path"]) if os.path.isfile(image["path"]) else 0


@dataclass(frozen=True)
class _Lists:
    """The lists of one part; texts and token ids of all lists one after the other."""

    path: Path
    table: pa.Table

    @cached_property
    def _completions(self) -> pa.Array:
        return self.table["completions"].combine_chunks()

    @cached_property
    def texts(self) -> pa.Array:
        return self._completions.flatten()

    @cached_property
    def offsets(self) -> Places:
        found: Places = self._completions.offsets.to_numpy().astype(np.int64)
        return found - int(found[0])

    @cached_property
    def rewards(self) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64]
        found = self.table["rewards"].combine_chunks().flatten().to_numpy()
        return found

    @cached_property
    def cut(self) -> npt.NDArray[np.bool_]:
        """Which completions max_new_tokens cut."""
        reasons = self.table["finish_reasons"].combine_chunks().flatten()
        found: npt.NDArray[np.bool_] = np.array(reasons.to_pylist()) == "length"
        return found

    def token_ids(self, places: Places) -> list[str]:
        """Those of some completions, with commas between them; they are read only where needed."""
        texts = pl.Series(self._ids.take(pa.array(places))).cast(pl.List(pl.String))
        return list(texts.list.join(",").to_list())

    @cached_property
    def _ids(self) -> pa.Array:
        column = read_part(self.path, ["completion_token_ids"], "preferences")
        return column["completion_token_ids"].combine_chunks().flatten()


class _Prompts:
    """The prompts of lists, from the artifact that each list was sampled for."""

    def __init__(self, preferences: Version, columns: Sequence[str]) -> None:
        self.found = [
            (PromptLookup(prompts, columns, parts_held=2), pl.Series(list(ids), dtype=pl.String))
            for prompts, ids in prompts_with_lists(preferences)
        ]
        self.where = str(preferences.path)

    def of_lists(self, lists: pa.Table) -> pl.DataFrame:
        """The prompts of these lists, in their order; raises `ArtifactError` if one is missing."""
        ids = pl.DataFrame(lists.select(["prompt_id"])).with_row_index("list")
        frames = [
            lookup.join(ids.filter(pl.col("prompt_id").is_in(known.implode())))
            for lookup, known in self.found
        ]
        found = pl.concat(frames).filter(pl.col("task").is_not_null()).sort("list")
        missing = ids.join(found, on="prompt_id", how="anti")
        if missing.height:
            raise ArtifactError(
                f"prompt {missing['prompt_id'][0]} is in the preferences but not in the prompts",
                where=self.where,
                fix="run `perpo prepare`, then the stages after it, for this split",
            )
        return found.drop("list")


def _python_rows(prompts: pl.DataFrame) -> list[Any]:
    """What says what is asked, as dictionaries; columns that are empty in all rows are left out."""
    columns = [name for name in READ_IN_PYTHON if not _is_empty(prompts[name])]
    return prompts.select(columns).to_dicts()


def _is_empty(column: pl.Series) -> bool:
    if column.null_count() == len(column):
        return True
    return bool(column.dtype == pl.List and (column.list.len().fill_null(0) == 0).all())


def _as_arrow(prompts: pl.DataFrame) -> pa.Table:
    schema = pa.schema([PROMPTS.columns.field(name) for name in prompts.columns])
    return prompts.to_arrow().cast(schema)
