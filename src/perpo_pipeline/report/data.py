"""Plain data for the page, gathered from the artifacts; only the columns that are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.config.evaluations import BLANK_IMAGE, OTHER_IMAGE
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.best_of_n import best_of_n_metrics, expected_best_of_n
from perpo_pipeline.evaluate.compare import paired_row
from perpo_pipeline.evaluate.metrics import GROUNDING, METRICS, OCR, Metric, reward_metrics
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.evaluate.summarise import ALL
from perpo_pipeline.report.methods import Method, methods_of
from perpo_pipeline.rewards.choice import AUTO, asks_for_set, measures_iou
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.schemas import PROMPTS

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
IOU, EDIT_SIMILARITY, OTHER = "iou", "edit_similarity", "other"
TASKS = {IOU: GROUNDING, EDIT_SIMILARITY: OCR}
"""The task whose metrics follow from rewards of each kind."""
CURVES = ("loss", "reward_accuracy", "implicit_margin", "best_logp", "learning_rate")


@dataclass(frozen=True)
class Inputs:
    """The versions that the page is made of, by name."""

    metrics: dict[str, Version]
    predictions: dict[str, Version]
    adapters: dict[str, Version]
    scores: Version
    preferences: Version
    prompts: Version
    sampled_prompts: Version

    def by_name(self) -> dict[str, Version]:
        """All of them under the keys of the lineage."""
        groups = {
            "metrics": self.metrics,
            "predictions": self.predictions,
            "adapter": self.adapters,
        }
        named = {f"{kind}/{v}": x for kind, group in groups.items() for v, x in group.items()}
        return {
            **named,
            "scores": self.scores,
            "preferences": self.preferences,
            "prompts": self.prompts,
            "sampled_prompts": self.sampled_prompts,
        }


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `n` is what it is the mean of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class TableRow:
    """One method's metrics by name, those without its own image, and those of each seed.

    `conditions` has the metrics by the name of the image that was shown instead.
    """

    method: Method
    metrics: dict[str, Estimate]
    conditions: dict[str, dict[str, Estimate]]
    seeds: dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Outcomes:
    """What every variant answered to the same prompts, in one order; rewards are `(n,)`."""

    prompts: pl.DataFrame
    rewards: dict[str, Floats]

    @property
    def is_grounding(self) -> bool:
        """Whether every question asks for a box."""
        return bool((self.prompts["task"] == "grounding").all())

    def of(self, method: Method) -> list[Floats]:
        """The rewards of each of the method's variants."""
        return [self.rewards[variant] for variant in method.variants]


@dataclass(frozen=True)
class Comparison:
    """A paired difference `better` - `worse`, as the report's table has it.

    `test` is how the two-sided p-value was found (`statistics.compare_paired`).
    """

    metric: str
    better: str
    worse: str
    difference: float
    low: float
    high: float
    p_value: float
    test: str
    n: int


@dataclass(frozen=True)
class Sampled:
    """The samples and lists of the sampled split; `rewards` and `parse_ok` are `(lists, N)`.

    `measure` says what the rewards are: IOU, EDIT_SIMILARITY, or OTHER.
    """

    rewards: Floats
    parse_ok: npt.NDArray[np.bool_]
    measure: str
    images: list[str]
    kept_margins: Floats
    dropped_margins: dict[str, Floats]
    counts: Row
    min_margin: float

    @property
    def metric(self) -> Metric:
        """What the best of n samples is shown in: AP@50 (grounding) or mean reward."""
        return best_of_n_metrics(is_iou=self.measure == IOU)[0]

    def best_of_n(self) -> Floats:
        """The expected `metric` of the best of n = 1..N samples, `(N,)`."""
        return expected_best_of_n(self.metric.from_rewards(self.rewards))


def open_inputs(run: Run) -> Inputs:
    """Open the versions in use; raises `ArtifactError` naming what is not there yet."""
    config = run.config
    variants, models = config.eval_variants(), config.eval_models()
    metrics = {v: run.latest("metrics", v) for v in variants}
    predictions = {v: input_of(metrics[v], "predictions") for v in models}
    prompts = {v: input_of(p, "prompts") for v, p in predictions.items()}
    if len({p.fingerprint for p in prompts.values()}) > 1:
        raise ArtifactError(
            "the models were evaluated on different prompts: "
            + ", ".join(f"{v} on {p.fingerprint}" for v, p in prompts.items()),
            where=str(config.run_dir),
            fix="rerun `perpo eval`",
        )
    scores = run.latest("scores", config.sample.split)
    return Inputs(
        metrics=metrics,
        predictions=predictions,
        adapters={v: run.latest("adapter", v) for v in config.train.variants()},
        scores=scores,
        preferences=run.latest("preferences", config.sample.split),
        prompts=prompts[models[0]],
        sampled_prompts=input_of(scores, "prompts"),
    )


def read_table(run: Run, inputs: Inputs) -> list[TableRow]:
    """The metrics of every method; of several seeds the mean, also of the bounds.

    The bounds of one seed only know of the choice of prompts, which is the same for every seed: the
    mean of the bounds is a little wider than the interval of the mean.
    """
    metrics = {variant: _read_metrics(version) for variant, version in inputs.metrics.items()}
    rows = []
    for method in methods_of(run.config):
        own = {v: metrics[v] for v in method.variants}
        conditions = {
            image: _mean_of([metrics[key] for v in own if (key := v + image) in metrics])
            for image in (OTHER_IMAGE, BLANK_IMAGE)
        }
        seeds = own if len(own) > 1 else {}
        rows.append(TableRow(method, _mean_of(list(own.values())), conditions, seeds))
    return rows


def _read_metrics(version: Version) -> dict[str, Estimate]:
    rows = [row for row in version.table().to_pylist() if row["dataset"] == ALL]
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ArtifactError(
            f"a metric is there more than once: {names}",
            where=str(version.path),
            fix="evaluate one split at a time",
        )
    return {r["name"]: Estimate(r["value"], r["low"], r["high"], r["n"]) for r in rows}


def _mean_of(seeds: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    def mean(name: str) -> Estimate:
        of_seeds = [metrics[name] for metrics in seeds]
        value, low, high = np.mean([(e.value, e.low, e.high) for e in of_seeds], axis=0)
        return Estimate(float(value), float(low), float(high), of_seeds[0].n)

    return {name: mean(name) for name in shared_metrics(seeds)}


def shared_metrics(rows: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """Names that every row has, in the order of the first; none for no rows."""
    return [name for name in rows[0] if all(name in row for row in rows)] if rows else []


def read_outcomes(inputs: Inputs) -> Outcomes:
    """The rewards of all evaluated variants, aligned by prompt."""
    columns = PROMPTS.pick("prompt_id", "dataset", "split", "task", "image_sha256")
    prompts = pl.DataFrame(inputs.prompts.table(columns=columns))
    rewards = {}
    for variant, version in inputs.predictions.items():
        rows = pl.DataFrame(version.table(columns=["prompt_id", "reward"]))
        joined = prompts.join(rows, on="prompt_id", how="left", maintain_order="left")
        if rows.height != prompts.height or joined["reward"].null_count():
            raise ArtifactError(
                f"the predictions of {variant} are of {rows.height} prompts, not of the "
                f"{prompts.height} that were asked",
                where=str(version.path),
                fix="rerun `perpo eval`",
            )
        rewards[variant] = joined["reward"].to_numpy()
    return Outcomes(prompts, rewards)


def compare(
    outcomes: Outcomes, main: Method, others: Sequence[Method], num_resamples: int
) -> list[Comparison]:
    """`main` minus each other method on the same prompts: AP@50 (grounding) and mean reward.

    Compared metrics of grounding other than AP@50 are shown too, unless they are the mean reward.
    Of several seeds each prompt counts with its mean over seeds; images are the clusters.
    """
    reward = METRICS["mean_reward"]
    metrics = reward_metrics(GROUNDING if outcomes.is_grounding else None)
    metrics = [metric for metric in metrics if metric.of_reward is not reward.of_reward]
    images = outcomes.prompts["image_sha256"].to_list()
    found = []
    for metric in [*metrics, reward]:
        ours = np.mean([metric.from_rewards(r) for r in outcomes.of(main)], axis=0)
        for other in others:
            theirs = np.mean([metric.from_rewards(r) for r in outcomes.of(other)], axis=0)
            compared = paired_row(ours, theirs, images, num_resamples)
            found.append(Comparison(metric.name, main.name, other.name, **compared))
    return found


def read_curves(version: Version) -> dict[str, Floats]:
    """The training log: `step` and the CURVES, each `(steps,)`, NaN where nothing was logged."""
    table = pl.DataFrame(version.table(columns=["step", *CURVES]))
    return {
        name: table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in table.columns
    }


def read_sampled(inputs: Inputs) -> Sampled:
    """The scores of all samples as lists, and the margins of the lists with their fate."""
    scores = pl.DataFrame(inputs.scores.table(columns=["prompt_id", "reward", "parse_ok"]))
    lists = scores.group_by("prompt_id", maintain_order=True).agg("reward", "parse_ok")
    sizes = lists["reward"].list.len().unique().to_list()
    if len(sizes) != 1:
        raise ArtifactError(
            f"the lists do not all have the same number of samples: {sorted(sizes)}",
            where=str(inputs.scores.path),
            fix="rerun `perpo sample` and `perpo score`",
        )
    columns = PROMPTS.pick("prompt_id", "task", "image_sha256", role="truth")
    prompts = lists.select("prompt_id").join(
        pl.DataFrame(inputs.sampled_prompts.table(columns=columns)),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    dropped = pl.DataFrame(inputs.preferences.table("dropped", columns=["reason", "margin"]))
    return Sampled(
        rewards=np.array(lists["reward"].to_list()),
        parse_ok=np.array(lists["parse_ok"].to_list()),
        measure=_measure_of(prompts, inputs.scores.manifest["settings"].get("reward")),
        images=prompts["image_sha256"].to_list(),
        kept_margins=_margins(pl.DataFrame(inputs.preferences.table(columns=["margin"]))),
        dropped_margins={
            str(reason): _margins(group)
            for (reason,), group in sorted(dropped.group_by("reason"), key=lambda item: item[0])
        },
        counts=inputs.preferences.manifest["counts"],
        min_margin=float(inputs.preferences.manifest["settings"]["min_margin"]),
    )


def _measure_of(prompts: pl.DataFrame, reward: Any) -> str:
    """What the rewards of these prompts are, by the recorded setting."""
    is_box = (pl.col("task") == "grounding") & ~asks_for_set()
    if measures_iou(reward) and prompts.select(is_box.all()).item():
        return IOU
    is_text = (prompts["task"] != "grounding").all()
    return EDIT_SIMILARITY if is_text and reward in ({AUTO: 1.0}, {EDIT_SIMILARITY: 1.0}) else OTHER


def _margins(rows: pl.DataFrame) -> Floats:
    return np.asarray(rows["margin"].drop_nulls().to_numpy(), dtype=np.float64)


def oracle(sampled: Sampled, num_resamples: int) -> dict[str, Estimate]:
    """Metrics of the best of all N samples of each list: an upper bound that knows the truth."""
    best = sampled.rewards.max(axis=1)
    task = TASKS.get(sampled.measure)
    known = [m for m in METRICS.values() if task in m.tasks and m.of_reward is not None]
    measured = {metric.name: metric.from_rewards(best) for metric in known}
    if task == GROUNDING:
        measured["parse_rate"] = np.asarray(sampled.parse_ok.any(axis=1), dtype=np.float64)
    return {
        name: Estimate(
            *mean_interval(values, clusters=sampled.images, num_resamples=num_resamples),
            n=len(best),
        )
        for name, values in measured.items()
    }
