"""The prompts, lists and reward of our run in the form that TRL's trainers read."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.export.export_run import Request, export
from perpo_pipeline.export.files import DATA
from perpo_pipeline.rewards.choice import columns_of
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.vlm.images import load_image
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
    return _exported(config, "trl")


def best_answers(config: RunConfig) -> list[Row]:
    """The best completion of each of our lists: rejection sampling."""
    return _exported(config, "sft")


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


def _exported(config: RunConfig, to: str) -> list[Row]:
    """What `perpo export --to` writes, the images opened as our stages open them."""
    with tempfile.TemporaryDirectory() as folder:
        out = export(
            Run(config, quiet=True), "train", Path(folder) / to, Request(to, None, None, True)
        )
        rows = pq.read_table(out / DATA).to_pylist()
    return [
        row
        | {"images": [load_image(one["bytes"], where=row["prompt_id"]) for one in row["images"]]}
        for row in rows
    ]
