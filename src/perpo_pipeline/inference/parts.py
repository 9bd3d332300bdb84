"""The parts of an artifact of answers: which prompts still need one, how results are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.inference.journal import Journal
from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, Row
from perpo_pipeline.store.schemas import UNANSWERED
from perpo_pipeline.store.writing import Writer


@dataclass
class Parts:
    """The parts of one version: `prompts` in order, `size` prompts per part.

    The rows are of SAMPLES or PREDICTIONS. A prompt that failed has an ERRORS row; PREDICTIONS also
    keep a row for it, whose finish_reason is UNANSWERED. The journal keeps the backend's rows
    (SAMPLES) of parts that are not whole yet.
    """

    writer: Writer
    prompts: pa.Table
    size: int
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.writer.path, self.writer.recipe.fingerprint)

    def unwritten(self) -> dict[int, pa.Table]:
        """By part, the prompts without answers in it: all of a new part, or those that failed.

        The column PLACE_IN_PART numbers the prompts of a part from 0.
        """
        found = {}
        for index, start in enumerate(range(0, self.prompts.num_rows, self.size)):
            part = self.prompts.slice(start, self.size)
            part = part.append_column(PLACE_IN_PART, [list(range(part.num_rows))])
            if self.writer.has_part(index):
                done = self._answered(index, ["prompt_id", "finish_reason"])["prompt_id"]
                part = part.filter(pc.invert(pc.is_in(part["prompt_id"], pc.unique(done))))
            if part.num_rows:
                found[index] = part
            else:
                self.journal.drop(index)
        return found

    def unanswered(self, index: int, part: pa.Table) -> pa.Table:
        """The prompts of an unwritten part that the journal has no rows of either."""
        kept = pa.array({row["prompt_id"] for row in self.journal.read(index)}, pa.string())
        return part.filter(pc.invert(pc.is_in(part["prompt_id"], kept)))

    def with_kept(self, index: int, part: pa.Table, rows: Sequence[Row]) -> list[Row]:
        """The backend's rows of an unwritten part, in order: new ones, and those of the journal."""
        places = {prompt_id: place for place, prompt_id in enumerate(part["prompt_id"].to_pylist())}
        new = {row["prompt_id"] for row in rows}
        kept = [
            row
            for row in self.journal.read(index)
            if row["prompt_id"] in places and row["prompt_id"] not in new
        ]
        return sorted(
            [*kept, *rows], key=lambda row: (places[row["prompt_id"]], row.get("sample_id", 0))
        )

    def write(self, index: int, found: Sequence[Row]) -> list[Row]:
        """Write the rows of a part, together with its earlier answers; returns the ERRORS rows."""
        errors = [row for row in found if "reason" in row]
        rows = [row for row in found if "reason" not in row]
        is_retry = self.writer.has_part(index)
        if is_retry:
            part = self.prompts.slice(index * self.size, self.size)["prompt_id"].to_pylist()
            places = {prompt_id: place for place, prompt_id in enumerate(part)}
            rows += self._answered(index).to_pylist()
            rows.sort(key=lambda row: (places[row["prompt_id"]], row.get("sample_id", 0)))
        if errors or is_retry:
            self.writer.write_part(index, errors, table="errors")
        self.writer.write_part(index, rows)
        self.journal.drop(index)
        return errors

    def _answered(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part that is on disk, without those of prompts that failed."""
        rows = self.writer.read_part(index, columns)
        return rows.filter(pc.not_equal(rows["finish_reason"], UNANSWERED))
