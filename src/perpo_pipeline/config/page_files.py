"""The files of `source: pages`: an image with a text file of its name, or a PDF.

Each is one document. Names are relative to the folder, with `/`, and sorted by their text. Hidden
files (`.name`, also those in hidden folders) are not looked at.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perpo_pipeline.store.atomic import file_sha256

# Those of vlm/images.py, IMAGE_FORMATS.
_IMAGES = ("avif", "bmp", "gif", "jp2", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff")
IMAGE_SUFFIXES = frozenset(f".{name}" for name in (*_IMAGES, "webp"))
TEXT_SUFFIX, PDF_SUFFIX = ".txt", ".pdf"


@dataclass(frozen=True)
class Document:
    """A PDF, or the images and the text files of one name: one of each, unless there is a fault."""

    name: str
    pdf: Path | None = None
    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """The files that its texts come from."""
        return self.texts if self.pdf is None else [self.pdf]


@dataclass(frozen=True)
class PageFiles:
    """The documents of a folder, and the files that are none."""

    documents: list[Document]
    others: list[str]


def find_page_files(path: Path) -> PageFiles:
    """The documents of a folder with its sub-folders, or of one PDF; none if it is neither."""
    if path.suffix.lower() == PDF_SUFFIX and path.is_file():
        return PageFiles([Document(path.name, path)], [])
    documents: list[Document] = []
    others: list[str] = []
    pairs: dict[str, tuple[list[Path], list[Path]]] = {}
    for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
        place = file.relative_to(path)
        if any(part.startswith(".") for part in place.parts) or not file.is_file():
            continue
        suffix = file.suffix.lower()
        if suffix == PDF_SUFFIX:
            documents.append(Document(place.as_posix(), file))
        elif suffix == TEXT_SUFFIX or suffix in IMAGE_SUFFIXES:
            pair = pairs.setdefault(place.with_suffix("").as_posix(), ([], []))
            pair[suffix == TEXT_SUFFIX].append(file)
        else:
            others.append(place.as_posix())
    for images, texts in pairs.values():
        name = (images or texts)[0].relative_to(path).as_posix()
        documents.append(Document(name, None, images, texts))
    return PageFiles(sorted(documents, key=lambda one: one.name), others)


def in_share(documents: Sequence[Document], share: tuple[float, float]) -> list[Document]:
    """The documents of a share, in their order: [0, 0.9] and [0.9, 1] have none in common.

    A document's place among all of them is by the hash of its name: at random, but always the same.
    """
    ranked = sorted(documents, key=lambda one: hashlib.sha256(one.name.encode()).hexdigest())
    first, last = (round(part * len(ranked)) for part in share)
    chosen = {one.name for one in ranked[first:last]}
    return [one for one in documents if one.name in chosen]


def content_sha256(documents: Sequence[Document]) -> str:
    """One hash of the names of documents and of what their texts come from."""
    digest = hashlib.sha256()
    for one in documents:
        hashes = [file_sha256(file) for file in one.files]
        digest.update("\0".join([one.name, *hashes, ""]).encode(errors="surrogateescape"))
    return digest.hexdigest()
