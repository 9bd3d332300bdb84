"""`perpo browse`: its options, what it says where something is missing, and how it ends."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from browsed_run import make_unmeasured_run
from synthetic_run import prepare_synthetic, sample_synthetic, synthetic_config

from perpo_pipeline import cli
from perpo_pipeline.run import Run

TESTBED = {"source": "testbed", "num_prompts": 12}
CONFIG: dict[str, Any] = {
    "run": "synthetic",
    "data_root": ".",
    "prepare": {"train": TESTBED, "test": TESTBED},
    "train": {"methods": {"perpo": {}}},
}


def browse(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["browse", "--config", "r.yaml", *options])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a run that is made."""
    root = tmp_path_factory.mktemp("finished")
    make_unmeasured_run(root, num_prompts=12, methods=("perpo",))
    (root / "r.yaml").write_text(yaml.safe_dump(CONFIG))
    return root


def test_a_run_without_samples_says_which_stage_to_run(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = browse(capsys, "--port", "0")
    assert (code, out) == (2, "")
    assert "the run 'synthetic' has neither samples nor predictions" in err
    assert "run: perpo sample --config r.yaml" in err


def test_a_run_without_lists_says_which_stage_to_run_and_shows_the_samples(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(synthetic_config(workdir, num_prompts=12), quiet=True)
    prepare_synthetic(run, "train")
    sample_synthetic(run)
    code, out, err = browse(capsys, "--out", "samples.html")
    assert (code, out) == (0, "samples.html\n")
    assert "browse: there are no lists yet; run: perpo filter --config r.yaml" in err
    assert "browse: there are no scores yet; run: perpo score --config r.yaml" in err
    assert "not scored yet" in Path("samples.html").read_text()


def test_missing_packages_are_named_with_the_command_that_installs_them(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "uvicorn" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    code, _, err = browse(capsys)
    assert code == 2 and "uvicorn, which serve the page, is not installed" in err
    assert "pip install -c constraints.txt -e '.[browse]', or write a file: perpo browse" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lists", "3"], "--lists needs --out FILE.html"),
        (["--show", "dropped"], "--show needs --out FILE.html"),
        (["--out", "a.html", "--port", "1"], "--port is not for --out, which serves nothing"),
        (["--out", "a.txt"], "this is not a file that ends in .html"),
        (["--out", "a.html", "--show", "lits"], "no view lits; did you mean 'lists'?"),
        (["--out", "a.html", "--show", "lists?srt=x"], "unknown parameter: srt"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(finished)
    code, _, err = browse(capsys, *options)
    assert code == 2 and message in err
    assert not list(finished.glob("*.html"))


def test_a_state_is_written_as_the_page_names_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    shown = "predictions/test?sort=-change&a=base&b=perpo"
    code, out, err = browse(capsys, "--out", "sent.html", "--lists", "4", "--show", shown)
    assert (code, out) == (0, "sent.html\n") and "browse: 4 of 12 prompts" in err
    assert Path("sent.html").read_text().count("<article") == 4
    Path("sent.html").unlink()


def test_the_page_is_served_until_ctrl_c_and_nothing_is_written(finished: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "perpo_pipeline.cli", "browse", "--config", "r.yaml", "--port", "0"],
        cwd=finished,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's test
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), process.communicate()
    with urlopen(address, timeout=60) as page:
        assert b"<h1>" in page.read()
    if (maps := Path(f"/proc/{process.pid}/maps")).is_file():
        assert "libtorch" not in maps.read_text()  # the first page would wait for it
    before = sorted(path for path in finished.rglob("*"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and out == ""
    assert "perpo: browse ended" in err and "Traceback" not in err
    assert sorted(path for path in finished.rglob("*")) == before
