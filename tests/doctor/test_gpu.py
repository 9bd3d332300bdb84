"""`perpo doctor --gpu`: one check after the other, whatever happens to any of them."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import checks_of_doctor
import pytest
import torch

from perpo_pipeline import cli
from perpo_pipeline.doctor import gpu
from perpo_pipeline.doctor.running import Check, run_check
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm.files import resolve_model

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the checks find `checks_of_doctor`."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def check(name: str, limit_s: float = 60) -> Check:
    assert hasattr(checks_of_doctor, name)
    return Check(f"checks_of_doctor:{name}", limit_s, "do this")


@pytest.fixture
def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A `nvidia-smi` that prints one card with the given driver and used MiB."""

    def make(driver: str = "580.159.04", used: str = "12") -> None:
        row = f"NVIDIA H200, {driver}, 143771, {used}, 9.0, 5, 16, 700.00, 31, Default, Disabled, "
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\necho '{row}Enabled'\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


def test_checks_go_on_after_a_failure_and_the_json_is_whole_after_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fine", "refuses", "raises", "crashes", "lacks")
    file, lines, kept = tmp_path / "gpu.json", [], []

    def say(line: str) -> None:
        lines.append(line)
        if file.is_file():
            kept.append(json.loads(file.read_text()))

    failed = gpu.examine_gpu({name: check(name) for name in names}, say, file, "cpu")
    assert failed == 3
    table = {line.split()[0]: " ".join(line.split()) for line in lines[:5]}
    assert table["fine"].startswith("fine ok ") and table["fine"].endswith(" s on cpu")
    assert table["refuses"].endswith("no bfloat16 (card 0)")
    assert table["raises"].endswith(
        "ended with exit code 1: RuntimeError: CUDA error: an illegal memory access was encountered"
    )
    assert table["crashes"].endswith("crashed: SIGSEGV: Fatal Python error: Segmentation fault")
    assert table["lacks"].startswith("lacks skipped ")
    assert lines[5:] == [
        "",
        "refuses: buy another",
        "raises: do this",
        "crashes: do this",
        "lacks (optional): pip install it",
        "1 ok, 3 failed, 1 skipped",
    ]
    # When the second line is printed, the file has the first check, and so on.
    assert [len(one["checks"]) for one in kept[:4]] == [1, 2, 3, 4]
    assert [one["is_complete"] for one in kept[:5]] == [False] * 4 + [True]
    found = json.loads(file.read_text())
    assert found["device"] == "cpu" and found["versions"]["torch"]
    assert [row["name"] for row in found["checks"]] == list(names)
    assert found["checks"][0]["figures"] == {"tflops": 1.5}
    assert all(row["seconds"] > 0 for row in found["checks"])


def test_a_check_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "pid"
    monkeypatch.setenv(checks_of_doctor.MARK, str(mark))
    found, seconds = run_check(check("hangs", 8), "cpu")
    assert (found.state, found.text, found.fix) == ("failed", "no result after 8 s", "do this")
    assert 8 <= seconds < 30
    for _ in range(50):  # the child was killed; something must still collect it
        status = Path(f"/proc/{mark.read_text()}/stat")
        if not status.is_file() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the check's child is still running")


def test_every_check_names_a_function() -> None:
    import pkgutil

    for one in gpu.CHECKS.values():
        assert callable(pkgutil.resolve_name(one.work))
    assert {"driver", "flex-bfloat16", "compiled-layers", "collectives", "vllm"} <= set(gpu.CHECKS)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_the_exit_code_is_1_if_a_check_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "CHECKS", {"one": check("fine"), "two": check("lacks")})
    assert run("doctor", "--gpu", "--cpu") == 0
    assert "1 ok, 0 failed, 1 skipped" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "CHECKS", {"one": check("fine"), "two": check("refuses")})
    assert run("doctor", "--gpu", "--cpu", "--check", "two") == 1
    assert "0 ok, 1 failed, 0 skipped" in capsys.readouterr().out


def test_options_of_gpu_and_names_of_checks_are_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("doctor", "--json", "x.json") == 2
    assert "--json needs --gpu" in capsys.readouterr().err
    assert run("doctor", "--gpu", "--check", "flex") == 2
    said = capsys.readouterr().err
    assert "--check flex: no such check" in said and "flex-bfloat16" in said


def test_without_a_card_it_says_what_is_missing_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("doctor", "--gpu") == 2
    said = capsys.readouterr()
    assert "there is no NVIDIA card to check" in said.err and "docker run --gpus all" in said.err
    assert said.out == ""


def test_a_torch_without_cuda_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, fake_smi
) -> None:
    fake_smi()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        ConfigError, match=r"NVIDIA H200 with the driver 580\.159\.04: torch"
    ) as error:
        gpu.check_card_is_there()
    assert "is a build without CUDA" in error.value.what
    assert str(error.value.fix).endswith("pip install --force-reinstall torch==2.13.0")


def test_a_driver_that_is_too_old_is_named_with_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch, fake_smi
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).")

    fake_smi("535.54.03")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(ConfigError, match=r"NVIDIA H200 with the driver 535\.54\.03") as error:
        gpu.check_card_is_there()
    assert "too old" in error.value.what and "CUDA 13 needs 580.65.06" in str(error.value.fix)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu.check_card_is_there()


def test_the_bare_machine_needs_no_polars(tmp_path: Path) -> None:
    """The command line and every check but vLLM's, where only torch's and PEFT's needs are."""
    banned = ["polars", "shapely", "rapidfuzz", "matplotlib", "nltk", "jieba", "scipy"]
    lines = [f"import sys; sys.modules.update(dict.fromkeys({banned!r}))"]
    lines += [f"import {one.work.partition(':')[0]}" for one in gpu.CHECKS.values()]
    lines += ["import perpo_pipeline.cli, perpo_pipeline.train.train_adapter"]
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_vllm_is_started_by_the_environment_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline.doctor import programs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    assert gpu.choose_checks(["vllm"])["vllm"].python == sys.executable
    found = tmp_path / programs.VLLM_ENVIRONMENT
    found.parent.mkdir(parents=True)
    found.touch()
    assert gpu.choose_checks(["vllm"])["vllm"].python == str(found)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert gpu.choose_checks(["vllm"])["vllm"].python == sys.executable
    assert resolve_model("testbed").path.is_dir()
