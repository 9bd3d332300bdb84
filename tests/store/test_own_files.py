"""What a user names for a page or a picture: only what perpo wrote there itself is replaced."""

import os
from pathlib import Path

import pytest
from PIL import Image

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.store.own_files import (
    PICTURES,
    check_page,
    check_picture,
    check_picture_size,
    page_mark,
    picture_mark,
)


def save(file: Path, exif: Image.Exif | None = None) -> Path:
    image = Image.new("RGB", (8, 8), "red")
    image.save(file, format=PICTURES[file.suffix], **({} if exif is None else {"exif": exif}))
    return file


@pytest.mark.parametrize("suffix", PICTURES)
def test_a_picture_is_replaced_only_where_the_same_command_drew_it(
    tmp_path: Path, suffix: str
) -> None:
    check_picture(save(tmp_path / f"own{suffix}", picture_mark("ask")), "--out", "ask", [])
    check_picture(tmp_path / f"new{suffix}", "--out", "ask", [])
    for exif in (None, picture_mark("browse")):
        other = save(tmp_path / f"other{suffix}", exif)
        with pytest.raises(ConfigError, match="was not written by perpo ask, and would be lost"):
            check_picture(other, "--out", "ask", [])


@pytest.mark.parametrize(
    ("suffix", "most"), [(".png", None), (".jpg", 65_500), (".jpeg", 65_500), (".webp", 16_383)]
)
def test_a_picture_that_its_format_cannot_hold_is_refused(
    tmp_path: Path, suffix: str, most: int | None
) -> None:
    """The limits are those of Pillow's encoders."""
    file = tmp_path / f"seen{suffix}"
    check_picture_size(file, "--out", (40, most or 70_000))
    if most is None:
        return
    Image.new("L", (1, most)).convert("RGB").save(file, PICTURES[suffix])
    with pytest.raises((OSError, ValueError)):
        Image.new("RGB", (1, most + 1)).save(file, PICTURES[suffix])
    with pytest.raises(ConfigError, match=f"{suffix} file has at most {most} in each") as caught:
        check_picture_size(file, "--out", (most + 1, 40))
    assert caught.value.fix == "end it in .png"


def test_what_is_no_picture_is_not_replaced_either(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("perpo ask: my notes")
    with pytest.raises(ConfigError, match="would be lost"):
        check_picture(file, "--out", "ask", [])
    with pytest.raises(ConfigError, match="no file name of a picture"):
        check_picture(tmp_path / "seen.txt", "--out", "ask", [])


def test_an_image_that_is_read_is_never_replaced_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = save(Path("own.png"), picture_mark("ask"))  # which could be replaced if it were not read
    Path("soft.png").symlink_to(own)
    os.link(own, "hard.png")
    for spelling in (own, Path("soft.png"), Path("hard.png"), Path(f"../{tmp_path.name}/own.png")):
        with pytest.raises(ConfigError, match=r"this is the image own\.png itself"):
            check_picture(spelling, "--out", "ask", [Path("absent.png"), own])


def test_a_page_is_replaced_only_where_the_same_command_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    check_page(file, "--out", "browse")
    file.write_text(f"<head>{page_mark('browse')}")
    check_page(file, "--out", "browse")
    with pytest.raises(ConfigError, match=r"--preview .* was not written by perpo prepare"):
        check_page(file, "--preview", "prepare")
