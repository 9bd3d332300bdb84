"""Prompts that another run has prepared, or a part of them: their images are not opened again.

Parts are taken in an order that the seed draws, by the smallest hashes of (seed, prompt), as
`per_dataset` chooses rows. So parts at other places of the order have no prompt in common, and a
prompt keeps its neighbours if others are added.
"""

import hashlib
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

from perpo_pipeline.config.sources import PromptsSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.collect import Prepared, Request, RowsOnDemand
from perpo_pipeline.store.artifacts import Version, open_version


def read_prompts(source: PromptsSource, request: Request) -> Prepared:
    """Take the prompts of an artifact, in its order; raises `InputError` if it has too few.

    The facts name the artifact, and the seed if a part is taken.
    """
    version = open_version(source.path, "prompts")
    ids = version.table(columns=["prompt_id"])["prompt_id"].to_pylist()
    indices, is_part = list(range(len(ids))), (source.start, source.num_prompts) != (0, None)
    if is_part:
        indices = sorted(_choose(ids, source, request))
    rows = _Rows(version, request.split)
    facts = {**source.result_settings(), "prompts": version.identity}
    if is_part:
        facts["seed"] = request.seed
    return Prepared(RowsOnDemand(len(indices), lambda i: rows[indices[i]]), facts)


def _choose(ids: list[str], source: PromptsSource, request: Request) -> list[int]:
    """The indices of the part, in the order that the seed draws."""
    wanted = source.num_prompts or max(1, len(ids) - source.start)
    if source.start + wanted > len(ids):
        raise InputError(
            f"the prompts are {len(ids):,}, and start {source.start:,} with num_prompts "
            f"{wanted:,} needs {source.start + wanted:,}",
            where=str(source.path),
            fix=f"lower prepare.{request.split}.num_prompts, or prepare more prompts there",
        )
    order = sorted(range(len(ids)), key=lambda i: _hash(request.seed, ids[i]))
    return order[source.start : source.start + wanted]


def _hash(seed: int, prompt_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).digest()


class _Rows:
    """Rows of a prompts artifact by their index; one part is in memory at a time."""

    def __init__(self, version: Version, split: str) -> None:
        self.version, self.split = version, split
        lengths = (part.num_rows for part in version.batches(["prompt_id"]))
        self.starts = [0, *accumulate(lengths)]
        self.part = lru_cache(maxsize=1)(version.part)

    def __getitem__(self, index: int) -> Row:
        part = bisect_right(self.starts, index) - 1
        (row,) = self.part(part).slice(index - self.starts[part], 1).to_pylist()
        return {**row, "split": self.split}
