"""`make` as a user runs it: twice, after a changed setting or SET, and after it is changed back;
and what it removes and refuses."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_perpo import forked_perpo

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
MODULE = "perpo_pipeline.cli"
CONFIG = """
run: m
data_root: {data}
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 16}}
  test: {{source: testbed, num_prompts: 8}}
sample: {{num_samples: 6, max_new_tokens: 24}}
filter: {{min_margin: {margin}}}
train: {{batch_size: 8, lora: {{rank: 2, alpha: 4}}, methods: {{perpo: }}}}
eval: {{max_new_tokens: 24, conditions: []}}
report: {{num_resamples: 100, pictures: 1}}
"""
STAGES = ("prepare", "sample", "score", "filter", "train", "eval", "report")
EVERY_STAGE = ("prompts", "samples", "scores", "preferences", "adapter", "metrics", "report")


def make(config: Path, *arguments: str) -> tuple[str, float]:
    command = [
        "make",
        "--no-print-directory",
        "-C",
        str(ROOT),
        "RUN=test-make",
        f"CONFIG={config}",
        f"VENV={VENV}",
        f"--old-file={VENV}/.installed",  # a test installs nothing, whatever changed
        *arguments,
    ]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr, time.monotonic() - start


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "m.yaml"
    yield path
    plan = str(path).replace("_", "_u").replace("/", "__")
    for suffix in (".mk", ".set"):
        (ROOT / f"data/.plans/{plan}{suffix}").unlink(missing_ok=True)


def versions(data: Path) -> dict[str, int]:
    return {name: len(list(data.glob(f"m/{name}/*/*/manifest.json"))) for name in EVERY_STAGE}


set_up = pytest.mark.skipif(
    not (VENV / ".installed").exists() or shutil.which("make") is None,
    reason="not run by `make test`: this Python is not the one that the Makefile set up",
)


@pytest.fixture(scope="module")
def forked() -> Iterator[str]:
    """Make's variable for the program: its imports take five seconds in each of 25 commands."""
    with forked_perpo() as program:
        yield f"PERPO={program}"


@pytest.mark.slow
@set_up
def test_only_what_follows_from_a_changed_setting_is_made_again(
    tmp_path: Path, config: Path, forked: str
) -> None:
    data = tmp_path / "data"

    def write(margin: float) -> None:
        config.write_text(CONFIG.format(data=data, margin=margin))

    write(0.01)
    make(config, "all", forked)
    once = versions(data)
    assert once == {name: 1 for name in EVERY_STAGE} | {"prompts": 2, "metrics": 2}

    printed, seconds = make(config, "all")
    assert "nothing was run" in printed and seconds < 20
    assert versions(data) == once

    time.sleep(1.1)  # Make compares whole seconds on some file systems
    write(0.02)
    make(config, "all", forked)
    changed = versions(data)
    assert changed == once | {"preferences": 2, "adapter": 2, "metrics": 3, "report": 2}

    time.sleep(1.1)
    write(0.01)
    printed, _ = make(config, "all", forked)
    assert versions(data) == changed
    assert " rows in " not in printed and printed.count("up to date") >= 7


@set_up
def test_a_changed_set_makes_again_what_it_must_and_is_undone_without_it(
    tmp_path: Path, config: Path, forked: str
) -> None:
    data = tmp_path / "data"
    config.write_text(CONFIG.format(data=data, margin=0.01))
    train = data / "m/prompts/train"

    def rows_in_use() -> int:
        manifest = train / (train / "current").read_text().strip() / "manifest.json"
        return int(json.loads(manifest.read_text())["rows"])

    make(config, "prepare")  # the program itself
    assert rows_in_use() == 16

    time.sleep(1.1)
    make(config, "prepare", "SET=prepare.train.num_prompts=3", forked)
    assert rows_in_use() == 3 and versions(data)["prompts"] == 3

    printed, _ = make(config, "prepare", "SET=prepare.train.num_prompts=3")
    assert "Nothing to be done" in printed and "perpo" not in printed

    time.sleep(1.1)
    printed, _ = make(config, "prepare", forked)
    assert rows_in_use() == 16 and versions(data)["prompts"] == 3
    assert printed.count("up to date (") == 2


@set_up
def test_set_reaches_the_plan_and_every_stage(tmp_path: Path, config: Path) -> None:
    config.write_text(CONFIG.format(data=tmp_path / "data", margin=0.01))
    settings = "train.methods.sft= eval.models=[base,sft] filter.min_margin=0.4"
    printed, _ = make(config, "--dry-run", "all", f"SET={settings}")
    called = [line for line in printed.splitlines() if f"{VENV}/bin/perpo " in line]
    given = "".join(f" --set '{setting}'" for setting in settings.split())
    assert all(f"--config {config}{given}" in line for line in called)
    stages = [line.split()[1] for line in called if " make-rules " not in line]
    assert sorted(set(stages)) == sorted(STAGES)
    assert any("--method sft" in line for line in called)
    assert any("--evaluation sft" in line for line in called)
    assert not any("--evaluation perpo" in line for line in called)


@set_up
def test_one_call_evaluates_a_model_on_all_its_splits(tmp_path: Path, config: Path) -> None:
    """The model of several GiB is then loaded once."""
    config.write_text(CONFIG.format(data=tmp_path / "data", margin=0.01))
    settings = "eval.splits=[test,train] eval.conditions=[blank-image]"
    printed, _ = make(config, "--dry-run", "eval", f"SET={settings}")
    called = [line for line in printed.splitlines() if f"{VENV}/bin/perpo eval " in line]
    assert [line.partition(" --evaluation ")[2].split(" > ")[0] for line in called] == [
        f"{model}@test --evaluation {model}@train --evaluation {model}-blank-image@test"
        for model in ("base", "perpo")
    ]


has_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def dry(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What Make would do; it makes nothing."""
    installed = f"--old-file={VENV}/.installed"
    command = ["make", "--no-print-directory", "--dry-run", "-C", str(ROOT), f"VENV={VENV}"]
    return subprocess.run([*command, installed, *arguments], capture_output=True, text=True)


@has_make
def test_clean_removes_the_folder_of_the_run_that_is_meant(tmp_path: Path, config: Path) -> None:
    assert shlex.split(dry("clean", "RUN=ci").stdout)[:3] == ["rm", "-rf", "data/ci"]
    config.write_text(CONFIG.format(data=tmp_path / "it_s", margin=0.01))
    for settings, folder in (("", "it_s/m"), (f"run=n data_root={tmp_path}/b", "b/n")):
        given = (f"CONFIG={config}", f"SET={settings}", f"PERPO={sys.executable} -m {MODULE}")
        removed = shlex.split(dry("clean", *given).stdout)
        assert removed[:3] == ["rm", "-rf", str(tmp_path / folder)]


@has_make
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN=../docs",), "RUN='../docs' is no name of a run"),
        (("RUN=demo docs",), "is no name of a run"),
        (("RUN=",), "is no name of a run"),
        (("RUN=.plans",), "is no name of a run"),
        (("RUN=demo;echo",), "is no name of a run"),
        (("CONFIG=a.yaml b.yaml",), "is not one word"),
        (("CONFIG=a.yaml", "PERPO=false"), "the run of a.yaml is not known"),
        (("SET=run=n", "PERPO=false"), "nothing was removed"),
    ],
)
def test_clean_removes_nothing_where_it_is_not_clear_what(
    arguments: tuple[str, ...], message: str
) -> None:
    done = dry("clean", *arguments)
    assert done.returncode == 2 and message in done.stderr and "rm" not in done.stdout


@has_make
def test_two_files_never_share_a_plan(tmp_path: Path) -> None:
    program = tmp_path / "perpo"
    program.write_text("#!/bin/sh\necho DATA := data/r\n")
    program.chmod(0o755)
    files = [
        "a/b.yaml",
        "a_b.yaml",
        "a__b.yaml",
        "a_/b.yaml",
        "a/_b.yaml",
        "a_ub.yaml",
        "/a/b.yaml",
    ]
    removed = [
        shlex.split(dry("clean", f"CONFIG={file}", f"PERPO={program}").stdout) for file in files
    ]
    assert all(len(words) == 5 for words in removed)
    assert len({word for words in removed for word in words[3:]}) == 2 * len(files)


@has_make
def test_a_quote_in_a_setting_reaches_perpo() -> None:
    done = dry("sweep", "SWEEP=s.yaml", "SET=sample.prefix=it's train.seed=1")
    assert done.returncode == 0, done.stderr
    given = shlex.split(done.stdout)
    assert given[-4:] == ["--set", "sample.prefix=it's", "--set", "train.seed=1"]
