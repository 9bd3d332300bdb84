"""Whether prompts of two splits meet that must not: those that choose, and those that are reported.

Two prompts meet if they show the same image. Where `eval.allow_train_images` allows equal images,
they meet if all of their images, the question and the turns before it are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import hashes_of
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import history_of

Row = Mapping[str, Any]


def rows_to_compare(prompts: Version) -> list[dict[str, Any]]:
    """What decides whether prompts meet, and what names them; a row per prompt, in their order."""
    columns = PROMPTS.pick("prompt_id", "place", "image_sha256", role="asked")
    return list(prompts.table(columns=columns).to_pylist())


def refuse_meeting(
    seen: Sequence[Row], asked: Sequence[Row], splits: tuple[str, str], use: str, *, allowed: bool
) -> None:
    """Raise `InputError` where a prompt of `asked` meets one of `seen` (`rows_to_compare`).

    `splits` are the names of the two; `use` ends the words "a prompt ..." about the first one.
    `allowed` is `eval.allow_train_images`.
    """
    keys = {key for row in seen for key in _keys(row, allowed)}
    both = [row for row in asked if not keys.isdisjoint(_keys(row, allowed))]
    if not both:
        return
    leave_out = "leave these prompts out of one of the two"
    more = "eval.allow_train_images: true allows equal images with other questions"
    raise InputError(
        f"{len(both):,} prompts of '{splits[1]}' have the "
        f"{'image and question' if allowed else 'image'} of a prompt {use}, first "
        f"{name_prompt(both[0])}",
        where=" and ".join(f"prepare.{split}" for split in splits),
        fix=leave_out if allowed else f"{leave_out}; {more}",
    )


def _keys(row: Row, by_question: bool) -> set[Any]:
    """Each image of a prompt, also of several; or (`by_question`) all of them and its turns."""
    images = hashes_of(row)
    if not by_question:
        return set(images)
    return {(frozenset(images), row["prompt"], history_of(row))}
