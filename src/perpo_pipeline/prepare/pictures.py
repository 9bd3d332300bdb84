"""Several single-image prompts become one with several images and the truth of one of them.

The other images distract: the question names the picture that is meant, "In picture 2: ...". The
idea is MIA-DPO's (arXiv:2410.17637), whose data are made from single-image prompts in this way.

The other images of a prompt are those of prompts near it (a block of `BLOCK` rows), so that images
inside files are read in order, and each once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.collect import Prepared, RowsOnDemand
from perpo_pipeline.prepare.entries import prompt_id
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import num_images
from perpo_pipeline.vlm.image_place import IMAGE_PLACE

BLOCK = 1024  # rows; at most twice as many are in memory
SETTING = "images_per_prompt"


def with_other_pictures(prepared: Prepared, images: int | None, seed: int) -> Prepared:
    """The same prompts with `images` images each, of which one is the prompt's own.

    Its place and the other images follow from the seed and the prompt's id. Raises InputError, when
    rows are read, for a prompt that has several images, earlier turns or a place of its own for its
    image, and where there are not enough different images. Without `images` nothing changes.
    """
    if images is None:
        return prepared
    facts = prepared.facts
    if "scene_seed" not in facts:  # the testbed's, which is of the run's seed
        facts = {**facts, "seed": seed}
    rows = put_together(prepared.rows, images, seed)
    return replace(prepared, rows=rows, facts=facts)


def put_together(rows: Sequence[Row], images: int, seed: int) -> Sequence[Row]:
    """The rows of `with_other_pictures`, made when they are used."""
    starts = _starts(len(rows))

    @lru_cache(maxsize=1)
    def block(start: int) -> _Block:
        end = next((one for one in starts if one > start), len(rows))
        return _Block([rows[index] for index in range(start, end)], images, seed)

    def build(index: int) -> Row:
        start = max(one for one in starts if one <= index)
        return block(start).row(index - start)

    return RowsOnDemand(len(rows), build)


def _starts(length: int) -> list[int]:
    """Where the blocks begin; a last one that is not full is part of the one before."""
    return [start for start in range(0, length, BLOCK) if start == 0 or length - start >= BLOCK]


class _Block:
    """Rows that give each other their images."""

    def __init__(self, rows: Sequence[Row], images: int, seed: int) -> None:
        self.rows, self.images, self.seed = rows, images, seed
        by_hash = {row["image_sha256"]: row for row in reversed(rows)}
        # In the order of their hashes, so that the order of the rows makes no difference.
        self.different = [by_hash[key] for key in sorted(by_hash)]
        if len(self.different) < images:
            raise InputError(
                f"{SETTING} is {images}, but {len(rows):,} prompts have only {len(by_hash)} "
                f"different images, from {name_prompt(rows[0])} on",
                fix=f"lower {SETTING}, or give more images",
            )

    def row(self, index: int) -> Row:
        """The prompt at this place with its images."""
        row = self.rows[index]
        if num_images(row) > 1 or row.get("history") or IMAGE_PLACE in row["prompt"]:
            raise InputError(
                f"{SETTING} takes prompts with one image, one turn and no {IMAGE_PLACE} in it",
                where=name_prompt(row),
                fix=f"remove {SETTING}, or these rows",
            )
        others = self._draw(row)
        place = self._number(row, "place", self.images)
        source_row = f"{row['source_row']}/{self.images}-pictures"
        return {
            **row,
            "prompt_id": prompt_id(row["dataset"], row["split"], source_row),
            "source_row": source_row,
            "prompt": f"In picture {place + 1}: {row['prompt']}",
            "more_images": [other["image"] for other in others],
            "more_image_facts": [_facts(other) for other in others],
            "box_image": place,
        }

    def _draw(self, row: Row) -> list[Row]:
        """Other images, all different, in the order in which they are drawn."""
        left = [one for one in self.different if one["image_sha256"] != row["image_sha256"]]
        drawn = []
        for number in range(self.images - 1):
            drawn.append(left.pop(self._number(row, str(number), len(left))))
        return drawn

    def _number(self, row: Row, name: str, below: int) -> int:
        """A number from 0 on that follows from the seed, the prompt and what it is for."""
        key = f"{self.seed} {row['prompt_id']} {name}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % below


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sha256": row["image_sha256"],
        "width": row["width"],
        "height": row["height"],
        "notes": row["image_notes"],
    }
