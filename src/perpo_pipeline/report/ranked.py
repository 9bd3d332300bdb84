"""A few of the lists that the headline's method was trained on: all answers, ranked by reward."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.report.inputs import Inputs
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import num_new_lists
from perpo_pipeline.store.schemas import PREFERENCES, PROMPTS

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
PROMPT_COLUMNS = [
    *PROMPTS.pick("prompt_id", "place", "width", "height", "prompt", role="truth"),
    *PROMPTS.role("image"),
]


@dataclass(frozen=True)
class RankedAnswer:
    """One of a list's different answers: how often it was sampled, its reward, its box if any."""

    text: str
    reward: float
    count: int
    parse_ok: bool
    box: list[float] | None


@dataclass(frozen=True)
class RankedList:
    """One training list, K different answers from the highest reward to the lowest.

    `prompt` is its row of the prompts. `weights` is `(K, K)`: the share of the list's loss that
    each pair (better, worse) has; all 0 if the method compares no answers.
    """

    prompt: Row
    margin: float
    answers: tuple[RankedAnswer, ...]
    weights: Floats

    @property
    def size(self) -> int:
        """How many answers were sampled."""
        return sum(answer.count for answer in self.answers)


def read_ranked(inputs: Inputs, settings: Row, wanted: int) -> list[RankedList]:
    """`wanted` of the new lists that an adapter learned from: the smallest sha256 of the prompt_id.

    `settings` are those in the adapter's manifest. They name its tasks, if it did not learn from
    all, and decide the weights of the pairs.
    """
    preferences = inputs.preferences
    kept = pl.DataFrame(preferences.table(columns=["prompt_id", "task"]))
    kept = kept.head(num_new_lists(preferences))
    if tasks := settings.get("tasks"):
        kept = kept.filter(pl.col("task").is_in(tasks))
    chosen = sorted(kept["prompt_id"], key=lambda key: sha256(key.encode()).digest())[:wanted]
    columns = PREFERENCES.pick(
        "prompt_id", "completions", "rewards", "parse_ok", "counts", "margin"
    )
    lists = _rows_of(preferences, columns, chosen)
    prompts = _rows_of(inputs.sampled_prompts, PROMPT_COLUMNS, chosen)
    boxes = _boxes(inputs, chosen)
    return [_list(lists[key], prompts[key], boxes, settings) for key in chosen]


def pair_weights(rewards: Floats, counts: Floats, settings: Row) -> Floats:
    """The share of a list's loss that each pair (better, worse) has at the first step, `(K, K)`.

    `rewards` and `counts` are `(K,)`, of K different answers. PerPO: the reward gap to the power
    gamma; LiPO: equal; LiPO-lambda: the gap of the gains 2^r; DPO: the best against the worst; as
    often as each pair was sampled. Zeros for any other method and without a difference in reward.
    Source: PerPO eq. 5, arXiv:2502.04371.
    """
    gaps = rewards[:, None] - rewards[None, :]
    if settings["method"] not in _WEIGHTS:
        return np.zeros_like(gaps)
    each = np.where(gaps > 0, _WEIGHTS[settings["method"]](gaps, rewards, settings), 0.0)
    weights = each * counts[:, None] * counts[None, :]
    total = weights.sum()
    return np.asarray(weights / total if total else weights, dtype=np.float64)


def _of_perpo(gaps: Floats, _: Floats, settings: Row) -> Floats:
    return np.asarray(np.maximum(gaps, 0) ** settings["gamma"], dtype=np.float64)


def _of_lipo(gaps: Floats, _: Floats, settings: Row) -> Floats:
    return np.ones_like(gaps)


def _of_lipo_lambda(_: Floats, rewards: Floats, settings: Row) -> Floats:
    gains = np.exp2(rewards)
    return np.asarray(np.abs(gains[:, None] - gains[None, :]), dtype=np.float64)


def _of_dpo(gaps: Floats, _: Floats, settings: Row) -> Floats:
    return np.asarray(gaps == gaps.max(), dtype=np.float64)


_WEIGHTS = {"perpo": _of_perpo, "lipo": _of_lipo, "lipo-lambda": _of_lipo_lambda, "dpo": _of_dpo}


def compares_answers(settings: Row) -> bool:
    """Whether `pair_weights` knows how the method weighs pairs of answers."""
    return settings["method"] in _WEIGHTS


def _list(row: Row, prompt: Row, boxes: dict[tuple[str, str], Any], settings: Row) -> RankedList:
    columns = (row[name] for name in ("completions", "rewards", "counts", "parse_ok"))
    answers = tuple(
        RankedAnswer(text, reward, count, parsed, boxes.get((row["prompt_id"], text)))
        for text, reward, count, parsed in zip(*columns, strict=True)
    )
    rewards, counts = (np.array(row[name], dtype=np.float64) for name in ("rewards", "counts"))
    return RankedList(prompt, row["margin"], answers, pair_weights(rewards, counts, settings))


def _boxes(inputs: Inputs, chosen: Collection[str]) -> dict[tuple[str, str], Any]:
    """The box of each completion of the chosen prompts."""
    key = ["prompt_id", "sample_id"]
    scores = _table_of(inputs.scores, [*key, "box"], chosen)
    samples = _table_of(input_of(inputs.scores, "samples"), [*key, "completion"], chosen)
    joined = samples.join(scores, on=key, how="inner")
    return {(row["prompt_id"], row["completion"]): row["box"] for row in joined.to_dicts()}


def _rows_of(version: Version, columns: list[str], wanted: Collection[str]) -> dict[str, Row]:
    return {
        row["prompt_id"]: row
        for batch in version.batches(columns)
        for row in batch.filter(_is_in(batch, wanted)).to_pylist()
    }


def _table_of(version: Version, columns: list[str], wanted: Collection[str]) -> pl.DataFrame:
    parts = [batch.filter(_is_in(batch, wanted)) for batch in version.batches(columns)]
    return pl.DataFrame(pa.concat_tables(parts))


def _is_in(batch: pa.Table, wanted: Collection[str]) -> Any:
    return pc.is_in(batch["prompt_id"], pa.array(list(wanted), pa.string()))
