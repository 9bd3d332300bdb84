"""The prompts, lists and reward of our run in the form that TRL's trainers read."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.rewards.choice import columns_of
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.train.lists import best_against_worst, ranked_lists
from perpo_pipeline.vlm.inputs import encode_row, prompt_image

Row = dict[str, Any]
CHECKED = 8  # prompts whose token ids are compared


def prompt_rows(config: RunConfig) -> list[Row]:
    """The training prompts of the run."""
    return list(Run(config).latest("prompts", "train").table().to_pylist())


def asked(row: Row) -> Row:
    """A prompt as TRL documents it for models with images; the image is placed by TRL."""
    message = {"role": "user", "content": row["prompt"]}
    return {"prompt_id": row["prompt_id"], "prompt": [message], "image": prompt_image(row)}


def pairs(config: RunConfig) -> list[Row]:
    """Best and worst completion of each of our lists, as our own DPO chooses them."""
    return [
        asked(prompt) | {"chosen": _answer(best), "rejected": _answer(worst)}
        for prompt, best, worst in _best_and_worst(config)
    ]


def best_answers(config: RunConfig) -> list[Row]:
    """The best completion of each of our lists: rejection sampling."""
    return [
        asked(prompt) | {"completion": _answer(best)} for prompt, best, _ in _best_and_worst(config)
    ]


def reward_of(config: RunConfig) -> Callable[..., list[float]]:
    """The run's reward as TRL calls one; it is what `perpo score` computes."""
    weights = config.score.reward
    truth = Run(config).latest("prompts", "train").table(columns=columns_of(weights))

    def reward(completions: Sequence[Any], prompt_id: Sequence[str], **_: Any) -> list[float]:
        texts = [one[0]["content"] for one in completions]
        samples = pa.table(
            {"prompt_id": prompt_id, "sample_id": range(len(texts)), "completion": texts}
        )
        scored = score_samples(
            samples,
            truth,
            reward=weights,
            reading=config.model.reading(),
            normalise=config.score.normalise,
        )
        return [float(value) for value in scored["reward"].to_pylist()]

    return reward


def check_prompts(vlm: Any, rows: Sequence[Row], ids: Sequence[Sequence[int]], how: str) -> None:
    """Raise AssertionError unless TRL reads the same prompts as our stages do, token by token."""
    for row, found in zip(rows, ids, strict=True):
        ours = encode_row(vlm, row, how).input_ids.tolist()
        assert list(found) == ours, f"prompt {row['prompt_id']}: {list(found)} instead of {ours}"


def _best_and_worst(config: RunConfig) -> list[tuple[Row, str, str]]:
    prompts = {row["prompt_id"]: row for row in prompt_rows(config)}
    kept = Run(config).latest("preferences", "train").table().to_pylist()
    found = []
    for row, entry in zip(kept, ranked_lists(kept, prompts), strict=True):
        ids = row["completion_token_ids"]
        texts = [
            row["completions"][ids.index(one)] for one in best_against_worst(entry).completions
        ]
        found.append((prompts[row["prompt_id"]], *texts))
    return found


def _answer(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]
