"""How messages name a prompt: its place in its dataset's file, then its key."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from perpo_pipeline.errors import PerpoError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.prompt_images import images_of, num_images

_KEY = re.compile(r"(?<!\()\bprompt ([0-9a-f]{16})\b")  # not one that is named already


def full_place(file: Path | None, place: str) -> str:
    """A place inside a dataset's file together with the file's name: `train.jsonl:2`.

    `place` is "line 2", "record 2", ...; a file that `place` names itself adds nothing.
    """
    if file is None or file.name in place:
        return place
    line = place.removeprefix("line ")
    return f"{file.name}:{line}" if line != place else f"{file.name}, {place}"


def name_prompt(row: Mapping[str, Any]) -> str:
    """The prompt of a PROMPTS row, for a message: `train.jsonl:2 (prompt 0f3a...)`.

    Only its key if the row was read without the column `place`.
    """
    key = f"prompt {row['prompt_id']}"
    return f"{row['place']} ({key})" if row.get("place") else key


def find_prompt(prompts: Version, prompt_id: str) -> str:
    """As `name_prompt` for a key; reads the parts one by one, for use in errors."""
    for part in prompts.batches(["prompt_id", "place"]):
        for row in part.filter(pc.equal(part["prompt_id"], prompt_id)).to_pylist():
            return name_prompt(row)
    return f"prompt {prompt_id}"


@contextmanager
def prompts_named(prompts: Version) -> Iterator[None]:
    """Name the prompts in an error that was raised where only their keys are known.

    `prompt 0f3a...` becomes what `name_prompt` says.
    """
    try:
        yield
    except PerpoError as error:
        what, where, fix = (_named(text, prompts) for text in error.parts())
        PerpoError.__init__(error, what or "", where=where, fix=fix)
        raise


def _named(text: str | None, prompts: Version) -> str | None:
    return text and _KEY.sub(lambda found: find_prompt(prompts, found[1]), text)


def name_image(row: Mapping[str, Any], at: int | None = None) -> str:
    """The image of a PROMPTS row, for a message: its path if it is a file of its own.

    Of several, the one at the place `at` (from 0); without `at`, all of them.
    """
    if num_images(row) == 1:
        path = (row.get("image") or {}).get("path")
        return "its image" if path is None else f"image {path}"
    if at is None:
        return f"its {num_images(row)} images"
    path = images_of(row)[at]["path"]
    return f"its image {at + 1}" if path is None else f"image {at + 1}, {path}"
