"""The parts of a samples artifact: which prompts still need rows, and how results are written."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.inference.part_sampler import Row
from perpo_pipeline.store.schemas import SAMPLES
from perpo_pipeline.store.writing import Writer


@dataclass(frozen=True)
class Parts:
    """The parts of one version: `prompts` in order, `size` prompts per part."""

    writer: Writer
    prompts: pa.Table
    size: int

    def pending(self) -> dict[int, pa.Table]:
        """By part, the prompts without rows: all of a new part, or those that failed before."""
        found = {}
        for index, start in enumerate(range(0, self.prompts.num_rows, self.size)):
            part = self.prompts.slice(start, self.size)
            if self.writer.has_part(index):
                done = self.writer.read_part(index, ["prompt_id"])["prompt_id"]
                part = part.filter(pc.invert(pc.is_in(part["prompt_id"], pc.unique(done))))
            if part.num_rows:
                found[index] = part
        return found

    def write(self, index: int, found: Sequence[Row]) -> list[Row]:
        """Write the rows of a part, together with its earlier rows; returns the ERRORS rows."""
        errors = [row for row in found if "reason" in row]
        rows = [row for row in found if "reason" not in row]
        is_retry = self.writer.has_part(index)
        if is_retry:
            part = self.prompts.slice(index * self.size, self.size)["prompt_id"].to_pylist()
            places = {prompt_id: place for place, prompt_id in enumerate(part)}
            rows += self.writer.read_part(index, SAMPLES.columns.names).to_pylist()
            rows.sort(key=lambda row: (places[row["prompt_id"]], row["sample_id"]))
        if errors or is_retry:
            self.writer.write_part(index, errors, table="errors")
        self.writer.write_part(index, rows)
        return errors
