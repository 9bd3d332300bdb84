"""The image shown with a question: its own, another prompt's, or a blank one (vlm/blank.py).

An answer that is right without the right image was guessed (the paper's Figure 1c).
"""

from typing import Any

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import box_place, in_order, num_images
from perpo_pipeline.store.schemas import PROMPTS

Row = dict[str, Any]


def with_other_images(rows: list[Row]) -> list[Row]:
    """Each prompt with the images of the next prompt, cyclically, whose images differ.

    All images of a prompt are replaced, so the other prompt has as many, and its image that boxes
    refer to stands in the same place. Raises `InputError` for a prompt without such another.
    """
    shown = []
    for i, row in enumerate(rows):
        others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
        other = next((r for r in others if _can_replace(r, row)), None)
        if other is None and num_images(row) > 1:
            raise InputError(
                f"no other prompt has other {num_images(row)} images with that of its boxes in the "
                "same place, so no other images can be shown",
                where=name_prompt(row),
                fix="leave other-image out of eval.conditions",
            )
        if other is None:
            raise InputError(
                "all prompts have the same image, so no other image can be shown",
                fix="leave other-image out of eval.conditions",
            )
        shown.append(
            {
                **row,
                **{name: other.get(name) for name in PROMPTS.role("image")},
                "image_prompt_id": other["prompt_id"],
            }
        )
    return shown


def _can_replace(other: Row, row: Row) -> bool:
    """Whether the images of `other` are as many, placed alike, and not one of them in its place."""
    if num_images(other) != num_images(row) or box_place(other) != box_place(row):
        return False
    pairs = zip(_hashes(other), _hashes(row), strict=True)
    return all(theirs != ours for theirs, ours in pairs)


def _hashes(row: Row) -> list[str]:
    """The sha256 of all images of a row, in their order."""
    others = [fact["sha256"] for fact in row.get("more_image_facts") or ()]
    return in_order(row, row["image_sha256"], others)


def refuse_trained_images(trained: set[str], asked: set[str], where: str) -> None:
    """Raise `ArtifactError` if images (sha256) of the evaluated prompts were trained on."""
    common = sorted(trained & asked)
    if common:
        raise ArtifactError(
            f"the adapter was trained on {len(common)} of the {len(asked)} images of these "
            f"prompts, for instance on the one with the sha256 {common[0]}: the result would "
            "measure memory, not skill",
            where=where,
            fix="evaluate on other images (`perpo prepare refer` drops train images that an "
            "evaluated split contains), or give --allow-train-images",
        )
