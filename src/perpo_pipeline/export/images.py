"""The images of exported prompts: as paths, as bytes, or as files of their own in the export.

Bytes are checked against the prompts' `image_sha256`: an image that changed since it was prepared
is a fault, and so is one that is missing.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from perpo_pipeline.json_files import Faults, RowFault
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import images_of
from perpo_pipeline.vlm.images import image_sha256

FOLDER = "images"
IMAGE_STRUCT = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An image as `datasets` stores it: its bytes, or else its path."""
_ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2"}

Row = Mapping[str, Any]


@dataclass
class ExportedImages:
    """Writes the images of rows into the columns of one export.

    `folder` is the export's; with `embed` the images themselves are exported, not their paths.
    `notes` counts the conversions that `perpo prepare` noted, each with its images.
    """

    folder: Path
    embed: bool
    faults: Faults
    notes: Counter[str] = field(default_factory=Counter)
    _found: dict[str, bool] = field(default_factory=dict)
    _written: dict[str, str] = field(default_factory=dict)

    @property
    def outside(self) -> int:
        """How many images are exported as paths of this machine."""
        return len(self._found)

    def inside(self, rows: Sequence[Row]) -> pa.Array:
        """The images of each row as a list of {bytes, path}, for tables that hold images."""
        data, paths, starts = list[bytes | None](), list[str | None](), [0]
        for row in rows:
            for image in self._images(row):
                inside = self.embed or image["bytes"] is not None
                data.append(self._bytes(row, image) if inside else None)
                paths.append(None if inside else self._there(row, image["path"]))
            starts.append(len(data))
        columns = [pa.array(data, pa.binary()), pa.array(paths, pa.string())]
        images = pa.StructArray.from_arrays(columns, fields=list(IMAGE_STRUCT))
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), images)

    def paths(self, rows: Sequence[Row]) -> pa.Array:
        """The paths of the images of each row as a list; those in the export start from it."""
        found = [[self._path(row, image) for image in self._images(row)] for row in rows]
        return pa.array(found, pa.list_(pa.string()))

    def _images(self, row: Row) -> Sequence[Row]:
        found = images_of(row)
        for image in found:
            if image["notes"]:
                self.notes.update(image["notes"])
        return found

    def _path(self, row: Row, image: Row) -> str:
        if not self.embed and image["bytes"] is None:
            return self._there(row, image["path"])
        sha256 = image["sha256"]
        if sha256 in self._written:
            return self._written[sha256]
        data = self._bytes(row, image)
        if data is None:
            return ""  # a fault: the export is not kept
        name = f"{FOLDER}/{image['sha256'][:32]}.{_ending(data)}"
        (self.folder / FOLDER).mkdir(exist_ok=True)
        (self.folder / name).write_bytes(data)
        self._written[sha256] = name
        return name

    def _there(self, row: Row, path: str) -> str:
        """The path; that there is no such file is a fault."""
        if path not in self._found:
            self._found[path] = os.path.isfile(path)
        if not self._found[path]:
            self.faults.add(name_prompt(row), f"there is no image {path}", "bad_image")
        return path

    def _bytes(self, row: Row, image: Row) -> bytes | None:
        """The bytes of an image as it was prepared; None, and a fault, if they are not there."""
        found: bytes | None = None
        with self.faults.at(name_prompt(row), "bad_image"):
            data = bytes(image["bytes"] or _file_bytes(image["path"]))
            if image_sha256(data) != image["sha256"]:
                name = "inside the prompts" if image["path"] is None else image["path"]
                raise RowFault(f"image {name} has changed since it was prepared")
            found = data
        return found


def _file_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RowFault(f"image {path}: {error.strerror or error}") from None


def _ending(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        kind = str(image.format)
    return _ENDINGS.get(kind, kind.lower())
