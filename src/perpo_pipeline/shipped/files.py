"""The files that ship: those of configs/ and stages/, and constraints.txt (for advice.py).

In the project they are at the top; links in this folder lead there, and a wheel holds copies.
"""

from pathlib import Path

from perpo_pipeline.suggestions import closest

_HERE = Path(__file__).parent
CODE = _HERE.parent
CONFIGS = _HERE / "configs"
STAGES = _HERE / "stages"
OWN_CONFIG = Path("perpo.yaml")
"""The run's file in a folder that `perpo init` wrote; commands read it there without --config."""


def config_names() -> list[str]:
    """The names of the runs that ship, such as `demo`: those of the files in configs/."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def find_file(path: Path) -> Path:
    """The YAML file that `path` names: itself, or one that ships.

    A path without a suffix that does not exist here, such as `demo` or `sweeps/ci`, means that file
    of the shipped configs/.
    """
    if path.suffix or path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    shipped = CONFIGS / path.with_name(f"{path.name}.yaml") if path.name else CONFIGS
    return shipped if shipped.is_file() else path


def closest_name(path: Path) -> str | None:
    """The name of the run that ships which is most like a file's name; None if none is near."""
    return closest(path.name.removesuffix(path.suffix), config_names())
