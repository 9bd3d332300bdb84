"""Run the quick tests with other versions of Python, torch and transformers: `make test-versions`.

    python -m tools.versions                    every environment of ENVIRONMENTS
    python -m tools.versions transformers-lowest highest

Each environment is made once, in .venvs/NAME, and used again. `lowest` is read from pyproject.toml,
`highest` is the newest that pip finds within its range, `locked` is that of constraints.txt. Where
Python and torch are the locked ones, the environment stands on the one that runs this (.venv) and
adds transformers alone (seconds); otherwise everything is installed (minutes, and gigabytes where
pip takes a CUDA build).
Results go to stdout, one line per environment; exit code 1 if tests failed in one of them.
"""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from packaging.requirements import Requirement

from perpo_pipeline.suggestions import did_you_mean

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venvs"
LOCK = ROOT / "constraints.txt"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
# What depends on torch and transformers, without what takes minutes.
TESTS = (
    *("tests/vlm", "tests/inference/test_transformers_backend.py", "tests/merge/test_card.py"),
    *("tests/train/test_engine.py", "tests/train/test_losses.py", "tests/train/test_lists.py"),
    *("tests/train/test_master_weights.py", "tests/train/test_memory.py"),
    *("tests/train/test_scope.py", "tests/train/test_self_check.py"),
    *("tests/train/test_separate_rows.py", "tests/train/test_shared_prefix.py"),
    *("tests/train/test_shared_prefix_families.py", "tests/train/test_throughput.py"),
    *("tests/train/test_train_adapter.py", "tests/ask", "tests/commands/test_cli.py"),
)
# Pinned for the locked torch and transformers; other versions choose their own.
FOLLOWERS = ("torch", "torchvision", "transformers", "huggingface_hub", "tokenizers", "hf-xet")
SHOW_VERSIONS = """
import platform, torch, transformers
print(f"Python {platform.python_version()}, torch {torch.__version__}, "
      f"transformers {transformers.__version__}")
"""
NEEDED_BY_TESTS = (
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "trl",
    "bitsandbytes",
    "httpx",
    "datasets",
)


@dataclass(frozen=True)
class Environment:
    """Versions: `locked`, `lowest` or `highest` of what the project allows."""

    python: str
    torch: str = "locked"
    transformers: str = "locked"

    @property
    def stands_on_venv(self) -> bool:
        """Whether all but transformers is what this Python's environment has."""
        return self.python == RUNNING and self.torch == "locked"


ENVIRONMENTS = {
    "transformers-lowest": Environment(RUNNING, transformers="lowest"),
    "lowest": Environment("3.11", torch="lowest", transformers="lowest"),
    "highest": Environment("3.11", torch="highest", transformers="highest"),
    "python3.12": Environment("3.12"),
    "python3.13": Environment("3.13"),
    "python3.14": Environment("3.14"),
}


def main(names: list[str]) -> int:
    """Test each named environment (default: all); returns the exit code."""
    if unknown := sorted(set(names) - set(ENVIRONMENTS)):
        near = did_you_mean(unknown[0], ENVIRONMENTS) or ";"
        error = f"ONLY={unknown[0]}: no such environment{near} there are {', '.join(ENVIRONMENTS)}"
        print(f"test-versions: {error}", file=sys.stderr)
        return 2
    results = {name: _test(name, ENVIRONMENTS[name]) for name in names or ENVIRONMENTS}
    width = max(map(len, results))
    print()
    for name, result in results.items():
        print(f"{name:<{width}}  {result}")
    return int(any("failed" in result for result in results.values()))


def _test(name: str, environment: Environment) -> str:
    """What came of one environment, in a line."""
    interpreter = sys.executable if environment.python == RUNNING else _find(environment.python)
    if interpreter is None:
        return f"not run: there is no python{environment.python} on this machine"
    folder = FOLDER / name
    python = str(folder / "bin" / "python")
    if not (folder / ".installed").exists() and not _install(folder, interpreter, environment):
        return "failed: not installed, see above"
    if environment.stands_on_venv:
        _stand_on_this(folder)  # another one may have made the folder
    found = subprocess.check_output([python, "-c", SHOW_VERSIONS], text=True).strip()
    print(f"{name}: tests with {found}", file=sys.stderr, flush=True)
    spread = ("--numprocesses", "auto", "--maxprocesses", "8", "--dist", "loadfile")
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *TESTS]
    settings = {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    done = subprocess.run(tests, cwd=ROOT, env={**os.environ, **settings})
    return f"{'passed' if done.returncode == 0 else 'failed'}: {found}"


def _find(version: str) -> str | None:
    """A Python of this version that runs: on the PATH, else among pyenv's."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    candidates = [which(f"python{version}"), *map(str, reversed(of_pyenv))]
    return next((one for one in candidates if one is not None and _runs(one)), None)


def _runs(interpreter: str) -> bool:
    """Whether it is more than a name: pyenv has a stand-in for each version that it knows."""
    return subprocess.run([interpreter, "--version"], capture_output=True).returncode == 0


def _stand_on_this(folder: Path) -> None:
    """Let an environment see the packages of the one that runs this."""
    packages = next((folder / "lib").glob("python*/site-packages"))
    below = next((Path(sys.prefix) / "lib").glob("python*/site-packages"))
    (packages / "below.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")


def _install(folder: Path, interpreter: str, environment: Environment) -> bool:
    """Make the environment; a second call goes on where an interrupted one ended."""
    print(f"{folder.name}: installs in {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    lock = folder / "constraints.txt"
    lock.write_text("".join(_constraints(environment)))
    if environment.stands_on_venv:
        _stand_on_this(folder)
        wanted = [_request("transformers", environment.transformers)]
    else:
        of_tests = [*NEEDED_BY_TESTS, "-e", str(ROOT)]
        choices = {"torch": environment.torch, "transformers": environment.transformers}
        wanted = [*(_request(name, choice) for name, choice in choices.items()), *of_tests]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "--quiet", "--constraint", str(lock), *wanted])
    if done.returncode == 0:
        (folder / ".installed").touch()
    return done.returncode == 0


def _constraints(environment: Environment) -> list[str]:
    """The lock's lines, without those of what another torch or transformers chooses itself."""
    lines = LOCK.read_text().splitlines(keepends=True)
    if environment.torch == environment.transformers == "locked":
        return lines
    return [line for line in lines if line.partition("==")[0] not in FOLLOWERS]


def _request(name: str, choice: str) -> str:
    """What pip is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == name)
    if choice == "highest":
        return str(allowed)
    if choice == "lowest":
        lowest = next(spec.version for spec in allowed.specifier if spec.operator == ">=")
        return f"{name}=={lowest}"
    locked = re.search(rf"^{name}==(.+)$", LOCK.read_text(), re.MULTILINE)
    assert locked is not None
    return f"{name}=={locked[1]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
