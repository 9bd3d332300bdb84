"""leave_out_bad_rows: bad rows and images are left out, counted by reason and listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prepare.refer_tree import Tree

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import Fault
from perpo_pipeline.prepare.collect import in_order_of_numbers
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.inspect import describe

GOOD = {"image": "a.png", "prompt": "Where?", "task": "grounding", "gt_box": [1, 2, 8, 9]}
BAD = [
    ({**GOOD, "image": "torn.png"}, "bad_image"),
    ({**GOOD, "gt_box": [1, 2, 8, 2]}, "bad_truth"),
    ({**GOOD, "task": "guess"}, "bad_row"),
    ("{not JSON", "bad_row"),
    ({**GOOD, "id": "1"}, "repeated_id"),
]


def prepare_source(tmp_path: Path, leave_out: bool = True, **source: Any) -> Version:
    config = {
        "run": "r",
        "data_root": str(tmp_path / "data"),
        "prepare": {
            "train": {**source, "leave_out_bad_rows": leave_out},
            "test": {"source": "testbed", "num_prompts": 1},
        },
    }
    return prepare(Run(RunConfig.model_validate(config), quiet=True), "train")


def write(tmp_path: Path, *rows: Any) -> dict[str, str]:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return {"source": "jsonl", "path": str(tmp_path / "data.jsonl")}


def test_bad_rows_are_counted_by_reason_and_listed_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path, GOOD, *[row for row, _ in BAD], GOOD)
    version = prepare_source(tmp_path, **source)
    assert version.table()["place"].to_pylist() == ["data.jsonl:1", "data.jsonl:7"]
    counts = {"bad_image": 1, "bad_truth": 1, "bad_row": 2, "repeated_id": 1}
    assert version.manifest["counts"] == {"prompts": 2, "left_out": counts}
    listed = version.table("left_out").to_pylist()
    assert sorted((row["place"], row["reason"]) for row in listed) == [
        (f"data.jsonl:{line}", reason) for line, (_, reason) in enumerate(BAD, start=2)
    ]
    (image,) = (row["what"] for row in listed if row["reason"] == "bad_image")
    assert image.startswith(f"image {tmp_path / 'torn.png'}: it is not an image")
    assert "left_out: first 3 of 5 rows" in describe(version.path)
    printed = capsys.readouterr().err
    assert "left out 1 bad_image, 1 bad_truth, 2 bad_row, 1 repeated_id" in printed
    assert "for example data.jsonl:2: image " in printed


def test_without_the_setting_the_same_rows_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD, *[row for row, _ in BAD], GOOD)
    with pytest.raises(InputError, match="5 faults") as caught:
        prepare_source(tmp_path, leave_out=False, **source)
    assert "--set prepare.train.leave_out_bad_rows=true" in str(caught.value)


def test_the_setting_makes_another_version(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    strict = prepare_source(tmp_path, leave_out=False, **source)
    lenient = prepare_source(tmp_path, **source)
    assert strict.fingerprint != lenient.fingerprint
    assert lenient.manifest["counts"] == {"prompts": 1, "left_out": {}}
    assert lenient.table("left_out").num_rows == 0


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none can be used") as caught:
        prepare_source(tmp_path, **write(tmp_path, *[row for row, _ in BAD[:3]]))
    assert "3 faults" in str(caught.value) and "line 1" in str(caught.value)


def test_other_rows_are_drawn_in_the_place_of_bad_ones(tmp_path: Path) -> None:
    """Four good and six bad rows: each draw of four has bad ones, the next draws replace them."""
    rows = [{**GOOD, "image": "a.png" if n % 5 < 2 else "torn.png"} for n in range(10)]
    source = write(tmp_path, *rows)
    version = prepare_source(tmp_path, per_dataset=4, **source)
    assert version.table()["source_row"].to_pylist() == ["1", "2", "6", "7"]
    left_out = version.manifest["counts"]["left_out"]
    assert left_out["bad_image"] == version.table("left_out").num_rows <= 6
    assert 4 + sum(left_out.values()) == 10
    with pytest.raises(InputError, match="data has only 4"):
        prepare_source(tmp_path, per_dataset=5, **source)


def test_a_truncated_photo_and_a_flat_box_in_refer_leave_the_rest(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "refer")
    tree.add("refcoco", "val", 1, "left man", "man in red")
    tree.add("refcoco", "val", 1, "a line", box=[4.0, 5.0, 10.0, 0.0])
    tree.add("refcoco", "val", 2, "dog")
    tree.write()
    photo = tree.images / "COCO_002.png"
    photo.write_bytes(photo.read_bytes()[:40])
    source = {
        "source": "refer",
        "path": str(tree.root),
        "image_root": str(tree.images),
        "datasets": ["refcoco"],
        "splits": ["val"],
    }
    version = prepare_source(tmp_path, **source)
    assert version.manifest["rows"] == 2
    assert version.manifest["counts"]["left_out"] == {"bad_truth": 1, "bad_image": 1}
    places = [row["place"] for row in version.table("left_out").to_pylist()]
    assert [place.rpartition(", sentence")[0] for place in places] == [
        "refcoco/refs(unc).p, ref 2",
        "refcoco/refs(unc).p, ref 3",
    ]


@pytest.mark.parametrize(
    ("bad", "advice"),
    [
        ({**GOOD, "image": "no.png"}, "check the paths, and --image-root that they start from"),
        ({"img_path": "a.png", "expression": "cat"}, "or choose another SOURCE"),
        ({**GOOD, "gt_box": [9, 9, 1, 1]}, "correct the rows: none can be used"),
    ],
)
def test_where_no_row_can_be_used_the_likely_mistake_is_named(
    tmp_path: Path, bad: dict[str, Any], advice: str
) -> None:
    with pytest.raises(InputError, match="3 faults") as caught:
        prepare_source(tmp_path, leave_out=False, **write(tmp_path, bad, bad, bad))
    assert advice in str(caught.value)


def test_faults_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{**GOOD, "task": "x"}, *[{**GOOD, "gt_box": [n, 9, 1, 1]} for n in range(2, 12)], GOOD]
    version = prepare_source(tmp_path, **write(tmp_path, *rows))
    places = version.table("left_out")["place"].to_pylist()
    assert places == [f"data.jsonl:{line}" for line in range(1, 12)]


def test_digits_of_other_scripts_are_letters_in_the_order_of_faults() -> None:
    names = ["page 10.png", "page １2.png", "page 9.png", f"page {'7' * 5000}.png"]
    faults = [Fault(name, "", "") for name in names]
    ordered = [fault.place for fault in sorted(faults, key=in_order_of_numbers)]
    assert ordered == [names[2], names[0], names[3], names[1]]
