"""What a run will take and make, from its configuration and what exists of it; runs nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perpo_pipeline.config.evaluations import Evaluation
from perpo_pipeline.inference.backends import choose_backend
from perpo_pipeline.machine import STARTED
from perpo_pipeline.planning.amounts import (
    Lists,
    Split,
    count_splits,
    expect_lists,
    is_up_to_date,
    task_by_task,
)
from perpo_pipeline.planning.calibration import (
    Seconds,
    calibrate,
    is_small,
    measure_machine,
)
from perpo_pipeline.planning.computed import computed_rates
from perpo_pipeline.planning.disk import Disk, expect_disk
from perpo_pipeline.planning.hardware import Hardware, this_machine
from perpo_pipeline.planning.history import past_rates
from perpo_pipeline.planning.model import Model, look_at_model
from perpo_pipeline.planning.notes import note_of_tasks, notes_of
from perpo_pipeline.planning.rates import ROWS_PER_S, Key, Rate, Rates
from perpo_pipeline.planning.sampling import Sampling, expect_sampling
from perpo_pipeline.planning.tokens import Answers, PromptTokens, count_tokens, expect_answers
from perpo_pipeline.planning.training import FITS, Training, expect_training, is_half
from perpo_pipeline.run import Run
from perpo_pipeline.status.calls import calls
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.graph import Key as Artifact
from perpo_pipeline.status.graph import nodes

RENDERED_S = (0.0006, 0.003)  # per prompt of the testbed: README's run, one core
READ_S = (0.0005, 0.01)  # per prompt: an image file is opened and hashed; stated, not measured
REPORT_S = (1.5, 10.0)
STATED = "stated, not measured"
NOTHING = "nothing to do: it is up to date"


@dataclass(frozen=True)
class Stage:
    """The time of one stage in seconds; None where it is unknown, for the reason in `source`."""

    name: str
    amount: str
    low: float | None
    high: float | None
    source: str


@dataclass(frozen=True)
class Plan:
    """All that `perpo plan` prints."""

    run: Run
    hardware: Hardware
    model: Model
    splits: Sequence[Split]
    completions: int | None
    lists: Lists
    tokens: PromptTokens | None
    answers: Answers
    sampling: Sampling | None
    trainings: Sequence[Training]
    disk: Disk
    stages: Sequence[Stage]
    notes: Sequence[str]

    @property
    def total(self) -> tuple[float, float] | None:
        """Seconds of all stages together; None if one of them is unknown."""
        spans = [(one.low, one.high) for one in self.stages]
        if any(low is None or high is None for low, high in spans):
            return None
        return sum(low or 0 for low, _ in spans), sum(high or 0 for _, high in spans)


def make_plan(run: Run, described: Hardware | None = None) -> Plan:
    """Plan the run on `described` hardware, or on this machine."""
    hardware = described or this_machine(run.config.model.device)
    splits = count_splits(run)
    (sampled,) = (split for split in splits if split.name == run.config.sample.split)
    lists = expect_lists(run, sampled)
    model = look_at_model(run, half=is_half(run, hardware))
    start = Seconds(time.monotonic() - STARTED, time.process_time()).span(threads=1)
    rows = task_by_task(sampled.rows or next((split.rows for split in splits if split.rows), []))
    tokens = count_tokens(run, model, rows)
    answers = expect_answers(run, tokens)
    number = run.config.sample.num_samples
    completions = None if sampled.prompts is None else sampled.prompts * number
    trainings = _trainings(run, hardware, model, lists, tokens, answers)
    sampling = expect_sampling(run, model, tokens, _backend(run, hardware))
    done = _Amounts(run, splits, sampled, lists)
    tried = rows if _fits(hardware, sampling, trainings) else []
    rates, answers = _rates(run, hardware, model, tokens, answers, trainings, tried, done)
    return Plan(
        run,
        hardware,
        model,
        splits,
        completions,
        lists,
        tokens,
        answers,
        sampling,
        trainings,
        expect_disk(run, model, splits, completions, answers, trainings),
        [
            *_without_done(run, _stages(run, done, completions, rates, model)),
            *([_starts(run, start)] if hardware.here else []),
        ],
        notes_of(run, hardware, model, lists, tokens) + note_of_tasks(rows),
    )


def _trainings(
    run: Run,
    hardware: Hardware,
    model: Model,
    lists: Lists,
    tokens: PromptTokens | None,
    answers: Answers,
) -> list[Training]:
    if not lists.high or tokens is None:
        return []
    found = []
    for variant, settings in run.config.train.variants().items():
        size = 1 if hardware.here else min(hardware.count, settings.batch_size)
        training = expect_training(
            variant,
            settings,
            lists.most_for(settings),
            model,
            tokens,
            answers,
            size,
            on_gpu=hardware.is_gpu,
        )
        found += [training] if training is not None else []
    return found


@dataclass(frozen=True)
class _Amounts:
    """How many prompts or lists each stage has; None: unknown."""

    run: Run
    splits: Sequence[Split]
    sampled: Split
    lists: Lists

    def prompts(self, split: str) -> int | None:
        (found,) = (one for one in self.splits if one.name == split)
        return found.prompts

    def evaluated(self, evaluation: Evaluation) -> int | None:
        """The prompts of an evaluation: fewer with wrong images."""
        prompts = self.prompts(evaluation.split)
        if prompts is None or not evaluation.image:
            return prompts
        return min(prompts, self.run.config.eval.condition_prompts)

    def planned(self) -> dict[Key, float]:
        """How much each kind of work is; what is unknown is left out."""
        config = self.run.config
        lists = self.lists
        found: dict[Key, float | None] = {
            ("prepare", split.name): split.prompts for split in self.splits if split.uses
        }
        found |= {("sample", ""): self.sampled.prompts, ("reference", ""): lists.high}
        for name, settings in config.train.variants().items():
            found["train", name] = lists.most_for(settings) * settings.epochs
            if settings.chosen_method.blank_image:
                found["reference", "blank"] = lists.high
        found["eval", ""] = self.prompts(config.eval.splits[0])
        found["report", ""] = 1.0
        return {key: amount for key, amount in found.items() if amount}


def _fits(hardware: Hardware, sampling: Sampling | None, trainings: Sequence[Training]) -> bool:
    """Whether a trial of the work would not take more memory than there is."""
    needed = [one.memory().total for one in trainings]
    needed += [sampling.total] if sampling is not None else []
    return max(needed, default=0.0) <= FITS * hardware.memory


def _rates(
    run: Run,
    hardware: Hardware,
    model: Model,
    tokens: PromptTokens | None,
    answers: Answers,
    trainings: Sequence[Training],
    rows: Sequence[dict[str, object]],
    amounts: _Amounts,
) -> tuple[Rates, Answers]:
    """The best-founded rate of each stage: past versions, a trial here, published figures."""
    planned = amounts.planned()
    past = past_rates(run, model, planned) if hardware.here else {}
    needed = [key for key in planned if key[0] in ("sample", "eval", "train")]
    backend = _backend(run, hardware)
    if all(key in past for key in needed) or model.shape is None:
        return past, answers
    if hardware.here and is_small(model) and rows and backend == "transformers":
        run.say(
            "plan: no finished artifact says how fast this machine is; doing a few seconds of the "
            "work"
        )
        found = calibrate(run, model, rows)
        return found.rates | past, found.answers
    if tokens is None:
        return past, answers
    if hardware.here and hardware.flops is None:
        hardware = _measured(run, hardware)
    computed = computed_rates(
        run, hardware, model.shape, tokens, answers, trainings, backend=backend
    )
    if backend == "openai":
        computed = {key: rate for key, rate in computed.items() if key[0] != "sample"}
    return computed | past, answers


def _backend(run: Run, hardware: Hardware) -> str:
    """What answers prompts there; on hardware that is not here, `auto` is transformers."""
    model = run.config.model
    device = model.device if hardware.here else "cpu"
    return choose_backend(run.config.sample, device, model.quantization)


def _measured(run: Run, hardware: Hardware) -> Hardware:
    """This machine's processor, with the speed of a matrix product and of a copy."""
    run.say("plan: measuring a matrix product on this machine")
    flops, bandwidth = measure_machine(on_gpu=hardware.is_gpu)
    source = f"speed of a matrix product here ({flops / 1e9:,.0f} GFLOP/s)"
    return replace(hardware, flops=flops, bandwidth=bandwidth, source=source)


def _stages(
    run: Run, amounts: _Amounts, completions: int | None, rates: Rates, model: Model
) -> list[Stage]:
    config = run.config
    stages = [
        _stage(f"prepare {split.name}", split.prompts, "prompts", _preparing(run, split, rates))
        for split in amounts.splits
        if split.uses
    ]
    why = None if model.shape is not None else f"unknown: {model.id} is not on this machine"
    sampled = amounts.sampled.prompts

    def of_model(name: str, amount: float | None, unit: str, key: Key) -> Stage:
        return _stage(name, amount, unit, rates.get(key), why)

    of_server = "unknown: a server answers" if config.sample.backend == "openai" else why

    if any(node.stage == "sample" for node in nodes(config)):  # not for released lists
        rate = rates.get(("sample", ""))
        stages.append(_stage("sample", sampled, "prompts", rate, of_server))
    scoring = Rate(1 / ROWS_PER_S, 10 / ROWS_PER_S, "benchmarks/RESULTS.md", (0.2, 2))
    stages.append(_stage("score, filter", completions, "answers", scoring))
    lists, at_least = amounts.lists.high, amounts.lists.low or 0
    methods = [settings.chosen_method for settings in config.train.variants().values()]
    if any(method.needs_preferences for method in methods):
        stages.append(of_model("reference", lists, "lists", ("reference", "")))
    if any(method.blank_image for method in methods):
        stages.append(of_model("reference blank-image", lists, "lists", ("reference", "blank")))
    for name, settings in config.train.variants().items():
        amount = None if lists is None else amounts.lists.most_for(settings) * settings.epochs
        stages.append(of_model(f"train {name}", amount, "lists", ("train", name)))
    if lists is not None and at_least < lists:
        stages = [
            replace(one, amount=f"at most {one.amount}") if one.amount.endswith("lists") else one
            for one in stages
        ]
    for model_name in config.eval_models():
        some = [amounts.evaluated(one) for one in config.eval.evaluations_of(model_name)]
        prompts = None if None in some else sum(number or 0 for number in some)
        stages.append(of_model(f"eval {model_name}", prompts, "prompts", ("eval", "")))
    report = rates.get(("report", "")) or Rate(*REPORT_S, STATED)
    stages.append(_stage("report", 1, "page", report))
    return stages


def _without_done(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """The stages, with no time for those whose artifacts are up to date."""
    check, keys = Check(run.config), _made_by(run)
    return [
        replace(one, low=0.0, high=0.0, source=NOTHING)
        if one.name in keys and is_up_to_date(check, keys[one.name])
        else one
        for one in stages
    ]


def _made_by(run: Run) -> dict[str, list[Artifact]]:
    """The artifacts that each stage of the table makes."""
    config, split = run.config, run.config.sample.split
    methods = {name: s.chosen_method for name, s in config.train.variants().items()}
    on_lists = [name for name, method in methods.items() if method.needs_preferences]
    with_blank = [name for name, method in methods.items() if method.blank_image]
    return {
        **{f"prepare {name}": [("prompts", name)] for name in config.prepare},
        "sample": [("samples", split)],
        "score, filter": [("scores", split), ("preferences", split)],
        "reference": [("adapter", name) for name in on_lists],
        "reference blank-image": [("adapter", name) for name in with_blank],
        **{f"train {name}": [("adapter", name)] for name in config.train.variants()},
        **{
            f"eval {model}": [("metrics", one.name) for one in config.eval.evaluations_of(model)]
            for model in config.eval_models()
        },
        "report": [("report", "default")],
    }


def _starts(run: Run, start: tuple[float, float]) -> Stage:
    """The start of the program and its libraries: once with `perpo run`, per command with Make."""
    number = len(calls(run.config))
    return Stage(
        "starting",
        f"1 to {number} commands",
        start[0],
        start[1] * number,
        "as long as this command took to start; once for `perpo run`, for each command with Make",
    )


def _preparing(run: Run, split: Split, rates: Rates) -> Rate:
    if (found := rates.get(("prepare", split.name))) is not None:
        return found
    rendered = run.config.prepare[split.name].source == "testbed"
    return Rate(*(RENDERED_S if rendered else READ_S), STATED)


def _stage(
    name: str, amount: float | None, unit: str, rate: Rate | None, why: str | None = None
) -> Stage:
    if amount is None:
        return Stage(name, f"unknown {unit}", None, None, f"unknown, as the number of {unit} is")
    shown = f"{amount:,.0f} {unit}"
    if rate is None:
        return Stage(
            name,
            shown,
            None,
            None,
            why or "unknown: no figures for this hardware in this number format",
        )
    (low, high) = rate.start
    return Stage(name, shown, low + rate.low * amount, high + rate.high * amount, rate.source)


def missing_sources(run: Run) -> list[Path]:
    """The datasets' files that are not here; perpo downloads none."""
    from perpo_pipeline.config.sources import source_files

    files = [file for source in run.config.prepare.values() for file in source_files(source)]
    return sorted({file for file in files if not file.exists()})
