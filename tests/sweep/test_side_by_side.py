"""Steps in several processes: the same versions as one after the other, and orderly errors."""

from pathlib import Path

import pytest
from sweep.fake_stages import RUN, fake_do, write_files

from perpo_pipeline import cli
from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Console
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.make_steps import Made, Progress
from perpo_pipeline.sweep.side_by_side import _next, make_side_by_side
from perpo_pipeline.sweep.steps import Step, make_steps

SWEEP = """
sweep: two
config: run.yaml
grids: [{methods: [dpo, perpo]}]
seeds: [0, 1]
report_on: validation
"""


def steps_of(folder: Path) -> dict[str, Step]:
    (folder / "data").mkdir(exist_ok=True)
    return make_steps(make_cells(read_sweep(write_files(folder, SWEEP))))[0]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--jobs", "3"], "--jobs is 3, and 2 GPUs are visible"),
        (["--jobs", "2", "--set", "sample.num_gpus=2"], "sample.num_gpus is 2, and each of the 2"),
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
