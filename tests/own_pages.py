"""A folder of pages as users have them: images with text files, and PDFs made with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

LINE_HEIGHT = 0.1


def write_image(path: Path, text: str, size: tuple[int, int] = (120, 90)) -> Path:
    """A drawn page, and its text file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((4, 4), text, fill="black")
    image.save(path)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def write_pdf(
    path: Path, pages: Sequence[Sequence[str]], inches: tuple[float, float] = (3, 2)
) -> Path:
    """A PDF with a text layer: one page for each list of lines, an empty page for an empty list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with PdfPages(path) as pdf:
        for lines in pages:
            figure = Figure(figsize=inches)
            figure.patch.set_visible(False)
            for number, line in enumerate(lines):
                figure.text(0.1, 0.9 - number * LINE_HEIGHT, line, va="top")
            pdf.savefig(figure)
    return path


def write_scan(path: Path, pages: int = 1) -> Path:
    """A PDF of pictures alone, as a scanner makes it."""
    first, *others = [Image.new("RGB", (60, 40), (200, 10 * n, 0)) for n in range(pages)]
    first.save(path, save_all=True, append_images=others)
    return path


def write_encrypted(path: Path) -> Path:
    """A PDF that opens with an unknown password only."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>",
        b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (b"11" * 32, b"22" * 32),
    ]
    content, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    start = len(content)
    content += b"xref\n0 5\n0000000000 65535 f \n"
    content += b"".join(b"%010d 00000 n \n" % place for place in places)
    content += b"trailer\n<< /Size 5 /Root 1 0 R /Encrypt 4 0 R /ID [<00> <00>] >>\n"
    path.write_bytes(content + b"startxref\n%d\n%%%%EOF\n" % start)
    return path
