"""Advice that can be typed: the commands that errors name, with the user's own run."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from perpo_pipeline import advice, cli
from perpo_pipeline.shipped.run_folder import config_text

COMMANDS: Any = typer.main.get_command(cli.app)


@pytest.fixture(autouse=True)
def nothing_given() -> Iterator[None]:
    before = advice.current()
    advice.adopt(advice.Invocation())
    yield
    advice.adopt(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["perpo"])
    (tmp_path / "my run.yaml").write_text(
        "run: mine\nmodel: {id: testbed, device: cpu}\n"
        "prepare: {train: {source: testbed, num_prompts: 4}, "
        "test: {source: testbed, num_prompts: 4}}\n"
    )
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_without_an_invocation_a_command_is_its_words() -> None:
    assert advice.command("filter") == "perpo filter"
    assert advice.remake("metrics", "perpo@test") == "perpo eval --evaluation perpo@test"
    assert advice.remake("reference", "0f") == "perpo train"


@pytest.mark.parametrize(
    ("typed", "advised"),
    [
        ("score --config C", "perpo filter --config C"),
        ("score --config=C --run x --reward iou", "perpo filter --config C --run x"),
        ("train --config C --method a --out o", "perpo filter --config C"),
        ("train --config C --set 'a.b=[1, 2]'", "perpo filter --config C --set 'a.b=[1, 2]'"),
        ("train --config C --model m", "perpo filter --config C --set model.id=m"),
    ],
)
def test_another_command_gets_the_run_and_its_settings(typed: str, advised: str) -> None:
    words = shlex.split(typed)
    advice.begin(words)
    run = "x" if "--run" in words else None
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    advice.set_run(Path("C"), run, [*["model.id=m"] * ("--model" in words), *sets])
    assert advice.command("filter") == advised


@pytest.mark.parametrize(
    ("typed", "words", "advised"),
    [
        ("eval --config C --out o --quiet", (), "perpo eval --config C --out o"),
        ("eval --out o", (), "perpo eval --config C --out o"),
        (
            "eval --config C --evaluation a --json --evaluation=b --engine ray",
            ("--evaluation", "b@t"),
            "perpo eval --config C --engine ray --evaluation b@t",
        ),
    ],
)
def test_the_same_command_keeps_its_options(
    typed: str, words: tuple[str, ...], advised: str
) -> None:
    advice.begin(shlex.split(typed))
    advice.set_run(Path("C"), None, [])
    assert advice.command("eval", *words) == advised


def test_what_other_programs_made_is_not_given_a_command_of_the_run() -> None:
    advice.begin(["compare", "a", "b"])
    advice.set_run(Path("C"), None, [])
    assert advice.remake("samples", "train", "prepare") == "perpo prepare --config C --split train"
    assert advice.remake("metrics", "a", "measure") == "perpo measure ..."


def test_a_stage_without_its_input_names_the_whole_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--config", "my run.yaml", "--run", "r2", "--set", "sample.num_samples=4")
    said = fails(capsys, "filter", *options, "--min-margin", "0.1", "--out", "o")
    assert (
        "fix:   run: perpo score --config 'my run.yaml' --run r2 --set sample.num_samples=4\n"
        in said
    )
    said = fails(capsys, "eval", *options, "--evaluation", "perpo")
    assert "perpo prepare --config 'my run.yaml' --split test --run r2" in said


def test_a_relative_place_comes_with_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "filter", "--config", "my run.yaml")
    assert f"where: data/mine/scores/train (relative to {folder})\n" in said
    said = fails(capsys, "filter", "--config", "mine.yaml")
    assert f"where: mine.yaml (relative to {folder})\n" in said


@pytest.mark.parametrize(
    ("where", "is_relative"),
    [
        ("my/train.jsonl:3", True),
        ("my/train.jsonl, record 3", True),
        ("train.jsonl", True),
        ("there/anything", True),
        ("/abs/train.jsonl", False),
        ("http://host/train.jsonl", False),
        ("--set train.lora.rank=8", False),
        ("Qwen/Qwen2.5-VL-7B-Instruct", False),
        ("llava-hf/llava-1.5-7b-hf", False),
        ("train.methods", False),
        ("prompt 0f3a", False),
        ("train.jsonl:2 (prompt 0f3a), image photos/1.jpg", False),  # a name, not a path
        ("", False),
    ],
)
def test_a_relative_path_is_known_from_other_places(
    folder: Path, where: str, is_relative: bool
) -> None:
    (folder / "there").mkdir()
    assert advice.with_folder(where) == where + is_relative * f" (relative to {folder})"


def test_the_default_configuration_is_announced_once_or_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "filter")
    assert "no --config was given, and there is no configs/demo.yaml here" in said
    assert f"where: {folder}\n" in said and "fix:   give the run's file: --config FILE" in said
    (folder / "configs").mkdir()
    (folder / "my run.yaml").rename(folder / "configs/demo.yaml")
    said = fails(capsys, "train")  # opens the run twice
    assert said.count("no --config was given, so it is configs/demo.yaml") == 1
    assert "run: perpo filter --config configs/demo.yaml\n" in said
    assert "no --config" not in fails(capsys, "train", "--config", "configs/demo.yaml")


def test_the_program_is_named_as_it_can_be_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(folder / "venv/bin/perpo")])
    advice.begin(["filter"])
    assert advice.command("score") == "venv/bin/perpo score"
    monkeypatch.setattr(sys, "argv", ["/opt/my tools/perpo"])
    advice.begin(["filter"])
    assert advice.command("score") == "'/opt/my tools/perpo' score"


def test_the_commands_of_a_run_are_those_that_take_its_file() -> None:
    takes = {
        name
        for name, command in COMMANDS.commands.items()
        if any("--config" in p.opts for p in command.params)
    }
    assert takes == advice.OF_A_RUN | {"merge"}


@pytest.mark.parametrize(
    ("in_project", "named"), [(True, "docs/data.md"), (False, 'the manual\'s page "data"')]
)
def test_a_page_is_named_as_it_can_be_found(
    in_project: bool, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "_in_project", lambda: in_project)
    assert advice.page("data") == named
    assert f"# Data ({named}): RefCOCO" in config_text("llava15-grounding", "r", {}, "0.1")
