"""REFER's own layout: boxes, images and keys; equal amounts; no image that is evaluated on."""

import json
from pathlib import Path
from typing import Any

import pytest
from prepare.refer_tree import SIZE, Tree

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import ReferSource
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.refer import read_refer
from perpo_pipeline.run import Run


def small_tree(root: Path) -> Tree:
    """Evaluated on: images 4 and 5 (refcoco), 2 (refcoco+), 3 (refcocog)."""
    tree = Tree(root)
    tree.add("refcoco", "train", 1, "left man", "man in red")
    tree.add("refcoco", "train", 2, "dog", "the dog", "brown dog")
    tree.add("refcoco", "train", 3, "cat")
    tree.add("refcoco", "val", 4, "boat", "red boat")
    tree.add("refcoco", "testA", 5, "girl")
    tree.add("refcoco+", "train", 4, "water", "the water")
    tree.add("refcoco+", "train", 1, "tall man", "blue shirt")
    tree.add("refcoco+", "val", 2, "tail")
    tree.add("refcocog", "train", 6, "a tree", "a big tree", "a green tree")
    tree.add("refcocog", "test", 3, "a cat on a mat")
    tree.write()
    return tree


def read(tree: Tree, split: str = "train", seed: int = 0, **settings: Any) -> Prepared:
    source = ReferSource(source="refer", path=tree.root, image_root=tree.images, **settings)
    return read_refer(source, Request(split, seed=seed))


def expressions(prepared: Prepared) -> list[str]:
    return [row["prompt"].rpartition(": ")[2] for row in prepared.rows]


@pytest.mark.parametrize("protocol", [0, 2])
def test_a_row_is_a_sentence_with_its_box_its_image_and_a_key_that_stays(
    tmp_path: Path, protocol: int
) -> None:
    tree = Tree(tmp_path)
    ref = tree.add("refcoco", "testA", 7, "left caf\xe9", "right one", box=[4.0, 5.0, 10.5, 20.0])
    tree.write(protocol=protocol)
    prepared = read(tree, "test", datasets=["refcoco"], splits=["testA"])
    first, second = prepared.rows
    assert first["gt_box"] == [4.0, 5.0, 14.5, 25.0]
    assert first["prompt"].endswith("this sentence describes: left caf\xe9")
    assert first["image"]["path"] == str(tree.images / "COCO_007.png")  # not the ref's file_name
    assert (first["width"], first["height"]) == SIZE
    assert (first["dataset"], first["split"], first["task"]) == (
        "refcoco_testA",
        "test",
        "grounding",
    )
    sent_ids = ref["sent_ids"]
    assert first["source_row"] == f"{ref['ref_id']}/{sent_ids[0]}"
    assert second["source_row"] == f"{ref['ref_id']}/{sent_ids[1]}"
    assert prepared.counts == {"found": {"refcoco_testA": {"refs": 1, "expressions": 2}}}


def test_train_holds_no_image_that_any_dataset_evaluates_on(tmp_path: Path) -> None:
    """refcoco loses images 2 (3 expressions) and 3 (1), refcoco+ image 4 (2): 6 expressions."""
    prepared = read(small_tree(tmp_path))
    assert expressions(prepared) == [
        "left man",
        "man in red",
        "tall man",
        "blue shirt",
        "a tree",
        "a big tree",
        "a green tree",
    ]
    assert prepared.left_out == {"image_is_evaluated": 6}
    assert prepared.counts["found"] == {
        "refcoco_train": {"refs": 3, "expressions": 6},
        "refcoco+_train": {"refs": 2, "expressions": 4},
        "refcocog_train": {"refs": 1, "expressions": 3},
    }
    assert prepared.facts["leave_out_evaluated"] == ["refcoco", "refcoco+", "refcocog"]


def test_the_datasets_that_are_not_prepared_are_checked_against_too(tmp_path: Path) -> None:
    prepared = read(small_tree(tmp_path), datasets=["refcoco"])
    assert expressions(prepared) == ["left man", "man in red"]
    assert prepared.left_out == {"image_is_evaluated": 4}
    assert "refcocog/refs(umd).p" in prepared.facts["file_sha256"]


def test_what_is_checked_against_is_a_setting(tmp_path: Path) -> None:
    """Against refcoco+ alone: image 2 goes, 3 expressions."""
    tree = small_tree(tmp_path)
    some = read(tree, datasets=["refcoco"], leave_out_evaluated=["refcoco+"])
    assert expressions(some) == ["left man", "man in red", "cat"]
    assert some.left_out == {"image_is_evaluated": 3}
    none = read(tree, datasets=["refcoco"], leave_out_evaluated=False)
    assert len(none.rows) == 6 and none.left_out == {}


def test_evaluated_images_of_a_missing_dataset_are_an_error_not_a_leak(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    (tree.root / "refcocog").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="the evaluated images of refcocog are unknown") as caught:
        read(tree, datasets=["refcoco"])
    assert "refs(umd).p" in str(caught.value) and "leave_out_evaluated: false" in str(caught.value)
    known = read(tree, datasets=["refcoco"], leave_out_evaluated=["refcoco", "refcoco+"])
    assert expressions(known) == ["left man", "man in red", "cat"]
    assert expressions(read(tree, "val", datasets=["refcoco"])) == ["boat", "red boat"]


def test_a_dataset_without_remaining_rows_is_an_error(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    tree.add("refcocog", "val", 1, "a man")
    tree.write()
    with pytest.raises(InputError, match=r"no expression of refcoco\+_train, refcoco_train"):
        read(tree)


def test_equal_amounts_are_a_seeded_choice_of_the_same_number_from_each(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for index in range(30):
        for name in ("refcoco", "refcoco+", "refcocog"):
            tree.add(name, "train", index % 5, f"{name} number {index}")
    tree.write()
    prepared = read(tree, per_dataset=10)
    names = [row["dataset"] for row in prepared.rows]
    assert {name: names.count(name) for name in names} == {
        "refcoco_train": 10,
        "refcoco+_train": 10,
        "refcocog_train": 10,
    }
    assert prepared.facts["left_out_by_per_dataset"] == 60
    chosen = expressions(prepared)
    assert chosen != [e for e in expressions(read(tree)) if int(e.split()[-1]) < 10]  # no prefix
    assert expressions(read(tree, per_dataset=10, seed=1)) != chosen
    for refs in tree.refs.values():
        refs.reverse()
    tree.write()
    assert sorted(expressions(read(tree, per_dataset=10))) == sorted(chosen)
    assert set(expressions(read(tree, per_dataset=11))) > set(chosen)


def test_a_dataset_with_fewer_rows_than_per_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refcoco_train has only 2"):
        read(small_tree(tmp_path), per_dataset=3, datasets=["refcoco", "refcocog"])


def test_test_splits_of_several_datasets_keep_their_names(tmp_path: Path) -> None:
    prepared = read(small_tree(tmp_path), "test", splits=["val", "testA", "test"])
    assert [row["dataset"] for row in prepared.rows] == [
        "refcoco_val",
        "refcoco_val",
        "refcoco_testA",
        "refcoco+_val",
        "refcocog_test",
    ]


@pytest.mark.parametrize(
    ("split", "settings", "expected"),
    [
        ("mine", {}, "'mine' is not one of REFER's"),
        ("test", {}, "refcoco has none of ['test']"),
        ("test", {"splits": ["val", "testB"]}, "no dataset has a split 'testB'"),
        (
            "train",
            {"split_by": {"refcocog": "google"}, "leave_out_evaluated": False},
            "there is no refs(google).p for refcocog, but refs(umd).p",
        ),
    ],
)
def test_missing_splits_are_reported_with_the_splits_that_exist(
    tmp_path: Path, split: str, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(small_tree(tmp_path), split, **settings)
    assert expected in str(caught.value)


def test_another_split_file_is_a_setting(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    umd = tree.root / "refcocog" / "refs(umd).p"
    umd.rename(umd.with_name("refs(google).p"))
    prepared = read(tree, split_by={"refcocog": "google"})
    assert len(prepared.rows) == 7 and prepared.facts["split_by"]["refcocog"] == "google"


def test_an_empty_expression_is_left_out_and_counted(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add("refcoco", "val", 1, "left", " ", "")
    tree.write()
    prepared = read(tree, "val", datasets=["refcoco"])
    assert expressions(prepared) == ["left"] and prepared.left_out == {"empty_expression": 2}
    assert prepared.counts["found"]["refcoco_val"]["expressions"] == 3


def test_all_faults_are_reported_at_once_each_with_its_file_and_ref(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add("refcoco", "val", 1, "good")
    tree.add("refcoco", "val", 1, "outside", box=[30, 5, 20, 5])
    tree.add("refcoco", "val", 1, "flat", box=[3, 5, 0, 5])
    tree.add("refcoco", "val", 1, "no box", box=[3, 5, "x", 5])
    tree.add("refcoco", "val", 1, "lost")["ann_id"] = 5
    tree.add("refcoco", "val", 1, "odd")["split"] = "testC"
    tree.add("refcoco", "val", 2, "small", size=(39, 30))
    tree.add("refcoco", "val", 3, "gone", name="gone.png")
    tree.add("refcoco", "val", 1, "nameless")["ref_id"] = None
    tree.refs["refcoco"][-1].pop("ref_id")
    tree.write()
    with pytest.raises(InputError) as caught:
        read(tree, "val", datasets=["refcoco"])
    message = str(caught.value)
    for expected in (
        "8 faults",
        "refcoco/refs(unc).p, ref 2, sentence",
        "is outside the image of 40x30",
        "is inverted or empty",
        "`bbox` is not four finite numbers",
        "ref 5: instances.json has no annotation 5 of image 1",
        "ref 6: `split` is 'testC'",
        "the file says the image is 39 x 30 pixels, but it is 40 x 30",
        "gone.png: No such file",
        "ref 9: `ref_id` is missing",
    ):
        assert expected in message, expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("instances.json", "{}", "not REFER's instances.json"),
        ("instances.json", '{"images": [{"id": 1}], "annotations": []}', "KeyError('file_name')"),
        ("instances.json", "{torn", "not JSON"),
        ("refs(unc).p", "I1\n.", "does not hold a list of refs"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    tree = small_tree(tmp_path)
    (tree.root / "refcoco" / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read(tree, "val", datasets=["refcoco"])
    assert expected in str(caught.value) and name in str(caught.value)


def prepared_run(tree: Tree, tmp_path: Path, **settings: Any) -> Run:
    source = {"source": "refer", "path": str(tree.root), "image_root": str(tree.images), **settings}
    return Run(
        RunConfig.model_validate(
            {
                "run": "r",
                "data_root": str(tmp_path / "data"),
                "sample": {"split": "train"},
                "eval": {"splits": ["train"]},
                "prepare": {"train": source},
            }
        ),
        quiet=True,
    )


def test_the_stage_records_what_was_found_and_left_out_and_does_nothing_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = small_tree(tmp_path / "refer")
    run = prepared_run(tree, tmp_path, per_dataset=2)
    version = prepare(run, "train")
    assert version.manifest["rows"] == 6
    assert version.manifest["counts"]["left_out"] == {"per_dataset": 1, "image_is_evaluated": 6}
    assert version.manifest["counts"]["found"]["refcoco_train"] == {"refs": 3, "expressions": 6}
    assert "left out 1 per_dataset, 6 image_is_evaluated" in capsys.readouterr().err
    assert prepare(run, "train").path == version.path
    assert "up to date" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["refcoco/instances.json", "refcocog/refs(umd).p", "an image"])
def test_a_changed_file_makes_a_new_version(tmp_path: Path, changed: str) -> None:
    tree = small_tree(tmp_path / "refer")
    run = prepared_run(tree, tmp_path)
    before = prepare(run, "train")
    if changed == "an image":
        (tree.images / "COCO_001.png").write_bytes((tree.images / "COCO_006.png").read_bytes())
    elif changed.endswith(".json"):
        file = tree.root / changed
        file.write_text(json.dumps(json.loads(file.read_text()) | {"info": "new"}))
    else:
        tree.add("refcocog", "val", 9, "a new one")
        tree.write()
    assert prepare(run, "train").fingerprint != before.fingerprint


def test_embedded_images_are_read_when_a_part_is_written(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    prepared = read(tree, embed_images=True)
    file = tree.images / "COCO_001.png"
    data = file.read_bytes()
    assert prepared.rows[0]["image"] == {"bytes": data, "path": None}
    file.write_bytes(data + b"x")
    with pytest.raises(InputError, match="has changed since it was checked"):
        _ = prepared.rows[0]


def test_a_missing_folder_is_the_fault_that_is_reported(tmp_path: Path) -> None:
    source = ReferSource(source="refer", path=tmp_path / "nowhere", image_root=tmp_path)
    with pytest.raises(ConfigError, match="no such file") as caught:
        read_refer(source, Request("train"))
    assert str(tmp_path / "nowhere") in str(caught.value)
