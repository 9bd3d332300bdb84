"""Messages name a prompt by its place in its dataset's file."""

from pathlib import Path

import pytest

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.places import (
    find_prompt,
    full_place,
    name_image,
    name_prompt,
    prompts_named,
)


@pytest.mark.parametrize(
    ("file", "place", "expected"),
    [
        ("data.jsonl", "line 2", "data.jsonl:2"),
        ("pages.json", "record 2", "pages.json, record 2"),
        ("val-0.parquet", "val-0.parquet, row 3, answer 1", "val-0.parquet, row 3, answer 1"),
        (None, "scene 4", "scene 4"),
    ],
)
def test_a_place_is_completed_with_the_name_of_its_file(
    tmp_path: Path, file: str | None, place: str, expected: str
) -> None:
    assert full_place(None if file is None else tmp_path / file, place) == expected


def test_a_prompt_is_named_by_its_place_and_its_key() -> None:
    row = {"prompt_id": "0f3a", "place": "a.jsonl:7", "image": {"bytes": None, "path": "/x.png"}}
    assert name_prompt(row) == "a.jsonl:7 (prompt 0f3a)"
    assert name_prompt({"prompt_id": "0f3a"}) == "prompt 0f3a"
    assert name_image(row) == "image /x.png"
    assert name_image({"image": {"bytes": b"x", "path": None}}) == "its image"


@pytest.fixture
def five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    monkeypatch.setattr("perpo_pipeline.prepare.prepare_prompts.PROMPTS_PER_PART", 2)
    config = {
        "run": "r",
        "data_root": str(tmp_path),
        "prepare": {
            "train": {"source": "testbed", "num_prompts": 5},
            "test": {"source": "testbed", "num_prompts": 1},
        },
    }
    return prepare(Run(RunConfig.model_validate(config), quiet=True), "train")


def test_a_key_is_found_in_any_part(five: Version) -> None:
    assert len(five.parts()) == 3
    key = five.table()["prompt_id"].to_pylist()[4]
    assert find_prompt(five, key) == f"testbed, scene 4 (prompt {key})"
    assert find_prompt(five, "none") == "prompt none"


def test_an_error_that_knows_only_keys_gets_the_places(five: Version) -> None:
    key = five.table()["prompt_id"].to_pylist()[3]
    with pytest.raises(ArtifactError) as caught, prompts_named(five):
        raise ArtifactError(
            f"the truth 'x' of prompt {key} is no number",
            where=f"a.jsonl:1 (prompt {key})",
            fix="mend prompt 0123456789abcdef",
        )
    assert caught.value.parts() == (
        f"the truth 'x' of testbed, scene 3 (prompt {key}) is no number",
        f"a.jsonl:1 (prompt {key})",
        "mend prompt 0123456789abcdef",
    )
    assert f"testbed, scene 3 (prompt {key}) is no number" in str(caught.value)
