"""The layouts of others: the same expressions and boxes come out of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prepare.refer_tree import Tree

from perpo_pipeline.answers.truth import box_fault
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import (
    FoxSource,
    LmmsLabSource,
    RecSource,
    ReferSource,
    TableSource,
)
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.fox import read_fox
from perpo_pipeline.prepare.lmms_lab import read_lmms_lab
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.rec import read_rec
from perpo_pipeline.prepare.refer import read_refer
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.run import Run

REQUEST = Request("val")
Ref = dict[str, Any]


def as_jsonl(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    lines = [
        {
            "image": ref["image"],
            "expression": ref["expression"],
            "task": "grounding",
            "gt_box": xyxy(ref),
        }
        for ref in refs
    ]
    path = write_lines(tmp_path / "a.jsonl", lines)
    return read_table(TableSource(source="jsonl", path=path, image_root=images), REQUEST)


def as_rec_jsonl(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    lines = [
        {
            "image": f"data/coco/{ref['image']}",
            "sent": ref["expression"],
            "bbox": xyxy(ref),
            "height": ref["height"],
            "width": ref["width"],
        }
        for ref in refs
    ]
    path = write_lines(tmp_path / "b.jsonl", lines)
    shutil.copytree(images, tmp_path / "b" / "data" / "coco")
    source = RecSource(source="rec-jsonl", path=path, image_root=tmp_path / "b")
    return read_rec(source, REQUEST)


def as_shikra(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    lines = [
        {"img_path": ref["image"], "expression": ref["expression"], "bbox": xyxy(ref)}
        for ref in refs
    ]
    path = write_lines(tmp_path / "c.jsonl", lines)
    return read_rec(RecSource(source="shikra", path=path, image_root=images), REQUEST)


def as_minigpt4(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    records = [
        {
            "img_id": ref["img_id"],
            "sents": ref["expression"],
            "bbox": ref["bbox_xywh"],
            "height": ref["height"],
            "width": ref["width"],
        }
        for ref in refs
    ]
    path = tmp_path / "d.json"
    path.write_text(json.dumps(records))
    return read_rec(RecSource(source="minigpt4", path=path, image_root=images), REQUEST)


def as_refer(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    tree = Tree(tmp_path / "refer")
    names = sorted({ref["image"] for ref in refs})
    for ref in refs:
        dataset, split = ref["dataset_split"].rsplit("_", 1)
        tree.add(
            dataset,
            split,
            names.index(ref["image"]),
            ref["expression"],
            name=ref["image"],
            box=ref["bbox_xywh"],
            size=(ref["width"], ref["height"]),
        )
    splits = sorted({ref["dataset_split"].rsplit("_", 1)[1] for ref in refs})
    source = ReferSource(
        source="refer",
        path=tree.write(),
        image_root=images,
        splits=splits,
        datasets=list(tree.refs),
        leave_out_evaluated=False,
    )
    return read_refer(source, REQUEST)


def as_lmms_lab(refs: list[Ref], images: Path, tmp_path: Path) -> Prepared:
    """One row per object with all its expressions, two objects per row group."""
    objects: dict[tuple[Any, ...], Ref] = {}
    for ref in refs:
        row = objects.setdefault(
            (ref["img_id"], *ref["bbox_xywh"]),
            {
                "question_id": ref["img_id"],
                "question": "Describe the region.",
                "image": {"bytes": (images / ref["image"]).read_bytes(), "path": "x.jpg"},
                "answer": [],
                "bbox": ref["bbox_xywh"],
                "file_name": ref["img_id"] + ".jpg",
            },
        )
        row["answer"].append(ref["expression"])
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "testA-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(list(objects.values())), file, row_group_size=2)
    return read_lmms_lab(LmmsLabSource(source="lmms-lab", path=folder), REQUEST)


def xyxy(ref: Ref) -> list[float]:
    x, y, width, height = ref["bbox_xywh"]
    return [x, y, x + width, y + height]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("convert", "place"),
    [
        (as_jsonl, "a.jsonl:44"),
        (as_rec_jsonl, "b.jsonl:44"),
        (as_shikra, "c.jsonl:44"),
        (as_minigpt4, "d.json, record 44"),
        (as_refer, "refcocog/refs(umd).p, ref 4, sentence 231"),
        (as_lmms_lab, "testA-00000-of-00001.parquet, row 8, answer 2"),
    ],
)
def test_real_expressions_have_the_same_boxes_in_every_layout(
    realdata: Path,
    tmp_path: Path,
    convert: Callable[[list[Ref], Path, Path], Prepared],
    place: str,
) -> None:
    images = realdata / "refcoco_images"
    refs = json.loads((images / "refs.json").read_text())
    rows = list(convert(refs, images, tmp_path).rows)
    assert len(rows) == len({row["prompt_id"] for row in rows}) == len(refs) == 44
    found = [(row["image_sha256"], row["prompt"], tuple(row["gt_box"])) for row in rows]
    expected = [
        (sha256_of(images / ref["image"]), REQUEST.question(ref["expression"]), tuple(xyxy(ref)))
        for ref in refs
    ]
    assert sorted(found) == sorted(expected)
    assert rows[-1]["place"] == place


def sha256_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_real_box_of_refcoco_testa_passes_the_checks(realdata: Path) -> None:
    records = json.loads((realdata / "refcoco_gt" / "refcoco_testA.json").read_text())
    boxes = [(xyxy({"bbox_xywh": r["bbox"]}), r["width"], r["height"]) for r in records]
    assert len(boxes) == 5657
    assert [box_fault(*one) for one in boxes if box_fault(*one)] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg")
    return tmp_path


GOOD = {
    "rec-jsonl": {"image": "a.jpg", "sent": "cat", "bbox": [1, 2, 8, 9], "width": 20, "height": 10},
    "shikra": {"img_path": "a.jpg", "expression": "cat", "bbox": [1, 2, 8, 9]},
    "minigpt4": {"img_id": "a_7", "sents": "cat", "bbox": [1, 2, 7, 7], "width": 20, "height": 10},
}


def read_one(folder: Path, layout: str, *records: Any) -> Prepared:
    path = folder / "refcoco_unc_val.json"
    if layout == "minigpt4":
        path.write_text(json.dumps(records))
    else:
        write_lines(path, list(records))
    return read_rec(RecSource(source=layout, path=path), REQUEST)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", GOOD)
def test_the_layouts_differ_in_names_and_in_xywh(photo: Path, layout: str) -> None:
    (row,) = read_one(photo, layout, GOOD[layout]).rows
    assert row["gt_box"] == [1.0, 2.0, 8.0, 9.0] and row["prompt"].endswith("describes: cat")
    assert (row["dataset"], row["source_row"]) == ("refcoco_unc_val", "1")


@pytest.mark.parametrize("layout", GOOD)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": None}, "`bbox` is null"),
        ({"bbox": [1, 2, 3]}, "not four finite numbers"),
        ({"bbox": [1, 2, 300, 9]}, "is outside the image of 20x10"),
        ({"width": 21, "height": 10}, "the file says the image is 21 x 10 pixels"),
        ({"width": "20", "height": 10}, "`width` is not a whole number"),
        ({"sent": "", "expression": "", "sents": ""}, "is missing"),
        ({"sent": 3, "expression": 3, "sents": 3}, "is not text"),
        ({"image": "b.jpg", "img_path": "b.jpg", "img_id": "b_1"}, "b.jpg"),
        ({"image": "b.jpg", "img_path": "b.jpg", "img_id": "b_1"}, ": No such file"),
        ({"sent": None, "expression": None, "sents": None}, "` is null"),
    ],
)
def test_a_bad_record_is_reported_with_its_place(
    photo: Path, layout: str, change: dict[str, Any], message: str
) -> None:
    bad = {**GOOD[layout], **change}
    with pytest.raises(InputError, match=r"^1 fault:") as caught:
        read_one(photo, layout, GOOD[layout], bad)
    place = "record 2: " if layout == "minigpt4" else "line 2: "
    assert place in str(caught.value) and message in str(caught.value)


def test_an_image_id_that_does_not_end_with_a_number_is_refused(photo: Path) -> None:
    with pytest.raises(InputError, match="does not end with _ and a number") as caught:
        read_one(photo, "minigpt4", {**GOOD["minigpt4"], "img_id": "a"})
    assert "`img_id` without its last _NUMBER, and .jpg" in str(caught.value)


def test_the_fault_of_a_missing_image_explains_how_minigpt4_names_its_file(photo: Path) -> None:
    """COCO's own name ends with a number, too, which is taken for the ref's."""
    with pytest.raises(InputError) as caught:
        read_one(photo, "minigpt4", {**GOOD["minigpt4"], "img_id": "COCO_train2014_000000581857"})
    assert "COCO_train2014.jpg (`img_id` without its last _NUMBER, and .jpg): No such file" in str(
        caught.value
    )


@pytest.mark.parametrize("layout", GOOD)
def test_normalised_boxes_are_reported_in_every_layout(photo: Path, layout: str) -> None:
    record = {**GOOD[layout], "bbox": [0.1, 0.2, 0.3, 0.4]}
    with pytest.raises(InputError, match="all 2 boxes are within 0-1: they look normalised"):
        read_one(photo, layout, record, record)


@pytest.mark.parametrize("layout", GOOD)
def test_a_box_that_is_not_there_is_missing(photo: Path, layout: str) -> None:
    record = {k: v for k, v in GOOD[layout].items() if k != "bbox"}
    with pytest.raises(InputError, match="`bbox` is missing"):
        read_one(photo, layout, record)


@pytest.mark.parametrize("layout", ["rec-jsonl", "minigpt4"])
def test_a_size_that_the_layout_has_must_be_given(photo: Path, layout: str) -> None:
    record = {k: v for k, v in GOOD[layout].items() if k != "height"}
    with pytest.raises(InputError, match="`height` is missing"):
        read_one(photo, layout, record)


PAGE = {
    "image": "a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nOCR this page:"},
        {"from": "gpt", "value": " Line  one\n\tline TWO\u00ad \n"},
    ],
}


def read_pages(folder: Path, pages: Any) -> Prepared:
    path = folder / "pages.json"
    path.write_text(json.dumps(pages))
    return read_fox(FoxSource(source="fox", path=path), Request("test"))


def test_a_page_keeps_its_text_as_it_is_and_its_question_loses_the_placeholder(
    photo: Path,
) -> None:
    (row,) = read_pages(photo, [PAGE]).rows
    assert row["gt_text"] == " Line  one\n\tline TWO\u00ad \n"
    assert (row["prompt"], row["task"], row["gt_box"]) == ("OCR this page:", "ocr", None)


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        (" <image> OCR this page:", "OCR this page:"),
        ("OCR this page:\n<image>", "OCR this page:\n<image>"),
        ("OCR <image> now", "OCR <image> now"),
    ],
)
def test_the_place_of_the_image_in_a_question_stays_unless_it_is_the_first(
    photo: Path, question: str, kept: str
) -> None:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "x"}]
    (row,) = read_pages(photo, [{**PAGE, "conversations": turns}]).rows
    assert row["prompt"] == kept


def test_a_question_with_two_places_for_its_image_is_refused(photo: Path) -> None:
    turns = [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}]
    with pytest.raises(InputError, match="record 1: the prompt holds <image> more than once"):
        read_pages(photo, [{**PAGE, "conversations": turns}])


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        (None, "not a list of turns"),
        (["hello"], "not a list of turns"),
        (PAGE["conversations"][:1], "but of ['human']"),
        (PAGE["conversations"] * 2, "but of ['human', 'gpt', 'human', 'gpt']"),
        (PAGE["conversations"][::-1], "but of ['gpt', 'human']"),
        ([{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}], "is empty"),
        ([{"from": "human", "value": "?"}, {"from": "gpt", "value": ""}], "`value` is missing"),
    ],
)
def test_a_page_without_one_question_and_one_answer_is_refused(
    photo: Path, conversations: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_pages(photo, [PAGE, {**PAGE, "conversations": conversations}])
    assert "record 2: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("content", [{"image": "a.jpg"}, "text"])
def test_a_file_without_a_list_is_refused(photo: Path, content: Any) -> None:
    with pytest.raises(InputError, match="not a JSON list"):
        read_pages(photo, content)


def parquet(path: Path, *, image: Any, answers: Any = ("cat", "the cat"), rows: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"image": image, "answer": list(answers), "bbox": [1.0, 2.0, 7.0, 7.0]}
    pq.write_table(pa.Table.from_pylist([row] * rows), path, row_group_size=2)
    return path


def test_a_parquet_row_has_a_prompt_for_each_expression_and_its_image_inside(photo: Path) -> None:
    data = (photo / "a.jpg").read_bytes()
    parquet(photo / "d/val-00000-of-00002-ab12.parquet", image={"bytes": data, "path": "x"}, rows=3)
    parquet(photo / "d/val-00001-of-00002-cd34.parquet", image={"bytes": data, "path": "x"})
    parquet(photo / "d/testA-00000-of-00001.parquet", image={"bytes": data, "path": "x"})
    source = LmmsLabSource(source="lmms-lab", path=photo / "d", dataset="refcocog")
    prepared = read_lmms_lab(source, REQUEST)
    assert prepared.counts["found"] == {
        "refcocog_testA": {"refs": 1, "expressions": 2},
        "refcocog_val": {"refs": 4, "expressions": 8},
    }
    assert len(prepared.rows) == 10 and prepared.rows[0]["gt_box"] == [1.0, 2.0, 8.0, 9.0]
    assert all(row["image"] == {"bytes": data, "path": None} for row in prepared.rows)
    assert prepared.rows[9]["source_row"] == "val-00001-of-00002-cd34.parquet/1/1"
    some = source.model_copy(update={"path": photo / "d/testA-*.parquet"})
    assert [row["dataset"] for row in read_lmms_lab(some, REQUEST).rows] == ["refcocog_testA"] * 2


def test_the_run_prints_that_lmms_labs_val_is_not_the_papers(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = {"bytes": (photo / "a.jpg").read_bytes(), "path": "x"}
    parquet(photo / "d/val-00000-of-00001.parquet", image=image)
    source = {"source": "lmms-lab", "path": str(photo / "d")}
    config = {
        "run": "r",
        "data_root": str(photo / "data"),
        "prepare": {"train": source, "test": source},
    }
    version = prepare(Run(RunConfig.model_validate(config), quiet=True), "test")
    assert "Google's val together" in capsys.readouterr().err
    assert "cannot be compared" in version.manifest["notes"]["val"]


@pytest.mark.parametrize(
    ("image", "answers", "message"),
    [
        ({"bytes": None, "path": "a.jpg"}, ["cat"], "holds no image bytes"),
        ({"bytes": b"torn", "path": "a.jpg"}, ["cat"], "it is not an image"),
        (None, [], "`answer` is not a list of expressions"),
        (None, ["cat", ""], "`answer` is missing"),
    ],
)
def test_a_bad_parquet_row_is_reported_with_its_file_and_row(
    photo: Path, image: Any, answers: list[str], message: str
) -> None:
    image = image or {"bytes": (photo / "a.jpg").read_bytes(), "path": "x"}
    path = parquet(photo / "val-00000-of-00001.parquet", image=image, answers=answers)
    with pytest.raises(InputError) as caught:
        read_lmms_lab(LmmsLabSource(source="lmms-lab", path=path), REQUEST)
    assert "val-00000-of-00001.parquet, row 1" in str(caught.value) and message in str(caught.value)


def test_a_parquet_file_of_another_layout_is_refused(photo: Path) -> None:
    (photo / "val.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"read as Parquet[\s\S]*a folder of them or a pattern"):
        read_lmms_lab(LmmsLabSource(source="lmms-lab", path=photo / "val.parquet"), REQUEST)
    pq.write_table(pa.table({"image": [1]}), photo / "val.parquet")
    with pytest.raises(InputError, match="no column answer, bbox"):
        read_lmms_lab(LmmsLabSource(source="lmms-lab", path=photo / "val.parquet"), REQUEST)
    for path in (photo / "no.parquet", photo / "no-*.parquet"):
        with pytest.raises(ConfigError, match="no such file"):
            read_lmms_lab(LmmsLabSource(source="lmms-lab", path=path), REQUEST)


def test_an_image_is_decoded_once_for_all_its_rows(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline.prepare import collect

    seen: list[str] = []
    real = collect.load_image_with_notes

    def counting(data: bytes, where: str) -> Any:
        seen.append(where)
        return real(data, where=where)

    monkeypatch.setattr(collect, "load_image_with_notes", counting)
    read_one(photo, "shikra", *[GOOD["shikra"]] * 5)
    assert seen == [str(photo / "a.jpg")]
