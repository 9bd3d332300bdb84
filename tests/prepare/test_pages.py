"""Folders of pages and PDFs: what is read, what is left out and named, and what each fault says."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from own_pages import write_encrypted, write_image, write_pdf, write_scan
from PIL import Image, ImageOps

from perpo_pipeline.commands.make_rules import rules
from perpo_pipeline.config.pages import PagesSource
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import source_files
from perpo_pipeline.errors import ConfigError, InputError, MissingDependencyError
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.pages import read_pages
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check

PAGES = [["CHAPTER 1: hyphen-", "ated words,  ", "ﬁne print."], ["Second page"]]


def read(path: Path, *, leave_out: bool = False, **settings: Any) -> Prepared:
    source = PagesSource(source="pages", path=path, leave_out_bad_rows=leave_out, **settings)
    return read_pages(source, Request("train", leave_out_bad_rows=leave_out))


def rows_of(prepared: Prepared) -> dict[str, Any]:
    return {row["place"]: row for row in prepared.rows}


def opened(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several suffixes, a sub-folder and two PDFs."""
    folder = tmp_path / "my scans"
    write_image(folder / "b.png", "B one\nB two")
    write_image(folder / "a.JPG", "A")
    write_image(folder / "book" / "10.webp", "ten")
    write_image(folder / "book" / "9.tif", "nine")
    (folder / "book" / "9.txt").rename(folder / "book" / "9.TXT")
    write_pdf(folder / "report.PDF", PAGES)
    write_pdf(folder / "book" / "one.pdf", [["Only page"]])
    (folder / ".DS_Store").write_bytes(b"\x00")
    (folder / "notes.docx").write_bytes(b"x")
    return folder


def test_pages_of_images_and_pdfs_come_in_the_order_of_their_names(folder: Path) -> None:
    prepared = read(folder)
    rows = rows_of(prepared)
    assert {place: row["gt_text"] for place, row in rows.items()} == {
        "a.JPG": "A",
        "b.png": "B one\nB two",
        "book/10.webp": "ten",
        "book/9.tif": "nine",
        "book/one.pdf#1": "Only page",
        "report.PDF#1": "CHAPTER 1: hyphen-\nated words,\nfine print.",
        "report.PDF#2": "Second page",
    }
    assert list(rows) == sorted(rows), "in an order that does not depend on the disk"
    for place, row in rows.items():
        assert (row["task"], row["dataset"]) == ("ocr", "my_scans")
        assert row["prompt"] == "Transcribe the text on this page."
        assert (row["image"]["path"] is None) == ("#" in place), "a page of a PDF is embedded"
    assert json.loads(rows["report.PDF#2"]["extra"]) == {
        "folder": ".",
        "file": "report.PDF",
        "page": 2,
    }
    assert json.loads(rows["book/9.tif"]["extra"]) == {"folder": "book"}
    assert prepared.notes == {"other_files": "1 other file is not read, for example notes.docx"}
    assert prepared.counts["found"] == {"pdfs": 2, "images": 4}


def test_a_single_pdf_is_a_source_with_the_prompt_and_the_name_that_are_set(folder: Path) -> None:
    prepared = read(folder / "report.PDF", prompt="OCR:", dataset="reports")
    rows = list(prepared.rows)
    assert [row["place"] for row in rows] == ["report.PDF#1", "report.PDF#2"]
    assert {(row["prompt"], row["dataset"]) for row in rows} == {("OCR:", "reports")}
    assert read(folder / "report.PDF").rows[0]["dataset"] == "report"


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (450, 300)),  # 3 x 2 inches at 150 per inch
        ({"dpi": 72}, (216, 144)),
        ({"longest_side_px": 90}, (90, 60)),
        ({"dpi": 20, "longest_side_px": 90}, (60, 40)),
    ],
)
def test_a_page_of_a_pdf_has_the_size_that_the_settings_say(
    tmp_path: Path, settings: dict[str, int], size: tuple[int, int]
) -> None:
    row = read(write_pdf(tmp_path / "a.pdf", [["TEXT"]]), **settings).rows[0]
    assert opened(row).size == (row["width"], row["height"]) == size


def test_a_turned_page_is_upright_and_counted(tmp_path: Path) -> None:
    plain = write_pdf(tmp_path / "plain.pdf", [["Upright text"]])
    with pypdfium2.PdfDocument(plain) as pdf:
        pdf[0].set_rotation(90)
        pdf.save(tmp_path / "turned.pdf")
    before, prepared = read(plain).rows[0], read(tmp_path / "turned.pdf")
    row = prepared.rows[0]
    assert (row["width"], row["height"]) == (before["height"], before["width"])
    shown, expected = (opened(one).convert("L") for one in (row, before))
    turned = expected.transpose(Image.Transpose.ROTATE_270)
    dark = [ImageOps.invert(one).getbbox() for one in (shown, turned)]
    assert max(abs(a - b) for a, b in zip(*dark, strict=True)) <= 1  # type: ignore[arg-type]
    assert row["gt_text"] == "Upright text"
    assert prepared.notes["turned"].startswith("1 page is turned sideways in the PDF, for example ")


def test_text_beside_the_page_and_notes_on_it_are_in_neither_text_nor_picture(
    tmp_path: Path,
) -> None:
    file = write_pdf(tmp_path / "a.pdf", [["INSIDE", *[""] * 14, "BELOW THE PAGE"]])
    assert read(file).rows[0]["gt_text"] == "INSIDE"
    with pypdfium2.PdfDocument(file) as pdf:
        assert "BELOW" in pdf[0].get_textpage().get_text_range()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfWith a mark\r\nline 2\r\n", "With a mark\nline 2"),
        ("  \n\nUmläut \n  indented\n\n".encode(), "Umläut \n  indented"),
        (b"old Mac\rline\x0c", "old Mac\nline"),
    ],
)
def test_line_ends_and_white_space_around_a_text_are_not_part_of_it(
    tmp_path: Path, data: bytes, text: str
) -> None:
    write_image(tmp_path / "a.png", "x").with_suffix(".txt").write_bytes(data)
    assert read(tmp_path).rows[0]["gt_text"] == text


Change = Callable[[Path], object]
FAULTS: dict[str, tuple[Change, str, str]] = {
    "latin-1": (
        lambda root: (root / "a.txt").write_bytes(b"\xef\xbb\xbfone\ncaf\xe9"),
        "a.txt: byte 11 (0xe9, in line 2) is not UTF-8; save it as UTF-8",
        "bad_text",
    ),
    "utf-16": (
        lambda root: (root / "a.txt").write_text("one", encoding="utf-16"),
        "a.txt: it is UTF-16 (bytes 1 and 2); save it as UTF-8",
        "bad_text",
    ),
    "empty": (
        lambda root: (root / "a.txt").write_text("\n \r\n"),
        "a.txt: the text is empty",
        "empty_page",
    ),
    "no text": (
        lambda root: (root / "a.txt").unlink(),
        "a.png: there is no text file a.txt beside it",
        "no_text",
    ),
    "no image": (
        lambda root: (root / "a.png").unlink(),
        "a.txt: there is no image a.png (or .jpg, ...) beside it",
        "no_image",
    ),
    "two images": (
        lambda root: Image.new("RGB", (9, 9)).save(root / "a.jpg"),
        "a.jpg: a.jpg and a.png have the same name but for their suffix",
        "repeated_id",
    ),
    "damaged image": (
        lambda root: (root / "a.png").write_bytes(b"\x89PNG"),
        "a.png: image ",
        "bad_image",
    ),
    "scan": (
        lambda root: write_scan(root / "s.pdf", 3),
        "s.pdf: none of its 3 pages has text: it has no text layer, like a scan",
        "no_text",
    ),
    "encrypted": (
        lambda root: write_encrypted(root / "e.pdf"),
        "e.pdf: it is encrypted: reading it needs a password",
        "bad_pdf",
    ),
    "damaged": (
        lambda root: (root / "d.pdf").write_bytes(b"<html>"),
        "d.pdf: it is no PDF, or is damaged",
        "bad_pdf",
    ),
    "empty page": (
        lambda root: write_pdf(root / "p.pdf", [["one"], [], ["three"]]),
        "p.pdf#2: the page is empty",
        "empty_page",
    ),
    "wall": (
        lambda root: write_pdf(root / "w.pdf", [["big"]], inches=(199, 199)),
        "w.pdf#1: image ",
        "bad_image",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_message_and_can_be_left_out(name: str, tmp_path: Path) -> None:
    root = tmp_path / "pages"
    for page in ("a", "b"):
        write_image(root / f"{page}.png", f"text {page}")
    change, message, reason = FAULTS[name]
    change(root)
    with pytest.raises(InputError) as error:
        read(root)
    assert error.value.what.startswith("1 fault:") and message in error.value.what
    assert "prepare.train.leave_out_bad_rows=true; nothing was written" in str(error.value.fix)
    prepared = read(root, leave_out=True)
    assert prepared.left_out == {reason: 1}
    (left_out,) = prepared.bad_rows
    assert f"{left_out['place']}: {left_out['what']}".startswith(message)
    kept = [row["place"] for row in prepared.rows]
    assert "b.png" in kept and left_out["place"] not in kept
    assert ("p.pdf#1" in kept) == ("p.pdf#3" in kept) == (name == "empty page"), "nothing is lost"


def test_pages_whose_font_says_no_letters_are_not_taken_for_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_pdf(tmp_path / "a.pdf", [["text"]])
    monkeypatch.setattr(
        pypdfium2.PdfTextPage, "get_text_bounded", lambda *_, **__: "\x03\x11 a \ufffd"
    )
    with pytest.raises(InputError, match=r"a\.pdf#1: its text layer holds 3 characters"):
        read(file)


@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        (lambda p: write_scan(p / "s.pdf"), "s.pdf: its one page has text", "add it: no page has"),
        (lambda p: write_encrypted(p / "e.pdf"), "e.pdf: it is encrypted", "without a password"),
        (lambda p: (p / "a.md").write_text("x"), "no PDF; it has 1 other files", "page.png beside"),
    ],
)
def test_a_folder_without_a_usable_page_says_what_it_needs(
    make: Change, what: str, fix: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(InputError) as error:
        read(tmp_path, leave_out=True)
    assert what in error.value.what and fix in str(error.value.fix)


def test_a_path_that_is_no_folder_and_no_pdf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing")
    file = write_image(tmp_path / "a.png", "x")
    with pytest.raises(ConfigError, match="neither a folder nor a PDF"):
        read(file)


def test_without_pypdfium2_a_pdf_is_one_message_and_images_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingDependencyError) as error:
        read(folder)
    assert "pypdfium2" in error.value.what and "'.[pdf]'" in str(error.value.fix)
    for file in (folder / "report.PDF", folder / "book" / "one.pdf"):
        file.unlink()
    assert len(read(folder).rows) == 4


def test_shares_have_no_document_in_common_and_keep_a_pdf_whole(tmp_path: Path) -> None:
    for number in range(9):
        write_image(tmp_path / f"{number}.png", str(number))
    write_pdf(tmp_path / "a.pdf", [["one"], ["two"], ["three"]])
    train, test = (rows_of(read(tmp_path, share=share)) for share in ([0, 0.7], [0.7, 1]))
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(rows_of(read(tmp_path)))
    documents = [len({place.partition("#")[0] for place in one}) for one in (train, test)]
    assert documents == [7, 3]
    assert sum("#" in place for place in train) in (0, 3)
    note = read(tmp_path, share=[0.7, 1]).notes["share"]
    assert note == "share [0.7, 1]: 3 of 10 documents"
    with pytest.raises(InputError, match=r"share \[0.99, 1\] holds none of the 10 documents"):
        read(tmp_path, share=[0.99, 1])
    with pytest.raises(ValueError, match="the smaller one first"):
        PagesSource(source="pages", path=tmp_path, share=[0.9, 0.9])


def run_of(folder: Path, root: Path, **settings: Any) -> Run:
    source = {"source": "pages", "path": str(folder), **settings}
    prepare = {"train": source, "test": {"source": "testbed", "num_prompts": 1}}
    config = {"run": "r", "data_root": str(root), "prepare": prepare}
    return Run(RunConfig.model_validate(config), quiet=True)


def test_make_depends_on_the_files_whose_names_it_can_hold(tmp_path: Path) -> None:
    for name in ("plain.png", "two words.png", "no#5.png", "$1.png"):
        write_image(tmp_path / "scans" / name, "x")
    lines = list(rules(run_of(tmp_path / "scans", tmp_path).config))
    assert f"SOURCES_train := {tmp_path}/scans/plain.txt" in lines


def test_status_notices_what_comes_goes_and_changes(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, tmp_path / "data")
    made = prepare(run, "train")
    assert prepare(run, "train").fingerprint == made.fingerprint

    def is_up_to_date() -> bool:
        found = Check(run.config).in_use(("prompts", "train"))
        return found is not None and not found.reasons

    assert is_up_to_date()
    old = folder / "b.txt"
    before = old.stat()
    old.write_text("B one, corrected")
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` leaves it
    assert not is_up_to_date()
    changed = prepare(run, "train")
    assert changed.fingerprint != made.fingerprint and is_up_to_date()
    for file in (folder / "b.txt", folder / "b.png"):
        file.unlink()
    assert not is_up_to_date()
    assert prepare(run, "train").manifest["rows"] == made.manifest["rows"] - 1
    moved = run_of(folder.rename(tmp_path / "moved"), tmp_path / "data")
    found = Check(moved.config).in_use(("prompts", "train"))
    assert found is not None and not found.reasons, "the same pages at another place"
    names = {file.name for file in source_files(moved.config.prepare["train"])}
    assert names == {"a.txt", "10.txt", "9.TXT", "one.pdf", "report.PDF"}
