"""Which evaluations `perpo eval` makes for the names that it is given."""

from pathlib import Path

import pytest

from perpo_pipeline.cli import main
from perpo_pipeline.commands import evaluate as command
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.run import Run

CONFIG = """
run: r
prepare:
  train: {source: testbed, num_prompts: 4}
  val: {source: testbed, num_prompts: 4}
  mine: {source: testbed, num_prompts: 4}
train: {methods: {perpo: , sft: }}
eval: {splits: [val, mine], conditions: [blank-image], models: [base, perpo]}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    import yaml

    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return Run(RunConfig.model_validate(yaml.safe_load(CONFIG)), quiet=True)


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "r.yaml"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def chosen(run: Run, *asked: str) -> list[str]:
    return [one.name for one in command._choose(run.config.evaluations(), list(asked))]


def test_a_name_without_a_split_means_all_its_splits(run: Run) -> None:
    assert chosen(run, "perpo") == ["perpo@val", "perpo@mine"]
    assert chosen(run, "perpo-blank-image") == ["perpo-blank-image@val"]
    assert chosen(run, "perpo@mine") == ["perpo@mine"]


def test_several_names_are_taken_in_the_runs_order_and_each_once(run: Run) -> None:
    assert chosen(run, "perpo@mine", "base", "base@val") == ["base@val", "base@mine", "perpo@mine"]
    assert len(chosen(run)) == 6


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("perpo@nope", "perpo@mine"),
        ("perpoo", "perpo"),
        ("sft", ""),
        ("perpo-blank-image@mine", ""),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, near: str
) -> None:
    assert perpo("eval", "--evaluation", "base", "--evaluation", name) == 2
    said = capsys.readouterr().err
    assert f"--evaluation {name}: this run has no such evaluation" in said
    assert f"did you mean '{near}'?" in said or not near
    assert "choose one of base, base-blank-image, perpo, perpo-blank-image;" in said
    assert "one of the splits val, mine" in said


def test_out_holds_one_evaluation(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert perpo("eval", "--evaluation", "perpo", "--out", "o") == 2
    assert "for 2 evaluations ['perpo@val', 'perpo@mine']" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("base",), ("perpo", "base@val"), ("perpo", "sft"), ()])
def test_an_adapter_belongs_to_one_trained_method(
    run: Run, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    asked = [part for name in names for part in ("--evaluation", name)]
    asked += ["--set", "eval.models=[base, perpo, sft]"]
    assert perpo("eval", "--adapter", "a", *asked) == 2
    assert "--adapter needs exactly one trained method" in capsys.readouterr().err


def test_an_adapter_of_one_trained_method_is_opened(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perpo("prepare", "--split", "val", "--quiet") == 0
    assert perpo("eval", "--adapter", "none", "--evaluation", "perpo@val") == 2
    message = capsys.readouterr().err
    assert "one trained method" not in message and "where: none" in message


def test_wrong_images_are_compared_on_the_condition_splits_or_on_a_named_split(run: Run) -> None:
    def conditioned(*asked: str) -> list[str]:
        return [one.name for one in command._choose_conditioned(run, list(asked))]

    assert conditioned() == ["base@val", "perpo@val"]
    assert conditioned("perpo") == ["perpo@val"]
    assert conditioned("perpo@mine") == ["perpo@mine"]


def test_given_prompts_are_the_only_split_and_name_the_evaluations(
    run: Run, tmp_path: Path
) -> None:
    assert perpo("prepare", "--split", "train", "--quiet") == 0
    given = Run(run.config, inputs={"prompts": tmp_path / "data/r/prompts/train"})
    names = command._on_given_prompts(given).config.eval_variants()
    assert names == [
        "base@train",
        "base-blank-image@train",
        "perpo@train",
        "perpo-blank-image@train",
    ]


def test_gpus_and_engine_are_options(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert perpo("eval", "--num-gpus", "0", "--engine", "slurm") == 2
    said = capsys.readouterr().err
    assert "eval.num_gpus (--num-gpus)" in said and "eval.engine (--engine)" in said
