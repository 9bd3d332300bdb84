"""The answers to one prompt, read from the artifacts when they are asked for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from perpo_pipeline.browse.index import AT
from perpo_pipeline.browse.versions import Sampled, TestSet
from perpo_pipeline.config.evaluations import BLANK_IMAGE, model_of
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PREDICTIONS, PREFERENCES, PROMPTS, SAMPLES, SCORES

Row = dict[str, Any]
PROMPT_COLUMNS = [name for name in PROMPTS.columns.names if name not in ("image", "more_images")]
SAMPLE_COLUMNS = SAMPLES.pick(
    "prompt_id",
    "sample_id",
    "completion",
    "completion_token_ids",
    "finish_reason",
    "sampler_logprob",
)
SCORE_COLUMNS = SCORES.pick("prompt_id", "sample_id", "reward", "parse_ok", "box")
LIST_COLUMNS = PREFERENCES.pick(
    "prompt_id",
    "completions",
    "completion_token_ids",
    "finish_reasons",
    "rewards",
    "parse_ok",
    "counts",
)
PREDICTION_COLUMNS = PREDICTIONS.pick(
    "prompt_id", "image_prompt_id", "completion", "finish_reason", "reward", "parse_ok", "box"
)


@dataclass
class Sample:
    """One of a prompt's different answers; `count` is how often it was sampled.

    `reward` and `parse_ok` are None before scoring. Log-probabilities are summed over the `tokens`,
    in nats: the sampler's own, and that of the reference model, which lists that were trained on
    have. `left_out` counts why copies of it are not in the list; `in_list` is how many are, None
    without a list.
    """

    text: str
    tokens: int
    finish_reason: str
    reward: float | None = None
    parse_ok: bool | None = None
    box: list[float] | None = None
    sampler_logprob: float | None = None
    ref_logp: float | None = None
    count: int = 0
    in_list: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a prompt; `other_image` is the prompt whose image it saw, if another's.

    `model` is an evaluation without its split, and so says whether the image was a wrong one.
    """

    model: str
    text: str
    reward: float
    parse_ok: bool
    box: list[float] | None
    finish_reason: str
    other_image: str | None

    @property
    def saw_image(self) -> bool:
        """Whether the model saw the prompt's own image."""
        return model_of(self.model) == self.model


def read_prompt(prompts: Version, at: int) -> Row:
    """A row of the prompts, without its images: browsers ask for those."""
    return _one(prompts.rows(range(at, at + 1), PROMPT_COLUMNS))


def read_samples(sampled: Sampled, row: Mapping[str, Any]) -> list[Sample]:
    """The different answers to a prompt, from the highest reward down; ties as they were sampled.

    `row` is that of the index. Equal answers (by token ids) are one. Of an earlier list only what
    the list itself holds is known.
    """
    chosen = _list_row(sampled, row)
    if row["samples_at"] is None:
        assert chosen is not None
        return _of_list(chosen)
    samples = _of_samples(sampled, row)
    if chosen is not None:
        _add_list(samples, chosen)
    found = list(samples.values())
    return sorted(found, key=lambda one: -(one.reward if one.reward is not None else 0.0))


def _of_samples(sampled: Sampled, row: Mapping[str, Any]) -> dict[Any, Sample]:
    where = range(row["samples_at"], row["samples_at"] + row["n"])
    rows = sampled.samples.rows(where, SAMPLE_COLUMNS).to_pylist()
    scores: Sequence[Row] = [{}] * len(rows)
    if sampled.scores is not None:
        scores = sampled.scores.rows(where, SCORE_COLUMNS).to_pylist()
        _check_same(rows, scores, sampled.scores)
    reasons = _left_out(sampled, row["prompt_id"])
    found: dict[Any, Sample] = {}
    for sample, score in zip(rows, scores, strict=True):
        one = found.setdefault(
            _key(sample["completion_token_ids"], sample["finish_reason"]),
            Sample(
                sample["completion"],
                len(sample["completion_token_ids"]),
                sample["finish_reason"],
                score.get("reward"),
                score.get("parse_ok"),
                score.get("box"),
                sample["sampler_logprob"],
            ),
        )
        one.count += 1
        if reason := reasons.get(sample["sample_id"]):
            one.left_out[reason] += 1
    return found


def _check_same(samples: Sequence[Row], scores: Sequence[Row], version: Version) -> None:
    names = SAMPLES.role("key")
    keys = [[tuple(row[name] for name in names) for row in rows] for rows in (samples, scores)]
    if keys[0] != keys[1]:
        raise ArtifactError(
            "the samples and scores do not have the same rows",
            where=str(version.path),
            fix=f"remove the scores and run: {version.remake()}",
        )


def _key(token_ids: Sequence[int], finish_reason: str) -> tuple[tuple[int, ...], str]:
    return tuple(token_ids), finish_reason


def _left_out(sampled: Sampled, prompt_id: str) -> dict[int, str]:
    """Why samples of a prompt are not in its list, by sample_id."""
    if sampled.preferences is None:
        return {}
    rows = _where(
        sampled.preferences.table("dropped", ["prompt_id", "sample_id", "reason"]), prompt_id
    )
    return {r["sample_id"]: r["reason"] for r in rows if r["sample_id"] is not None}


def _list_row(sampled: Sampled, row: Mapping[str, Any]) -> Row | None:
    """The prompt's list, with `ref_logps` (None before training); None without a list."""
    at = row.get("list_at")
    if sampled.preferences is None or at is None:
        return None
    found = _one(sampled.preferences.rows(range(at, at + 1), LIST_COLUMNS))
    reference = sampled.reference
    logps = [] if reference is None else _reference_rows(reference, at, row["prompt_id"])
    return {**found, "ref_logps": logps[0]["ref_logps"] if logps else None}


def _reference_rows(reference: Version, at: int, prompt_id: str) -> list[Row]:
    """They are in the order of the lists; where a training had some of the lists, searched for."""
    if at < reference.manifest["rows"]:
        row = _one(reference.rows(range(at, at + 1)))
        if row["prompt_id"] == prompt_id:
            return [row]
    return _where(reference.table(), prompt_id)


def _of_list(row: Row) -> list[Sample]:
    columns = ("completions", "completion_token_ids", "finish_reasons", "rewards", "parse_ok")
    logps = row["ref_logps"] or [None] * len(row["completions"])
    each = zip(*(row[name] for name in columns), row["counts"], logps, strict=True)
    return [
        Sample(text, len(ids), reason, reward, ok, ref_logp=logp, count=count, in_list=count)
        for text, ids, reason, reward, ok, count, logp in each
    ]


def _add_list(samples: Mapping[Any, Sample], row: Row) -> None:
    """What the list says of its answers."""
    for one in samples.values():
        one.in_list = 0
    keys = map(_key, row["completion_token_ids"], row["finish_reasons"])
    logps = row["ref_logps"] or [None] * len(row["counts"])
    for key, count, logp in zip(keys, row["counts"], logps, strict=True):
        if key in samples:
            samples[key].in_list, samples[key].ref_logp = count, logp


def read_predictions(test_set: TestSet, row: Mapping[str, Any]) -> list[Prediction]:
    """Each model's answer to a prompt, in the order of the test set; `row` is that of the index."""
    found = []
    for model, version in test_set.predictions.items():
        at = row[f"{AT}{model}"]
        if at is None:
            continue
        one = _one(version.rows(range(at, at + 1), PREDICTION_COLUMNS))
        is_other = one["image_prompt_id"] != one["prompt_id"] and not model.endswith(BLANK_IMAGE)
        found.append(
            Prediction(
                model,
                one["completion"],
                one["reward"],
                one["parse_ok"],
                one["box"],
                one["finish_reason"],
                one["image_prompt_id"] if is_other else None,
            )
        )
    return found


def _one(table: pa.Table) -> Row:
    (row,) = table.to_pylist()
    return dict(row)


def _where(table: pa.Table, prompt_id: str) -> list[Row]:
    return pl.DataFrame(table).filter(pl.col("prompt_id") == prompt_id).to_dicts()
