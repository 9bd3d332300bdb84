"""A plan as text and as JSON."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from perpo_pipeline.config.by_task import in_words
from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.disk import Bytes
from perpo_pipeline.planning.plan import Plan, Stage, missing_sources
from perpo_pipeline.planning.training import FITS, Training, remedies, show_memory

SHOWN_FILES = 3
WIDEST = 120


def plan_text(plan: Plan) -> str:
    """The whole plan, section by section."""
    config = plan.run.config
    here = "this machine" if plan.hardware.here else "described with --hardware"
    lines = [f"run {config.run} on {plan.hardware} ({here}), model {plan.model.id}", ""]
    for title, section in (
        ("prompts", _prompts(plan)),
        ("answers and lists", _amounts(plan)),
        ("tokens", _tokens(plan)),
        ("memory", _memory(plan)),
        ("disk", _disk(plan)),
        ("downloads", _downloads(plan)),
        ("time", _times(plan)),
    ):
        lines += [title, *(wrapped for line in section for wrapped in _wrap(line)), ""]
    lines += [wrapped for note in plan.notes for wrapped in _wrap(f"note: {note}", "")]
    return "\n".join(lines).rstrip()


def _wrap(line: str, indent: str = "  ") -> list[str]:
    """The line, continued under an indent where it is longer than the terminal."""
    deeper = indent + line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.lstrip(),
        width=min(WIDEST, shutil.get_terminal_size().columns),
        initial_indent=deeper,
        subsequent_indent=f"{deeper}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _prompts(plan: Plan) -> Iterator[str]:
    width = max(len(split.name) for split in plan.splits)
    for split in plan.splits:
        number = "unknown" if split.prompts is None else f"{split.prompts:,}"
        uses = " and ".join(split.uses) or "not used by any stage"
        yield f"{split.name:<{width}}  {number:>8}  {uses} ({split.how.removeprefix('unknown: ')})"


def _amounts(plan: Plan) -> Iterator[str]:
    config, lists = plan.run.config, plan.lists
    if plan.completions is not None:
        yield (
            f"{plan.completions:,} answers: {config.sample.num_samples} per prompt of "
            f"{config.sample.split}"
        )
    if lists.high is None:
        yield f"lists: {lists.how}"
        return
    number = f"{lists.high:,}" if lists.known else f"0 to {lists.high:,}"
    margin = in_words(config.filter.min_margin)
    yield f"{number} lists with a margin of {margin} or more: {lists.how}"
    bound = "" if lists.known else "at most "
    for training in plan.trainings:
        yield (
            f"{training.variant}: {bound}{training.steps:,} steps = {training.lists:,} lists / "
            f"{training.settings.batch_size}, rounded up, x {training.settings.epochs:g} epochs"
        )


def _tokens(plan: Plan) -> Iterator[str]:
    tokens = plan.tokens
    if tokens is None:
        is_here = plan.model.vlm is not None
        yield "unknown until " + (
            "there are prompts to count them in"
            if is_here
            else f"the processor of {plan.model.id} is here"
        )
    else:
        yield f"{tokens.how}; median, 95 %, most:"
        for name, counts in (
            ("image", tokens.image),
            ("text", tokens.text),
            ("truth", tokens.truth),
        ):
            if len(counts):
                shown = " ".join(f"{n:>7,.0f}" for n in np.percentile(counts, [50, 95, 100]))
                yield f"{name:<6} {shown}"
    low, high = plan.answers.tokens
    yield f"a sampled answer: {_span(low, high, '.0f')} tokens on average ({plan.answers.how})"


def _span(low: float, high: float, form: str) -> str:
    one, other = f"{low:,{form}}", f"{high:,{form}}"
    return one if one == other else f"{one} to {other}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.hardware.memory
    has = f"{memory / GIB:.0f} GiB" + (" on each device" if plan.hardware.count > 1 else "")
    if plan.sampling is not None:
        yield plan.sampling.describe(FITS * memory, has)
    if not plan.trainings:
        yield "training: unknown until the model's shape, the tokens and the lists are known"
    for training in plan.trainings:
        found = training.memory()
        verdict = "fits into" if found.total <= FITS * memory else "is too much for"
        yield f"train {training.variant}: {show_memory(found)}; {verdict} {has}"
        if found.total > FITS * memory:
            yield from (f"  {line}" for line in _remedies(training, memory))


def _remedies(training: Training, memory: float) -> Iterator[str]:
    for settings, estimate in remedies(training, memory):
        fits = "fits" if estimate.total <= FITS * memory else "the least that settings give"
        yield f"with {settings}: about {estimate.total / GIB:.3g} GiB ({fits})"


def _disk(plan: Plan) -> Iterator[str]:
    for name, (low, high) in plan.disk.parts.items():
        yield f"{name}: {_size((low, high))}"
    enough = "" if plan.disk.total[1] <= plan.disk.free else ", which may not be enough"
    yield (
        f"in all {_size(plan.disk.total)}; {_bytes(plan.disk.free)} are free in "
        f"{plan.disk.place}{enough}"
    )


def _size(span: Bytes) -> str:
    low, high = map(_bytes, span)
    return low if low == high else f"{low} to {high}"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _downloads(plan: Plan) -> Iterator[str]:
    model = plan.model
    if model.download == 0:
        yield f"none: {model.id} is on this machine"
    elif model.download is None:
        yield f"{model.id}: {model.how}"
    else:
        yield f"{model.id}: {_bytes(model.download)} ({model.how})"
    missing = missing_sources(plan.run)
    if missing:
        names = ", ".join(map(str, missing[:SHOWN_FILES])) + ", ..." * (len(missing) > SHOWN_FILES)
        yield f"data that is not here and that perpo does not download: {names}"


def _times(plan: Plan) -> Iterator[str]:
    sources = list(dict.fromkeys(s.source for s in plan.stages))
    marks = {source: f"[{number}]" for number, source in enumerate(sources, start=1)}
    rows = [(s.name, s.amount, _duration(s), marks[s.source]) for s in plan.stages]
    total = plan.total
    known = [s for s in plan.stages if s.low is not None and s.high is not None]
    low, high = sum(s.low or 0 for s in known), sum(s.high or 0 for s in known)
    what = "all" if total is not None else "what is known"
    rows.append((what, "", between(low, high), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, amount, duration, source in rows:
        line = f"{name:<{widths[0]}}  {amount:>{widths[1]}}  {duration:>{widths[2]}}  {source}"
        yield line.rstrip()
    yield from (f"{mark} {source}" for source, mark in marks.items())


def _duration(stage: Stage) -> str:
    if stage.low is None or stage.high is None:
        return "unknown"
    return between(stage.low, stage.high)


def between(low: float, high: float) -> str:
    """A range of seconds in the unit that suits its upper end."""
    for unit, seconds in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if high >= 2 * seconds:
            return _span(low / seconds, high / seconds, ".1f" if high < 20 * seconds else ".0f") + (
                f" {unit}"
            )
    return _span(low, high, ".0f") + " s"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same figures for programs: seconds, bytes, null for what is unknown."""
    tokens = plan.tokens
    return {
        "run": plan.run.config.run,
        "hardware": {
            "name": plan.hardware.label,
            "count": plan.hardware.count,
            "memory_bytes": plan.hardware.memory,
            "is_this_machine": plan.hardware.here,
        },
        "model": plan.model.id,
        "prompts": {
            s.name: {"prompts": s.prompts, "used": list(s.uses), "how": s.how} for s in plan.splits
        },
        "completions": plan.completions,
        "lists": {"low": plan.lists.low, "high": plan.lists.high, "how": plan.lists.how},
        "tokens": None
        if tokens is None
        else {
            "how": tokens.how,
            **{
                name: _percentiles(counts)
                for name, counts in (
                    ("image", tokens.image),
                    ("text", tokens.text),
                    ("truth", tokens.truth),
                )
            },
            "answer": {"low": plan.answers.tokens[0], "high": plan.answers.tokens[1]},
        },
        "sampling": plan.sampling
        and {
            "memory_bytes": plan.sampling.total,
            "fits": plan.sampling.total <= FITS * plan.hardware.memory,
        },
        "trainings": {
            t.variant: {
                "steps": t.steps,
                "lists": t.lists,
                "memory_bytes": t.memory().total,
                "reference_bytes": t.memory().reference,
                "host_bytes": t.memory().host,
                "fits": t.memory().total <= FITS * plan.hardware.memory,
            }
            for t in plan.trainings
        },
        "disk": {
            "parts": {name: list(span) for name, span in plan.disk.parts.items()},
            "free": plan.disk.free,
        },
        "download_bytes": plan.model.download,
        "time_s": [
            {"stage": s.name, "low": s.low, "high": s.high, "source": s.source} for s in plan.stages
        ],
        "total_s": plan.total,
        "notes": list(plan.notes),
    }


def _percentiles(counts: Sequence[int]) -> dict[str, float] | None:
    if not len(counts):
        return None
    values = np.percentile(counts, [50, 95, 100])
    return dict(zip(("median", "p95", "most"), map(float, values), strict=True))
