"""Ours: the commands of `perpo`, each in a process of its own."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import save

from online.apart import run_apart
from online.plan import Plan

POINTS = "points.json"


def make_lists(plan: Plan, part: float = 1.0) -> dict[str, Any]:
    """Prompts, samples, scores and lists: {cpu_s, samples} of this part, from disk if there.

    Rendering the prompts is not counted, since all ways read the same ones.
    """
    config = plan.load(part)
    found = config.run_dir / "lists.json"
    if not found.is_file():
        for artifact in ("samples", "scores", "preferences"):  # of a run that was stopped
            shutil.rmtree(config.run_dir / artifact, ignore_errors=True)
        for split in ("train",) if part < 1 else ("train", "validation", "test"):
            perpo(plan, part, "prepare", "--split", split)
        seconds = sum(perpo(plan, part, stage) for stage in ("sample", "score", "filter"))
        samples = config.prepare["train"].num_prompts * config.sample.num_samples
        save(found, {"cpu_s": seconds, "samples": samples})
    return read(found)


def train(plan: Plan, setting: str, needs_lists: bool, part: float = 1.0) -> list[dict[str, Any]]:
    """Train one variant on the lists of this part: its only point, from disk if there.

    A method with preferences pays for the lists and for its reference log-probabilities, which no
    other training of the run leaves it. SFT pays for neither.
    """
    config = plan.load(part)
    found = plan.out / "ways" / setting / config.run / POINTS
    if not found.is_file():
        lists = make_lists(plan, part)
        shutil.rmtree(config.run_dir / "reference", ignore_errors=True)
        shutil.rmtree(config.run_dir / "adapter" / setting, ignore_errors=True)
        seconds = perpo(plan, part, "train", "--method", setting)
        point = {
            "cpu_s": seconds + (lists["cpu_s"] if needs_lists else 0.0),
            "samples": lists["samples"] if needs_lists else 0,
            "steps": None,
            "adapter": str(_current(config.run_dir / "adapter" / setting).relative_to(plan.out)),
        }
        save(found, [point])
    return read(found)


def perpo(plan: Plan, part: float, stage: str, *options: str) -> float:
    """Processor seconds of one command."""
    settings = plan.settings_of(part)
    given = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    arguments = [stage, "--config", str(plan.config), *options, "--quiet", *given]
    log = plan.out / "logs" / f"{settings['run']}-{'-'.join([stage, *options[1:]])}.log"
    return run_apart(log, run_command, arguments)


def run_command(arguments: list[str]) -> None:
    """In the other process."""
    from perpo_pipeline import cli

    cli.main(arguments)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _current(place: Path) -> Path:
    return place / (place / "current").read_text(encoding="utf-8").strip()


def flat(settings: Mapping[str, Any]) -> str:
    """Settings for a table."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
