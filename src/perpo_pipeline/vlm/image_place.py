"""Where the image stands in a prompt: `<image>` in its text is the place, in every layout."""

from perpo_pipeline.errors import InputError

IMAGE_PLACE = "<image>"
SEVERAL_PLACES = (
    f"the prompt holds {IMAGE_PLACE} more than once; it is the place of the image, and a prompt "
    "has one image"
)


def has_several_places(prompt: str) -> bool:
    """Whether a prompt names more than one place for its image."""
    return prompt.count(IMAGE_PLACE) > 1


def split_at_image(prompt: str) -> tuple[str, str]:
    """The texts before and after the place of the image, which is the first place by default.

    `<image>` in the prompt is the place of the image. White space between it and the text goes
    where the image comes first, because the template separates them. Raises InputError for more
    than one `<image>`.
    """
    if has_several_places(prompt):
        raise InputError(SEVERAL_PLACES, where=repr(prompt[:80]), fix="keep one of them")
    before, place, after = prompt.partition(IMAGE_PLACE)
    if not place:
        return "", prompt
    if not before.strip():
        return "", after.lstrip()
    return before, after if after.strip() else ""
