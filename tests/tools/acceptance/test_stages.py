"""The parts of an acceptance, on a run that is made without a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.run import Run
from tools.acceptance import __main__ as program
from tools.acceptance import stages
from tools.acceptance.published import Published, find_published
from tools.acceptance.stages import Acceptance, Rejected, find_acceptance

RIGHT = {"base": 0.5, "perpo": 0.8}
CALLS = [
    ("run", "--from", "prepare", "--to", "prepare"),
    ("eval", "--evaluation", "base@test"),
    ("run", "--from", "sample", "--to", "filter"),
    ("run", "--from", "train", "--to", "eval"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A base that is right on half of 120 prompts, and PerPO, which is right on 80 % of them."""
    return make_synthetic_run(
        tmp_path_factory.mktemp("run"),
        num_prompts=120,
        splits=("test", "heldout"),
        methods=("perpo",),
        right=RIGHT,
    )


@pytest.fixture
def accept_run(
    made: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], list[tuple[str, ...]]]]:
    """Runs the program on the finished run; returns its exit code, lines and calls of stages."""

    def accepted(**changes: object) -> tuple[int, list[str], list[tuple[str, ...]]]:
        calls: list[tuple[str, ...]] = []
        there = {"ap50": 0.5, "image": (64, 48)} | changes
        figure: Published = replace(find_published("testbed"), **there)  # type: ignore[arg-type]
        monkeypatch.setattr(stages, "find_published", lambda model: figure)
        monkeypatch.setattr(stages, "planned_time", lambda run: "time: a minute")
        monkeypatch.setattr(Acceptance, "open", lambda self: replace(made, _checked={}))
        monkeypatch.setattr(Acceptance, "stage", lambda self, *words: calls.append(words))
        code = program.main(["testbed"])
        return code, capsys.readouterr().out.splitlines(), calls

    monkeypatch.setattr(stages, "FEWEST_LISTS", 20)
    return accepted


def test_all_parts_pass_and_each_says_its_figures(accept_run) -> None:
    code, lines, calls = accept_run()
    assert (code, calls) == (0, CALLS)
    assert lines[0] == "acceptance testbed: time: a minute"
    assert lines[1] == "acceptance testbed: image tokens: passed, 144 for 64x48 pixels"
    assert "base: passed, AP@50 " in lines[2] and "on 120 prompts, accepted 40." in lines[2]
    assert lines[3].startswith("acceptance testbed: lists: passed, ")
    assert "training: passed, mean reward +" in lines[4]
    assert "on 120 held-out prompts, trained on " in lines[4]
    assert lines[5:] == ["acceptance testbed: passed"]


def test_it_stops_before_the_model_is_loaded_where_images_are_cut_otherwise(accept_run) -> None:
    code, lines, calls = accept_run(image_tokens=256)
    assert (code, calls) == (1, CALLS[:1])
    assert "image tokens: failed" in lines[1]
    assert "an image of 64x48 becomes 144 tokens, and 256 are expected" in lines[2]


def test_it_stops_before_sampling_where_the_base_misses_the_range(accept_run) -> None:
    code, lines, calls = accept_run(ap50=0.95)
    assert (code, calls) == (1, CALLS[:2])
    assert "base: failed, AP@50 " in lines[2] and "published 95.0" in lines[2]
    assert lines[3].startswith("  likely cause: ")
    assert not any("training" in line for line in lines)


@pytest.mark.parametrize(
    ("right", "verdict", "cause"),
    [
        ({"base": 0.8, "perpo": 0.4}, "training: failed, mean reward -", "learning rate"),
        ({"base": 0.6, "perpo": 0.6}, "training: not shown, mean reward ", "the interval holds 0"),
    ],
)
def test_training_that_does_not_help_is_rejected_with_the_interval(
    made: Run, tmp_path: Path, right, verdict: str, cause: str, monkeypatch
) -> None:
    monkeypatch.setattr(stages, "FEWEST_LISTS", 20)
    run = make_synthetic_run(
        tmp_path, num_prompts=60, splits=("test", "heldout"), methods=("perpo",), right=right
    )
    with pytest.raises(Rejected) as caught:
        stages.check_training(run)
    assert str(caught.value).startswith(verdict) and cause in str(caught.value)


def test_too_few_lists_are_rejected_before_the_training(
    accept_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "FEWEST_LISTS", 1000)
    code, lines, calls = accept_run()
    assert (code, calls) == (1, CALLS[:3])
    assert "lists: failed, " in lines[3] and "at least 1000 are needed" in lines[3]
    assert "likely cause: too few lists" in lines[4]


def test_the_folder_of_the_data_and_settings_reach_every_stage(tmp_path: Path) -> None:
    found = find_acceptance("llava15", tmp_path, ["seed=1"])
    assert f"prepare.heldout.path={tmp_path}/refer" in found.sets
    assert f"prepare.train.image_root={tmp_path}/coco/train2014" in found.sets
    config = found.open().config
    assert str(config.prepare["test"].path) == f"{tmp_path}/refer"  # type: ignore[union-attr]
    assert config.seed == 1


def test_a_stage_that_fails_ends_the_program_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders of the data are empty: `perpo` says so itself."""
    for folder in ("refer", "coco/train2014"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(stages, "planned_time", lambda run: "time: a minute")
    with pytest.raises(SystemExit) as caught:
        program.main(["llava15", "--data", str(tmp_path), "--set", f"data_root={tmp_path}"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava1.5"], "there is no acceptance of 'llava1.5'; did you mean 'llava15'?"),
        (["llava15", "--data", "/nowhere"], "where: /nowhere/refer\n  fix:   give DATA=FOLDER"),
        (["llava2"], "choose MODEL= from: llava15, qwen25-vl, qwen3-vl, testbed"),
        (["testbed", "--data", "d"], "testbed needs no data"),
        (["qwen3-vl", "--set", "model.id=mine"], "there is no published figure for the model mine"),
    ],
)
def test_a_wrong_call_is_one_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(arguments) == 2
    assert message in capsys.readouterr().err
