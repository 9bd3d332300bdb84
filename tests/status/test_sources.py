"""Prompts that were just prepared are as the configuration says, whatever their layout is."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prepare.refer_tree import Tree

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.status import sources
from perpo_pipeline.status.check import Check, Found
from perpo_pipeline.status.options import Options
from perpo_pipeline.store.artifacts import open_version

Source = dict[str, Any]
ROW = {"image": "a.png", "prompt": "Where?", "gt_box": [1, 2, 20, 10], "task": "grounding"}


def image_in(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "a.png")


def rendered(_: Path) -> Source:
    return {"source": "testbed", "num_prompts": 3}


def jsonl(root: Path) -> Source:
    image_in(root)
    (root / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return {"source": "jsonl", "path": str(root / "rows.jsonl"), "per_dataset": 1}


def csv_elsewhere(root: Path) -> Source:
    image_in(root / "images")
    (root / "rows.csv").write_text("file,what,x,y,w,h\na.png,a cat,1,2,20,10\n")
    columns = {"image": "file", "expression": "what", "gt_box": ["x", "y", "w", "h"]}
    table = {"source": "csv", "path": str(root / "rows.csv"), "columns": columns, "box": "xywh"}
    return {**table, "image_root": str(root / "images"), "task": "grounding"}


def coco(root: Path) -> Source:
    image_in(root)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 10, 20]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return {"source": "coco", "path": str(root / "boxes.json")}


def yolo(root: Path) -> Source:
    image_in(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    return {"source": "yolo", "path": str(root / "data.yaml")}


def refer(root: Path) -> Source:
    tree = Tree(root)
    tree.add("refcoco", "train", 1, "left man")
    tree.add("refcoco", "val", 2, "boat")
    tree.write()
    folders = {"path": str(root), "image_root": str(tree.images)}
    return {"source": "refer", **folders, "datasets": ["refcoco"], "leave_out_evaluated": False}


def config_of(root: Path, source: Source, **sections: Any) -> RunConfig:
    raw = {"run": "r", "data_root": str(root / "data"), "prepare": {"train": source}}
    return RunConfig.model_validate({**raw, "eval": {"splits": ["train"]}, **sections})


def found(config: RunConfig) -> Found:
    return Check(config).find([("prompts", "train")])


@pytest.mark.parametrize("layout", [rendered, jsonl, csv_elsewhere, coco, yolo, refer])
def test_prompts_are_current_until_their_source_changes(
    tmp_path: Path, layout: Callable[[Path], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layout(tmp_path / "set")
    config = config_of(tmp_path, source)
    prepare(Run(config, quiet=True), "train")
    assert found(config) == Found()
    if "path" not in source:
        return
    relative = {**source, "path": os.path.relpath(source["path"], tmp_path)}
    monkeypatch.chdir(tmp_path)
    assert found(config_of(tmp_path, relative)) == Found()  # the same place
    file = Path(source["path"])
    later = file if file.is_file() else file / "refcoco" / "instances.json"
    os.utime(later, (2**31, 2**31))
    assert found(config) == Found()  # the content is still what was read
    later.write_bytes(later.read_bytes() + b" ")
    os.utime(later, (2**31, 2**31))
    (reason,) = found(config).silent.values()
    assert (reason.kind, reason.text) == ("source", f"{later} was written later")


def test_a_date_in_the_future_is_no_later_than_the_last_change(tmp_path: Path) -> None:
    """YOLO's label files have no hashes of their own: `perpo prepare` answers, once."""
    source = yolo(tmp_path / "set")
    config = config_of(tmp_path, source)
    label = tmp_path / "set" / "labels" / "train" / "a.txt"
    os.utime(label, (2**31, 2**31))
    time.sleep(0.02)
    prepare(Run(config, quiet=True), "train")
    assert found(config) == Found()
    time.sleep(0.02)
    os.utime(label, (2**31, 2**31))
    (reason,) = found(config).silent.values()
    assert reason.text == f"{label} was written later"
    time.sleep(0.02)
    prepare(Run(config, quiet=True), "train")
    assert found(config) == Found()


def test_a_file_is_known_by_its_name_below_the_folder_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_in(tmp_path)
    row = {name: [value] for name, value in ROW.items()} | {"image": [str(tmp_path / "a.png")]}
    for folder, prompt in (("a", "Where?"), ("b", "Where is it?")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        file = tmp_path / "set" / folder / "rows.parquet"
        pq.write_table(pa.table(row | {"prompt": [prompt]}), file)
    config = config_of(tmp_path, {"source": "parquet", "path": f"{tmp_path}/set/*/*.parquet"})
    prepare(Run(config, quiet=True), "train")
    time.sleep(0.02)
    file.touch()
    assert found(config) == Found()
    file.write_bytes(file.read_bytes().replace(b"Where is", b"Where\tis"))
    (reason,) = found(config).silent.values()
    assert reason.text == f"{file} was written later"
    read: list[Path] = []
    monkeypatch.setattr(sources, "file_sha256", lambda file: read.append(file) or "")
    os.utime(made := tmp_path / "data" / "r" / "prompts" / "train" / "current", (2**31, 2**31))
    assert made.is_file() and found(config) == Found() and not read  # nothing is hashed


def test_files_that_come_and_go_are_a_difference_but_not_data_that_are_elsewhere(
    tmp_path: Path,
) -> None:
    image_in(tmp_path)
    top = tmp_path / "set"
    row = {name: [value] for name, value in ROW.items()} | {"image": [str(tmp_path / "a.png")]}
    for name in ("rows", "en/rows"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(row | {"prompt": [name]}), top / f"{name}.parquet")
    source = {"source": "parquet", "image_root": str(tmp_path)}
    config = config_of(tmp_path, source | {"path": str(top)})
    moved = config_of(tmp_path, source | {"path": str(tmp_path / "moved")})
    prepare(Run(config, quiet=True), "train")
    time.sleep(0.02)

    def said(config: RunConfig) -> list[str]:
        return [reason.text for reason in found(config).silent.values()]

    (top / "de").mkdir()
    copy = shutil.copy2(top / "rows.parquet", top / "de/rows.parquet")  # `rows` is recorded
    assert said(config) == [f"read from other data than {copy} has now"]
    shutil.rmtree(top / "de")
    assert said(config) == []
    (top / "rows.parquet").rename(tmp_path / "one")
    assert said(config) == [f"read from other data than {top} has now"]
    (tmp_path / "one").rename(top / "rows.parquet")
    top.rename(tmp_path / "moved")
    assert said(config) == said(moved) == []
    (tmp_path / "moved/rows.parquet").unlink()
    assert said(moved) == [f"read from other data than {tmp_path / 'moved'} has now"]
    assert said(config) == []


@pytest.mark.parametrize("layout", [jsonl, csv_elsewhere, coco, yolo, refer])
def test_a_file_that_is_put_in_place_with_an_older_date_is_read_again(
    tmp_path: Path, layout: Callable[[Path], Source]
) -> None:
    source = layout(tmp_path / "set")
    config = config_of(tmp_path, source)
    path = Path(source["path"])
    file = path if path.is_file() else path / "refcoco" / "instances.json"
    os.utime(file, (1, 1))
    prepare(Run(config, quiet=True), "train")
    time.sleep(0.02)
    same = file.with_suffix(".copy")
    shutil.copy2(file, same)
    same.replace(file)  # copied with its date: the same content
    assert found(config) == Found()
    with same.open("wb") as stream:
        stream.write(file.read_bytes() + b" ")
    os.utime(same, (1, 1))
    same.replace(file)
    (reason,) = found(config).silent.values()
    assert (reason.kind, reason.text) == ("source", f"read from other data than {file} has now")


@pytest.mark.parametrize("layout", [jsonl, coco, yolo])
def test_the_path_of_other_data_is_another_source_whatever_its_date(
    tmp_path: Path, layout: Callable[[Path], Source]
) -> None:
    source = layout(tmp_path / "set")
    file = Path(source["path"])
    prepare(Run(config_of(tmp_path, source), quiet=True), "train")
    (file.parent / "other").write_bytes(file.read_bytes() + b"\n")
    os.utime(file.parent / "other", (1, 1))
    edited = config_of(tmp_path, {**source, "path": str(file.parent / "other")})
    assert [reason.kind for reason in found(edited).silent.values()] == ["source"]
    asked = Options({"prepare.train": "SOURCE other"})
    run = Run(config_of(tmp_path, source), quiet=True, options=asked)
    prepare(run, "train")
    assert not found(edited).silent and len(found(edited).accepted) == 1
    prepare(Run(config_of(tmp_path, source), quiet=True), "train")
    missing = config_of(tmp_path, {**source, "path": str(file.parent / "missing")})
    assert [reason.kind for reason in found(missing).silent.values()] == ["source"]
    if layout is not yolo:  # its labels have no hashes of their own
        shutil.copy2(file, file.parent / "copy")
        copied = config_of(tmp_path, {**source, "path": str(file.parent / "copy")})
        assert found(copied) == Found()
    file.rename(file.parent / "moved")  # a run of another machine, whose data are not here
    assert found(missing) == Found()


@pytest.mark.parametrize(
    ("layout", "changed", "said"),
    [
        (rendered, {"num_prompts": 4}, "prepare.train.num_prompts 3, the configuration says 4"),
        (jsonl, {"per_dataset": None}, "prepare.train.per_dataset 1, the configuration says null"),
        (jsonl, {"source": "json"}, "prepare.train.source jsonl, the configuration says json"),
        (csv_elsewhere, {"box": "cxcywh"}, "prepare.train.box xywh, the configuration says cxcywh"),
        (csv_elsewhere, {"image_root": "/there"}, "the configuration says /there"),
        (coco, {"per": "box"}, "prepare.train.per label, the configuration says box"),
        (refer, {"splits": ["val"]}, "prepare.train.splits [train], the configuration says [val]"),
        (refer, {"leave_out_evaluated": ["refcoco"]}, "leave_out_evaluated [], the configuration"),
        (refer, {"split_by": {"refcoco": "google"}}, "prepare.train.split_by {refcoco: unc}, the"),
    ],
)
def test_a_changed_setting_of_a_source_is_seen(
    tmp_path: Path, layout: Callable[[Path], Source], changed: Source, said: str
) -> None:
    source = layout(tmp_path / "set")
    prepare(Run(config_of(tmp_path, source), quiet=True), "train")
    (reason,) = found(config_of(tmp_path, {**source, **changed})).silent.values()
    assert said in reason.text


@pytest.mark.parametrize("is_more", [True, False])
def test_another_number_of_sources_is_said_alone(tmp_path: Path, is_more: bool) -> None:
    one = rendered(tmp_path)
    sources = [one, [one, {**one, "task": "ocr"}]]
    before, after = sources if is_more else reversed(sources)
    prepare(Run(config_of(tmp_path, before), quiet=True), "train")
    (reason,) = found(config_of(tmp_path, after)).silent.values()
    assert reason.text == "made with another number of sources than the configuration names"


def test_another_box_format_asks_another_question(tmp_path: Path) -> None:
    source = coco(tmp_path / "set")
    prepare(Run(config_of(tmp_path, source), quiet=True), "train")
    (reason,) = found(config_of(tmp_path, source, model={"box_format": "qwen3-vl"})).silent.values()
    assert "another question for a box" in reason.text


def test_a_run_that_was_copied_from_another_machine_keeps_its_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = csv_elsewhere(Path("set"))
    config = config_of(Path(), source)
    prepare(Run(config, quiet=True), "train")
    manifest = open_version(Path("data/r/prompts/train")).path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(f"{tmp_path}/set/images", "/elsewhere/set/images"))
    assert found(config) == Found()
    manifest.write_text(text.replace(f"{tmp_path}/set/images", "/elsewhere/photos"))
    assert len(found(config).silent) == 1
