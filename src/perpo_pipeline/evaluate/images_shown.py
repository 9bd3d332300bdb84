"""The image shown with a question: its own, another prompt's, or a blank one (vlm/blank.py).

An answer that is right without the right image was guessed (the paper's Figure 1c).
"""

from typing import Any

from perpo_pipeline.errors import ArtifactError, InputError

Row = dict[str, Any]


def with_other_images(rows: list[Row]) -> list[Row]:
    """Each prompt with the image of the next prompt, cyclically, whose image differs.

    Raises `InputError` if all prompts have the same image.
    """
    shown = []
    for i, row in enumerate(rows):
        others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
        other = next((r for r in others if r["image_sha256"] != row["image_sha256"]), None)
        if other is None:
            raise InputError(
                "all prompts have the same image, so no other image can be shown",
                fix="leave other-image out of eval.conditions",
            )
        shown.append(
            {
                **row,
                "image": other["image"],
                "image_sha256": other["image_sha256"],
                "image_prompt_id": other["prompt_id"],
            }
        )
    return shown


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
