"""What is compared: the ways, the settings of each, and the run that all of them share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.run import RunConfig

CONFIGS = {"grounding": Path("configs/demo-grid.yaml"), "ocr": Path("configs/demo-ocr-grid.yaml")}
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


# The middle of the cross is the batch and temperature of TRL's documentation; the learning rates
# are those of LoRA on the embedded model, since TRL's own 1e-6 is meant for billions of weights.
GRPO: dict[str, Setting] = {
    "grpo-1": {"learning_rate": 5e-4, "num_generations": 8, "temperature": 1.0},
    "grpo-2": {"learning_rate": 2e-4, "num_generations": 8, "temperature": 1.0},
    "grpo-3": {"learning_rate": 1e-3, "num_generations": 8, "temperature": 1.0},
    "grpo-4": {"learning_rate": 5e-4, "num_generations": 16, "temperature": 1.0},
    "grpo-5": {"learning_rate": 5e-4, "num_generations": 8, "temperature": 0.5},
}


@dataclass(frozen=True)
class Plan:
    """The whole comparison; it can be sent to another process.

    `overrides` are settings of the run in `config` as `--set` takes them. `completions_per_step`
    and `completions_per_forward` are GRPO's; `max_seconds` is None where the limit is what PerPO
    took. `max_steps` is a limit on TRL's steps beside the time, -1 for none.
    """

    config: Path
    out: Path
    task: str
    overrides: Mapping[str, Any]
    threads: int
    max_seconds: float | None
    completions_per_step: int = 64
    completions_per_forward: int = 16
    settings_per_way: int = 5
    parts: Sequence[float] = PARTS
    marks: Sequence[float] = MARKS
    max_steps: int = -1
    rounds: int = 3

    def as_json(self) -> dict[str, Any]:
        """What decides the result, for a file."""
        return {name: str(value) for name, value in asdict(self).items() if name != "out"}

    @property
    def metric(self) -> str:
        return METRICS[self.task]

    def load(self) -> RunConfig:
        """The run with all of its prompts and lists."""
        return load_config(self.config, self.settings_of(1.0))

    def settings_of(self, part: float) -> dict[str, Any]:
        """Settings that replace those of the run's file, for a part of its prompts and lists."""
        whole = load_config(self.config, dict(self.overrides))
        prompts = max(1, round(part * whole.prepare["train"].num_prompts))
        given = {"data_root": str(self.out / "runs"), "run": f"prompts-{prompts}"}
        given |= {"prepare.train.num_prompts": prompts, "sample.num_gpus": 1, "eval.num_gpus": 1}
        if isinstance(whole.filter.max_lists, int):
            given["filter.max_lists"] = max(1, round(part * whole.filter.max_lists))
        return {**self.overrides, **given, "train.num_processes": 1}

    def ways(self) -> list[Way]:
        """Ours with the settings of the run's file; TRL's DPO and RFT with those of ours."""
        ours = {name: self._settings(name) for name in ("perpo", "sft", "dpo")}
        grpo = dict(list(GRPO.items())[: self.settings_per_way])
        return [
            Way("perpo", "PerPO", "#1d5fd1", ours["perpo"], method="perpo"),
            Way("sft", "SFT (truth)", "#7b57b8", ours["sft"], method="sft", needs_lists=False),
            Way("grpo", "GRPO (TRL)", "#b5480a", grpo, needs_lists=False),
            Way("trl-dpo", "DPO (TRL)", "#0b857c", _renamed(ours["dpo"], "trl-dpo")),
            Way("rft", "RFT (TRL's SFT)", "#8a7400", _renamed(ours["sft"], "rft")),
        ]

    def _settings(self, method: str) -> dict[str, Setting]:
        variants = load_config(self.config, dict(self.overrides)).train.variants()
        found = {
            name: {"learning_rate": one.learning_rate}
            | ({"beta": one.beta} if one.chosen_method.needs_preferences else {})
            for name, one in variants.items()
            if one.method == method
        }
        return dict(list(found.items())[: self.settings_per_way])


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
        completions_per_step=8,
        completions_per_forward=8,
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
