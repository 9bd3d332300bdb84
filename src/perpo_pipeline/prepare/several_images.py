"""Several images and earlier turns in a dataset's row, checked.

{"images": ["a.jpg", "b.jpg"], "box_image": 1, "prompt": "... <image> ... <image> ...", ...}
{"history": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], ...}
"""

from typing import Any

from perpo_pipeline.json_files import Row, RowFault
from perpo_pipeline.prepare.arrow_files import ShardImage
from perpo_pipeline.prepare.fields import text_fault

ADDRESSES = ("http://", "https://", "data:", "file://")


def images_in(row: Row) -> list[Any]:
    """The images of a row, in order: paths, or images inside the row's file.

    They are under `image` or `images`. Raises `RowFault` for anything else.
    """
    several = row.get("images")
    if several is None:
        return [_checked("image", row["image"])]
    if row.get("image"):
        raise RowFault(
            "give either `image` or `images`; a column of one of these names that is something "
            "else: set columns: {image: null} or {images: null}"
        )
    if not isinstance(several, list | tuple) or not several:
        raise RowFault(f"`images` is no list of images: {_shown(several)}")
    return [_checked(f"images[{index}]", image) for index, image in enumerate(several)]


def box_image_in(row: Row, images: int) -> int | None:
    """The place of the image that boxes refer to, the last by default; None for one image.

    Raises `RowFault` for a place where no image is.
    """
    place = whole_number(row.get("box_image"))
    if place is None:
        return None if images == 1 else images - 1
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < images:
        raise RowFault(
            f"`box_image` is {place!r}; it is the place of an image, from 0: the row has {images}"
        )
    return None if images == 1 else place


def whole_number(value: Any) -> Any:
    """1 for 1.0, as tables hold a column of numbers with gaps; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def history_in(row: Row) -> tuple[tuple[str, str], ...]:
    """(role, text) of the turns before the prompt; raises `RowFault` for anything else.

    Which roles may follow each other is checked where the prompts are collected.
    """
    turns = row.get("history")
    if turns is None:
        return ()
    if not isinstance(turns, list | tuple):
        raise RowFault(f"`history` is no list of turns: {_shown(turns)}")
    return tuple(_turn(index, turn) for index, turn in enumerate(turns))


def _turn(index: int, turn: Any) -> tuple[str, str]:
    role, text = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(text, str):
        raise RowFault(
            f"`history[{index}]` is no turn with a `role` and a text as `content`: {_shown(turn)}"
        )
    for one in (role, text):
        if fault := text_fault(f"history[{index}]", one):
            raise RowFault(fault)
    return role, text


def _checked(name: str, image: Any) -> Any:
    if isinstance(image, ShardImage):
        return image
    if not isinstance(image, str) or not image:
        raise RowFault(f"`{name}` is no path: {_shown(image)}")
    if image.startswith(ADDRESSES):
        raise RowFault(f"`{name}` is no path: {image[:60]!r}; nothing is downloaded")
    if fault := text_fault(name, image):
        raise RowFault(fault)
    return image


def _shown(value: Any) -> str:
    return "it is one image" if isinstance(value, ShardImage) else repr(value)[:80]
