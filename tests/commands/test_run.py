"""`perpo run`: makes what is not as configured, stage by stage, and leaves the rest alone."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from status.made_run import make_node, make_run, write_file

from perpo_pipeline import cli
from perpo_pipeline.commands import run as command
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.run import Run
from perpo_pipeline.status.calls import calls
from perpo_pipeline.status.options import Options
from perpo_pipeline.store.artifacts import STARTED
from perpo_pipeline.store.writing import Recipe, open_writer

SMALL = """
run: m
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 12}
  test: {source: testbed, num_prompts: 6}
sample: {num_samples: 4, max_new_tokens: 24}
filter: {min_margin: 0}
train: {batch_size: 8, lora: {rank: 2, alpha: 4}, methods: {sft: , perpo: }}
eval: {max_new_tokens: 24, conditions: [blank-image], condition_prompts: 2}
report: {num_resamples: 100, pictures: 1}
"""
STAGES = list(command.STAGES)


def perpo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The file of a finished run without rows."""
    file = write_file(tmp_path)
    time.sleep(0.01)  # the rows are older than the prompts
    make_run(load_config(file))
    return file


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that are made: each makes its artifacts without rows."""
    found: list[str] = []

    def stage(name: str) -> Any:
        def make(given: command.Given, names: Sequence[str]) -> None:
            found.append(" ".join([name, *names]))
            sets = map(parse_set, given.common["sets"] or ())
            config = load_config(given.common["config"], list(sets))
            for call in calls(config):
                if call.stage == name and (not names or set(names) <= set(call.names)):
                    for node in call.made:
                        make_node(Run(config, quiet=True), node.key)
            print("a path of the stage")

        return make

    monkeypatch.setattr(command, "STAGES", {name: stage(name) for name in STAGES})
    return found


@pytest.mark.slow
def test_a_run_is_made_whole_and_every_single_stage_then_finds_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(SMALL)
    code, out, err = perpo(capsys, "run", "--config", "m.yaml", "--quiet")
    assert code == 0, err
    (page,) = out.splitlines()
    assert Path(page).is_file() and Path(page).name == "report.html"
    assert f"run m ({tmp_path}/data/m): 11 of 11 calls of stages are to be made" in err
    titles = re.findall(r"^run \d+/11: (.*)$", err, flags=re.MULTILINE)
    assert titles[:6] == ["prepare train", "prepare test", "sample", "score", "filter", "train sft"]
    assert titles[6:] == ["train perpo", "eval base", "eval sft", "eval perpo", "report"]
    for stage in STAGES:
        code, _, err = perpo(capsys, stage, "--config", "m.yaml", "--quiet")
        assert code == 0 and "up to date" in err and " rows in " not in err, err
    code, out, err = perpo(capsys, "run", "--config", "m.yaml")
    assert (code, out.strip()) == (0, page) and "everything is up to date, nothing was run" in err
    trained = in_a_process("train", Path("m.yaml"))
    assert "train perpo: up to date" in trained.stderr
    assert not {"torch", "transformers"} & set(trained.stderr.split())


def in_a_process(command: str, file: Path) -> subprocess.CompletedProcess[str]:
    """The command on its own; stderr ends with the modules that it imported."""
    code = (
        "import sys; from perpo_pipeline import cli\n"
        "try: cli.main([sys.argv[1], '--config', sys.argv[2]])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, command, str(file)], capture_output=True, text=True, check=True
    )


def test_a_finished_run_is_left_alone_in_a_moment(made: Path) -> None:
    done = in_a_process("run", made)
    assert "everything is up to date, nothing was run" in done.stderr
    assert done.stdout.endswith("report.html\n") and done.stdout.count("\n") == 1
    assert not {"torch", "transformers"} & set(done.stderr.split())


def test_what_an_option_asked_for_is_left_and_named(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options({"train.beta": "--set train.beta=0.4"})
    run = Run(load_config(made), quiet=True, options=options)
    adapter = make_node(run, ("adapter", "perpo"))
    edited = made.parent / "edited.yaml"
    edited.write_text(made.read_text().replace("beta: 0.5", "beta: 0.6"))
    code, _, err = perpo(capsys, "run", "--config", str(edited), "--to", "train")
    assert code == 0 and "everything is up to date, nothing was run" in err
    said = "adapter/perpo: made with train.beta 0.5, the configuration says 0.6; --set train.beta"
    assert f"run: leaves {said}=0.4 asked for it\n" in err
    assert f"run: to make it as the file says: perpo train --config {edited} --method perpo" in err
    assert adapter.path.is_dir()


def test_a_changed_setting_makes_its_artifact_and_what_follows_and_says_why(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    sets = ("--set", "train.methods.perpo.beta=0.25")
    code, out, err = perpo(capsys, "run", "--config", str(made), *sets)
    assert code == 0, err
    assert asked == ["train perpo", "eval perpo@test perpo-blank-image@test", "report"]
    assert "3 of 11 calls of stages are to be made" in err and "a path" not in out
    assert "train perpo  made with train.beta 0.5, the configuration says 0.25\n" in err
    assert "eval perpo   follows adapter/perpo\n" in err
    assert perpo(capsys, "run", "--config", str(made))[0] == 0  # found again, and in use again
    assert asked[3:] == asked[:3]


def test_one_missing_evaluation_is_made_alone(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    place = made.parent / "r/metrics/sft-blank-image@test/current"
    place.unlink()
    code, _, err = perpo(capsys, "run", "--config", str(made), "--to", "eval")
    assert code == 0 and asked == ["eval sft-blank-image@test"], err
    assert "1 of 10 calls" in err and "metrics/sft-blank-image@test is missing" in err


def test_what_is_made_again_with_the_same_content_ends_there(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    later = time.time_ns() + 10**9
    rows = made.parent / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text + "\n")
    os.utime(rows, ns=(later, later))
    (made.parent / "r/prompts/train/current").touch()
    os.utime(made.parent / "r/prompts/train/current", ns=(later - 10**9, later - 10**9))
    monkey = command.STAGES["prepare"]

    def prepare(given: command.Given, names: Sequence[str]) -> None:
        rows.write_text(text)
        monkey(given, names)
        os.utime(made.parent / "r/prompts/train/current", ns=(later + 10**9, later + 10**9))

    command.STAGES["prepare"] = prepare
    code, _, err = perpo(capsys, "run", "--config", str(made))
    assert code == 0 and asked == ["prepare train"], err
    assert "rows.jsonl was written later" in err
    assert re.search(r"run 2/\d+: sample is up to date", err)


def test_a_split_that_nothing_reads_is_made_only_where_it_is_asked_for(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    extra = ("--set", "prepare.extra={source: testbed, num_prompts: 2}")
    code, _, err = perpo(capsys, "run", "--config", str(made), *extra)
    assert code == 0 and not asked and "everything is up to date" in err
    assert perpo(capsys, "run", "--config", str(made), *extra, "--to", "prepare")[0] == 0
    assert asked == ["prepare extra"]


def test_from_takes_earlier_artifacts_only_as_the_configuration_describes_them(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    changed = ("--config", str(made), "--set", "filter.min_margin=0.3")
    code, out, err = perpo(capsys, "run", *changed, "--from", "train")
    assert (code, out, asked) == (2, "", [])
    assert "made with filter.min_margin" in err and "the configuration says 0.3" in err
    assert f"perpo filter --config {made} --set filter.min_margin=0.3" in err
    code, _, err = perpo(capsys, "run", *changed, "--from", "filter", "--to", "train")
    assert code == 0 and asked == ["filter", "train sft", "train perpo"], err
    code, _, err = perpo(capsys, "run", *changed, "--from", "train", "--to", "filter")
    assert code == 2 and "--from train comes after --to filter" in err
    code, _, err = perpo(capsys, "run", *changed, "--from", "tarin")
    assert code == 2 and "--from tarin: no such stage; did you mean 'train'?" in err
    perpo(capsys, "run", "--config", str(made))


def test_what_another_process_makes_is_not_begun(
    made: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    root = made.parent / "r/preferences/train"
    with open_writer(root, Recipe("preferences", "train", "filter", 1, {"min_margin": 0.9})) as w:
        sets = ("--set", "filter.min_margin=0.9")
        code, _, err = perpo(capsys, "run", "--config", str(made), *sets)
        assert code == 2 and "another process is making preferences/train" in err and not asked
        assert perpo(capsys, "run", "--config", str(made), "--to", "score")[0] == 0
    assert (w.path / STARTED).is_file()
    assert perpo(capsys, "run", "--config", str(made))[0] == 0 and not asked


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "scores/train/current").write_text("a/b"), "does not name a version"),
        (lambda run: (run / "scores/train/current").write_text("0f"), "names a version that is"),
        (lambda run: next(run.glob("samples/train/*/manifest.json")).write_text("{"), "manifest"),
        (lambda run: (run / "prompts").write_text("a file"), "Not a directory"),
    ],
)
def test_a_broken_run_is_one_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    damage: Any,
    message: str,
) -> None:
    file = write_file(tmp_path)
    (tmp_path / "r").mkdir()
    if message != "Not a directory":
        for key in (("prompts", "train"), ("samples", "train"), ("scores", "train")):
            make_node(Run(load_config(file), quiet=True), key)
    damage(tmp_path / "r")
    code, out, err = perpo(capsys, "run", "--config", str(file))
    assert (code, out) == (2, "") and asked in ([], ["prepare train"]), err
    assert message in err and "  where: " in err and "  fix:   " in err and "Traceback" not in err


def test_a_launcher_must_not_start_it_several_times(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = perpo(capsys, "run", "--config", str(made))
    assert code == 2 and "a launcher has started 2 processes of perpo run" in err


def test_processes_of_a_training_get_the_command_of_that_training(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline import advice

    seen: list[Any] = []
    monkeypatch.setattr(command, "train", lambda ctx, **given: seen.append((ctx.obj, given)))
    before = advice.current()
    advice.begin(["run", "--config", "r.yaml"])
    advice.set_run(Path("r.yaml"), "x", ["a=1"])
    common = {"config": Path("r.yaml"), "sets": ["a=1"], "run": "x", "quiet": True}
    command.STAGES["train"](command.Given(common, 2, False), ["sft"])
    advice.adopt(before)
    words = [
        "train",
        "--config",
        "r.yaml",
        "--run",
        "x",
        "--set",
        "a=1",
        "--quiet",
        "--method",
        "sft",
    ]
    assert [obj for obj, _ in seen] == [words]
    assert seen[0][1]["num_processes"] == 2 and seen[0][1]["method"] == "sft"
