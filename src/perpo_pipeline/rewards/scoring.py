"""Score completions in memory: what `perpo score` writes, for any stage that needs rewards."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from perpo_pipeline import advice
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.rewards.builtin import Answers, Measured
from perpo_pipeline.rewards.choice import columns_of, measure
from perpo_pipeline.store.schemas import BOX, PROMPTS, SAMPLES, SCORES

TRUTH_COLUMNS = PROMPTS.pick("prompt_id", "task", "width", "height", role="truth")
KEYS = list(SAMPLES.role("key"))


def score_samples(
    samples: pa.Table,
    prompts: pa.Table,
    *,
    reward: str | Mapping[str, float],
    reading: Reading,
    normalise: Sequence[str] = (),
) -> pa.Table:
    """Score completions; the result has SCORES' columns and the rows of `samples`, in order.

    `samples` needs prompt_id, sample_id, completion, and `resized` in the frame of that name;
    `prompts` the columns that `rewards.choice.columns_of` names; `reward` is the name of a reward,
    or several with their weights; `reading` says how completions are read, `normalise` what counts
    as the same text (normalise.py). Raises `ArtifactError` if a sample's prompt, the truth that the
    reward needs, or a size that the frame needs is missing.
    """
    weights = {reward: 1.0} if isinstance(reward, str) else reward
    rows = pl.DataFrame(samples.select(sample_columns(reading)))
    truth = pl.DataFrame(prompts.select(columns_of(weights)))
    joined = rows.join(truth, on="prompt_id", how="left", maintain_order="left")
    answers = join_truth(rows, joined, reading, normalise)
    return scores_table(answers, measure(answers, weights))


def sample_columns(reading: Reading) -> list[str]:
    """Columns of the samples that scoring reads."""
    return [*KEYS, "completion"] + ["resized"] * (reading.box_frame == "resized")


def join_truth(
    rows: pl.DataFrame, joined: pl.DataFrame, reading: Reading, normalise: Sequence[str] = ()
) -> Answers:
    """The answers with their prompts; raises `ArtifactError` for an answer without its prompt."""
    lost = joined.filter(pl.col("task").is_null())
    if lost.height:
        raise ArtifactError(
            f"{lost.height} samples belong to no prompt, the first to {lost['prompt_id'][0]}",
            fix="give the prompts that were sampled with --prompts",
        )
    if joined.height != rows.height:
        raise ArtifactError(
            "a prompt_id occurs twice among the prompts",
            fix=f"remove them and run: {advice.command('prepare')}",
        )
    return Answers(joined, reading, normalise)


def scores_table(answers: Answers, found: Measured) -> pa.Table:
    """SCORES rows of answers that are joined with their prompts."""
    return pa.table(
        [
            answers.rows["prompt_id"].to_arrow().cast(pa.string()),
            answers.rows["sample_id"].to_arrow(),
            pa.array(found.rewards),
            pa.array(found.parse_ok),
            _box_column(found.boxes),
        ],
        schema=SCORES.columns,
    )


def _box_column(boxes: npt.NDArray[np.float64]) -> pa.Array:
    """(n, 4) boxes as lists, null where NaN."""
    is_nowhere = np.isnan(boxes[:, 0])
    offsets = np.concatenate([[0], np.cumsum(np.where(is_nowhere, 0, 4))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(boxes[~is_nowhere].ravel()),
        type=BOX,
        mask=pa.array(is_nowhere),
    )
