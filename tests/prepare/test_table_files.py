"""One table in each of its files: the same prompts come out of all, and bad files are refused."""

import csv
import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from perpo_pipeline.config.sources import TableSource, source_files
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.vlm.images import image_sha256

COLUMNS = {"image": "file", "expression": "text", "gt_box": "bbox"}
# Boxes in an image of 20 x 10 pixels: x, y, width, height.
ROWS = [
    {"file": "a.png", "text": "a cat, asleep", "bbox": [1, 2, 7, 7], "category": "cat"},
    {"file": "b.png", "text": 'the "red"\none', "bbox": [10, 0, 10, 10], "category": None},
    {"file": "a.png", "text": "another", "bbox": [0.5, 1.5, 3, 4], "category": "cat"},
]
SIZE = 200  # bytes of each image
XYXY = [[1, 2, 8, 9], [10, 0, 20, 10], [0.5, 1.5, 3.5, 5.5]]


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 10), colour).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data.ljust(SIZE, b"\0"))


def write_jsonl(folder: Path) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_json(folder: Path) -> Path:
    (folder / "t.json").write_text(json.dumps(ROWS))
    return folder / "t.json"


def write_text(folder: Path, name: str, delimiter: str) -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(row | {"bbox": json.dumps(row["bbox"])} for row in ROWS)
    return folder / name


def as_table(folder: Path, *, inside: str = "") -> pa.Table:
    """The rows with paths, or with images inside: `bytes`, or `struct` as `datasets` has them."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    for row in rows if inside else ():
        data = (folder / row["file"]).read_bytes()
        row["file"] = data if inside == "bytes" else {"bytes": data, "path": None}
    return pa.Table.from_pylist(rows)


def write_parquet(folder: Path, inside: str = "") -> Path:
    pq.write_table(as_table(folder, inside=inside), folder / "t.parquet", row_group_size=2)
    return folder / "t.parquet"


def write_inside(folder: Path, kind: pa.DataType) -> Path:
    """With the bytes of images in a column of another type."""
    table = as_table(folder, inside="bytes")
    images = pa.array(table["file"].to_pylist(), kind)
    pq.write_table(table.set_column(0, "file", images), folder / "t.parquet", row_group_size=2)
    return folder / "t.parquet"


def write_saved(folder: Path, inside: str = "struct") -> Path:
    """As `save_to_disk` of datasets 5.2 does it, in two files whose order only state.json knows."""
    saved, table = folder / "t", as_table(folder, inside=inside)
    saved.mkdir()
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    for name, part in zip(names, (table[:2], table[2:]), strict=True):
        with pa.OSFile(str(saved / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as to:
            to.write_table(part)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    (saved / "dataset_info.json").write_text("{}")
    return saved


def read(source: str, path: Path, **settings: Any) -> Prepared:
    given = {"columns": COLUMNS, "box": "xywh", "task": "grounding", "unit": "px", **settings}
    table = TableSource(source=source, path=path, **given)
    return read_table(table, Request("train", box=table.box, unit=table.unit))


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("jsonl", write_jsonl),
        ("json", write_json),
        ("csv", lambda folder: write_text(folder, "t.csv", ",")),
        ("tsv", lambda folder: write_text(folder, "t.tsv", "\t")),
        ("parquet", write_parquet),
        ("parquet", lambda folder: write_parquet(folder, "bytes")),
        ("parquet", lambda folder: write_parquet(folder, "struct")),
        ("parquet", lambda folder: write_inside(folder, pa.binary_view())),
        ("parquet", lambda folder: write_inside(folder, pa.dictionary(pa.int32(), pa.binary()))),
        ("parquet", lambda folder: write_inside(folder, pa.binary(SIZE))),
        ("datasets", write_saved),
        ("datasets", lambda folder: write_saved(folder, "")),
    ],
)
def test_every_file_gives_the_same_prompts(
    tmp_path: Path, source: str, write: Callable[[Path], Path]
) -> None:
    expected = list(read("jsonl", write_jsonl(tmp_path)).rows)
    assert [row["gt_box"] for row in expected] == XYXY
    rows = list(read(source, write(tmp_path), image_root=tmp_path).rows)
    for row, other in zip(rows, expected, strict=True):
        same = {"prompt", "gt_box", "task", "image_sha256", "width", "dataset", "extra"}
        assert {name: row[name] for name in same} == {name: other[name] for name in same}


def test_a_real_folder_of_datasets_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "file": datasets.Image(),
            "text": datasets.ClassLabel(names=["cat", "dog"]),
            "bbox": datasets.List(datasets.Value("float32"), 4),
        }
    )
    rows = [{"file": str(tmp_path / "a.png"), "text": 1, "bbox": [1, 2, 7, 7]}] * 2
    made = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "one.parquet")
    for source, path in (("datasets", tmp_path / "saved/train"), ("parquet", "one.parquet")):
        for row in read(source, tmp_path / path).rows:
            assert row["prompt"].endswith("dog") and row["gt_box"] == XYXY[0]
            assert row["image_sha256"] == image_sha256((tmp_path / "a.png").read_bytes())
    with pytest.raises(InputError, match=r"the folder holds 2 splits[\s\S]*saved/test, .*/train"):
        read("datasets", tmp_path / "saved")


@pytest.mark.parametrize(
    ("column", "names"),
    [("text", ["cat", "dog"]), ("bbox", ["cat"]), ("number", None), ("none", ["cat"])],
)
def test_classes_that_the_metadata_cannot_mean_are_none(
    tmp_path: Path, column: str, names: list[str] | None
) -> None:
    table = as_table(tmp_path).append_column("number", pa.array([0, 1, 2]))
    features = {column: {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    rows = list(read("parquet", tmp_path / "t.parquet").rows)
    assert [row["gt_box"] for row in rows] == XYXY
    assert [row["prompt"].partition(": ")[2] for row in rows] == [row["text"] for row in ROWS]
    assert [json.loads(row["extra"])["number"] for row in rows] == [0, 1, 2]


def test_other_columns_are_kept_exactly(tmp_path: Path) -> None:
    row = {
        "image": "a.png",
        "prompt": "?",
        "gt_box": [1, 2, 7, 7],
        "day": datetime.date(2026, 11, 28),
        "price": Decimal("1.10"),
        "share": 0.1,
        "big": 2**60,
        "nested": {"list": [1, None]},
        "unknown": float("nan"),
        "mask": b"bytes",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    prepared = read("parquet", tmp_path / "t.parquet", columns={})
    assert prepared.rows[0]["extra"] == (
        '{"day": "2026-11-28", "price": "1.10", "share": 0.1, "big": 1152921504606846976, '
        '"nested": {"list": [1, null]}, "unknown": null}'
    )
    assert prepared.notes == {
        "extra": "other columns, kept with the prompts: day, price, share, big, nested, unknown",
        "columns_left_out": "columns of bytes, which are left out: mask",
    }
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a.png", "prompt": "?", "gt_box": [1, 2, 7, 7], "x": "\\ud800"}')
    with pytest.raises(InputError, match="line 1: `other columns` holds a character"):
        read("jsonl", path, columns={})


def test_rows_without_other_columns_have_none(tmp_path: Path) -> None:
    (row, *_) = read("jsonl", write_jsonl(tmp_path), columns=COLUMNS | {"gt_text": "category"}).rows
    assert row["extra"] is None


def test_a_box_in_four_columns_of_normalised_centres(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,text,cx,cy,w,h\na.png,x,0.5,0.5,0.2,0.4\na.png,y,,,,\n")
    columns = {"image": "file", "expression": "text", "gt_box": ["cx", "cy", "w", "h"]}
    settings = {"columns": columns, "box": "cxcywh", "unit": "norm"}
    with pytest.raises(InputError, match=r"line 3: `gt_box` \(column cx, cy, w, h\) is null"):
        read("csv", path, **settings)
    path.write_text(path.read_text().replace("a.png,y,,,,\n", ""))
    (row,) = read("csv", path, **settings).rows
    assert row["gt_box"] == pytest.approx([8, 3, 12, 7])


@pytest.mark.parametrize(
    ("order", "unit", "box"),
    [
        ("xyxy", "px", [2, 3, 12, 8]),
        ("xywh", "px", [2, 3, 10, 5]),
        ("cxcywh", "px", [7, 5.5, 10, 5]),
        ("xyxy", "norm", [0.1, 0.3, 0.6, 0.8]),
        ("cxcywh", "thousandths", [350, 550, 500, 500]),
    ],
)
def test_orders_and_units_of_a_box(tmp_path: Path, order: str, unit: str, box: list[float]) -> None:
    row = {"image": "a.png", "prompt": "?", "task": "grounding", "gt_boxes": [box], "gt_box": box}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (found,) = read("jsonl", tmp_path / "t.jsonl", columns={}, box=order, unit=unit).rows
    assert found["gt_box"] == pytest.approx([2, 3, 12, 8])
    assert found["gt_boxes"] == [pytest.approx([2, 3, 12, 8])]


def test_a_fault_of_a_converted_box_says_what_it_was_converted_from(tmp_path: Path) -> None:
    row = {"image": "a.png", "prompt": "?", "task": "grounding", "gt_box": [900, 0, 300, 500]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    message = r"outside the image .*\(converted from xywh in thousandths\)"
    with pytest.raises(InputError, match=message):
        read("jsonl", tmp_path / "t.jsonl", columns={}, unit="thousandths")


def test_a_field_that_null_names_is_read_from_no_column(tmp_path: Path) -> None:
    row = {"image": "a.png", "prompt": "kept", "expression": "x", "gt_box": [1, 2, 7, 7]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="give either `prompt` or `expression`"):
        read("jsonl", tmp_path / "t.jsonl", columns={})
    (found,) = read("jsonl", tmp_path / "t.jsonl", columns={"prompt": None}).rows
    assert found["prompt"].endswith(": x")


CSV = "file,text,bbox\n"


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("csv", CSV + 'a.png,"x"y,"[1, 2, 7, 7]"\n', "line 2 cannot be read: ',' expected after"),
        ("csv", CSV + "a.png,x,[1, 2, 7, 7]\n", "line 2: 6 cells, but the header has 3"),
        ("csv", CSV + "a.png,x,1 2 7 7\n", "line 2: gt_box is not four finite numbers: '1 2 7 7'"),
        ("csv", "file,file\n", "the header names 'file' twice"),
        ("csv", "file;text;bbox\na.png;x;y\n", "there is no column 'file' (columns.image)"),
        ("csv", "", "there is no column 'file'"),
        ("csv", CSV, "the dataset is empty"),
        ("tsv", "file\ttext\tbbox\nno.png\tx\t[1, 2, 7, 7]\n", "line 2: image "),
        ("json", "{}", "not a JSON list of records"),
        ("json", '[{"file": 3}]', "record 1: `image` (column file) is not text: 3"),
        ("parquet", "PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(
    tmp_path: Path, source: str, text: str, expected: str
) -> None:
    path = tmp_path / f"t.{source}"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(source, path)
    assert expected in str(caught.value) and path.name in str(caught.value)


def test_rows_of_parquet_and_damaged_images_are_named(tmp_path: Path) -> None:
    rows = [
        {"file": {"bytes": b"torn", "path": None}, "text": "x", "bbox": [1, 2, 7, 7]},
        {"file": {"bytes": None, "path": None}, "text": "y", "bbox": [1, 2, 7, 7]},
        {"file": {"bytes": None, "path": "a.png"}, "text": "z", "bbox": [1, 2, 7, 7]},
        {"file": None, "text": "z", "bbox": [1, 2, 7]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(InputError) as caught:
        read("parquet", tmp_path / "t.parquet")
    message = str(caught.value)
    assert "t.parquet, row 1: image in t.parquet, row 1: it is not an image" in message
    assert "t.parquet, row 2: `image` (column file) is null" in message
    assert "t.parquet, row 4: `image` (column file) is null" in message and "row 3" not in message


def test_only_one_split_is_read_from_a_folder_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(as_table(tmp_path), tmp_path / "hub" / "data" / f"{name}.parquet")
    with pytest.raises(InputError, match=r"holds 2 splits[\s\S]*data/test-\*\.parquet, .*data/tr"):
        read("parquet", tmp_path / "hub", image_root=tmp_path)
    for source, path in (("parquet", "hub/data/train-*.parquet"),):
        prepared = read(source, tmp_path / path, image_root=tmp_path)
        assert len(prepared.rows) == 6 and prepared.rows[0]["dataset"] == "data"
        assert prepared.source_rows[3] == "train-00001-of-00002.parquet/1"
        assert prepared.rows[3]["place"] == "train-00001-of-00002.parquet, row 1"


@pytest.mark.parametrize(
    ("source", "names", "advice"),
    [
        ("parquet", ["train", "test"], "hub/test.parquet, {}/hub/train.parquet; or each"),
        ("datasets", ["train", "test"], "/hub/train.parquet, with source parquet; or each"),
        ("parquet", ["a_train", "b_train", "data_validation"], "{}/hub/*_train.parquet, "),
        ("parquet", ["train/data", "test/data"], "test/data.parquet, {}/hub/train/data.parquet;"),
        ("datasets", ["train/a", "train/b", "Test/a", "Test/b"], "hub/Test, {}/hub/train; or each"),
        ("parquet", ["refcoco_testA", "refcoco_testB"], "hub/refcoco_testA.parquet, "),
        ("parquet", ["train", "extra", "test"], "hub/test.parquet, {}/hub/train.parquet; or each"),
        ("parquet", ["trainData", "testData"], "testData.parquet, {}/hub/trainData.parquet; or"),
        ("parquet", ["training", "testing"], "testing.parquet, {}/hub/training.parquet; or each"),
        ("parquet", ["train_coco", "test_flickr"], "flickr.parquet, {}/hub/train_coco.parquet; or"),
        ("parquet", ["train/x_train", "train/x_val"], "train/x_train.parquet, {}/hub/train/x_val"),
        ("parquet", ["test/a", "data_train"], "hub/data_train.parquet, {}/hub/test/a.parquet; or"),
        ("parquet", ["en/train/a", "de/train/b", "en/test/a"], "hub/*/train/*.parquet, {}/hub/en"),
        ("parquet", ["x_train_1", "y_train_2", "x_test_1"], "train_1.parquet and {}/hub/y_train_2"),
        ("parquet", ["x-00000-of-00001", "x"], "/x-*.parquet, {}/hub/x.parquet; or each"),
    ],
)
def test_files_whose_names_say_other_splits_are_not_mixed(
    tmp_path: Path, source: str, names: list[str], advice: str
) -> None:
    for name in names:
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(as_table(tmp_path), tmp_path / "hub" / f"{name}.parquet")
    with pytest.raises(InputError, match="the folder holds 2 splits, whose rows") as caught:
        read(source, tmp_path / "hub", image_root=tmp_path)
    assert advice.format(tmp_path) in str(caught.value)
    if source == "parquet":
        with pytest.raises(InputError, match="holds 2 splits"):
            read(source, tmp_path / "hub" / "**" / "*")
        one = read(source, tmp_path / "hub" / f"{names[-1]}.parquet", image_root=tmp_path)
        assert len(one.rows) == 3


def test_words_that_name_no_other_split_are_read_together(tmp_path: Path) -> None:
    names = ("contest", "train1", "train/2_train", "more_train", "latest", "train/test_free/train")
    for name in names:
        file = tmp_path / "test" / f"{name}.parquet"  # all of them are below it
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(as_table(tmp_path).slice(0, 1), file)
    assert len(read("parquet", tmp_path / "test", image_root=tmp_path).rows) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["dev-tools", "test-tube"],
        ["train/valid_boxes", "train/other_boxes"],
        ["train/driving_test", "train/train_stations"],
        ["test/train-00000-of-00002", "test/train-00001-of-00002"],
        ["train_stations", "test_tubes", "dogs"],
        ["evaluation_sets/x", "latest", "COCOtest"],
    ],
)
def test_an_accidental_word_in_a_name_refuses_nothing(tmp_path: Path, names: list[str]) -> None:
    hidden = [".cache/test/a", "test/.a"]
    for name in [*names, *hidden]:
        file = tmp_path / "hub" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(as_table(tmp_path).slice(0, 1), file)
    for path in ("hub", "hub/**/*.parquet", *["hub/*/*.parquet"] * ("/" in names[-1])):
        assert len(read("parquet", tmp_path / path, image_root=tmp_path).rows) == len(names)
    assert len(read("parquet", tmp_path / "hub/*/.*.parquet", image_root=tmp_path).rows) == 1


def test_rows_that_a_saved_folder_leaves_out_are_not_read(tmp_path: Path) -> None:
    """As versions of `datasets` before 2 saved what `select` had chosen."""
    state = {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"_indices_data_files[\s\S]*flatten_indices"):
        read("datasets", tmp_path)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    for source in ("csv", "parquet"):
        with pytest.raises(ConfigError, match="no such file"):
            read(source, tmp_path / "none")
    with pytest.raises(InputError, match="there is no such folder"):
        read("datasets", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no such file: the folder has no Parquet file"):
        read("datasets", tmp_path / "empty")


@pytest.mark.parametrize(
    "columns",
    [
        {"gt_box": ["a", "b"]},
        {"gt_box": ["a", "b", "c", "c"]},
        {"image": ["a", "b"]},
        {"imge": "a"},
    ],
)
def test_columns_that_make_no_sense_are_a_fault_of_the_configuration(columns: Any) -> None:
    with pytest.raises(ValidationError):
        TableSource(source="csv", path="t.csv", columns=columns)


def test_the_files_of_a_folder_are_known_before_they_are_read(tmp_path: Path) -> None:
    saved = write_saved(tmp_path)
    source = TableSource(source="datasets", path=saved)
    assert source_files(source) == sorted(saved.glob("*.arrow"))
    assert source_files(TableSource(source="csv", path="t.csv")) == [Path("t.csv")]


def test_text_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(f"{CSV}a.png,café,x\n".encode("cp1252"))
    with pytest.raises(InputError, match="cannot be read: line 2 is not UTF-8") as caught:
        read("csv", tmp_path / "t.csv")
    assert "save the file as UTF-8" in str(caught.value)


def test_a_column_without_a_name_is_left_out_and_named(tmp_path: Path) -> None:
    """As pandas writes the index of its rows."""
    (tmp_path / "t.csv").write_text(',file,text,bbox\n0,a.png,x,"[1, 2, 7, 7]"\n')
    prepared = read("csv", tmp_path / "t.csv", unit="px")
    assert prepared.notes == {"column_without_name": "a column without a name is left out"}
    assert prepared.rows[0]["extra"] is None


def test_a_column_that_no_row_of_json_has_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    message = r"no column 'nr' \(columns.id\); the file has 'file', 'text', 'bbox', 'category'"
    with pytest.raises(InputError, match=message):
        read("jsonl", write_jsonl(tmp_path), columns=COLUMNS | {"id": "nr"})


def test_values_that_python_cannot_hold_are_named(tmp_path: Path) -> None:
    rows = as_table(tmp_path)
    no_text = pa.array([b"x", b"\xff", b"y"]).cast(pa.binary()).view(pa.string())
    late = pa.array([0, 0, 2**62], pa.timestamp("us"))
    for name, column, row in (("text", no_text, 2), ("file", no_text, 2), ("day", late, 3)):
        places = {"file", "text", "bbox"} - {name}
        table = rows.select(sorted(places)).append_column(name, column)
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=1)
        with pytest.raises(InputError, match=rf"t.parquet, row {row}: column '{name}' cannot be"):
            read("parquet", tmp_path / "t.parquet")


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = as_table(tmp_path)
    twice = pa.Table.from_arrays(
        [*table.columns, table["file"]], names=[*table.column_names, "file"]
    )
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="the file has 'file' twice"):
        read("parquet", tmp_path / "t.parquet")


def test_damaged_pages_of_images_are_one_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, "bytes")
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(0).column(0).dictionary_page_offset or 4
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xaa" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read("parquet", path)


def test_numbers_too_large_for_their_image_are_a_fault_of_their_row(tmp_path: Path) -> None:
    row = {"image": "a.png", "prompt": "?", "task": "grounding", "gt_box": [0, 0, 10**307, 1]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"line 1: gt_box is not four finite numbers: \[0.0"):
        read("jsonl", tmp_path / "t.jsonl", columns={}, box="xyxy", unit="norm")


def test_a_fault_does_not_repeat_a_whole_image(tmp_path: Path) -> None:
    rows = [{"file": [b"x" * 100_000], "text": "x", "bbox": [1, 2, 7, 7]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"is not text: .* \([0-9,]+ characters\)") as caught:
        read("parquet", tmp_path / "t.parquet")
    assert len(str(caught.value)) < 2000


def test_other_columns_that_are_nested_too_deeply_are_a_fault_of_their_row(tmp_path: Path) -> None:
    row = {"image": "a.png", "prompt": "?", "task": "grounding", "gt_box": [1, 2, 7, 7]}
    deep = json.dumps(row)[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(row)}\n{deep}\n")
    with pytest.raises(InputError, match=r"line 2: its other columns (are nested|cannot be)"):
        read("jsonl", tmp_path / "t.jsonl", columns={})
