"""Pages of your own: images with text files beside them, and PDFs with a text layer.

    scans/page1.png  scans/page1.txt     one page: the image, and its true text in UTF-8
    scans/book/2.JPG scans/book/2.txt    sub-folders and upper-case suffixes, too
    scans/report.pdf                     each page is a row: report.pdf#1, report.pdf#2, ...

The task is `ocr`; every page gets the question in `prompt`. Of a text file Windows line ends, a
byte order mark, and white space before and after the text are not part of the truth; all else is
kept as it is. What a PDF's text is: prepare/pdf.py. An image without a text, a text without an
image, an empty page and a PDF without a text layer are bad rows. The extra columns are `folder`,
and for PDFs `file` and `page`.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.config.pages import (
    TEXT_SUFFIX,
    Document,
    PageFiles,
    PagesSource,
    content_sha256,
    find_page_files,
    in_share,
)
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.json_files import Faults, RowFault, missing_file
from perpo_pipeline.prepare.collect import Prepared, Request, collect
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.fields import extra_text, text_fault
from perpo_pipeline.prepare.pdf import PageText, PdfPage, page_texts

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_pages(source: PagesSource, request: Request) -> Prepared:
    """Read the documents of the share; raises `InputError` with the faults of all pages."""
    found = _find(source)
    documents = in_share(found.documents, source.share)
    if not documents:
        raise InputError(
            f"share {_share(source)} holds none of the {len(found.documents)} documents",
            where=str(source.path),
            fix="take a larger share, or put the pages of each split into a folder of its own",
        )
    faults, turned = Faults(source.path), list[str]()
    prepared = collect(
        _entries(documents, source, faults, turned),
        faults,
        request,
        embed=source.embed_images,
        per_dataset=source.per_dataset,
    )
    prepared.facts["texts_sha256"] = content_sha256(documents)
    prepared.counts["found"] = _count(documents)
    if len(documents) < len(found.documents):
        prepared.notes["share"] = (
            f"share {_share(source)}: {len(documents):,} of {len(found.documents):,} documents"
        )
    if found.others:
        number = len(found.others)
        prepared.notes["other_files"] = (
            f"{number:,} other {'file is' if number == 1 else 'files are'} not read, "
            f"for example {found.others[0]}"
        )
    if turned:
        prepared.notes["turned"] = (
            f"{len(turned):,} {'page is' if len(turned) == 1 else 'pages are'} turned sideways in "
            f"the PDF, for example {turned[0]}: look whether the lines are whole (--preview)"
        )
    return prepared


def _find(source: PagesSource) -> PageFiles:
    path = source.path
    if not path.exists():
        raise missing_file(path)
    found = find_page_files(path)
    if path.is_file() and not found.documents:
        raise ConfigError(
            "this is neither a folder nor a PDF",
            where=str(path),
            fix="give the folder with the images and their text files, or a PDF",
        )
    if not found.documents:
        others = f"; it has {len(found.others):,} other files" if found.others else ""
        raise InputError(
            f"the folder has no pages: no image, no text file and no PDF{others}",
            where=str(path),
            fix="give a folder with page.png beside page.txt, or with PDFs",
        )
    return found


def _share(source: PagesSource) -> str:
    return f"[{source.share[0]:g}, {source.share[1]:g}]"


def _count(documents: Sequence[Document]) -> dict[str, int]:
    pdfs = sum(one.pdf is not None for one in documents)
    return {"pdfs": pdfs, "images": sum(bool(one.images) for one in documents)}


def _entries(
    documents: Sequence[Document], source: PagesSource, faults: Faults, turned: list[str]
) -> Iterator[Entry]:
    """The pages of all documents; `turned` gets the places of those that a PDF turns."""
    for one in documents:
        if one.pdf is not None:
            yield from _of_pdf(one.name, one.pdf, source, faults, turned)
        elif fault := _pair_fault(one):
            faults.add(one.name, *fault)
        else:
            text = _text_of(one, source, faults)
            if text is not None:
                folder = _folder(one.name)
                yield _entry(one.name, text, ImageFile(one.images[0]), source, {"folder": folder})


def _pair_fault(one: Document) -> tuple[str, str] | None:
    """What is wrong with an image and its text file, and the reason it is counted under."""
    if not one.images:
        return f"there is no image {Path(one.name).stem}.png (or .jpg, ...) beside it", "no_image"
    if not one.texts:
        return f"there is no text file {Path(one.name).stem}{TEXT_SUFFIX} beside it", "no_text"
    several = one.images if len(one.images) > 1 else one.texts if len(one.texts) > 1 else ()
    if several:
        names = " and ".join(file.name for file in several)
        return f"{names} have the same name but for their suffix", "repeated_id"
    return None


def _text_of(one: Document, source: PagesSource, faults: Faults) -> str | None:
    """The true text of an image; None if it is bad, which is a fault of the text file."""
    file = one.texts[0]
    place = file.relative_to(source.folder).as_posix()
    try:
        text = _decode(file)
    except RowFault as fault:
        faults.add(place, str(fault), "bad_text")
        return None
    if not text:
        faults.add(place, "the text is empty", "empty_page")
        return None
    return text


def _decode(file: Path) -> str:
    """The text of a file; raises `RowFault`, with the byte at which it is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RowFault(f"it cannot be read: {error.strerror or error}") from error
    if data.startswith(UTF_16):
        raise RowFault("it is UTF-16 (bytes 1 and 2); save it as UTF-8")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        line = data.count(b"\n", 0, at) + 1
        raise RowFault(
            f"byte {at + 1} (0x{data[at]:02x}, in line {line}) is not UTF-8; save it as UTF-8"
        ) from None
    if fault := text_fault("text", text):
        raise RowFault(fault)
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _of_pdf(
    name: str, path: Path, source: PagesSource, faults: Faults, turned: list[str]
) -> Iterator[Entry]:
    """The pages of a PDF; one without any text is one fault."""
    try:
        pages = list(page_texts(path))
    except InputError as error:
        faults.add(name, error.what, "bad_pdf")
        return
    if not any(page.text for page in pages) and {page.reason for page in pages} <= {
        "no_text",
        "empty_page",
    }:
        faults.add(name, _without_text(pages), "no_text")
        return
    for page in pages:
        place = f"{name}#{page.number}"
        if page.fault:
            faults.add(place, page.fault, page.reason)
            continue
        if page.is_turned:
            turned.append(place)
        image = PdfPage(path, page.number, source.dpi, source.longest_side_px)
        extra = {"folder": _folder(name), "file": name, "page": page.number}
        yield _entry(place, page.text, image, source, extra)


def _without_text(pages: Sequence[PageText]) -> str:
    what = "its one page has" if len(pages) == 1 else f"none of its {len(pages):,} pages has"
    return f"{what} text: it has no text layer, like a scan" if pages else "it has no pages"


def _folder(name: str) -> str:
    return Path(name).parent.as_posix()


def _entry(
    place: str,
    text: str,
    image: ImageFile | PdfPage,
    source: PagesSource,
    extra: Mapping[str, Any],
) -> Entry:
    return Entry(
        place=place,
        dataset=source.dataset_name,
        source_row=place,
        task="ocr",
        image=image,
        prompt=source.prompt,
        gt_text=text,
        extra=extra_text(extra),
    )
