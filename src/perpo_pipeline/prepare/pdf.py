"""Pages of PDFs: the text of their text layer, and pictures of them (pypdfium2, optional).

A page's text is in the order in which the PDF holds it, as far as it lies inside the page: pdfium
(Chrome's reader) finds the lines, and writes ligatures as letters. It marks a hyphen at the end of
a line and joins the lines; here they stay two lines, as on the page. White space at the end of a
line cannot be seen and is left out.
A page is shown upright, as its PDF turns it; pdfium misses some line ends in lines that the PDF
holds sideways, so such pages are counted. Notes and form fields are not drawn, because their
text is not in the text layer.
"""

import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from perpo_pipeline import advice
from perpo_pipeline.errors import InputError, MissingDependencyError

HYPHEN_AT_LINE_END = "\x02"
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffd-\uffff]")
POINTS_PER_INCH = 72
_PASSWORD = 4  # FPDF_ERR_PASSWORD
_one_at_a_time = threading.Lock()  # pdfium has no threads


@dataclass(frozen=True, slots=True)
class PageText:
    """The text of one page, or why it has none: `fault`, counted under `reason`."""

    number: int  # from 1
    text: str
    fault: str = ""
    reason: str = ""
    is_turned: bool = False


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page as an image: a PNG that is rendered each time it is read."""

    file: Path
    number: int  # from 1
    dpi: int
    longest_side_px: int | None = None

    @property
    def path(self) -> Path | None:
        """None, because the image has no file."""
        return None

    def read(self) -> bytes:
        """The PNG; raises `InputError` for a page that pdfium cannot draw, or one too large."""
        with _one_at_a_time, _opened(self.file) as pdf:
            try:
                page = pdf[self.number - 1]
                drawn = page.render(scale=self._scale(page.get_size()), draw_annots=False).to_pil()
            except _error() as error:
                raise InputError(f"the page cannot be drawn: {error}", where=str(self)) from error
        png = io.BytesIO()
        drawn.save(png, format="PNG")
        return png.getvalue()

    def _scale(self, size: tuple[float, float]) -> float:
        """Pixels per point; `size` is in points."""
        scale = self.dpi / POINTS_PER_INCH
        if self.longest_side_px is not None:
            scale = min(scale, self.longest_side_px / max(size))
        width, height = (int(side * scale) for side in size)
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise InputError(
                f"it would have {width} x {height} pixels, more than the limit of "
                f"{Image.MAX_IMAGE_PIXELS}; lower dpi, or set longest_side_px",
                where=str(self),
            )
        return scale * (1 - 1e-9)  # pypdfium2 rounds up, also 450.00000000000006

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"


def page_texts(path: Path) -> Iterator[PageText]:
    """The text of each page; raises `InputError` for a PDF that is damaged or encrypted."""
    with _one_at_a_time, _opened(path) as pdf:
        pages = [_page_text(pdf, number) for number in range(1, len(pdf) + 1)]
    yield from pages


def _page_text(pdf: Any, number: int) -> PageText:
    try:
        page = pdf[number - 1]
        written = page.get_textpage().get_text_bounded(errors="replace")
        is_empty = next(iter(page.get_objects(max_depth=1)), None) is None
    except _error() as error:
        return PageText(number, "", f"the page cannot be read: {error}", "bad_pdf")
    text = _as_lines(written)
    if found := _NO_TEXT.findall(text):
        what = (
            f"its text layer holds {len(found):,} characters that are no text, first {found[0]!r}: "
            "the PDF does not say which letters its font draws"
        )
        return PageText(number, "", what, "bad_text")
    if text:
        return PageText(number, text, is_turned=page.get_rotation() % 180 != 0)
    if is_empty:
        return PageText(number, "", "the page is empty", "empty_page")
    return PageText(number, "", "the page has no text layer, only what is drawn", "no_text")


def _as_lines(written: str) -> str:
    """Lines as they stand on the page, without white space at their ends."""
    text = written.replace("\r\n", "\n").replace(HYPHEN_AT_LINE_END, "-\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _opened(path: Path) -> Any:
    """The open document; raises `InputError` with what is wrong in words, without `fix`."""
    pdfium = _pdfium(path)
    try:
        return pdfium.PdfDocument(path)
    except (OSError, pdfium.PdfiumError) as error:
        if getattr(error, "err_code", None) == _PASSWORD:
            what = "it is encrypted: reading it needs a password"
        elif isinstance(error, OSError):
            what = f"it cannot be read: {error.strerror or error}"
        else:
            what = "it is no PDF, or is damaged"
        raise InputError(what, where=str(path)) from error


def _pdfium(path: Path) -> Any:
    try:
        import pypdfium2
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "pypdfium2, which reads PDFs, is not installed",
            where=str(path),
            fix=f"{advice.install('pdf')}, or give images with text files",
        ) from None
    return pypdfium2


def _error() -> type[Exception]:
    import pypdfium2

    found: type[Exception] = pypdfium2.PdfiumError
    return found
