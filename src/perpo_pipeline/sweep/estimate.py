"""How much there is to make, about how long it takes, and the room that it needs on disk."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perpo_pipeline.config.by_task import values_of
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError, PerpoError
from perpo_pipeline.planning.hardware import this_machine
from perpo_pipeline.planning.history import Manifest, past_manifests, past_rates
from perpo_pipeline.planning.model import Model, look_at_model
from perpo_pipeline.planning.rates import ROWS_PER_S
from perpo_pipeline.planning.training import is_half
from perpo_pipeline.prepare.prepare_prompts import survey
from perpo_pipeline.run import Run
from perpo_pipeline.status.graph import STAGES
from perpo_pipeline.sweep.make_steps import Made
from perpo_pipeline.sweep.steps import Step

UNITS = {
    "prepare": "prompts",
    "sample": "answers",
    "score": "answers",
    "filter": "answers",
    "train": "lists",
    "eval": "prompts",
}
"""What the amount of a stage's step counts."""
FP32 = 4
Span = tuple[float, float]  # seconds, from low to high


@dataclass
class Estimates:
    """Amounts and times of steps, whose unfinished inputs are expected from the configuration.

    Times are those of this sweep's own steps of the kind, or of finished versions in the data
    folder (their manifests).
    """

    made: Made
    steps: dict[str, Step]

    def amount(self, step: Step) -> float | None:
        """How much a step does, in UNITS; None if it is unknown."""
        if step.stage == "prepare":
            return self._prompts(step.config, step.call.group)
        if step.stage in ("sample", "score", "filter"):
            prompts = self._prompts(step.config, step.config.sample.split)
            return None if prompts is None else prompts * step.config.sample.num_samples
        if step.stage == "train":
            lists, settings = self._lists(step), step.config.train.variants()[step.call.group]
            return None if lists is None else lists * settings.epochs
        numbers = [self._prompts(step.config, split) for split in step.config.eval.splits]
        return None if None in numbers else float(sum(number or 0 for number in numbers))

    def seconds(self, step: Step) -> Span | None:
        """The time of a step; None if nothing is known of one like it."""
        amount = self.amount(step)
        if amount is None:
            return None
        if step.stage in ("score", "filter"):
            return amount / ROWS_PER_S, 2 + 10 * amount / ROWS_PER_S
        if (per_item := self._measured(step)) is not None:
            return per_item * amount, per_item * amount
        rate = self._past_rate(step, amount)
        if rate is None:
            return (0.0, 0.01 * amount) if step.stage == "prepare" else None
        return rate[0] * amount, rate[1] * amount

    def seconds_left(self, steps: Iterable[Step]) -> tuple[float, bool]:
        """The expected time of what is not finished of these, and whether all of it is known."""
        spans = [self.seconds(step) for step in steps if step.id not in self.made.versions]
        known = [span for span in spans if span is not None]
        return sum((low + high) / 2 for low, high in known), len(known) == len(spans)

    def adapter_bytes(self, todo: Iterable[Step]) -> float:
        """Bytes of the adapters that these steps write; 0 where the model's shape is unknown."""
        return sum(self._trained(step) * FP32 for step in todo if step.stage == "train")

    def _prompts(self, config: RunConfig, split: str) -> int | None:
        """The prompts of a split, as prepared or as its source says."""
        key = config.prepare[split].model_dump_json()
        if key not in self._counted:
            made = [one.get(("prompts", split)) for one in self.made.versions.values()]
            found = next((one for one in made if one and self._is_of(one, config, split)), None)
            self._counted[key] = found.manifest["rows"] if found else self._survey(config, split)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[str, int | None]:
        return {}

    def _is_of(self, version: object, config: RunConfig, split: str) -> bool:
        return any(
            step.config.prepare.get(split) == config.prepare[split]
            and self.made.versions.get(id, {}).get(("prompts", split)) is version
            for id, step in self.steps.items()
        )

    def _survey(self, config: RunConfig, split: str) -> int | None:
        try:
            return survey(Run(config, quiet=True, muted=True), split, 1).prompts
        except PerpoError:
            return None  # the stage itself says why

    def _lists(self, step: Step) -> int | None:
        """The lists of a training: those that are kept, or else the most that there can be."""
        split = step.config.sample.split
        for id in step.needs:
            if (kept := self.made.versions.get(id, {}).get(("preferences", split))) is not None:
                return int(kept.manifest["rows"])
        prompts = self._prompts(step.config, split)
        caps = values_of(step.config.filter.max_lists)
        return prompts if prompts is None or None in caps else min(sum(caps), prompts)

    def _measured(self, step: Step) -> float | None:
        """Seconds per item of this sweep's finished steps of the kind."""
        number = len(self.made.seconds)
        if (number, step.kind) not in self._rates:
            took = [(self.steps[id], seconds) for id, seconds in self.made.seconds.items()]
            alike = [(done, seconds) for done, seconds in took if done.kind == step.kind]
            amounts = sum(self.amount(done) or 0 for done, _ in alike)
            rate = sum(seconds for _, seconds in alike) / amounts if amounts else None
            self._rates[number, step.kind] = rate
        return self._rates[number, step.kind]

    @cached_property
    def _rates(self) -> dict[tuple[int, tuple[str, str, str]], float | None]:
        return {}

    def _past_rate(self, step: Step, amount: float) -> Span | None:
        """Seconds per item from past manifests with the same settings; read once per step."""
        if step.id not in self._past:
            self._past[step.id] = self._read_past_rate(step, amount)
        return self._past[step.id]

    @cached_property
    def _past(self) -> dict[str, Span | None]:
        return {}

    def _read_past_rate(self, step: Step, amount: float) -> Span | None:
        per_prompt = step.config.sample.num_samples if step.stage == "sample" else 1
        variant = step.call.group if step.stage in ("train", "prepare") else ""
        key = (step.stage, variant)
        run = Run(step.config, quiet=True, muted=True)
        model = self._model(step.config)
        rates = past_rates(run, model, {key: amount / per_prompt}, self._manifests)
        rate = rates.get(key)
        return None if rate is None else (rate.low / per_prompt, rate.high / per_prompt)

    @cached_property
    def _manifests(self) -> list[Manifest]:
        roots = {step.config.data_root for step in self.steps.values()}
        return [manifest for root in roots for manifest in past_manifests(root)]

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {}

    def _model(self, config: RunConfig) -> Model:
        key = config.model.model_dump_json()
        if key not in self._models:
            run = Run(config, quiet=True, muted=True)
            half = is_half(run, this_machine(config.model.device))
            self._models[key] = look_at_model(run, half=half)
        return self._models[key]

    def _trained(self, step: Step) -> int:
        """The numbers that a training trains, by the model's shape."""
        settings, shape = (
            step.config.train.variants()[step.call.group],
            self._model(step.config).shape,
        )
        if shape is None:
            return 0
        return (
            shape.parameters
            if settings.tuning == "full"
            else shape.lora_numbers(settings.lora.rank)
        )


def check_room(needed: float, root: Path) -> None:
    """Raise `ConfigError` if the adapters to come need more than the disk has free."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ConfigError(
            f"the adapters to come need {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
            where=str(place),
            fix="free some space, or name fewer settings and seeds; `perpo sweep --dry-run` shows "
            "how many there are",
        )


def check_time(
    estimates: Estimates, todo: Sequence[Step], jobs: int, max_hours: float | None
) -> str | None:
    """A note where --max-hours cannot be checked, because the time of some steps is unknown.

    Raises `ConfigError` if even the shortest expected time of the others is longer, and for a
    number that is no limit.
    """
    if max_hours is None:
        return None
    if not max_hours >= 0:  # NaN, too
        raise ConfigError(f"--max-hours is {max_hours:g}", fix="give a number of hours")
    known, unknown = _known_seconds(estimates, todo)
    hours = known[0] / jobs / 3600
    if hours > max_hours:
        raise ConfigError(
            f"this takes about {hours:.1f} hours or more, and --max-hours is {max_hours:g}",
            fix="name fewer settings and seeds, or raise --max-hours",
        )
    if not unknown:
        return None
    return (
        f"--max-hours {max_hours:g} cannot be checked: the time of {len(unknown):,} of "
        f"{len(todo):,} calls is unknown (first {unknown[0].title}), because the data folder has "
        f"no finished version with these settings; the others take about {hours:.1f} hours or more"
    )


def total_seconds(estimates: Estimates, todo: Sequence[Step]) -> Span | None:
    """The expected time of all these steps; None if that of one is unknown."""
    known, unknown = _known_seconds(estimates, todo)
    return None if unknown else known


def _known_seconds(estimates: Estimates, todo: Sequence[Step]) -> tuple[Span, list[Step]]:
    """The expected time of all these steps whose time is known, and the others."""
    spans = [(step, estimates.seconds(step)) for step in todo]
    known = [span for _, span in spans if span is not None]
    total = sum(low for low, _ in known), sum(high for _, high in known)
    return total, [step for step, span in spans if span is None]


def dry_run_text(title: str, estimates: Estimates, steps: Sequence[Step]) -> str:
    """How many steps of each stage there are, and what is to be made of them, as a table."""
    from perpo_pipeline.planning.page import between

    todo = [step for step in steps if step.id not in estimates.made.versions]
    lines = [("stage", "steps", "finished", "to make", "", "time")]
    by_stage: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        by_stage[step.stage].append(step)
    for stage in sorted(by_stage, key=STAGES.index):
        of_stage = by_stage[stage]
        own = [step for step in of_stage if step in todo]
        amounts = [estimates.amount(step) for step in own]
        known = [amount for amount in amounts if amount is not None]
        number = f"{sum(known):,.0f}" if len(known) == len(own) else "unknown"
        span = total_seconds(estimates, own)
        lines.append(
            (
                stage,
                f"{len(of_stage):,}",
                f"{len(of_stage) - len(own):,}",
                f"{len(own):,}",
                f"{number} {UNITS[stage]}" if own else "",
                "" if not own else "unknown" if span is None else between(*span),
            )
        )
    span = total_seconds(estimates, todo)
    done = len(steps) - len(todo)
    time = "unknown" if span is None else between(*span)
    lines.append(("all", f"{len(steps):,}", f"{done:,}", f"{len(todo):,}", "", time))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0,)
    text = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    needed = estimates.adapter_bytes(todo)
    notes = [f"adapters to come: {needed / 1e6:,.0f} MB"]
    if any(estimates.seconds(step) is None for step in todo):
        notes.append(
            "unknown: no finished version in the data folder has these settings; `perpo plan` "
            "estimates one run"
        )
    else:
        notes.append("times are those of finished versions in the data folder")
    return "\n".join([f"{title}:", *text, *notes])
