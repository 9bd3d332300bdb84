"""A run's lists or prompts, part by part, as what a target writes of them.

Memory holds one part of the lists, the keys of all prompts, and the other columns of a few parts of
prompts. What is written at once is cut so that it holds 64 MB of images or less, or one list.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.export.images import ExportedImages
from perpo_pipeline.export.pairs import PAIRS, Pairs, best_of_lists
from perpo_pipeline.export.targets import ABOUT, TRUTHS, Needs, Part
from perpo_pipeline.store.artifacts import Version, read_part
from perpo_pipeline.store.list_columns import lengths_of, list_column, starts_of
from perpo_pipeline.store.list_prompts import prompts_with_lists
from perpo_pipeline.store.prompt_lookup import PromptLookup
from perpo_pipeline.store.schemas import PROMPTS

ROWS_AT_ONCE, IMAGE_BYTES_AT_ONCE = 16_384, 64_000_000
ASKED = tuple(dict.fromkeys([*PROMPTS.role("asked"), *PROMPTS.role("image")]))
PROMPT_COLUMNS = tuple(dict.fromkeys([*ABOUT, "place", "image_notes", *ASKED]))
ANSWER_COLUMNS = ("prompt_id", "completions", "finish_reasons", "rewards")
LIST_COLUMNS = (*ANSWER_COLUMNS, "parse_ok", "counts", "margin")

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
            each = np.arange(batch.num_rows)
            for start, end in self._cuts(batch, np.ones_like(each)):
                yield self._part(batch.slice(start, end - start), each[: end - start], {}, {})

    def lists(self, preferences: Version) -> Iterator[Part]:
        """The lists of a split, with their prompts; raises `ArtifactError` if one is missing."""
        truths = TRUTHS if self.needs == "lists" else ()
        columns = LIST_COLUMNS if self.needs == "lists" else ANSWER_COLUMNS
        lookup = _Prompts(preferences, [*PROMPT_COLUMNS, *truths])
        for path in preferences.parts():
            table = read_part(path, columns, preferences.artifact)
            if table.num_rows:
                yield from self._of_table(_Lists(path, table), lookup.of_lists(table))

    def _of_table(self, lists: "_Lists", prompts: pa.Table) -> Iterator[Part]:
        picks = self._pick(lists)
        per_list = np.bincount(picks["of_list"], minlength=len(prompts))
        ends = np.concatenate([[0], np.cumsum(per_list)])
        for start, end in self._cuts(prompts, per_list):
            cut = slice(ends[start], ends[end])
            names = [name for name in picks if name != "of_list"]
            places = {name: pa.array(picks[name][cut]) for name in names}
            yield self._part(
                _as_stored(prompts.slice(start, end - start)),
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
        of_prompt: Places,
        answers: dict[str, pa.Array],
        rewards: dict[str, pa.Array],
        lists: pa.Table | None = None,
        cut: int = 0,
    ) -> Part:
        # A prompt without a row has no image to write.
        used = np.unique(of_prompt)
        if len(used) < len(prompts):
            prompts, of_prompt = prompts.take(pa.array(used)), np.searchsorted(used, of_prompt)
        return Part(
            prompts, of_prompt, self.images, self.system_prompt, answers, rewards, lists, cut
        )

    def _cuts(self, prompts: pa.Table, counts: Places) -> Iterator[tuple[int, int]]:
        """From and to of the prompts that are written at once; `counts` are their rows, `(P,)`."""
        weights = counts * self._image_bytes(prompts)
        start, held, size = 0, 0, 0
        for at, (count, weight) in enumerate(zip(counts.tolist(), weights.tolist(), strict=True)):
            over = held + count > ROWS_AT_ONCE or size + weight > IMAGE_BYTES_AT_ONCE
            if at > start and over:
                yield start, at
                start, held, size = at, 0, 0
            held, size = held + count, size + weight
        yield start, len(prompts)

    def _image_bytes(self, prompts: pa.Table) -> Places:
        """The bytes of each prompt's images that a table would hold, `(P,)`."""
        found, others = self._sizes(prompts["image"]), prompts["more_images"]
        of_prompt = np.repeat(np.arange(len(prompts)), lengths_of(others))
        if len(of_prompt):
            np.add.at(found, of_prompt, self._sizes(pc.list_flatten(others)))
        return found

    def _sizes(self, images: pa.ChunkedArray) -> Places:
        """The bytes of some images that a table would hold, `(I,)`."""
        sizes = pc.binary_length(pc.struct_field(images, "bytes"))
        found: Places = pc.fill_null(sizes, 0).to_numpy().astype(np.int64)
        if self.images.embed:
            paths = pc.struct_field(images, "path").to_pylist()
            for at in pc.indices_nonzero(pc.is_null(sizes)).to_pylist():
                found[at] = os.path.getsize(paths[at]) if os.path.isfile(paths[at]) else 0
        return found


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
        found: npt.NDArray[np.bool_]
        found = pc.equal(reasons, "length").to_numpy(zero_copy_only=False)
        return found

    def token_ids(self, places: Places) -> list[str]:
        """Those of some completions, with commas between them; they are read only where needed."""
        ids = self._ids.take(pa.array(places))
        texts = list_column(starts_of(lengths_of(ids)), ids.flatten().cast(pa.string()))
        return list(pc.binary_join(texts, ",").to_pylist())

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

    def of_lists(self, lists: pa.Table) -> pa.Table:
        """The prompts of these lists, in their order; raises `ArtifactError` if one is missing."""
        ids = pl.DataFrame(lists.select(["prompt_id"])).with_row_index("list")
        if len(self.found) == 1:
            found = self.found[0][0].join(ids)
        else:
            own = [
                ids.filter(pl.col("prompt_id").is_in(known.implode())) for _, known in self.found
            ]
            joined = [lookup.join(some) for (lookup, _), some in zip(self.found, own, strict=True)]
            found = pl.concat(joined).sort("list")
        if len(found) < len(ids) or found["task"].null_count():
            missing = ids.join(found.drop_nulls("task"), on="prompt_id", how="anti")
            raise ArtifactError(
                f"prompt {missing['prompt_id'][0]} is in the preferences but not in the prompts",
                where=self.where,
                fix="run `perpo prepare`, then the stages after it, for this split",
            )
        return found.drop("list").to_arrow()


def _as_stored(prompts: pa.Table) -> pa.Table:
    """Prompts from polars, whose arrays may exceed 2 GB, with the types of the artifact."""
    return prompts.cast(pa.schema([PROMPTS.columns.field(name) for name in prompts.column_names]))
