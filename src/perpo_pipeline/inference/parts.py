"""The parts of an artifact of answers: which prompts still need one, how results are written."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.inference.part_sampler import Row
from perpo_pipeline.store.schemas import UNANSWERED
from perpo_pipeline.store.writing import Writer


@dataclass(frozen=True)
class Parts:
    """The parts of one version: `prompts` in order, `size` prompts per part.

    The rows are of SAMPLES or PREDICTIONS. A prompt that failed has an ERRORS row; PREDICTIONS also
    keep a row for it, whose finish_reason is UNANSWERED.
    """

    writer: Writer
    prompts: pa.Table
    size: int

    def pending(self) -> dict[int, pa.Table]:
        """By part, the prompts without answers: all of a new part, or those that failed before."""
        found = {}
        for index, start in enumerate(range(0, self.prompts.num_rows, self.size)):
            part = self.prompts.slice(start, self.size)
            if self.writer.has_part(index):
                done = self._answered(index, ["prompt_id", "finish_reason"])["prompt_id"]
                part = part.filter(pc.invert(pc.is_in(part["prompt_id"], pc.unique(done))))
            if part.num_rows:
                found[index] = part
        return found

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
        return errors

    def _answered(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part that is on disk, without those of prompts that failed."""
        rows = self.writer.read_part(index, columns)
        return rows.filter(pc.not_equal(rows["finish_reason"], UNANSWERED))
