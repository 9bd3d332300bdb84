"""Ours: the commands of `perpo`, each in a process of its own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import save

from online.apart import run_apart
from online.plan import Plan
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.run import RunConfig

POINTS = "points.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Ours on some of the run's prompts: a run of its own, whose settings these are."""

    plan: Plan
    settings: Mapping[str, Any]

    def load(self) -> RunConfig:
        return load_config(self.plan.config, dict(self.settings))


def part_of(plan: Plan, share: float = 1.0, **others: Any) -> Part:
    """The run with this share of its prompts and lists; `others` replace further settings."""
    return Part(plan, plan.settings_of(share) | others)


def prepare_evaluation(plan: Plan) -> None:
    """Prompts of the validation and of the test split."""
    whole = part_of(plan)
    for split in ("validation", "test"):
        if not (whole.load().run_dir / "prompts" / split / "current").is_file():
            perpo(whole, "prepare", "--split", split)


def make_lists(part: Part) -> Row:
    """Prompts, samples, scores and lists: {cpu_s, samples}, from disk if there.

    Rendering the prompts is not counted, since all ways read the same ones.
    """
    config = part.load()
    found = config.run_dir / "lists.json"
    if not found.is_file():
        shutil.rmtree(config.run_dir / "prompts" / "train", ignore_errors=True)
        for artifact in ("samples", "scores", "preferences"):  # of a run that was stopped
            shutil.rmtree(config.run_dir / artifact, ignore_errors=True)
        perpo(part, "prepare", "--split", "train")
        seconds = sum(perpo(part, stage) for stage in ("sample", "score", "filter"))
        samples = config.prepare["train"].num_prompts * config.sample.num_samples
        save(found, {"cpu_s": seconds, "samples": samples})
    return dict(read(found))


def train(part: Part, setting: str, needs_lists: bool) -> Row:
    """Train one variant on the lists of this part: its only point, from disk if there.

    A method with preferences pays for the lists and for its reference log-probabilities, which no
    other training of the run leaves it. SFT pays for neither.
    """
    plan, config = part.plan, part.load()
    found = plan.out / "ways" / setting / config.run / POINTS
    if not found.is_file():
        lists = make_lists(part)
        shutil.rmtree(config.run_dir / "reference", ignore_errors=True)
        shutil.rmtree(config.run_dir / "adapter" / setting, ignore_errors=True)
        seconds = perpo(part, "train", "--method", setting)
        adapter = config.run_dir / "adapter" / setting
        point = {
            "cpu_s": seconds + (lists["cpu_s"] if needs_lists else 0.0),
            "samples": lists["samples"] if needs_lists else 0,
            "steps": None,
            "adapter": str((adapter / _current(adapter)).relative_to(plan.out)),
        }
        save(found, point)
    return dict(read(found))


def train_rounds(plan: Plan, setting: str) -> list[Row]:
    """Further rounds: each samples, scores, filters and trains on fresh prompts from the merged
    model of the one before. Each has an equal share of the prompts, so together they draw as many
    samples as one round does. Its points, after each round, from disk if there.
    """
    points: list[Row] = []
    used, drawn, model = 0.0, 0, {}
    for number in range(1, plan.rounds + 1):
        fresh = {"seed": plan.load().seed + number - 1, "run": f"round-{number}"}
        part = part_of(plan, 1 / plan.rounds, **fresh, **model)
        point = train(part, setting, needs_lists=True)
        used, drawn = used + point["cpu_s"], drawn + point["samples"]
        merged = plan.out / "ways" / "rounds" / f"merged-{number}"
        if not (found := merged.with_suffix(".json")).is_file():
            shutil.rmtree(merged, ignore_errors=True)
            adapter = ["--adapter", str(plan.out / point["adapter"]), "--out", str(merged)]
            save(found, perpo(part, "merge", *adapter))
        used, model = used + float(read(found)), {"model.id": str(merged)}
        place = str(merged.relative_to(plan.out))
        points.append({"cpu_s": used, "samples": drawn, "steps": None, "model": place})
    return points


def perpo(part: Part, stage: str, *options: str) -> float:
    """Processor seconds of one command."""
    given = [f"--set={name}={json.dumps(value)}" for name, value in part.settings.items()]
    arguments = [stage, "--config", str(part.plan.config), *options, "--quiet", *given]
    names = [
        part.settings["run"],
        stage,
        *(one for one in options if not one.startswith(("-", "/"))),
    ]
    return run_apart(part.plan.out / "logs" / f"{'-'.join(names)}.log", run_command, arguments)


def run_command(arguments: list[str]) -> None:
    """In the other process."""
    from perpo_pipeline import cli

    cli.main(arguments)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _current(place: Path) -> str:
    return (place / "current").read_text(encoding="utf-8").strip()


def flat(settings: Mapping[str, Any]) -> str:
    """Settings for a table."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
