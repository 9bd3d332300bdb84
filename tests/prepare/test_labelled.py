"""COCO, Label Studio and YOLO: the same labelled boxes give the same prompts; faults are named."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.config.sources import (
    CocoSource,
    LabelStudioSource,
    YoloSource,
    source_files,
)
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.coco import read_coco
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.label_studio import read_label_studio
from perpo_pipeline.prepare.yolo import read_yolo

# Two images of 200 x 100 pixels: label and box (x, y, width, height), in the order of the file.
BOXES: dict[str, list[tuple[str, list[float]]]] = {
    "a.png": [("car", [10, 20, 40, 30]), ("dog", [100, 50, 50, 40]), ("car", [150, 0, 50, 100])],
    "b.png": [("dog", [0, 0, 20, 10])],
    "empty.png": [],
}
PER_LABEL = [
    ("a.png", "car", [[10, 20, 50, 50], [150, 0, 200, 100]]),
    ("a.png", "dog", [[100, 50, 150, 90]]),
    ("b.png", "dog", [[0, 0, 20, 10]]),
]
NAMES = ["car", "dog"]
LONG = "x" * 300  # as the name of a file, an OSError


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, colour in zip(BOXES, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (200, 100), colour).save(folder / name)


def coco() -> dict[str, Any]:
    names = list(BOXES)
    annotations = [
        {"image_id": names.index(name), "category_id": NAMES.index(label) + 7, "bbox": box}
        for name, boxes in BOXES.items()
        for label, box in boxes
    ]
    return {
        "images": [
            {"id": index, "file_name": name, "width": 200, "height": 100}
            for index, name in enumerate(names)
        ],
        "categories": [
            {"id": 7, "name": "car", "supercategory": "vehicle"},
            {"id": 8, "name": "dog", "supercategory": "animal"},
        ],
        "annotations": [
            {"id": 100 + n, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]], **one}
            for n, one in enumerate(annotations)
        ],
    }


def rectangle(label: str, box: list[float], **value: Any) -> dict[str, Any]:
    x, y, width, height = box
    percent = {"x": x / 2, "y": y, "width": width / 2, "height": height, "rotation": 0}
    return {
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {**percent, "rectanglelabels": [label], **value},
    }


def label_studio() -> list[dict[str, Any]]:
    return [
        {
            "id": 40 + number,
            "data": {"image": f"/data/upload/3/0a1b2c3d-{name}", "camera": "left"},
            "annotations": [{"result": [rectangle(*one) for one in boxes]}],
        }
        for number, (name, boxes) in enumerate(BOXES.items())
    ]


def read_from_coco(tmp_path: Path, found: Any = None, **settings: Any) -> Prepared:
    write_images(tmp_path / "images")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco() if found is None else found))
    source = CocoSource(source="coco", path=path, image_root=tmp_path / "images", **settings)
    return read_coco(source, request(source))


def read_from_label_studio(tmp_path: Path, found: Any = None, **settings: Any) -> Prepared:
    write_images(tmp_path / "images")
    path = tmp_path / "export.json"
    path.write_text(json.dumps(label_studio() if found is None else found))
    settings = {"image_root": tmp_path / "images", **settings}
    source = LabelStudioSource(source="label-studio", path=path, **settings)
    return read_label_studio(source, request(source))


def write_yolo(root: Path, *, extra_line: str = "") -> Path:
    write_images(root / "train" / "images")
    (root / "train" / "labels").mkdir()
    for name, boxes in BOXES.items():
        lines = [
            f"{NAMES.index(label)} {(x + w / 2) / 200} {(y + h / 2) / 100} {w / 200} {h / 100}\n"
            for label, (x, y, w, h) in boxes
        ]
        if lines:
            file = root / "train" / "labels" / f"{Path(name).stem}.txt"
            file.write_text("".join(lines) + extra_line)
    (root / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: [car, dog]\n")
    return root / "data.yaml"


def read_from_yolo(tmp_path: Path, extra_line: str = "", **settings: Any) -> Prepared:
    source = YoloSource(
        source="yolo", path=write_yolo(tmp_path / "y", extra_line=extra_line), **settings
    )
    return read_yolo(source, request(source))


def request(source: Any) -> Request:
    return Request(
        "train",
        box=source.box,
        unit=getattr(source, "unit", "px"),
        leave_out_bad_rows=source.leave_out_bad_rows,
    )


READERS = [read_from_coco, read_from_label_studio, read_from_yolo]


@pytest.mark.parametrize("read", READERS)
def test_each_label_of_an_image_is_one_prompt_with_all_its_boxes(
    tmp_path: Path, read: Callable[..., Prepared]
) -> None:
    prepared = read(tmp_path)
    found = [
        (Path(row["image"]["path"]).name, row["prompt"].rsplit(": ", 1)[1], row["gt_boxes"])
        for row in prepared.rows
    ]
    assert [one[:2] for one in found] == [one[:2] for one in PER_LABEL]
    for (*_, boxes), (*_, expected) in zip(found, PER_LABEL, strict=True):
        assert [pytest.approx(box) for box in boxes] == expected
    assert prepared.counts["found"]["boxes"] == 4
    assert 1 in prepared.counts["found"].values(), "the image without a box is counted"


def test_images_and_labels_of_yolo_behind_links_are_read(tmp_path: Path) -> None:
    data = write_yolo(tmp_path)
    here = YoloSource(source="yolo", path=data)
    before, labels = len(read_yolo(here, request(here)).rows), len(here.files())
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).rename(tmp_path / f"other_{kind}")
        (tmp_path / "train" / kind).mkdir()
        (tmp_path / "train" / kind / "more").symlink_to(tmp_path / f"other_{kind}")
    assert len(read_yolo(here, request(here)).rows) == before > 0
    assert len(here.files()) == labels > 1


@pytest.mark.parametrize("read", READERS)
def test_each_box_may_be_a_prompt_of_its_own(tmp_path: Path, read: Callable[..., Prepared]) -> None:
    rows = list(read(tmp_path, per="box").rows)
    expected = [[x, y, x + w, y + h] for boxes in BOXES.values() for _, (x, y, w, h) in boxes]
    assert [pytest.approx(row["gt_box"]) for row in rows] == expected
    assert all(row["gt_boxes"] is None for row in rows)
    assert len({row["prompt_id"] for row in rows}) == 4


def test_labels_and_what_is_known_of_them_are_extra_columns(tmp_path: Path) -> None:
    extras = [json.loads(row["extra"]) for row in read_from_coco(tmp_path / "1").rows]
    assert extras[0] == {"category": "car", "supercategory": "vehicle"}
    tasks = label_studio()
    choice = {"type": "choices", "from_name": "weather", "value": {"choices": ["rain"]}}
    tasks[0]["annotations"][0]["result"].append(choice)
    extras = [
        json.loads(row["extra"]) for row in read_from_label_studio(tmp_path / "2", tasks).rows
    ]
    assert extras[1] == {"category": "dog", "camera": "left", "weather": "rain"}
    assert extras[2] == {"category": "dog", "camera": "left"}
    (row, *_) = read_from_yolo(tmp_path / "3").rows
    assert json.loads(row["extra"]) == {"category": "car"}


def test_a_crowd_leaves_out_its_label_or_its_box(tmp_path: Path) -> None:
    found = coco()
    found["annotations"][2]["iscrowd"] = 1
    prepared = read_from_coco(tmp_path / "1", found)
    assert [row["prompt"].rsplit(" ", 1)[1] for row in prepared.rows] == ["dog", "dog"]
    assert prepared.left_out["crowd"] == 1
    prepared = read_from_coco(tmp_path / "2", found, per="box")
    assert len(prepared.rows) == 3 and prepared.left_out["crowd"] == 1


def test_places_keys_and_sizes_of_coco_are_those_of_the_file(tmp_path: Path) -> None:
    rows = list(read_from_coco(tmp_path / "1", per="box").rows)
    assert rows[1]["place"] == "instances.json, annotation 2 (id 101)"
    assert rows[1]["source_row"] == "101" and rows[1]["dataset"] == "instances"
    (row, *_) = read_from_coco(tmp_path / "2").rows
    assert row["place"] == "instances.json, image 1 (id 0), label 'car'"
    found = coco()
    found["images"][0]["width"] = 201
    with pytest.raises(InputError, match=r"image 1 \(id 0\), label 'car': the file says the image"):
        read_from_coco(tmp_path / "3", found)


def changed(found: Any, *steps: Any) -> Any:
    """A copy in which the value at the steps but the last is replaced by the last."""
    found = deepcopy(found)
    at = found
    for step in steps[:-2]:
        at = at[step]
    at[steps[-2]] = steps[-1]
    return found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("annotations", 1, "category_id", 99), "annotation 2 (id 101): `category_id` 99 is no"),
        (("annotations", 1, "image_id", "x"), "annotation 2 (id 101): `image_id` 'x' is no image"),
        (("annotations", 1, "bbox", None), "annotation 2 (id 101): `bbox` is null"),
        (
            ("annotations", 1, "bbox", [1, 2, 0, 4]),
            "gt_boxes[0] is inverted or empty: [1, 2, 1, 6]",
        ),
        (("annotations", 1, "bbox", [1, 2, 300, 4]), "(converted from xywh)"),
        (("annotations", 1, "image_id", [1]), "annotation 2 (id 101): `image_id` is neither text"),
        (("annotations", 1, "category_id", {}), "annotation 2 (id 101): `category_id` is neither"),
        (("annotations", 1, "iscrowd", "0"), "annotation 2 (id 101): `iscrowd` is neither 0 nor 1"),
        (("annotations", []), "makes a prompt: 3 images, 0 boxes, 3 images without boxes, 0 crowd"),
        (("annotations", 1, 5), "annotation 2: not a JSON object"),
        (("images", 1, "id", 0), "image 2 (id 0): the id 0 occurs twice"),
        (("images", 0, "file_name", "no.png"), "no.png: No such file"),
        (("images", 0, "file_name", 3), "image 1 (id 0): `file_name` is not text: 3"),
        (("categories", 0, "name", ""), "category 1 (id 7): `name` is missing"),
        (("categories", 0, "name", " \t"), "(id 7): `name` is white space alone: ' \\t'"),
        (("images", {}), "it has no list images"),
    ],
)
def test_a_bad_record_of_coco_is_named(tmp_path: Path, steps: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_from_coco(tmp_path, changed(coco(), *steps))
    assert expected in str(caught.value) and "instances.json" in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((0, "annotations", None), "record 1: `annotations` is no list of annotations; export"),
        (
            (0, "annotations", 0, "result", 0, "value", "rotation", 12),
            "rectangle 1 or its image is",
        ),
        ((0, "annotations", 0, "result", 0, "image_rotation", 90), "rectangle 1 or its image is"),
        ((0, "annotations", 0, "result", 0, "value", "rectanglelabels", []), "1 has no label"),
        ((0, "annotations", 0, "result", 0, "value", "x", "1"), "is not four finite numbers: ['1'"),
        ((0, "annotations", 0, "result", 0, "original_width", None), "`original_width` is null"),
        ((0, "annotations", 0, "result", 0, "original_width", 201), "says the image is 201 x 100"),
        ((0, "annotations", 0, "result", 0, "value", None), "rectangle 1 has no `value`"),
        (
            (0, "annotations", 0, "result", 0, "original_width", 10**400),
            "the file says the image is 1000",
        ),
        ((0, "data", "image", "http://[::1/a.png"), "the image's address 'http://[::1/a.png' is"),
        (
            (0, "id", "\ud800"),
            "record 1, label 'car': its id '\\ud800/car' of 'export' is not text",
        ),
        ((0, "data", "image", f"https://host/{LONG}.png"), "File name too long"),
        ((0, "data", "image", f"data:image/png;base64,{LONG}"), "the image is in the task itself"),
        (
            (0, "annotations", 0, "result", 0, "value", "rectanglelabels", [" "]),
            "the label of rectangle 1 is not text: ' '",
        ),
        ((0, "data", {"img": "a.png"}), "`data` has no 'image', but 'img' (image_key)"),
        ((0, "data", "image", "https://host/x/no.png"), "no.png (from https://host/x/no.png)"),
        (
            (0, "annotations", [{"result": []}, {"result": []}]),
            "2 annotations, of which 0 are marked as ground truth; mark one",
        ),
    ],
)
def test_a_bad_task_of_label_studio_is_named(tmp_path: Path, steps: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_from_label_studio(tmp_path, changed(label_studio(), *steps))
    assert expected in str(caught.value) and "record 1" in str(caught.value)


def test_the_annotation_that_counts_and_other_results_of_label_studio(tmp_path: Path) -> None:
    tasks = label_studio()
    right = tasks[0]["annotations"][0] | {"ground_truth": True}
    right["result"] += [{"type": "keypointlabels", "value": {"x": 1}}, {"type": "relation"}]
    other = {"result": [rectangle("dog", [0, 0, 1, 1])]}
    tasks[0]["annotations"] = [other, right]
    tasks[1]["annotations"].insert(0, other | {"was_cancelled": True})
    prepared = read_from_label_studio(tmp_path, tasks)
    assert [len(row["gt_boxes"]) for row in prepared.rows] == [2, 1, 1]
    assert prepared.notes["other_results"] == (
        "results that are no rectangles: 1 keypointlabels, 1 relation"
    )


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("a.png", "a.png"),
        ("sub/a%20b.png", "sub/a%20b.png"),
        ("/data/local-files/?d=sub/a%20b.png", "sub/a b.png"),
        ("/data/local-files/?d=mnt/gone/a.png", "a.png"),
        ("/data/upload/1/12345678-a.png", "a.png"),
        ("http://localhost:8080/data/upload/1/12345678-a.png", "a.png"),
        ("s3://bucket/deep/a.png", "a.png"),
    ],
)
def test_images_of_label_studio_are_local_files(tmp_path: Path, address: str, file: str) -> None:
    folder = tmp_path / "mine"
    for name in ("a.png", file):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(folder / name)
    task = changed(label_studio()[1], "data", "image", address)
    (row,) = read_from_label_studio(tmp_path, [task], image_root=folder).rows
    assert row["image"]["path"] == str(folder / file)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("7 0.5 0.5 0.1 0.1", "line 4: class 7 has no name in data.yaml"),
        ("0 0.5 0.5 0.1", "line 4: 3 numbers behind the class, not 4"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.1", "line 4: 6 numbers behind the class, not 4: an outline is"),
        ("0 a b c d", "line 4: not a class and four numbers: '0 a b c d'"),
        ("0 0.9 0.5 0.4 0.1", "is outside the image of 200x100 pixels (converted from cxcywh in"),
    ],
)
def test_a_bad_line_of_yolo_is_named(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_from_yolo(tmp_path, line)
    assert expected in str(caught.value) and "train/labels/a.txt" in str(caught.value)


def test_bad_boxes_leave_out_the_prompt_whose_truth_is_not_whole(tmp_path: Path) -> None:
    prepared = read_from_yolo(tmp_path, "0 0.5 0.5", leave_out_bad_rows=True)
    labels = [row["prompt"].rsplit(" ", 1)[1] for row in prepared.rows]
    assert labels == ["dog", "dog"], "a car of the first image is unknown"
    assert prepared.left_out == {"bad_truth": 2} and len(prepared.bad_rows) == 2


def test_a_name_that_is_not_utf_8_is_a_fault_of_its_rows(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "y")
    for folder, ending in (("images", "png"), ("labels", "txt")):
        at = os.fsencode(tmp_path / "y" / "train" / folder)
        os.rename(at + b"/a." + ending.encode(), at + b"/\xff." + ending.encode())
    source = YoloSource(source="yolo", path=path, leave_out_bad_rows=True)
    prepared = read_yolo(source, request(source))
    assert len(prepared.rows) == 1 and prepared.left_out == {"bad_row": 2}
    assert r"labels/\udcff.txt, label 'car'" in prepared.bad_rows[0]["place"]
    assert r"images/\udcff.png/car' of 'y_train' is not text" in prepared.bad_rows[0]["what"]


def test_the_splits_folders_and_lists_of_yolo(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "y")
    described = path.read_text()
    images = tmp_path / "y" / "train" / "images"
    (tmp_path / "y" / "val.txt").write_text("./train/images/b.png\n")
    path.write_text(described + f"val: [val.txt]\ntest: {images}\npath: .\n")
    for splits, count in ((["val"], 1), (["test"], 3), (["train", "val"], 4)):
        source = YoloSource(source="yolo", path=path, splits=splits)
        rows = read_yolo(source, request(source)).rows
        assert len(rows) == count and rows[0]["dataset"] == f"y_{splits[0]}"
    assert [file.name for file in source_files(source)] == ["data.yaml", "a.txt", "b.txt"]


def test_what_a_list_of_yolo_names_need_not_be_there(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "y")
    lines = ["./train/images/b.png", f"./train/images/{LONG}.png", "./images/gone/a.png"]
    (tmp_path / "y" / "val.txt").write_text("\n".join(lines))
    path.write_text(path.read_text() + "val: val.txt\npath: .\n")
    source = YoloSource(source="yolo", path=path, splits=["val"])
    prepared = read_yolo(source, request(source))
    assert len(prepared.rows) == 1
    assert prepared.notes["without_boxes"].startswith("2 of 3 images without a box")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a]\nval: images\n", "the file has no split 'train'; it has val"),
        ("names: [a]\ntrain: pictures\n", "there are no images at"),
        ("train: images\n", "the file has no `names` of classes"),
        ("names: [a\n", "not YAML"),
        ("names: [yes, a]\ntrain: .\n", "the name of class 0 is True, not text"),
        ("names: {0: a, 1: }\ntrain: .\n", "the name of class 1 is None, not text"),
        ("names: [a]\ntrain: .\npath: gone\n", "there is no folder"),
        ("names: [a]\ntrain: .\n", "the dataset is empty"),
        ("names: [a]\ntrain: 2024-02-30\n", "not YAML: '2024-02-30' is no timestamp"),
        (f"names: [a]\ntrain: {LONG}\n", "there are no images at"),
        (f"names: [a]\ntrain: .\npath: {LONG}\n", "there is no folder"),
        ('names: ["\\uD800"]\ntrain: .\n', r"the name of class 0 is '\\ud800', not text"),
        ('names: ["a\\0"]\ntrain: .\n', r"the name of class 0 is 'a\\x00', not text"),
        ("names: [a, '  ']\ntrain: .\n", "the name of class 1 is '  ', not text"),
    ],
)
def test_a_bad_data_yaml_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    source = YoloSource(source="yolo", path=path)
    with pytest.raises(InputError, match=expected):
        read_yolo(source, request(source))


@pytest.mark.parametrize("read", READERS)
def test_what_makes_no_prompt_for_want_of_a_box_is_noted(
    tmp_path: Path, read: Callable[..., Prepared]
) -> None:
    note = read(tmp_path).notes["without_boxes"]
    assert note.startswith("1 of 3 ") and note.endswith("that is read: they make no prompt")


def test_labels_of_images_that_are_not_there_are_noted(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "y")
    labels = tmp_path / "y" / "train" / "labels"
    (labels / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / "classes.txt").write_text("car\n")
    source = YoloSource(source="yolo", path=path)
    assert read_yolo(source, request(source)).notes["labels_without_image"] == (
        f"1 of the label files has no image, for example {labels / 'gone.txt'}"
    )


@pytest.mark.parametrize("read", [read_coco, read_label_studio, read_yolo])
def test_a_missing_file_is_a_fault_of_the_configuration(
    tmp_path: Path, read: Callable[..., Prepared]
) -> None:
    kind = {read_coco: CocoSource, read_label_studio: LabelStudioSource}.get(read, YoloSource)
    name = {CocoSource: "coco", LabelStudioSource: "label-studio"}.get(kind, "yolo")
    source = kind(source=name, path=tmp_path / "none")
    with pytest.raises(ConfigError, match="no such file"):
        read(source, request(source))
