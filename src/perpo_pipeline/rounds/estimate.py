"""`perpo iterate --dry-run`: how much there is to make, and about how long it takes.

Times are those of `perpo plan` for one round of the run, by the numbers of prompts and lists of
each round. A finished round is found as the chain itself would find it. Nothing is written: no
round's file, no artifact, no `current`, no digest of a model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perpo_pipeline.config.by_task import values_of
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.lines import aligned
from perpo_pipeline.merge.folder import find_merged
from perpo_pipeline.rounds.checks import method_of, parts_of
from perpo_pipeline.rounds.iterate import TABLE, calls_of, iterate
from perpo_pipeline.rounds.round_files import ONE_ROUND, Round
from perpo_pipeline.run import NotMade, Run
from perpo_pipeline.status.calls import Call
from perpo_pipeline.status.pending import find_pending
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.vlm.files import keeping_no_digests

if TYPE_CHECKING:
    from perpo_pipeline.planning.plan import Plan

Span = tuple[float, float]  # seconds, from low to high


class _Finished:
    """Follows a chain as far as it is finished.

    `rounds` are those that are made and evaluated on rounds.select_on, by name; `unmerged` is the
    one whose merged model the chain makes next, if it is that.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.rounds = run, dict[str, Round]()
        self.unmerged: str | None = None

    def follow(self) -> str | None:
        """What of the chain is made next; None if all of it is finished."""
        quiet = Run(self.run.config, quiet=True, muted=True, options=self.run.options)
        try:
            iterate(quiet, self._make, self._merge, writes=False)
        except NotMade as first:
            return str(first)
        return None

    def _make(self, one: Round | None, calls: Sequence[Call]) -> Run:
        config = self.run.config if one is None else one.config
        if pending := find_pending(config, calls):
            raise NotMade(pending[0].call.title)
        if one is not None:
            self.rounds[one.name] = one
        return Run(config, quiet=True, muted=True)

    def _merge(self, adapter: Version, _: ModelConfig, folder: Path) -> Path:
        if find_merged(folder / adapter.fingerprint, adapter) is None:
            self.unmerged = list(self.rounds)[-1]
            raise NotMade(f"merge {adapter.variant}")
        return folder / adapter.fingerprint

    def to_report(self, name: str) -> bool:
        """Whether a finished round is still to be evaluated on rounds.report_on."""
        one, split = self.rounds[name], self.run.config.rounds.report_on
        return split is not None and bool(find_pending(one.config, calls_of(one, [split])))


def dry_run_text(run: Run) -> str:
    """A line for each round: samples, lists, prompts to evaluate, time. Writes nothing."""
    with keeping_no_digests():
        return _dry_run_text(run)


def _dry_run_text(run: Run) -> str:
    config, method = run.config, method_of(run.config)
    finished = _Finished(run)
    if (first := finished.follow()) is None:
        return f"rounds of {config.run}: everything is finished"
    if first == TABLE:
        return f"rounds of {config.run}: all is finished but {TABLE}"
    from perpo_pipeline.planning.plan import make_plan  # imports torch

    plan = make_plan(Run(_one_round(config, method), quiet=True, options=run.options))
    names = [*(f"round-{n}" for n in range(1, config.rounds.num + 1))]
    names += [ONE_ROUND] if config.rounds.beside else []
    lines = [["", "prompts", "samples", "lists, at most", "prompts to evaluate", "time"]]
    spans: list[Span | None] = []
    for name in names:
        cells, span = _round(config, plan, name)
        text = _time(span)
        if name in finished.rounds:
            text, span = _left(finished, plan, name)
        lines.append([name.replace("-", " "), *cells, text])
        spans.append(span)
    known = [span for span in spans if span is not None]
    both = (sum(low for low, _ in known), sum(high for _, high in known))
    lines.append(["all", "", "", "", "", _time(both if len(known) == len(spans) else None)])
    notes = "fewer where a round no longer gains" if config.rounds.alpha is not None else ""
    head = f"rounds of {config.run}, training {method}" + (f" ({notes}):" if notes else ":")
    return "\n".join([head, *aligned(lines)])


def _left(finished: _Finished, plan: "Plan", name: str) -> tuple[str, Span | None]:
    """What is left of a round that is made, in words, and its time; a merge takes seconds."""
    config, words = finished.run.config, []
    span: Span | None = (0.0, 0.0)
    if name == finished.unmerged:
        words.append("merged")
    if finished.to_report(name):
        words.append(f"evaluated on {config.rounds.report_on}")
        splits = {one.name: one.prompts or 0 for one in plan.splits}
        num = splits[config.rounds.report_on or ""]
        share = num / max(1, num + splits[config.rounds.select_on])
        span = _span(plan, {"eval": share * _models(name)})
    if not words:
        return "finished", span
    time = f", {_time(span)}" if span != (0.0, 0.0) else ""
    return f"finished, to be {' and '.join(words)}{time}", span


def _models(name: str) -> int:
    """How many models are evaluated with a round: the base with the first."""
    return 2 if name == "round-1" else 1


def _one_round(config: RunConfig, method: str) -> RunConfig:
    """The run with one training and its evaluation alone, for `perpo plan`."""
    splits = [config.rounds.select_on, *filter(None, [config.rounds.report_on])]
    only = {"splits": splits, "models": [method], "conditions": [], "condition_splits": None}
    evaluated = config.eval.model_copy(update={**only, "out_of_domain": []})
    trained = config.train.model_copy(
        update={"methods": {k: v for k, v in config.train.methods.items() if _is_of(k, method)}}
    )
    return config.model_copy(update={"eval": evaluated, "train": trained})


def _is_of(name: str, method: str) -> bool:
    return method == name or method.startswith(f"{name}-seed")


def _round(config: RunConfig, plan: "Plan", name: str) -> tuple[list[str], Span | None]:
    """The amounts of one round in words, and its time."""
    (total,) = (s.prompts for s in plan.splits if s.name == config.sample.split)
    if total is None:
        return ["unknown"] * 4, None
    num, lists = _amounts(config, total, name)
    evaluated = sum(
        s.prompts or 0
        for s in plan.splits
        if s.name in (config.rounds.select_on, config.rounds.report_on)
    )
    models = _models(name)
    most = plan.lists.high or 1
    shares = {
        "sample": num / total,
        "score, filter": num / total,
        "reference": lists / most,
        "train": lists / most,
        "eval": float(models),
    }
    cells = [f"{one:,}" for one in (num, num * config.sample.num_samples, lists)]
    return [*cells, f"{models * evaluated:,}"], _span(plan, shares)


def _amounts(config: RunConfig, total: int, name: str) -> tuple[int, int]:
    """The prompts of a round, and the most lists that it trains on."""
    rounds, caps = config.rounds, values_of(config.filter.max_lists)
    num = parts_of(config, total)[0].num or total
    lists = num if None in caps else min(num, sum(cap or 0 for cap in caps))
    if name == ONE_ROUND:
        num *= 1 if rounds.prompts == "same" else rounds.num
        return num, min(num, lists * rounds.num)
    kept = _with_kept(lists, rounds.keep_lists or 0.0, int(name.rpartition("-")[2]))
    return num, min(num, kept) if rounds.prompts == "same" else kept


def _with_kept(new: int, share: float, number: int) -> int:
    """The most lists of a round: new ones, and the share of those of the round before."""
    total = 0
    for _ in range(number):
        total = new + round(share * total)
    return total


def _span(plan: "Plan", shares: dict[str, float]) -> Span | None:
    """The time of the plan's stages, each in its share; None if that of one is unknown."""
    low = high = 0.0
    for stage in plan.stages:
        key = stage.name if stage.name in shares else stage.name.partition(" ")[0]
        if key not in shares:
            continue
        if stage.low is None or stage.high is None:
            return None
        low, high = low + shares[key] * stage.low, high + shares[key] * stage.high
    return low, high


def _time(span: Span | None) -> str:
    from perpo_pipeline.planning.page import between

    return "unknown" if span is None else between(*span)
