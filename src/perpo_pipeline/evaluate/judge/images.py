"""The images that a judge sees (`--with-image`), one per question.

A PNG or JPEG file is sent as it is, unless loading changes it (orientation, colours, depth); then,
and for other formats, its upright RGB pixels are sent as PNG, as in sampling.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perpo_pipeline.errors import PerpoError
from perpo_pipeline.evaluate.judge.task import Question, ShownImage
from perpo_pipeline.json_files import Faults
from perpo_pipeline.vlm.images import image_sha256, load_image_with_notes
from perpo_pipeline.vlm.openai_server import data_url, png_url

SENT_AS_THEY_ARE = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass
class ImageFolder:
    """Images by their names in a benchmark's file, relative to `folder`; each is checked once."""

    folder: Path
    known: dict[str, ShownImage | None] = field(default_factory=dict)

    def find(self, name: object, place: str, faults: Faults) -> ShownImage | None:
        """The image of this name; records a fault and returns None if it cannot be used."""
        if not isinstance(name, str) or not name:
            faults.add(place, f"--with-image needs the name of its image, not {name!r}"[:200])
            return None
        if name not in self.known:
            self.known[name] = None
            path = self.folder / name
            try:
                data = path.read_bytes() if path.is_file() else b""
                if not data:
                    load_image_with_notes(path, where=place)  # raises what is wrong
                load_image_with_notes(data, where=place)
                self.known[name] = ShownImage(path, image_sha256(data))
            except PerpoError as error:
                faults.add(place, f"image {path}: {error.what}")
            except OSError as error:
                faults.add(place, f"image {path}: {error.strerror or error}")
        elif self.known[name] is None:
            faults.add(place, f"image {self.folder / name}: see above")
        return self.known[name]


def image_url(image: ShownImage) -> str:
    """The image as a data URL; raises InputError if the file has been damaged since `find`."""
    data = image.path.read_bytes()
    rgb, notes = load_image_with_notes(data, where=str(image.path))
    kind = next((kind for start, kind in SENT_AS_THEY_ARE.items() if data.startswith(start)), None)
    return data_url(data, kind) if kind and not notes else png_url(rgb)


def images_sha256(questions: Sequence[Question]) -> str | None:
    """One sha256 of all images with their questions; None if the judge sees none."""
    shown = [f"{q.item_id}\n{q.image.sha256}\n" for q in questions if q.image is not None]
    return hashlib.sha256("".join(sorted(shown)).encode()).hexdigest() if shown else None
