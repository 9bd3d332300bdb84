"""A shared training setting from the command line must reach a method."""

from pathlib import Path

import pytest

from perpo_pipeline import cli

CONFIG = """
run: r
model: {device: cpu}
prepare:
  train: {source: testbed, num_prompts: 2}
  test: {source: testbed, num_prompts: 2}
train:
  methods:
    sft: {learning_rate: 1.0e-3}
    dpo: {learning_rate: 5.0e-4, beta: 1.0}
    perpo: {learning_rate: 5.0e-4}
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "r.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    try:
        cli.main([*arguments, "--config", "r.yaml"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("command", ["plan", "train", "eval", "report"])
def test_a_setting_that_every_method_has_itself_is_refused(
    capsys: pytest.CaptureFixture[str], workdir: Path, command: str
) -> None:
    assert run(command, "--set", "train.learning_rate=1e-4") == 2
    message = capsys.readouterr().err
    assert "--set train.learning_rate=1e-4 changes nothing: sft, dpo, perpo each set" in message
    assert "--set train.methods.sft.learning_rate=1e-4" in message
    assert not (workdir / "data").exists()


def test_a_setting_that_reaches_one_method_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--set", "train.beta=0.7") == 0
    assert run("plan", "--set", "train.lora.rank=4") == 0
    assert capsys.readouterr().err == ""


def test_a_chosen_method_with_its_own_value_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--method", "dpo", "--set", "train.beta=0.7") == 2  # no preferences yet
    message = capsys.readouterr().err
    assert "train dpo: --set train.beta=0.7 does not change it: it sets its own beta" in message
    assert run("train", "--method", "perpo", "--set", "train.beta=0.7") == 2
    assert "does not change it" not in capsys.readouterr().err


def test_a_method_that_the_file_does_not_list_takes_the_shared_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--method", "lipo", "--set", "train.learning_rate=1e-4") == 2
    message = capsys.readouterr().err
    assert "changes nothing" not in message and "preferences" in message
