"""The images of chats: paths, bytes, `{bytes, path}` as `datasets` writes it, and data URLs.

Nothing is downloaded: an address on the network is a fault that says how to fetch it.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from perpo_pipeline.json_files import RowFault
from perpo_pipeline.prepare.arrow_files import ShardImage
from perpo_pipeline.prepare.entries import ImageBytes, ImageData, ImageFile
from perpo_pipeline.prepare.fields import text_fault

DATA, FILE, NETWORK = "data:", "file://", ("http://", "https://", "ftp://", "s3://", "gs://")


def chat_image(value: Any, root: Path) -> ImageData:
    """The image of a value of a chat; paths start from `root`. Raises `RowFault`."""
    if isinstance(value, Mapping):  # {"url": ...}, or {bytes, path}
        found = (value.get(key) for key in ("bytes", "path", "url"))
        value = next((one for one in found if one is not None), None)
    if isinstance(value, ShardImage):
        return value
    if isinstance(value, bytes | bytearray):
        return ImageBytes(bytes(value))
    if not isinstance(value, str) or not value:
        raise RowFault(f"an image is neither a path nor bytes nor a data URL: {value!r}")
    if fault := text_fault("image", value):
        raise RowFault(fault)
    if value.startswith(NETWORK):
        raise RowFault(
            f"an image is an address: {value[:120]!r}; nothing is downloaded. Fetch it (for "
            "example `wget -x ADDRESS`), and write the path of the file in its place"
        )
    if value.startswith(DATA):
        return ImageBytes(_decoded(value))
    if value.startswith(FILE):
        value = _path_in(value)
    return ImageFile(root / value)


def _path_in(address: str) -> str:
    """The path of `file:///photos/a.png`."""
    try:
        return unquote(urlsplit(address).path)
    except ValueError as error:
        raise RowFault(f"an image's address {address[:120]!r} is none: {error}") from None


def _decoded(address: str) -> bytes:
    """The bytes of `data:image/png;base64,...` (RFC 2397)."""
    head, comma, data = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RowFault(f"a data URL without base64: {address[:60]!r}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowFault(f"a data URL that is no base64 ({error}): {address[:60]!r}") from None
