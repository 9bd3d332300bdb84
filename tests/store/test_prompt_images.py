"""The images of a prompt in their order, whichever of them boxes refer to."""

from typing import Any

import pyarrow as pa
import pytest

from perpo_pipeline.store.places import name_image
from perpo_pipeline.store.prompt_images import (
    HASHES,
    all_hashes,
    box_place,
    first_with_several,
    hashes_of,
    images_of,
    most_images,
    num_images,
    sizes_of,
)
from perpo_pipeline.store.schemas import PROMPTS


def row_of(*names: str, box_image: int | None = None) -> dict[str, Any]:
    """A row with these images; the name's length is the image's width."""
    facts = [{"sha256": f"of {n}", "width": len(n), "height": 5, "notes": []} for n in names]
    files = [{"bytes": None, "path": name} for name in names]
    own, rest = box_image or 0, [i for i in range(len(names)) if i != (box_image or 0)]
    row = dict.fromkeys(PROMPTS.columns.names)
    row |= {"prompt_id": names[0], "place": f"place of {names[0]}", "image": files[own]}
    row |= {"image_sha256": facts[own]["sha256"], "width": facts[own]["width"], "height": 5}
    if rest:
        more = {"more_images": [files[i] for i in rest], "box_image": own}
        row |= {**more, "more_image_facts": [facts[i] for i in rest]}
    return row


@pytest.mark.parametrize("box_image", [0, 1, 2])
def test_they_are_in_the_prompts_order(box_image: int) -> None:
    row = row_of("a", "bb", "ccc", box_image=box_image)
    assert [image["path"] for image in images_of(row)] == ["a", "bb", "ccc"]
    assert [image["sha256"] for image in images_of(row)] == ["of a", "of bb", "of ccc"]
    assert sizes_of(row) == [(1, 5), (2, 5), (3, 5)]
    assert (num_images(row), box_place(row)) == (3, box_image)
    assert name_image(row, box_image).startswith(f"image {box_image + 1}, ")
    assert name_image(row) == "its 3 images"


def test_a_single_image_needs_no_other_column() -> None:
    columns = ("image", "image_sha256", "width", "height")
    row = {name: value for name, value in row_of("a").items() if name in columns}
    assert [image["path"] for image in images_of(row)] == ["a"]
    assert (num_images(row), box_place(row), sizes_of(row)) == (1, 0, [(1, 5)])


def test_the_most_images_of_a_table_and_its_first_prompt_with_several() -> None:
    def table(*rows: dict[str, Any]) -> pa.Table:
        names = ["prompt_id", "place", "image_sha256", "more_image_facts"]
        schema = pa.schema([PROMPTS.columns.field(name) for name in names])
        return pa.Table.from_pylist([{n: row[n] for n in names} for row in rows], schema)

    one, two, three = row_of("a"), row_of("bb", "c", box_image=1), row_of("d", "e", "f")
    assert most_images(table()) == most_images(table(one)) == 1
    assert most_images(table(one, two, three)) == 3
    assert first_with_several(table(one)) is None
    found = first_with_several(table(one, two, three))
    assert found == {"prompt_id": "bb", "place": "place of bb"}


def test_the_hashes_of_all_images() -> None:
    schema = pa.schema([PROMPTS.columns.field(name) for name in HASHES])
    rows = [row_of("a"), row_of("bb", "c", "a", box_image=1)]
    assert hashes_of(rows[1]) == ["of bb", "of c", "of a"]
    table = pa.Table.from_pylist([{n: row[n] for n in HASHES} for row in rows], schema)
    assert all_hashes(table) == {"of a", "of bb", "of c"}
    assert all_hashes(table.slice(0, 1)) == {"of a"} and all_hashes(table.slice(0, 0)) == set()
