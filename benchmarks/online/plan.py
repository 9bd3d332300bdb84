"""What is compared: the ways, the settings of each, and the run that all of them share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.file import read_sweep

SWEEPS = {
    "grounding": Path("configs/sweeps/demo.yaml"),
    "ocr": Path("configs/sweeps/demo-ocr.yaml"),
}
METRICS = {"grounding": "ap50", "ocr": "edit_distance"}
PARTS = (0.25, 0.5, 1.0)  # of the run's prompts, for ours
MARKS = (0.25, 0.5, 0.75, 1.0)  # of the time limit, for TRL's trainers

Setting = Mapping[str, float]


@dataclass(frozen=True)
class Way:
    """One way to train: `settings` by name, of which the validation split chooses one.

    `method`: the training method of ours; None for a trainer of TRL. `needs_lists`: it pays for
    sampling, scoring and filtering the lists before it starts.
    """

    name: str
    label: str
    colour: str
    settings: Mapping[str, Setting]
    method: str | None = None
    needs_lists: bool = True


# The middle has the group size and temperature of TRL's defaults, and 8 prompts per step where
# these have one. TRL's learning rate of 1e-6 is meant for billions of weights; on the embedded
# model 2e-4 rises from the first steps, and 5e-4 first falls below the base. Around the middle: the
# learning rate, a quarter of the batch (so four times as many steps), and the temperature at which
# ours samples.
_MIDDLE: dict[str, float] = {
    "learning_rate": 2e-4,
    "num_generations": 8,
    "completions_per_step": 64,
    "temperature": 1.0,
}
GRPO: dict[str, Setting] = {
    "grpo-1": _MIDDLE,
    "grpo-2": {**_MIDDLE, "learning_rate": 1e-4},
    "grpo-3": {**_MIDDLE, "learning_rate": 5e-4},
    "grpo-4": {**_MIDDLE, "completions_per_step": 16},
    "grpo-5": {**_MIDDLE, "temperature": 0.5},
}


@dataclass(frozen=True)
class Plan:
    """The whole comparison; it can be sent to another process.

    `sweep` is the file that names the run and the settings of our methods. `overrides` are further
    settings of the run, as `--set` takes them. `max_seconds` is None
    where the limit is what PerPO took; `max_steps` is a limit on TRL's steps beside the time, -1
    for none. `completions_per_forward` is GRPO's.
    """

    sweep: Path
    out: Path
    task: str
    overrides: Mapping[str, Any]
    threads: int
    max_seconds: float | None
    completions_per_forward: int = 16
    grpo: Mapping[str, Setting] = field(default_factory=lambda: GRPO)
    settings_per_way: int = 5
    parts: Sequence[float] = PARTS
    marks: Sequence[float] = MARKS
    max_steps: int = -1
    rounds: int = 3

    def as_json(self) -> dict[str, Any]:
        """What decides the result, for a file: the options, and the settings of each way."""
        options = {name: str(value) for name, value in asdict(self).items() if name != "out"}
        place = Path(os.path.relpath(self.sweep.resolve(), root().resolve()))
        ways = {way.name: str(dict(way.settings)) for way in self.ways()}
        return {**options, "sweep": place.as_posix(), "ways": ways}

    @property
    def config(self) -> Path:
        """The run's file."""
        return read_sweep(self.sweep).config

    @property
    def metric(self) -> str:
        return METRICS[self.task]

    def load(self) -> RunConfig:
        """The run with all of its prompts and lists."""
        return load_config(self.config, self.settings_of(1.0))

    def settings_of(self, part: float) -> dict[str, Any]:
        """Settings that replace those of the run's file, for a part of its prompts and lists."""
        shared = {**read_sweep(self.sweep).set, **self.overrides}
        whole = load_config(self.config, shared)
        prompts = max(1, round(part * whole.prepare["train"].num_prompts))
        given = {"data_root": str(self.out / "runs"), "run": f"prompts-{prompts}"}
        given |= {"prepare.train.num_prompts": prompts, "sample.num_gpus": 1, "eval.num_gpus": 1}
        if isinstance(whole.filter.max_lists, int):
            given["filter.max_lists"] = max(1, round(part * whole.filter.max_lists))
        for method in ("sft", "perpo"):
            for name, setting in self._settings(method).items():
                given[f"train.methods.{name}"] = {"method": method, **setting}
        return {**shared, **given, "train.num_processes": 1}

    def ways(self) -> list[Way]:
        """Ours with the settings of the sweep; TRL's DPO and RFT with those of ours."""
        ours = {name: self._settings(name) for name in ("perpo", "sft", "dpo")}
        grpo = dict(list(self.grpo.items())[: self.settings_per_way])
        return [
            Way("perpo", "PerPO", "#1d5fd1", ours["perpo"], method="perpo"),
            Way("sft", "SFT (truth)", "#7b57b8", ours["sft"], method="sft", needs_lists=False),
            Way("grpo", "GRPO (TRL)", "#b5480a", grpo, needs_lists=False),
            Way("trl-dpo", "DPO (TRL)", "#0b857c", _renamed(ours["dpo"], "trl-dpo")),
            Way("rft", "RFT (TRL's SFT)", "#8a7400", _renamed(ours["sft"], "rft")),
        ]

    def _settings(self, method: str) -> dict[str, Setting]:
        """The sweep's settings of a method, such as {"perpo-1": {"learning_rate": 2e-4, ...}}."""
        found = [setting for name, setting in _cells(self.sweep) if name == method]
        return {
            f"{method}-{number}": {key.removeprefix("train."): one[key] for key in one}
            for number, one in enumerate(found[: self.settings_per_way], 1)
        }


@cache
def _cells(sweep: Path) -> list[tuple[str, Mapping[str, float]]]:
    return [(cell.method, cell.setting) for cell in make_cells(read_sweep(sweep))]


def _renamed(settings: Mapping[str, Setting], name: str) -> dict[str, Setting]:
    return {f"{name}-{number}": one for number, one in enumerate(settings.values(), 1)}


def quick(plan: Plan) -> Plan:
    """The same on a handful of prompts, one setting and step per way: nothing to learn."""
    few = {
        "prepare.train.num_prompts": 8,
        "prepare.validation.num_prompts": 4,
        "prepare.test.num_prompts": 4,
        "sample.num_samples": 4,
        "filter.min_margin": 0.0,
        "train.lora.rank": 4,
        "train.lora.alpha": 8,
    }
    return replace(
        plan,
        overrides={**plan.overrides, **few},
        completions_per_forward=8,
        grpo={"grpo-1": {**_MIDDLE, "completions_per_step": 8}},
        settings_per_way=1,
        parts=(1.0,),
        marks=(1.0,),
        max_seconds=plan.max_seconds or 600.0,
        max_steps=1,
        rounds=2,
    )


def root() -> Path:
    """The checkout."""
    return Path(os.path.abspath(__file__)).parents[2]
