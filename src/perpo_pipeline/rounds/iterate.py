"""`perpo iterate`: round after round, each on the merged model of the one before.

Every round is an ordinary run with a file of its own (round_files.py), made by the ordinary stages.
Nothing else is remembered: a chain that was stopped goes on because stages do.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perpo_pipeline.config.evaluations import BASE, Evaluation, read_evaluation
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, counted_settings
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.rounds.checks import check_apart, method_of, parts_of
from perpo_pipeline.rounds.metric import check_metric, metric_of
from perpo_pipeline.rounds.results import Gain, Reached, compare, rows_of, value_of
from perpo_pipeline.rounds.round_files import Part, Round, round_folder, write_round
from perpo_pipeline.run import NotMade, Run
from perpo_pipeline.run import make as make_artifact
from perpo_pipeline.status.calls import Call, calls
from perpo_pipeline.store.artifacts import MODEL, Version, input_of
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.finding import version_of
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = STAGE_VERSIONS["rounds"]
PAGE = "rounds.html"
BASE_TITLE = "base"
TABLE = "the table and the page of all rounds"

Make = Callable[[Round | None, Sequence[Call]], Run]
"""Makes what is not current of these calls of a round (None: of the run itself); returns its run.
"""
Merge = Callable[[Version, ModelConfig, Path], Path]
"""Merges an adapter into the model that it was trained on, in a folder, unless it is there."""


@dataclass
class Chain:
    """What is made so far: the base, then each round; `gains` by title and split."""

    run: Run
    method: str
    metric: Metric
    prompts: Mapping[str, Version]
    parts: Sequence[Part]
    make: Make
    merge: Merge
    writes: bool = True
    reached: list[Reached] = field(default_factory=list)
    gains: dict[tuple[str, str], Gain] = field(default_factory=dict)
    folder: Path | None = None  # of the last merged model

    @property
    def rounds(self) -> list[Reached]:
        """The rounds, without the base."""
        return [one for one in self.reached if one.adapter is not None]


def iterate(run: Run, make: Make, merge: Merge, *, writes: bool = True) -> Version:
    """Make all rounds and return the `rounds` artifact; stops where a round no longer gains.

    Unless it `writes`, it finds what is finished and writes no file; then raises `NotMade` where
    the artifact is not there, as `make` and `merge` may where something else is not.

    Raises `ConfigError` for settings that do not fit, `InputError` where the rounds' prompts meet
    those that are measured; then nothing was sampled.
    """
    config = run.config
    method, rounds = method_of(config), config.rounds
    check_metric(config)
    splits = [config.sample.split, rounds.select_on, *filter(None, [rounds.report_on])]
    wanted = [call for call in calls(config) if call.stage == "prepare" and call.group in splits]
    run = make(None, wanted)
    prompts = dict(zip(splits, run.all_latest([("prompts", s) for s in splits]), strict=True))
    check_apart(config, prompts)
    own = prompts[config.sample.split]
    parts = parts_of(config, int(own.manifest["rows"]), own.path)
    metric = metric_of(config, [prompts[split] for split in splits[1:]])
    chain = Chain(run, method, metric, prompts, parts, make, merge, writes)
    for number in range(1, rounds.num + 1):
        _make_round(chain, number)
        gains = chain.gains[chain.reached[-1].title, rounds.select_on].gains
        if rounds.alpha is not None and not gains:
            break
    chosen = _chosen(chain)
    beside = [_beside(chain)] if rounds.beside else []
    if rounds.report_on is not None:
        _report(chain, rounds.report_on, beside)
    return _write(chain, [*chain.reached, *beside], chosen)


def _make_round(chain: Chain, number: int) -> None:
    """Make one round, compare it with what was before, and merge it if it gains."""
    run, split = chain.run, chain.run.config.rounds.select_on
    one = write_round(
        run.config,
        chain.method,
        chain.prompts,
        chain.parts[number - 1],
        number=number,
        model=chain.folder,
        earlier=_lists_to_keep(chain),
        writes=chain.writes,
    )
    made = chain.make(one, calls_of(one, [split]))
    if number == 1:
        metrics = {split: made.latest("metrics", Evaluation(BASE, split).name)}
        began_with = _model(input_of(metrics[split], "predictions"), one)
        chain.reached.append(Reached(BASE_TITLE, 0, one, began_with, metrics))
    before, after = chain.reached[-1], _reached(chain, one, made, [split])
    chain.gains[after.title, split] = gain = _gain(chain, after, before, split)
    if gain.gains or run.config.rounds.alpha is None:
        trained_on = one.config.model  # the manifest names the place where it was then
        folder = chain.merge(_adapter(after), trained_on, round_folder(run.config, number) / MODEL)
        chain.folder = folder
        after = replace(after, merged=_identity(folder, one))
    chain.reached.append(after)
    run.say(f"iterate {run.config.run}: {_sentence(chain, before, after, gain, split)}")


def _gain(chain: Chain, better: Reached, worse: Reached, split: str) -> Gain:
    alpha = chain.run.config.rounds.alpha
    return compare(better, worse, split, chain.metric, alpha, writes=chain.writes)


def _lists_to_keep(chain: Chain) -> Path | None:
    """The lists of the last round, if the next one is trained on some of them."""
    if chain.run.config.rounds.keep_lists is None or not chain.rounds:
        return None
    return input_of(_adapter(chain.rounds[-1]), "preferences").path


def calls_of(one: Round, splits: Sequence[str]) -> list[Call]:
    """The calls of a round without its report; evaluations on these splits alone."""
    chosen = []
    for call in calls(one.config):
        if call.stage == "eval":
            nodes = [node for node in call.made if read_evaluation(node.variant).split in splits]
            chosen.append(replace(call, made=tuple(nodes)))
        elif call.stage == "prepare":
            needed = [one.config.sample.split, *splits]
            chosen += [call] if call.group in needed else []
        elif call.stage != "report":
            chosen.append(call)
    return chosen


def _reached(chain: Chain, one: Round, made: Run, splits: Sequence[str]) -> Reached:
    """What the round's own training reached."""
    adapter = made.latest("adapter", chain.method)
    return Reached(
        one.title,
        one.number,
        one,
        _model(adapter, one),
        {split: made.latest("metrics", Evaluation(chain.method, split).name) for split in splits},
        adapter,
    )


def _model(made: Version, one: Round) -> str:
    """The identity of the model that something was made with."""
    return str(made.manifest["settings"].get("model", one.config.model.id))


def _adapter(one: Reached) -> Version:
    assert one.adapter is not None
    return one.adapter


def _identity(folder: Path, one: Round) -> str:
    from perpo_pipeline.vlm.files import IDENTITY_CACHE, compute_identity, resolve_model

    merged = resolve_model(str(folder), trust_remote_code=one.config.model.trust_remote_code)
    return compute_identity(merged, one.config.run_dir / IDENTITY_CACHE)


def _sentence(chain: Chain, before: Reached, after: Reached, gain: Gain, split: str) -> str:
    """What a round gained, and whether the chain goes on."""
    metric, alpha = chain.metric, chain.run.config.rounds.alpha
    unit = metric.unit
    values = [unit.number(value_of(x.metrics[split], metric)["value"]) for x in (before, after)]
    row = gain.row
    points = unit.signed(row["difference"])
    measured = (
        f"{after.title} has {metric.name} {values[1]} on {split}, {before.title} {values[0]}: "
        f"{points} [{unit.signed(row['low'])}, {unit.signed(row['high'])}], "
        f"p {p_text(row['p_value'])}"
    )
    if gain.gains or alpha is None:
        return measured
    return (
        f"{measured}; this is no gain at alpha {alpha:g}, so the rounds end and {before.title} is "
        "chosen"
    )


def _chosen(chain: Chain) -> Reached:
    """The last model that gained, or the base; without alpha the best one."""
    split = chain.run.config.rounds.select_on
    if chain.run.config.rounds.alpha is None:
        sign = -1 if chain.metric.higher_is_better is False else 1
        values = [
            sign * value_of(one.metrics[split], chain.metric)["value"] for one in chain.reached
        ]
        return chain.reached[values.index(max(values))]
    gained = [one for one in chain.rounds if chain.gains[one.title, split].gains]
    return gained[-1] if gained else chain.reached[0]


def _beside(chain: Chain) -> Reached:
    """One round from the base on the prompts of all rounds, with as many lists in all."""
    config, made = chain.run.config, chain.rounds
    first, last = chain.parts[0], chain.parts[len(made) - 1]
    num = None if last.num is None else last.start + last.num
    new = sum((one.new_lists for one in made), Counter[str]())
    one = write_round(
        config,
        chain.method,
        chain.prompts,
        Part(first.start, num),
        number=None,
        max_lists=lists_in_all(config.filter.max_lists, new),
        writes=chain.writes,
    )
    split = config.rounds.select_on
    after = _reached(chain, one, chain.make(one, calls_of(one, [split])), [split])
    chain.gains[after.title, split] = _gain(chain, after, chain.reached[-1], split)
    return after


def lists_in_all(caps: Any, new: Counter[str]) -> Any:
    """`filter.max_lists` for as many lists as all rounds have sampled; `caps`: that of each round.

    A number, or one for each task where `caps` are by task; at least 1, which is the smallest cap.
    None if the rounds have no lists.
    """
    if not new:
        return None
    return {task: max(1, new[task]) for task in caps} if isinstance(caps, Mapping) else new.total()


def _report(chain: Chain, split: str, beside: list[Reached]) -> None:
    """Evaluate the base, every round and what is beside them on the split that chooses nothing."""
    before: Reached | None = None
    for models in (chain.reached, beside):
        for place, one in enumerate(models):
            made = chain.make(one.round, calls_of(one.round, [split]))
            name = chain.method if one.adapter is not None else BASE
            metrics = made.latest("metrics", Evaluation(name, split).name)
            models[place] = after = replace(one, metrics={**one.metrics, split: metrics})
            if models is beside:
                chain.gains[after.title, split] = _gain(chain, after, chain.reached[-1], split)
            elif before is not None:
                chain.gains[after.title, split] = _gain(chain, after, before, split)
            before = after


def _write(chain: Chain, models: Sequence[Reached], chosen: Reached) -> Version:
    """Write the artifact, or find it."""
    run = chain.run
    facts = {"metric": chain.metric.name, "method": chain.method}
    settings = counted_settings("rounds", run.config.rounds, facts)
    inputs: dict[str, Version] = {}
    for place, one in enumerate(models):
        inputs |= {f"{place} metrics {split}": found for split, found in one.metrics.items()}
        if one.adapter is not None:
            inputs[f"{place} adapter"] = one.adapter
    notes = {
        "chosen": chosen.title,
        "model": None if chosen.adapter is None else str(_merged_folder(run, chosen)),
        "files": {one.title: str(one.round.file) for one in models if one.adapter is not None},
    }
    recipe = Recipe("rounds", "default", "iterate", STAGE_VERSION, settings, inputs, notes)
    if not chain.writes:
        if (found := version_of(run.place("rounds"), recipe)) is None:
            raise NotMade(TABLE)
        return found

    def work(writer: Writer) -> None:
        rows = rows_of(models, chain.gains, chain.metric, chosen.title)
        html = _page(chain, rows)
        write_atomically(writer.path / PAGE, lambda sink: sink.write(html.encode()))
        writer.write_part(0, rows)

    return make_artifact(run, recipe, work)


def _merged_folder(run: Run, one: Reached) -> Path:
    return round_folder(run.config, one.number) / MODEL / _adapter(one).fingerprint


def _page(chain: Chain, rows: Sequence[Mapping[str, Any]]) -> str:
    from perpo_pipeline.rounds.page import rounds_page  # imports Matplotlib

    return rounds_page(chain.run.config, chain.method, rows)
