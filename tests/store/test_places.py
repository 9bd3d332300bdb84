"""Messages name a prompt by its place in its dataset's file."""

from pathlib import Path

import pytest

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.store.places import find_prompt, full_place, name_image, name_prompt


@pytest.mark.parametrize(
    ("file", "place", "expected"),
    [
        ("data.jsonl", "line 2", "data.jsonl:2"),
        ("pages.json", "record 2", "pages.json, record 2"),
        ("val-0.parquet", "val-0.parquet, row 3, answer 1", "val-0.parquet, row 3, answer 1"),
        ("folder", "refcoco/refs(unc).p, ref 3", "refcoco/refs(unc).p, ref 3"),
        (None, "scene 4", "scene 4"),
    ],
)
def test_a_place_is_completed_with_the_name_of_its_file(
    tmp_path: Path, file: str | None, place: str, expected: str
) -> None:
    (tmp_path / "folder").mkdir()
    assert full_place(None if file is None else tmp_path / file, place) == expected


def test_a_prompt_is_named_by_its_place_and_its_key() -> None:
    row = {"prompt_id": "0f3a", "place": "a.jsonl:7", "image": {"bytes": None, "path": "/x.png"}}
    assert name_prompt(row) == "a.jsonl:7 (prompt 0f3a)"
    assert name_prompt({"prompt_id": "0f3a"}) == "prompt 0f3a"
    assert name_image(row) == "image /x.png"
    assert name_image({"image": {"bytes": b"x", "path": None}}) == "its image"


def test_a_key_is_found_in_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpo_pipeline.prepare.prepare_prompts.PROMPTS_PER_PART", 2)
    config = {
        "run": "r",
        "data_root": str(tmp_path),
        "prepare": {
            "train": {"source": "testbed", "num_prompts": 5},
            "test": {"source": "testbed", "num_prompts": 1},
        },
    }
    prompts = prepare(Run(RunConfig.model_validate(config), quiet=True), "train")
    assert len(prompts.parts()) == 3
    key = prompts.table()["prompt_id"].to_pylist()[4]
    assert find_prompt(prompts, key) == f"testbed, scene 4 (prompt {key})"
    assert find_prompt(prompts, "none") == "prompt none"
