"""Other images and blank ones in place of a prompt's own: all of several are replaced."""

from typing import Any

import pytest

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.images_shown import with_other_images
from perpo_pipeline.store.prompt_images import images_of, sizes_of
from perpo_pipeline.vlm.blank import with_blank_images
from perpo_pipeline.vlm.images import load_image

SIZE = {"width": 6, "height": 4}


def row_of(*names: str, box_image: int | None = None) -> dict[str, Any]:
    """A prompt with these images; the last one, or that at `box_image`, is that of its boxes."""
    place = len(names) - 1 if box_image is None else box_image
    others = [name for at, name in enumerate(names) if at != place]
    row: dict[str, Any] = {
        "prompt_id": "+".join(names),
        "image": {"bytes": None, "path": names[place]},
        "image_sha256": f"of {names[place]}",
        **SIZE,
    }
    if others:
        row["more_images"] = [{"bytes": None, "path": name} for name in others]
        row["more_image_facts"] = [{"sha256": f"of {n}", **SIZE, "notes": []} for n in others]
        row["box_image"] = place
    return row


def shown(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[image["path"] for image in images_of(row)] for row in rows]


def test_all_images_are_those_of_the_next_prompt_with_as_many() -> None:
    rows = [row_of("a", "b"), row_of("c"), row_of("d", "e"), row_of("f"), row_of("g", "e")]
    found = with_other_images(rows)
    # "e" is the image of the truth in the third and in the last prompt.
    assert shown(found) == [["d", "e"], ["f"], ["a", "b"], ["c"], ["a", "b"]]
    assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in rows]
    assert found[0]["image_prompt_id"] == "d+e"


def test_the_place_of_the_boxes_stays() -> None:
    found = with_other_images([row_of("a", "b"), row_of("c", "d", box_image=0)])
    assert shown(found) == [["c", "d"], ["a", "b"]]
    assert [(row["image"]["path"], row["box_image"]) for row in found] == [("d", 1), ("a", 0)]
    assert [row["image_sha256"] for row in found] == ["of d", "of a"]


def test_a_prompt_without_another_that_has_as_many_is_an_error() -> None:
    with pytest.raises(InputError, match="no other prompt has 2 images without the one of"):
        with_other_images([row_of("a", "b"), row_of("c"), row_of("b", "c")])


def test_blank_images_have_the_sizes_of_all() -> None:
    row = row_of("a", "b")
    row["more_image_facts"][0] |= {"width": 9, "height": 3}
    (blank,) = with_blank_images([row], (0.5, 0.0, 1.0))
    images = [load_image(image["bytes"], where="") for image in images_of(blank)]
    assert [image.size for image in images] == sizes_of(row) == [(9, 3), (6, 4)]
    assert [image.getcolors() for image in images] == [[(27, (127, 0, 255))], [(24, (127, 0, 255))]]
    assert blank["image_prompt_id"] == "blank"
    assert row["more_images"][0]["path"] == "a"
