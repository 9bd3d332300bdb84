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


@pytest.mark.parametrize("command", ["make-rules", "train", "eval", "report"])
def test_a_setting_that_every_method_has_itself_is_refused(
    capsys: pytest.CaptureFixture[str], workdir: Path, command: str
) -> None:
    assert run(command, "--set", "train.learning_rate=1e-4") == 2
    message = capsys.readouterr().err
    assert "--set train.learning_rate=1e-4 changes nothing: sft, dpo, perpo each set" in message
    assert "--set train.methods.sft.learning_rate=1e-4" in message
    assert not (workdir / "data").exists()


def test_a_setting_that_reaches_one_method_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("make-rules", "--set", "train.beta=0.7") == 0
    assert run("make-rules", "--set", "train.lora.rank=4") == 0
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


def test_a_method_that_sets_its_rank_keeps_the_shared_alpha(tmp_path: Path) -> None:
    from perpo_pipeline.config.file import load_config

    shared = {"train.lora": {"rank": 64, "alpha": 128}, "train.methods.dpo.lora.rank": 8}
    variants = load_config(tmp_path / "r.yaml", shared).train.variants()
    assert (variants["dpo"].lora.rank, variants["dpo"].lora.alpha) == (8, 128)
    assert (variants["perpo"].lora.rank, variants["perpo"].lora.alpha) == (64, 128)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("score.reward.token_f1=0.3", "score.reward.token_f1: score.reward is 'iou' in the file"),
        ("train.methods.sft.learning_rate.x=1", "train.methods.sft.learning_rate is 0.001"),
    ],
)
def test_a_key_below_a_value_is_refused(
    capsys: pytest.CaptureFixture[str], workdir: Path, setting: str, says: str
) -> None:
    (workdir / "r.yaml").write_text(CONFIG + "score: {reward: iou}\n")
    assert run("make-rules", "--set", setting) == 2
    assert says in capsys.readouterr().err


def test_a_mistyped_method_is_compared_with_all_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--method", "lipp") == 2
    message = capsys.readouterr().err
    assert "did you mean 'lipo'" in message and "lipo-lambda" in message


def test_a_shared_rank_reaches_methods_that_set_their_alpha_alone(workdir: Path) -> None:
    own = [("--set", f"train.methods.{name}.lora.alpha=4") for name in ("sft", "dpo", "perpo")]
    every = [part for pair in own for part in pair]
    assert run("make-rules", *every, "--set", "train.lora.rank=2") == 0
    assert run("make-rules", *every, "--set", "train.lora.alpha=8") == 2
