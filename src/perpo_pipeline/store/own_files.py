"""Files that a user names for a page or a picture: perpo replaces only those that it wrote itself.

A page carries its command in a `meta` element, a picture in its EXIF data.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

PAGES = (".html", ".htm")
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # Pillow's formats
LARGEST_PX = {"JPEG": 65_500, "WEBP": 16_383}  # the longest side that the format can have
HEAD_BYTES = 4096  # of a page: its `meta` element is there
SOFTWARE = 0x0131  # the EXIF tag of the program


def page_mark(command: str) -> str:
    """The element for the head of a page that `perpo COMMAND` writes."""
    return f'<meta name="generator" content="perpo {command}">'


def picture_mark(command: str) -> "Image.Exif":
    """The EXIF data for a picture that `perpo COMMAND` writes."""
    from PIL import Image

    exif = Image.Exif()
    exif[SOFTWARE] = f"perpo {command}"
    return exif


def check_page(file: Path, option: str, command: str) -> None:
    """Raise ConfigError if `perpo COMMAND` cannot write a page to `file`, which `option` named."""
    if file.is_dir() or file.suffix.lower() not in PAGES:
        raise ConfigError(
            f"{option} {file}: this is not a file that ends in .html",
            fix=f"name the file to write, for example {option} page.html",
        )
    if file.exists() and not _has_page_mark(file, command):
        raise _would_be_lost(file, option, command)


def check_picture(file: Path, option: str, command: str, reads: Iterable[Path]) -> None:
    """Raise ConfigError if `perpo COMMAND` cannot write a picture to `file`, which `option` named.

    `reads` are the images of the same command: `file` may be none of them, whatever its spelling.
    """
    if file.is_dir() or file.suffix.lower() not in PICTURES:
        raise ConfigError(
            f"{option} {file}: this is no file name of a picture",
            fix=f"end it in {next(iter(PICTURES))}",
        )
    if not file.exists():
        return
    for image in reads:
        if image.exists() and os.path.samefile(file, image):
            raise ConfigError(
                f"{option} {file}: this is the image {image} itself, which would be lost",
                fix="name another file",
            )
    if not _has_picture_mark(file, command):
        raise _would_be_lost(file, option, command)


def check_picture_size(file: Path, option: str, size: tuple[int, int]) -> None:
    """Raise ConfigError if the format of `file`, which `option` named, cannot hold this picture.

    `size` is (width, height) in pixels.
    """
    ending = file.suffix.lower()
    most = LARGEST_PX.get(PICTURES[ending])
    if most is not None and max(size) > most:
        raise ConfigError(
            f"{option} {file}: the picture has {size[0]} x {size[1]} pixels, and a {ending} file "
            f"has at most {most} in each direction",
            fix=f"end it in {next(iter(PICTURES))}",
        )


def _would_be_lost(file: Path, option: str, command: str) -> ConfigError:
    return ConfigError(
        f"{option} {file}: this file was not written by perpo {command}, and would be lost",
        fix="name another file, or remove this one",
    )


def _has_page_mark(file: Path, command: str) -> bool:
    try:
        with file.open("rb") as stream:
            return page_mark(command).encode() in stream.read(HEAD_BYTES)
    except OSError:
        return False


def _has_picture_mark(file: Path, command: str) -> bool:
    """Whether the EXIF data, which Pillow finds without decoding the picture, name the command."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            exif: bytes = image.info.get("exif", b"")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return f"perpo {command}".encode() in exif
