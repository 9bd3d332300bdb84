"""Look up rows of a prompts artifact by key, in bounded memory: parts are read when needed.

Samples are in the order of their prompts, so a few parts in memory suffice. Any other order works
too, with more reading.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version

PARTS_HELD = 8


class PromptLookup:
    """Columns of prompts by prompt_id; several threads may use it at once.

    Holds the key of every prompt, and the other columns of at most `parts_held` parts.
    Raises `ArtifactError` if a prompt_id occurs twice.
    """

    def __init__(
        self, prompts: Version, columns: Sequence[str], parts_held: int = PARTS_HELD
    ) -> None:
        self.prompts, self.parts_held = prompts, parts_held
        self.columns = ["prompt_id", *(name for name in columns if name != "prompt_id")]
        self.paths = prompts.parts()
        keys = [
            pl.DataFrame(part).with_columns(part=pl.lit(index, pl.Int32))
            for index, part in enumerate(prompts.batches(["prompt_id"]))
        ]
        empty = pl.DataFrame(schema={"prompt_id": pl.String, "part": pl.Int32})
        self.places = pl.concat([empty, *keys], rechunk=True)
        check_unique(self.places, ["prompt_id"], str(prompts.path), prompts)
        self._held: OrderedDict[int, pl.DataFrame] = OrderedDict()
        self._lock = threading.Lock()

    def join(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`rows` with the columns of their prompts, in order; null for an unknown prompt_id."""
        places = self.places.join(rows, on="prompt_id", how="semi")
        found = [self._part(index) for index in places["part"].unique().sort()]
        known = pl.concat(found) if found else self._empty()
        return rows.join(known, on="prompt_id", how="left", maintain_order="left")

    def _part(self, index: int) -> pl.DataFrame:
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
            else:
                self._held[index] = pl.DataFrame(self.prompts.part(index, self.columns))
                while len(self._held) > self.parts_held:
                    self._held.popitem(last=False)
            return self._held[index]

    def _empty(self) -> pl.DataFrame:
        schema = self.prompts.schema().columns
        return pl.DataFrame(pa.schema([schema.field(c) for c in self.columns]).empty_table())


def check_unique(rows: pl.DataFrame, keys: Sequence[str], where: str, made: Version) -> None:
    """Raise `ArtifactError` if two rows have the same `keys`; `made` is what must be made anew."""
    if not rows.select(keys).is_duplicated().any():
        return
    twice = rows.select(keys).filter(rows.select(keys).is_duplicated())
    raise ArtifactError(
        f"{twice.height} rows share their key ({', '.join(keys)}) with another row; the first "
        f"such key is {' '.join(map(str, twice.row(0)))}",
        where=where,
        fix=f"make the keys unique, and run: {made.remake()}",
    )
