"""`source: pages`: its settings and its files, an image with a text file of its name, or a PDF.

Each is one document. Names are relative to the folder, with `/`, and sorted by their text. Hidden
files (`.name`, also those in hidden folders) are not looked at.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from perpo_pipeline.answers.formats import PAGE_PROMPT
from perpo_pipeline.config.folders import files_below
from perpo_pipeline.config.section import WORD_PATTERN, Float, Int
from perpo_pipeline.config.source_fields import (
    EmbedImages,
    ImagesPerPrompt,
    LeaveOutBadRows,
    PerDataset,
    SourceSection,
)
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
    for file in sorted(files_below(path), key=lambda file: file.relative_to(path).as_posix()):
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


def in_share(documents: Sequence[Document], share: Sequence[float]) -> list[Document]:
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


class PagesSource(SourceSection):
    """Pages of your own: images with text files beside them, and PDFs with a text layer."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["pages"] = Field(description="the layout to read")
    path: Path = Field(
        description="a folder with page.png beside page.txt, PDFs, or both, also in sub-folders; "
        "or one PDF"
    )
    prompt: str = Field(PAGE_PROMPT, description="the question about each page")
    dataset: str | None = Field(
        None,
        pattern=WORD_PATTERN,
        description="the rows' `dataset`; none: the name of the folder, or of the PDF",
    )
    share: list[Float] = Field(
        [0.0, 1.0],
        description="which share of the documents to read, from and to: [0, 0.9] for train and "
        "[0.9, 1] for test have none in common. A PDF is one document, an image with its text is "
        "one; they are drawn by their names, whatever the run's seed is",
    )
    dpi: Int = Field(
        150, ge=20, le=1200, description="pixels per inch at which pages of a PDF are rendered"
    )
    longest_side_px: Int | None = Field(
        None,
        ge=32,
        description="render a page of a PDF with at most this many pixels on its longer side; "
        "none: dpi alone decides",
    )
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None

    @field_validator("share")
    @classmethod
    def _is_a_part(cls, share: list[float]) -> list[float]:
        if len(share) != 2 or not 0 <= share[0] < share[1] <= 1:
            raise ValueError("give two numbers from 0 to 1, the smaller one first")
        return share

    @property
    def folder(self) -> Path:
        """The folder that `path` is, or is in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def dataset_name(self) -> str:
        """The rows' `dataset`; white space of a folder's name becomes `_`."""
        here = self.path.resolve()
        return self.dataset or "_".join((here.stem if here.is_file() else here.name).split())

    def documents(self) -> list[Document]:
        """The documents of the share."""
        return in_share(find_page_files(self.path).documents, self.share)

    def files(self) -> list[Path]:
        """The text files and the PDFs of the share."""
        return [file for one in self.documents() for file in one.files]
