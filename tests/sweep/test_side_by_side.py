"""Steps in several processes: the same versions as one after the other, and orderly errors."""

from pathlib import Path

import pytest
from sweep.fake_stages import RUN, fake_do, fake_do_at_once, write_files

from perpo_pipeline import cli
from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Console
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.make_steps import Made, Progress
from perpo_pipeline.sweep.side_by_side import _next, _stopped, make_side_by_side
from perpo_pipeline.sweep.steps import Step, make_steps

SWEEP = """
sweep: two
config: run.yaml
grids: [{methods: [dpo, perpo]}]
seeds: [0, 1]
report_on: validation
"""


def steps_of(folder: Path, sweep: str = SWEEP) -> dict[str, Step]:
    (folder / "data").mkdir(exist_ok=True)
    return make_steps(make_cells(read_sweep(write_files(folder, sweep))))[0]


def test_two_processes_make_every_step_once_with_a_device_each_and_find_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch.cuda.is_available", "torch.cuda.device_count"):
        monkeypatch.setattr(name, lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    steps, made = steps_of(tmp_path), Made()
    progress = Progress("two", Console(quiet=True), len(steps), lambda: (0.0, True), jobs=2)
    make_side_by_side(steps.values(), made, progress, 2, fake_do)
    assert set(made.versions) == set(steps)
    lines = [line.split(" ", 2) for line in (tmp_path / "data" / "log").read_text().splitlines()]
    assert sorted(title for _, _, title in lines) == sorted(s.title for s in steps.values())
    assert {device for _, device, _ in lines} == {"3", "5"}
    assert len({process for process, _, _ in lines}) == 2
    assert f"sweep two: {len(steps)}/{len(steps)} eval" in capsys.readouterr().err

    # A cell that fails ends the sweep with its own message; what others made is kept.
    (tmp_path / "run.yaml").write_text(
        RUN.format(root=tmp_path / "data").replace("train: {methods", "train: {epochs: 7, methods")
    )
    failing, found = make_steps(make_cells(read_sweep(tmp_path / "sweep.yaml")))[0], Made()
    found.versions |= {id: one for id, one in made.versions.items() if id in failing}
    with pytest.raises(InputError, match="this cell fails"):
        make_side_by_side(failing.values(), found, progress, 2, fake_do)


def test_the_first_training_on_new_lists_computes_the_reference_alone(tmp_path: Path) -> None:
    steps = [*steps_of(tmp_path).values()]
    first, second, *_ = trainings = [step for step in steps if step.stage == "train"]
    made = Made({step.id: {} for step in steps if step.stage not in ("train", "eval")})
    assert len(trainings) == 4
    assert _next(trainings, [], steps, made) is first
    assert _next(trainings[1:], [first], steps, made) is None
    made.versions[first.id] = {}
    assert _next(trainings[1:], [trainings[3]], steps, made) is second


def test_the_first_training_with_blank_images_computes_their_reference_alone(
    tmp_path: Path,
) -> None:
    """Another method needs none of them, and goes on beside it."""
    every = [*steps_of(tmp_path, SWEEP.replace("perpo", "mdpo")).values()]
    dpo, other_dpo, mdpo, other_mdpo = [step for step in every if step.stage == "train"]
    made = Made({step.id: {} for step in every if step.stage not in ("train", "eval")})
    made.versions[dpo.id] = {}
    assert _next([other_mdpo, other_dpo], [mdpo], every, made) is other_dpo
    made.versions[mdpo.id] = {}
    assert _next([other_mdpo], [other_dpo], every, made) is other_mdpo


def test_another_forward_has_a_reference_of_its_own(tmp_path: Path) -> None:
    forwards = "parameters: {train.forward: [shared-prefix, separate]}, methods: [dpo]"
    text = SWEEP.replace("methods: [dpo, perpo]", forwards) + "select_on: test\n"
    steps = [*make_steps(make_cells(read_sweep(write_files(tmp_path, text))))[0].values()]
    trainings = [step for step in steps if step.stage == "train"]
    made = Made({step.id: {} for step in steps if step.stage not in ("train", "eval")})
    made.versions[trainings[0].id] = {}
    # Two seeds of each: the second forward's reference is computed by one of its trainings.
    assert _next(trainings[2:], [trainings[1]], steps, made) is trainings[2]
    assert _next(trainings[3:], [trainings[2]], steps, made) is None


def test_steps_that_make_the_same_version_wait_for_each_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    same = "methods: [base], parameters: {model.dtype: [auto, float32]}"
    text = SWEEP.replace("methods: [dpo, perpo]", same) + "select_on: test\n"
    (tmp_path / "data").mkdir()
    steps = make_steps(make_cells(read_sweep(write_files(tmp_path, text))))[0]
    progress = Progress("two", Console(quiet=True), len(steps), lambda: (0.0, True), jobs=2)
    made = Made()
    make_side_by_side(steps.values(), made, progress, 2, fake_do_at_once)
    evaluations = [step.id for step in steps.values() if step.stage == "eval"]
    assert len(evaluations) == 2
    first, second = (made.versions[id]["metrics", "base@test"] for id in evaluations)
    assert first.path == second.path
    said = capfd.readouterr().err
    assert "waits: another process is writing this version" in said and "eval base, model" in said


def test_an_interrupted_sweep_counts_its_calls_as_the_lines_before_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One of five was there, two more are finished, and a third is under way."""
    step = next(iter(steps_of(tmp_path).values()))
    progress = Progress("two", Console(), 5, lambda: (0.0, True), jobs=2, finished=1)
    for _ in range(3):
        progress.begin(step)
    assert capsys.readouterr().err.splitlines()[-1].startswith("sweep two: 4/5 prepare")
    made = Made({"old": {}, "a": {}, "b": {}}, {"a": 1.0, "b": 2.0})
    stopped = str(_stopped(progress, made, KeyboardInterrupt()))
    assert stopped.startswith("sweep two interrupted; 3 of 5 calls of stages are finished")
    progress.begun = 5  # more than expected
    assert "; 3 of 6 calls" in str(_stopped(progress, made, KeyboardInterrupt()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--jobs", "0", "--dry-run"], "--jobs is 0\n  fix:   give 1 or more"),
        (["--jobs", "-1"], "--jobs is -1"),
        (["--jobs", "3"], "--jobs is 3, and 2 GPUs are visible"),
        (
            ["--jobs", "2", "--set", "sample.num_gpus=2", "--set", "train.num_processes=4"],
            "sample.num_gpus is 2 and train.num_processes is 4, and each of the 2 jobs has one "
            "device\n  fix:   give --set sample.num_gpus=1 --set train.num_processes=1 (or `set`",
        ),
    ],
)
def test_jobs_without_a_device_of_their_own_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    for name in ("torch.cuda.is_available", "torch.cuda.device_count"):
        monkeypatch.setattr(name, lambda: 2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(write_files(tmp_path, SWEEP)), *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err
