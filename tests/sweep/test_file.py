"""Sweep files that cannot be run: one message each, and exit code 2 before anything is made."""

from pathlib import Path

import pytest
from sweep.fake_stages import SWEEP, write_files

from perpo_pipeline import cli

GRID = "    parameters: {train.beta: [0.1, 0.5, 1], train.gamma: [1]}\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("perpo: error:") == 1
    return said.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seed:", "seed: no such key; did you mean 'seeds'?"),
        ("methods: [base]", "method: [base]", "grids.0.method: no such key; did you mean"),
        ("sweep: beta\n", "", "sweep: Field required"),
        ("seeds: [0, 1]", "seeds: [one]", "seeds.0: Input should be a valid integer"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds [1, 1] names a seed twice"),
        ("seeds: [0, 1]", "seeds: [4294967296]", "seeds.0: Input should be less than or equal to"),
        ("seeds: [0, 1]", "seeds: [0b_]", "cannot be read as YAML: '0b_' is no int"),
        ("seeds: [0, 1]", "select_seeds: [1, 1]", "select_seeds [1, 1] names a seed twice"),
        ("seeds: [0, 1]", "select_seeds: []", "select_seeds: List should have at least 1 item"),
        ("report_on: test", "select_seeds: [0]", "on report_on: name both"),
        (
            "report_on: test",
            "report_on: test\nselect_seeds: [0]\nreport_cells: all",
            "no use with report_cells: all",
        ),
        ("report_on: test", "report_on: validation", "both 'validation'"),
        ("report_on: test", "report_on: test\nx: train.bta", "no grid varies 'train.bta'; did you"),
        ("report_on: test", "report_on: tst", "no split 'tst'; did you mean 'test'?"),
        ("report_on: test", "report_on: train", "are trained on the prompts of 'train'"),
        ("select_on: validation\n", "", "dpo and perpo have several settings"),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nmetric: ap_50",
            "no metric 'ap_50'; did you mean 'ap50'?",
        ),
        ("seeds: [0, 1]", "seeds: [0, 1]\nmetric: bleu", "prompts of grounding have no bleu"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nmetric: out_of_frame_rate", "neither a high nor a low"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nmetric: unanswered_rate", "is left out where it is 0"),
        ("[dpo, perpo]", "[dop, perpo]", "there is no method 'dop'; did you mean 'dpo'?"),
        ("config: run.yaml", "config: rum.yaml", "no such configuration file"),
        ("train.beta: [0.1, 0.5, 1]", "train.betta: [1]", "train.methods.dpo.betta"),
        ("train.beta: [0.1, 0.5, 1]", "train.beta: [0.1, high]", "beta: high): Input should be"),
        ("train.beta: [0.1, 0.5, 1]", "train.beta: 0.5", "Input should be a valid list"),
        ("train.beta: [0.1, 0.5, 1]", "train.beta: []", "at least 1 item"),
        ("train.beta: [0.1, 0.5, 1]", "train.beta: [1, 1.0]", "has a value twice"),
        ("train.beta: [0.1, 0.5, 1]", "beta: [1]", "parameters: beta: there is no such setting"),
        ("train.beta: [0.1, 0.5, 1]", "trian.beta: [1]", "did you mean 'train'?"),
        ("train.beta: [0.1, 0.5, 1]", "train.compile: [true]", "this setting changes no result"),
        ("train.beta: [0.1, 0.5, 1]", "train.seeds: [[1]]", "use the key `seeds`"),
        ("train.beta: [0.1, 0.5, 1]", "train.method: [dpo, perpo]", "cannot vary; use `methods`"),
        ("train.beta: [0.1, 0.5, 1]", "rounds.num: [1, 2]", "num: this setting changes no result"),
        ("train.beta: [0.1, 0.5, 1]", "train.beta: [2026-01-01]", "a valid number"),
        (
            "train.beta: [0.1, 0.5, 1]",
            "model.template_date: [2026-01-01, '2026-01-01']",
            "'model.template_date' has a value twice",
        ),
        (
            "train.beta: [0.1, 0.5, 1]",
            "model.template_date: [2026-01-01 10:00:00]",
            "is of a type of YAML that no setting has (datetime): put it in quotes",
        ),
        (
            "train.beta: [0.1, 0.5, 1]",
            "prepare.validation.num_prompts: [30, 20]",
            "prepare.validation.num_prompts: this cannot vary, because the settings are measured",
        ),
        (
            "train.beta: [0.1, 0.5, 1]",
            "prepare.test.0.path: [a, b]",
            "path: this cannot vary, because",
        ),
        (
            "train.beta: [0.1, 0.5, 1]",
            "prepare.test: [{}]",
            "prepare.test: this cannot vary, because",
        ),
        ("train.beta: [0.1, 0.5, 1]", "train.methods.dpo.beta: [1]", "write train.beta, in a grid"),
        ("[dpo, perpo]", "[sft]", "train.beta: sft does not use it"),
        (
            GRID,
            '    parameters: {"train.beta, train.gamma": [[1]]}\n',
            "is a list of 2; [1] is not",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert SWEEP.count(old) == 1
    file = write_files(tmp_path, SWEEP.replace(old, new))
    said = refused(capsys, str(file), "--dry-run")
    assert message in said and "sweep.yaml" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "sweep.yaml"]


def test_a_quick_version_has_the_settings_of_all_cells_and_refuses_unknown_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "set: {train.methods.mine: {method: perpo, beta: 0.2}}\nseeds:"
    text = SWEEP.replace("[dpo, perpo]", "[mine]").replace("seeds:", own)
    file = write_files(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(file), "--quick", "--dry-run"])
    assert not ended.value.code
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["train"][1] == "2"  # the ends of beta
    file.write_text(text.replace("[mine]", "[minne]"))
    assert "no method 'minne'; did you mean 'mine'?" in refused(capsys, str(file), "--quick")


def test_a_file_that_is_missing_or_that_of_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_files(tmp_path)
    assert "did you mean" in refused(capsys, str(file.with_name("swep.yaml")))
    assert "this is the file of a run" in refused(capsys, str(file.with_name("run.yaml")))


def test_a_sweep_that_is_too_large_for_the_disk_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shutil import disk_usage

    full = disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert "0.0 GB are free" in refused(capsys, str(write_files(tmp_path)))
    assert not (tmp_path / "data").exists()
