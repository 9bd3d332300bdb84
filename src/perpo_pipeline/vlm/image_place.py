"""A prompt as turns with its images between their texts, the same for every model.

`<image>` in a text of the user is the place of the next image, in every layout. Without any, the
images come first, in their order, in the first turn of the user.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from perpo_pipeline.errors import InputError
from perpo_pipeline.store.prompt_images import num_images

IMAGE_PLACE = "<image>"
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
SEVERAL_PLACES = (
    f"the prompt holds {IMAGE_PLACE} more than once; it is the place of the image, and the prompt "
    "has one image"
)
ROLES = (SYSTEM, USER, ASSISTANT)
# (role, text) of each turn before the last one of the user
History: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Turn:
    """One turn: who writes it, and its texts, one more than its images, which are between them."""

    role: str
    texts: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """How many images the turn has."""
        return len(self.texts) - 1


def has_several_places(prompt: str) -> bool:
    """Whether a prompt names more than one place for an image."""
    return prompt.count(IMAGE_PLACE) > 1


def places_fault(prompt: str, history: History, images: int) -> str | None:
    """What is wrong with the places of `images` images in a prompt, or None."""
    for role, text in history:
        if role != USER and IMAGE_PLACE in text:
            return image_in_turn_of(role)
    places = sum(text.count(IMAGE_PLACE) for text in (*(text for _, text in history), prompt))
    if places in (0, images):
        return None
    if images == 1:
        return SEVERAL_PLACES
    return (
        f"{IMAGE_PLACE} is the place of an image: it is there {_times(places)}, and the prompt has "
        f"{images} images"
    )


def image_in_turn_of(role: str) -> str:
    """The fault of an image in a turn of another than the user."""
    return f"{IMAGE_PLACE} is in a turn of the {role}; images are in turns of the user"


def history_fault(history: History) -> str | None:
    """What is wrong with the turns before the last one of the user, or None.

    They are a system turn, or none, and then turns of the user and the assistant in alternation.
    """
    turns = [role for role, _ in history]
    expected = [SYSTEM] * (turns[:1] == [SYSTEM])
    expected += [(USER, ASSISTANT)[i % 2] for i in range(len(turns) - len(expected))]
    if unknown := [role for role in turns if role not in ROLES]:
        return f"`history` has a turn of {unknown[0]!r}; the roles are {', '.join(ROLES)}"
    if turns != expected or turns[-1:] == [USER]:
        return (
            f"`history` has turns of {', '.join(turns)}; before `prompt`, a turn of the user, come "
            "a system turn or none, then user and assistant in alternation"
        )
    if empty := [role for role, text in history if not text.strip()]:
        return f"`history` has a turn of the {empty[0]} without text"
    return None


def turns_of(prompt: str, history: History = (), images: int = 1) -> tuple[Turn, ...]:
    """The turns of a prompt, the last one of the user included.

    White space between an image and a text goes where images come first, because the template
    separates them; so does white space alone beside an image. Raises InputError for other places
    than images.
    """
    if fault := places_fault(prompt, history, images):
        raise InputError(fault, where=repr(prompt[:80]), fix=f"give each image one {IMAGE_PLACE}")
    every = [*history, (USER, prompt)]
    split = [(role, tuple(text.split(IMAGE_PLACE))) for role, text in every]
    if all(len(texts) == 1 for _, texts in split):
        first = next(at for at, (role, _) in enumerate(split) if role == USER)
        split[first] = (USER, (*[""] * images, every[first][1]))
        return tuple(Turn(*one) for one in split)
    return tuple(Turn(role, _without_space(texts)) for role, texts in split)


def _without_space(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Texts around images: those of white space alone are empty, and so is what follows images that
    come first."""
    if len(texts) == 1:
        return texts
    found = [text if text.strip() else "" for text in texts]
    if not any(found[:-1]):
        found[-1] = found[-1].lstrip()
    return tuple(found)


def row_turns(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a row of the prompts, which needs the columns of `PROMPTS.role("asked")`."""
    return turns_of(row["prompt"], history_of(row), num_images(row))


def history_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The turns before the last one of the user of a row of the prompts."""
    turns: Iterable[Mapping[str, str]] = row.get("history") or ()
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
