"""The images of exported prompts: as paths, as bytes, or as files of their own in the export.

Bytes are checked against the prompts' `image_sha256`: an image that changed since it was prepared
is a fault, and so is one that is missing.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from perpo_pipeline.json_files import Faults, RowFault
from perpo_pipeline.store.list_columns import Places, lengths_of, list_column, starts_of
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import image_lists
from perpo_pipeline.vlm.images import image_sha256

FOLDER = "images"
IMAGE_STRUCT = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An image as `datasets` stores it: its bytes, or else its path."""
_ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2", "MPO": "jpg"}
"""Of Pillow's formats. MPO is a JPEG of a camera with further pictures behind it."""

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass
class ExportedImages:
    """Writes the images of prompts into the columns of one export.

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

    def inside(self, prompts: pa.Table) -> pa.Array:
        """The images of each prompt as a list of {bytes, path}, for tables that hold images."""
        starts, data, paths = self._exported(prompts, self._bytes)
        columns = [pa.array(data, pa.binary()), paths]
        return list_column(starts, pa.StructArray.from_arrays(columns, fields=list(IMAGE_STRUCT)))

    def paths(self, prompts: pa.Table) -> pa.Array:
        """The paths of the images of each prompt as a list; those in the export start from it."""
        starts, names, paths = self._exported(prompts, self._file)
        return list_column(starts, pc.coalesce(paths, pa.array(names, pa.string())))

    def _exported(
        self, prompts: pa.Table, write: Callable[[Row, Row], T | None]
    ) -> tuple[Places, Sequence[T | None], pa.Array]:
        """Where the images of each prompt begin; of all images what `write` makes of those that are
        exported themselves, and the paths of the others."""
        lists = image_lists(prompts)
        starts, images = starts_of(lengths_of(lists)), lists.flatten()
        self.notes.update(pc.struct_field(images, "notes").flatten().to_pylist())
        paths = pc.struct_field(images, "path")
        along = pc.or_(self.embed, pc.is_valid(pc.struct_field(images, "bytes")))
        paths = pc.if_else(along, pa.scalar(None, pa.string()), paths)
        gone = pc.is_in(paths, pa.array(self._gone(paths), pa.string()))
        made: list[T | None] = [None] * len(images)
        wanted = pc.indices_nonzero(pc.or_(along, gone)).to_pylist()
        rows = prompts.select(["prompt_id", "place"]).to_pylist() if wanted else []
        of_prompt = np.repeat(np.arange(len(prompts)), np.diff(starts))
        for at in wanted:
            row = rows[of_prompt[at]]
            if path := paths[at].as_py():
                self.faults.add(name_prompt(row), f"there is no image {path}", "bad_image")
            else:
                made[at] = write(row, images[at].as_py())
        return starts, made, paths

    def _gone(self, paths: pa.Array) -> list[str]:
        """The paths at which there is no file."""
        here: list[str] = paths.unique().drop_null().to_pylist()
        for path in here:
            if path not in self._found:
                self._found[path] = os.path.isfile(path)
        return [path for path in here if not self._found[path]]

    def _file(self, row: Row, image: Row) -> str:
        """The name of the file in the export that holds an image."""
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
