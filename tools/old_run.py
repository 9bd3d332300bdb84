"""Keep what today's rules make of a tiny run, so that later rules are held to find it again.

    python -m tools.old_run NAME        writes tests/old_runs/NAME.tar.gz, in about a minute

Run it after a schema version, a stage version or a fingerprint has changed on purpose, and add the
rule to store/old_rules.py. NAME sorts after the names that are there: `7`. The older files stay.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "tests" / "old_runs"
CONFIG = FOLDER / "tiny.yaml"
EVALUATIONS = ("base@test", "base-other-image@test", "perpo@test")
# What finding a version reads; no weights, no pages, no metrics.
KEPT = ("prompts", "samples", "scores", "preferences", "reference", "adapter", "predictions")
SHOWN = ("base", "base-other-image", "perpo")
SUFFIXES = {".parquet", ".json", ""}


def make_run(folder: Path) -> Path:
    """Make the tiny run with today's code under `folder`; returns the run's directory."""
    commands = [["prepare"], ["sample"], ["score"], ["filter"], ["train"]]
    commands += [["eval", "--evaluation", name] for name in EVALUATIONS]
    for command in commands:
        program = [sys.executable, "-m", "perpo_pipeline.cli", *command]
        subprocess.run([*program, "--config", str(CONFIG), "--quiet"], cwd=folder, check=True)
    return folder / "data" / "tiny"


def pack(run: Path, archive: Path) -> None:
    """Write the manifests, parts and `current` files of a run."""
    with tarfile.open(archive, "w:gz", compresslevel=9) as sink:
        for file in sorted(run.rglob("*")):
            place = file.relative_to(run)
            if file.is_file() and _is_kept(place):
                sink.add(file, Path("data/tiny") / place)


def _is_kept(place: Path) -> bool:
    artifact, variant, *_ = (*place.parts, "")
    is_shown = artifact != "predictions" or variant.partition("@")[0] in SHOWN
    return artifact in KEPT and is_shown and place.suffix in SUFFIXES and place.name != ".lock"


def main(name: str) -> None:
    """Make and pack the run."""
    with tempfile.TemporaryDirectory() as folder:
        pack(make_run(Path(folder)), FOLDER / f"{name}.tar.gz")
    print(f"wrote {FOLDER / name}.tar.gz")


if __name__ == "__main__":
    main(sys.argv[1])
