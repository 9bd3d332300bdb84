"""Slices: each metric on the prompts of each value of an extra column, without decoding again."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import polars as pl
import pyarrow as pa
import pytest
from metric_rows import grounding, tables, values
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.evaluate.slices import slice_values, sorted_slices
from perpo_pipeline.evaluate.statistics import wilson_interval
from perpo_pipeline.evaluate.summarise import summarise
from perpo_pipeline.prepare import prepare_prompts
from perpo_pipeline.store.artifacts import open_version

CATEGORIES = ("dog", "dog", "cat", None)
CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 2}
  test: {source: jsonl, path: data.jsonl, task: grounding}
eval: {models: [base], conditions: [], max_new_tokens: 6}
"""


def with_extra(*columns: dict[str, Any] | None) -> list[pa.Table]:
    """Four boxes: the first two and the last are right."""
    predictions, prompts = tables(*grounding(1.0, 1.0, 0.0, 1.0))
    texts = [None if one is None else json.dumps(one) for one in columns]
    place = prompts.schema.get_field_index("extra")
    return [predictions, prompts.set_column(place, "extra", pa.array(texts, pa.string()))]


def test_each_value_of_a_column_is_a_slice_with_its_own_interval() -> None:
    made = with_extra(*({"category": category, "hard": True} for category in CATEGORIES))
    rows = summarise(*made, by=["category", "hard"])
    assert values(rows) == values(summarise(*made)), "nobody takes a slice for the whole"
    ap50 = {row["dataset"]: row for row in rows if row["name"] == "ap50"}
    assert list(ap50) == ["all", "category=cat", "category=dog", "category (none)", "hard=true"]
    dog = ap50["category=dog"]
    assert (dog["slice_column"], dog["slice_value"], dog["n"]) == ("category", "dog", 2)
    assert (dog["value"], dog["low"], dog["high"]) == pytest.approx(wilson_interval(2, 2))
    assert ap50["category=cat"]["value"] == 0 and ap50["category (none)"]["slice_value"] is None
    assert ap50["all"]["slice_column"] is None and ap50["hard=true"]["n"] == 4


def test_a_row_without_the_column_is_in_the_slice_of_null() -> None:
    rows = summarise(*with_extra({"category": "a"}, {}, None, {"other": 1}), by=["category"])
    counts = {row["dataset"]: row["n"] for row in rows if row["name"] == "ap50"}
    assert counts == {"all": 4, "category=a": 1, "category (none)": 3}
    assert len(summarise(*with_extra(None, None, None, None), by=["category"])) == 5, "no slices"


def test_the_text_null_is_another_slice_than_no_value() -> None:
    columns = ({"c": "null"}, {"c": None}, {"c": "(none)"}, {"c": "dog"})
    rows = summarise(*with_extra(*columns), by=["c"])
    named = [row["dataset"] for row in rows if row["name"] == "ap50"]
    assert named == ["all", "c=(none)", "c=dog", "c=null", "c (none)"]


def test_values_are_their_texts() -> None:
    column = [{"a": 1}, {"a": "1"}, {"a": [1, "x"]}, {"a": False}, {"a": 0.5}, {"a": None}, None]
    extra = pl.Series([None if one is None else json.dumps(one) for one in column])
    found = slice_values(extra, "a")
    assert found is not None
    assert found.to_list() == ["1", "1", '[1, "x"]', "false", "0.5", None, None]
    assert sorted_slices(found) == ["0.5", "1", '[1, "x"]', "false", None]
    assert slice_values(extra, "b") is None


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml"])
    return int(exit_.value.code or 0)


def test_a_dataset_called_all_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By prepare; prompts of an earlier program by eval, before it reads the model."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (60, 0, 0)).save("0.png")
    row = {"image": "0.png", "prompt": "?", "gt_box": [0, 0, 16, 16]}
    Path("data.jsonl").write_text("\n".join(json.dumps(row | {"dataset": d}) for d in ("all", "b")))
    Path("r.yaml").write_text(CONFIG)
    assert run("prepare", "--split", "test") == 2
    assert "a dataset of the split 'test' is called 'all'" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(prepare_prompts, "refuse_dataset_called_all", lambda *_: None)
        assert run("prepare", "--split", "test") == 0
    patched = Mock(side_effect=AssertionError("decodes"))
    monkeypatch.setattr("perpo_pipeline.evaluate.evaluate_model.find_model", patched)
    assert run("eval") == 2
    assert "give it another name: that of the file or folder" in capsys.readouterr().err
    assert not Path("data/r/predictions").exists()

    Path("data.jsonl").write_text(json.dumps(row | {"dataset": "all"}))
    assert run("prepare", "--split", "test") == 0, "alone it is the whole"


def test_slices_are_measured_without_decoding_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (60, 0, 0)).save("0.png")
    row = {"image": "0.png", "prompt": "?", "gt_box": [0, 0, 16, 16]}
    rows = [{**row, "category": c, "number": n, "size": {"w": 3}} for n, c in enumerate(CATEGORIES)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("r.yaml").write_text(CONFIG)
    assert run("prepare", "--split", "test") == 0
    said = capsys.readouterr().err
    assert "other columns, kept with the prompts: category, number, size" in said
    prompts = open_version(Path("data/r/prompts/test")).table()["extra"].to_pylist()
    assert json.loads(prompts[1]) == {"category": "dog", "number": 1, "size": {"w": 3}}

    assert run("eval", "--set", "eval.by=[colour]") == 2
    said = capsys.readouterr().err
    assert "the prompts have no column 'colour'; they have 'category', 'number', 'size'" in said
    assert not Path("data/r/predictions").exists(), "refused before anything is decoded"
    monkeypatch.setattr("perpo_pipeline.evaluate.slices.MOST_SLICES", 3)
    assert run("eval", "--set", "eval.by=number") == 2
    assert "'number' has 4 values in test, more than 3 slices" in capsys.readouterr().err

    assert run("eval") == 0
    whole = open_version(Path("data/r/metrics/base@test"))
    capsys.readouterr()
    assert run("eval", "--set", "eval.by=category") == 0
    said = capsys.readouterr().err
    assert "eval base@test: up to date (data/r/predictions" in said
    assert "category=dog" in said and "metrics, " in said
    sliced = open_version(Path("data/r/metrics/base@test"))
    assert sliced.manifest["settings"]["by"] == ["category"]
    assert sliced.manifest["inputs"] == whole.manifest["inputs"]
    assert "by" not in whole.manifest["settings"]
    assert run("eval", "--json", "--set", "eval.by=category") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["slice_value"] for row in shown if row["slice_column"]} == {"dog", "cat", None}
    assert run("eval") == 0
    assert open_version(Path("data/r/metrics/base@test")).path == whole.path
    capsys.readouterr()

    Path("r.yaml").write_text(CONFIG.replace("eval: {", "eval: {by: [category], "))
    assert run("status") == 0
    assert "eval.by [], the configuration says [category]" in capsys.readouterr().out
    assert run("eval") == 0
    Path("r.yaml").write_text(CONFIG)
    capsys.readouterr()
    assert run("status") == 0
    said = capsys.readouterr().out
    assert "eval.by [category], the configuration says []" in said
    assert re.search(r"predictions/base@test\s+current", said)
