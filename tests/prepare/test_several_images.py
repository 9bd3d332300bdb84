"""Several images and earlier turns in rows of tables: what is kept, each fault with its line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from synthetic_run import synthetic_config

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.prepare.arrow_files import ParquetShard
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.entries import Entry, ImageFile
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.preview import Sheet, write_preview
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.run import Run
from perpo_pipeline.store.inspect import describe
from perpo_pipeline.store.prompt_images import images_of, num_images, sizes_of

SIZES = {"a.png": (20, 10), "b.png": (30, 40), "c.png": (8, 8)}
TRUTH = {"task": "grounding", "gt_box": [1, 2, 6, 7]}
TWO = {"images": ["a.png", "b.png"], "prompt": "Which is larger?", **TRUTH}
SAID = [{"role": "user", "content": "Is <image> red?"}, {"role": "assistant", "content": "Yes."}]
ONE = {"image": "a.png", "prompt": "Where?", **TRUTH}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, size) in enumerate(SIZES.items()):
        Image.new("RGB", size, (number, 200, 0)).save(tmp_path / name)
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    return tmp_path


def read(folder: Path, *rows: Any, **settings: Any) -> Prepared:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    source = TableSource(source="jsonl", path=folder / "data.jsonl", **settings)
    return read_table(source, Request("train"))


def shown(row: Any) -> list[str]:
    """The names of a row's images, in their order."""
    return [Path(image["path"]).name for image in images_of(row)]


@pytest.mark.parametrize(
    ("given", "order", "box_image"),
    [
        ({}, ["a.png", "b.png"], 1),
        ({"box_image": 0}, ["a.png", "b.png"], 0),
        ({"box_image": 0.0}, ["a.png", "b.png"], 0),  # as pandas writes a column with gaps
        ({"images": ["a.png", "b.png", "c.png"], "box_image": 1}, ["a.png", "b.png", "c.png"], 1),
        ({"images": ["a.png"]}, ["a.png"], None),
        ({"images": ["a.png"], "box_image": 0}, ["a.png"], None),
        ({"images": ["a.png", "a.png"]}, ["a.png", "a.png"], 1),
    ],
)
def test_all_images_are_kept_in_order_and_boxes_belong_to_one(
    folder: Path, given: Any, order: list[str], box_image: int | None
) -> None:
    (row,) = read(folder, {**TWO, **given}).rows
    assert shown(row) == order and num_images(row) == len(order)
    assert sizes_of(row) == [SIZES[name] for name in order]
    assert row["box_image"] == box_image
    name = order[box_image or 0]
    assert Path(row["image"]["path"]).name == name
    assert (row["width"], row["height"]) == SIZES[name]
    assert [image["width"] for image in images_of(row)] == [SIZES[name][0] for name in order]


def test_embedded_images_are_all_embedded(folder: Path) -> None:
    (row,) = read(folder, TWO, embed_images=True).rows
    files = [(folder / name).read_bytes() for name in TWO["images"]]
    assert [(one["bytes"], one["path"]) for one in images_of(row)] == [(f, None) for f in files]


def test_inspect_prints_the_size_of_each_image_and_no_bytes(folder: Path) -> None:
    (folder / "data.jsonl").write_text(json.dumps(TWO))
    source = TableSource(source="jsonl", path=folder / "data.jsonl", embed_images=True)
    config = synthetic_config(folder / "data").model_copy(update={"prepare": {"train": source}})
    said = describe(prepare(Run(config, quiet=True), "train").path)
    for column, name in (("image: ", "b.png"), ("more_images: [", "a.png")):
        size = (folder / name).stat().st_size
        assert f"{column}{{bytes: <{size} bytes>, path: None}}" in said


def test_history_is_kept_as_turns(folder: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (row,) = read(folder, {**ONE, "history": [system, *SAID]}).rows
    assert row["history"] == [system, *SAID]
    for nothing in (None, []):
        assert read(folder, {**ONE, "history": nothing}).rows[0]["history"] is None


def test_only_rows_that_have_more_than_one_of_each_change_the_fingerprint(folder: Path) -> None:
    """Older programs kept such columns as others, with the same files and images."""
    usual = read(folder, ONE).facts
    assert not usual.keys() & {"several_images", "history"}
    assert read(folder, ONE, TWO).facts["several_images"] is True
    assert read(folder, {**ONE, "history": SAID}).facts["history"] is True
    swapped = read(folder, {**TWO, "images": ["b.png", "a.png"], "box_image": 0}).facts
    other = read(folder, {**TWO, "images": ["b.png", "c.png"], "box_image": 0}).facts
    assert swapped["images_sha256"] != other["images_sha256"]


USER, BOT = ({"role": role, "content": "x"} for role in ("user", "assistant"))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({**TWO, "image": "a.png"}, "give either `image` or `images`; a column of one of these"),
        ({**TWO, "images": "a.png"}, "`images` is no list of images: 'a.png'"),
        ({**TWO, "images": []}, "`images` is no list of images: []"),
        ({**TWO, "images": ["a.png", 3]}, "`images[1]` is no path: 3"),
        ({**TWO, "images": ["a.png", None]}, "`images[1]` is no path: None"),
        ({**TWO, "images": ["a.png", "https://a.org/b.png"]}, "nothing is downloaded"),
        ({**TWO, "images": ["a.png", "\x00"]}, "`images[1]` holds a character that is not text"),
        ({**TWO, "images": ["missing.png", "b.png"]}, "image 1, "),
        ({**TWO, "images": ["torn.png", "missing.png"]}, "torn.png: "),
        ({**TWO, "images": ["torn.png", "missing.png"]}, "missing.png: No such file"),
        ({**TWO, "box_image": 2}, "`box_image` is 2; it is the place of an image, from 0: the row"),
        ({**TWO, "box_image": -1}, "`box_image` is -1"),
        ({**TWO, "box_image": True}, "`box_image` is True"),
        ({**TWO, "box_image": 0.5}, "`box_image` is 0.5"),
        ({**ONE, "box_image": 1}, "`box_image` is 1"),
        ({**TWO, "gt_box": [1, 2, 6, 41]}, "gt_box [1, 2, 6, 41] is outside the image of 30x40"),
        ({**TWO, "prompt": "Is <image> red?"}, "it is there once, and the prompt has 2 images"),
        ({**TWO, "prompt": "<image><image><image>?"}, "there 3 times, and the prompt has 2 images"),
        ({**TWO, "prompt": "<image><image>"}, "the prompt has no text"),
        ({**TWO, "history": SAID}, "it is there once, and the prompt has 2 images"),
        ({**ONE, "history": [USER, {**BOT, "content": "<image>"}]}, "in a turn of the assistant"),
        ({**ONE, "history": "x"}, "`history` is no list of turns: 'x'"),
        ({**ONE, "history": ["x"]}, "`history[0]` is no turn with a `role` and a text"),
        ({**ONE, "history": [USER, {"role": "assistant"}]}, "`history[1]` is no turn"),
        ({**ONE, "history": [{**USER, "content": "\ud800"}]}, "a character that is not text"),
        ({**ONE, "history": [{**USER, "role": "human"}]}, "a turn of 'human'; the roles are"),
        ({**ONE, "history": [USER]}, "turns of user; before `prompt`, a turn of the user, come"),
        ({**ONE, "history": [BOT, USER]}, "turns of assistant, user; before"),
        ({**ONE, "history": [USER, BOT, {**USER, "role": "system"}]}, "assistant, system; before"),
        ({**ONE, "history": [{**USER, "content": " "}, BOT]}, "a turn of the user without text"),
    ],
)
def test_each_fault_has_its_line_and_nothing_is_read(folder: Path, bad: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(folder, ONE, TWO, bad)
    assert "1 fault:" in str(caught.value)
    assert "line 3: " in str(caught.value) and expected in str(caught.value)


def test_the_faults_of_all_rows_are_reported_at_once(folder: Path) -> None:
    bad = [{**TWO, "box_image": 7}, {**ONE, "history": [USER]}, {**TWO, "images": ["no.png"] * 2}]
    with pytest.raises(InputError, match="3 faults") as caught:
        read(folder, ONE, *bad)
    assert all(f"line {number}: " in str(caught.value) for number in (2, 3, 4))


def test_rows_with_a_bad_image_can_be_left_out(folder: Path) -> None:
    (folder / "data.jsonl").write_text(
        "\n".join(map(json.dumps, (ONE, {**TWO, "images": ["torn.png", "b.png"]})))
    )
    source = TableSource(source="jsonl", path=folder / "data.jsonl")
    prepared = read_table(source, Request("train", leave_out_bad_rows=True))
    assert prepared.left_out == {"bad_image": 1} and len(prepared.rows) == 1


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_lists_of_images_in_parquet_files(folder: Path, kind: str) -> None:
    """As `datasets` saves a sequence of images: bytes, or structs with bytes or a path."""

    def stored(name: str) -> Any:
        data = (folder / name).read_bytes()
        return {"bytes": data, "struct": {"bytes": data, "path": name}, "path": name}[kind]

    rows = [
        {**TRUTH, "prompt": "Which?", "images": [stored(name) for name in names]}
        for names in (["a.png", "b.png"], ["c.png"], ["b.png", "c.png", "a.png"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet", row_group_size=2)
    source = TableSource(source="parquet", path=folder / "t.parquet", box="xyxy")
    found = list(read_table(source, Request("train")).rows)
    assert [sizes_of(row) for row in found] == [
        [SIZES[name] for name in names]
        for names in (["a.png", "b.png"], ["c.png"], ["b.png", "c.png", "a.png"])
    ]
    for row, names in zip(found, (["a.png", "b.png"], ["c.png"]), strict=False):
        for image, name in zip(images_of(row), names, strict=True):
            data = (folder / name).read_bytes()
            assert (image["bytes"] or Path(image["path"]).read_bytes()) == data


def test_images_in_several_columns_are_read_once_per_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group has megabytes of images: to read it again for each row would take hours."""
    data = {name: (folder / name).read_bytes() for name in SIZES}
    row = {**TRUTH, "prompt": "Which?", "left": data["a.png"], "right": data["b.png"]}
    pq.write_table(pa.Table.from_pylist([row] * 5), folder / "t.parquet")
    read_columns, real = list[Any](), ParquetShard.read

    def read(shard: ParquetShard, group: int, columns: Any) -> pa.Table:
        read_columns.append(list(columns))
        return real(shard, group, columns)

    monkeypatch.setattr(ParquetShard, "read", read)
    columns: Any = {"images": ["left", "right"]}
    source = TableSource(source="parquet", path=folder / "t.parquet", columns=columns)
    prepared = read_table(source, Request("train"))
    read_columns.clear()
    images = [[image["bytes"] for image in images_of(row)] for row in prepared.rows]
    assert images == [[data["a.png"], data["b.png"]]] * 5
    assert len(read_columns) <= 2


def test_lists_of_a_fixed_length(folder: Path) -> None:
    """As `datasets` saves a sequence that has a length."""
    images = pa.array([[(folder / name).read_bytes() for name in ("b.png", "a.png")]])
    table = pa.table({"prompt": ["Which?"], "task": ["vqa"], "gt_text": ["x"]})
    table = table.append_column("images", images.cast(pa.list_(pa.binary(), 2)))
    pq.write_table(table, folder / "t.parquet")
    source = TableSource(source="parquet", path=folder / "t.parquet")
    (row,) = read_table(source, Request("train")).rows
    assert sizes_of(row) == [SIZES["b.png"], SIZES["a.png"]]
    one = {"prompt": "Which?", "task": "vqa", "gt_text": "x", "images": b"..."}
    pq.write_table(pa.Table.from_pylist([one]), folder / "t.parquet")
    with pytest.raises(InputError, match="`images` is no list of images: it is one image"):
        read_table(source, Request("train"))


def test_cells_of_text_hold_json_and_columns_hold_one_image_each(folder: Path) -> None:
    head = "left,right,prompt,task,gt_box,history\n"
    history = json.dumps(SAID[:0]).replace('"', '""')
    row = f'a.png,b.png,Which?,grounding,"[1, 2, 6, 7]","{history}"\n'
    (folder / "t.csv").write_text(head + row + row.replace("b.png", ""))
    columns: Any = {"images": ["left", "right"]}
    source = TableSource(source="csv", path=folder / "t.csv", columns=columns)
    two, one = read_table(source, Request("train")).rows
    assert shown(two) == ["a.png", "b.png"] and shown(one) == ["a.png"]
    assert two["extra"] is None
    (folder / "t.csv").write_text(head + row.replace("a.png", ""))
    with pytest.raises(InputError, match=r"line 2: `images\[0\]` is no path: None"):
        read_table(source, Request("train"))
    (folder / "u.csv").write_text('images,prompt,gt_text\n"[""b.png"", ""a.png""]",Which?,x\n')
    source = TableSource(source="csv", path=folder / "u.csv", task="vqa")
    (row_of_json,) = read_table(source, Request("train")).rows
    assert shown(row_of_json) == ["b.png", "a.png"]


def test_the_preview_shows_the_other_images_and_the_earlier_turns(folder: Path) -> None:
    rows = [{**TWO, "box_image": 0, "history": [{**USER, "content": "A <b>?"}, BOT]}, ONE]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"source": "jsonl", "path": str(folder / "data.jsonl")}
    config = {"run": "r", "data_root": str(folder), "prepare": {"train": source, "test": source}}
    sheets: list[Sheet] = []
    prepare(Run(RunConfig.model_validate(config), quiet=True), "train", sheets)
    write_preview(folder / "preview.html", sheets, "r")
    page = (folder / "preview.html").read_text()
    assert page.count('alt="picture 2 of 2"') == page.count('class="others"') == 1
    assert "user: A &lt;b&gt;?" in page and "assistant: x" in page


def test_the_places_of_an_entrys_images() -> None:
    """Readers of other layouts make entries, too; faults name images by these places."""
    images = tuple(ImageFile(Path(name)) for name in ("b", "c"))
    entry = Entry("", "", "", "vqa", ImageFile(Path("a")), "?", more_images=images, box_image=1)
    assert [str(image) for image in entry.images] == ["a", "b", "c"]
    assert entry.places == [1, 0, 2]
