"""`perpo eval` on several splits: the model is loaded once, and a failure stays alone."""

import json
from pathlib import Path

import pytest
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.inference.part_sampler import PartSampler
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.store.writing import Recipe, open_writer

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 2}
  one: {source: testbed, num_prompts: 3}
  broken: {source: jsonl, path: data.jsonl, task: grounding}
  two: {source: testbed, num_prompts: 4}
train: {methods: {perpo: , sft: }}
eval:
  {splits: [one, broken, two], models: [base], conditions: [blank-image], condition_prompts: 2,
    max_new_tokens: 6}
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (60, 0, 0)).save(tmp_path / "0.png")
    (tmp_path / "data.jsonl").write_text(
        '{"image": "0.png", "prompt": "?", "gt_box": [0, 0, 16, 16]}'
    )
    (tmp_path / "r.yaml").write_text(CONFIG)
    assert run("prepare") == 0
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to samplers: each is opened and closed once."""
    happened: list[str] = []
    opened, closed = PartSampler.__init__, PartSampler.close

    def open_(self: PartSampler, *setup: object) -> None:
        happened.append("open")
        opened(self, *setup)  # type: ignore[arg-type]

    def close(self: PartSampler) -> None:
        happened.append("close")
        closed(self)

    monkeypatch.setattr(PartSampler, "__init__", open_)
    monkeypatch.setattr(PartSampler, "close", close)
    return happened


def test_a_model_is_loaded_once_for_all_its_evaluations(
    prepared: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval") == 0
    assert loads == ["open", "close"]
    said = capsys.readouterr()
    assert [Path(line).parent.name for line in said.out.splitlines()] == [
        "base@one",
        "base@broken",
        "base@two",
        "base-blank-image@one",
    ]
    head, *lines = said.err.split("all splits:\n")[1].splitlines()[:3]
    assert head.split() == ["ap50,", "%", "one", "broken", "two"]
    assert lines[1].split() == ["n", "3", "1", "4"]
    assert run("eval") == 0
    assert loads == ["open", "close"], "nothing to decode, so nothing to load"
    capsys.readouterr()
    assert run("eval", "--json") == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert {row["variant"] for row in rows} == {
        *(f"base@{split}" for split in ("one", "broken", "two")),
        "base-blank-image@one",
    }
    assert {row["n"] for row in rows if row["variant"] == "base@two"} == {4}
    assert "all splits" not in said.err
    assert run("eval", "--image-conditioning", "--json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["model"], row["split"], row["n"]) for row in shown} == {("base", "one", 2)}
    assert {row["image"] for row in shown} == {"true", "shuffled", "blank"}


def test_the_answers_do_not_depend_on_what_was_decoded_before(prepared: Path) -> None:
    assert run("eval") == 0
    together = open_version(Path("data/r/predictions/base@two")).table()
    assert run("eval", "--evaluation", "base@two", "--out", "alone") == 0
    alone = open_version(Path("alone/predictions")).table()
    assert alone.equals(together)


def test_a_split_that_fails_does_not_stop_the_others(
    prepared: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = (prepared / "0.png").read_bytes()
    (prepared / "0.png").write_bytes(b"damaged")
    assert run("eval") == 2
    said = capsys.readouterr().err
    assert "eval base@broken failed: 1 prompts cannot be answered" in said
    assert "1 of 4 evaluations failed: base@broken" in said
    assert said.index("all splits:") < said.index("1 of 4 evaluations")
    assert loads == ["open", "close"]
    assert not Path("data/r/metrics/base@broken/current").exists()
    assert open_version(Path("data/r/metrics/base@two")).manifest["rows"] > 0

    assert run("eval", "--json") == 2
    finished = [json.loads(line)["variant"] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(finished)) == ["base@one", "base@two", "base-blank-image@one"]

    (prepared / "0.png").write_bytes(image)
    assert run("eval") == 0
    said = capsys.readouterr().err
    assert "eval base@broken: metrics" in said and said.count("up to date (") == 6


def test_the_inputs_of_all_evaluations_are_checked_before_the_first_is_decoded(
    prepared: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (prepared / "data/r/prompts/two/current").unlink()
    assert run("eval", "--set", "eval.models=[base, perpo, sft]") == 2
    said = capsys.readouterr().err
    assert loads == [] and not Path("data/r/predictions").exists()
    assert "  - base@two, perpo@two, sft@two: the run 'r' has no finished prompts 'two'" in said
    assert (
        "  - perpo@one, perpo@broken, perpo-blank-image@one: the run 'r' has no finished adapter "
        "'perpo' yet"
    ) in said
    assert "run: perpo train --config r.yaml --method sft --set 'eval.models=[base, " in said


def test_a_server_is_refused_for_an_adapter_before_it_is_asked_about_the_base(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_writer(Path("data/r/adapter/perpo"), Recipe("adapter", "perpo", "train", 2, {})) as w:
        w.finish()
    nobody = ("--backend", "openai", "--base-url", "http://127.0.0.1:1/v1")
    assert run("eval", *nobody, "--set", "eval.models=[base,perpo]") == 2
    assert "cannot load an adapter into a server" in capsys.readouterr().err
    assert not Path("data/r/predictions").exists()
