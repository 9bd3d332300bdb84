"""The image shown with a question: its own, another prompt's, or a blank one (vlm/blank.py).

An answer that is right without the right image was guessed (the paper's Figure 1c).
"""

from typing import Any

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import box_place, images_of, num_images

Row = dict[str, Any]


def with_other_images(rows: list[Row]) -> list[Row]:
    """Each prompt with the images of the next prompt, cyclically, whose images differ.

    All images of a prompt are replaced, in their order, by those of a prompt that has as many and
    does not show the image of the truth. Raises `InputError` for a prompt without such another.
    """
    shown = []
    for i, row in enumerate(rows):
        others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
        other = next((r for r in others if _can_replace(r, row)), None)
        if other is None and num_images(row) > 1:
            raise InputError(
                f"no other prompt has {num_images(row)} images without the one of the truth, so no "
                "other images can be shown",
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
                **_images_for(row, other),
                "image_prompt_id": other["prompt_id"],
            }
        )
    return shown


def _images_for(row: Row, other: Row) -> Row:
    """The columns about images with those of another prompt, as `row` places its own."""
    place, found = box_place(row), images_of(other)
    image = found.pop(place)
    shown = {"image": _stored(image), "image_sha256": image["sha256"]}
    if found:
        facts = ("sha256", "width", "height")
        shown["more_images"] = [_stored(one) for one in found]
        shown["more_image_facts"] = [{**{n: one[n] for n in facts}, "notes": []} for one in found]
    return shown


def _stored(image: Row) -> Row:
    return {"bytes": image["bytes"], "path": image["path"]}


def _can_replace(other: Row, row: Row) -> bool:
    """Whether the images of `other` are as many, and that of the row's truth is not among them."""
    if num_images(other) != num_images(row):
        return False
    return row["image_sha256"] not in [image["sha256"] for image in images_of(other)]


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
