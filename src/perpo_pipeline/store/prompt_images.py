"""The images of a prompt in their order, read from a PROMPTS row: the only reader of its columns.

`image` is the one that true boxes refer to; where a prompt has several, `more_images` are the
others, and `box_image` says where `image` stands among all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.store.list_columns import insert, lengths_of, list_column, starts_of

HASHES = ["image_sha256", "more_image_facts"]  # the columns of `all_hashes`
T = TypeVar("T")
Row = Mapping[str, Any]
Size = tuple[int, int]


def num_images(row: Row) -> int:
    """How many images a prompt has; a row without the columns of several has one."""
    return 1 + len(row.get("more_image_facts") or ())


def box_place(row: Row) -> int:
    """The place, from 0, of the image that boxes refer to among all of the prompt's."""
    return int(row.get("box_image") or 0)


def in_order(row: Row, image: T, others: Sequence[T]) -> list[T]:
    """Something of the box's image among the same of the others, in the order of the images."""
    place = box_place(row)
    return [*others[:place], image, *others[place:]]


def images_of(row: Row) -> list[dict[str, Any]]:
    """All images of a prompt, in order: bytes, path, sha256, and width and height in pixels.

    `bytes` is None for an image in a file of its own, `path` for one that is embedded. The row
    needs the columns of `PROMPTS.role("image")`; width, height and `notes` of the image that boxes
    refer to are left out where the row was read without them.
    """
    own = {"sha256": row["image_sha256"], "width": row.get("width"), "height": row.get("height")}
    image = {**row["image"], **own, "notes": row.get("image_notes")}
    facts = row.get("more_image_facts") or ()
    others = [
        {**one, **fact} for one, fact in zip(row.get("more_images") or (), facts, strict=True)
    ]
    return in_order(row, image, others)


def image_lists(prompts: pa.Table) -> pa.ListArray:
    """The images of each prompt as `images_of`: structs of bytes, path, sha256 and notes, `(P,)`.

    The table needs the columns of `PROMPTS.role("image")` and image_notes, and holds less than 2 GB
    of images.
    """
    column = {name: prompts[name].combine_chunks() for name in prompts.column_names}
    image, facts = column["image"], column["more_image_facts"].flatten()
    own = _image_structs(image, column["image_sha256"], column["image_notes"])
    others = column["more_images"]
    hashes, notes = (pc.struct_field(facts, name) for name in ("sha256", "notes"))
    more = _image_structs(others.flatten(), hashes, notes.cast(own.type.field("notes").type))
    places = pc.fill_null(column["box_image"], 0).to_numpy().astype(np.int64)
    lists = list_column(starts_of(lengths_of(others)), more)
    return insert(lists, own, np.arange(len(own)), places)


def _image_structs(images: pa.Array, hashes: pa.Array, notes: pa.Array) -> pa.StructArray:
    data, paths = (pc.struct_field(images, name) for name in ("bytes", "path"))
    return pa.StructArray.from_arrays(
        [data, paths, hashes, notes], names=["bytes", "path", "sha256", "notes"]
    )


def hashes_of(row: Row) -> list[str]:
    """The sha256 of all images of a prompt, in order; needs image_sha256, more_image_facts and,
    for the order, box_image."""
    others = [fact["sha256"] for fact in row.get("more_image_facts") or ()]
    return in_order(row, row["image_sha256"], others)


def all_hashes(prompts: pa.Table) -> set[str]:
    """The sha256 of all images of these prompts; the table has `HASHES`."""
    others = pc.struct_field(pc.list_flatten(prompts["more_image_facts"]), "sha256")
    return {*prompts["image_sha256"].to_pylist(), *others.to_pylist()}


def sizes_of(row: Row) -> list[Size]:
    """(width, height) in pixels of all images of a prompt, in order."""
    others = [(fact["width"], fact["height"]) for fact in row.get("more_image_facts") or ()]
    return in_order(row, (row["width"], row["height"]), others)


def most_images(prompts: pa.Table) -> int:
    """The most images that one of these prompts has; 1 for no prompts."""
    longest = pc.max(pc.list_value_length(prompts["more_image_facts"])).as_py()
    return 1 + (longest or 0)


def first_with_several(prompts: pa.Table) -> dict[str, Any] | None:
    """prompt_id and place of the first of these prompts that has several images, or None."""
    counts = pc.fill_null(pc.list_value_length(prompts["more_image_facts"]), 0)
    found = prompts.select(["prompt_id", "place"]).filter(pc.greater(counts, 0))
    return found.slice(0, 1).to_pylist()[0] if found.num_rows else None
