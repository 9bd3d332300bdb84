"""`perpo score`: every completion is measured against the truth -> the scores artifact.

The core, `score_samples`, is pure; rows keep the order of the samples. Parts are scored on all
cores, a few at a time, and written in order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.artifacts import Recipe, Version, Writer, input_of
from perpo_pipeline.boxes import describe_box_format
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.machine import cores
from perpo_pipeline.prompt_lookup import PromptLookup, check_unique
from perpo_pipeline.rewards.choice import (
    AUTO,
    REWARDS,
    Answers,
    columns_of,
    measure,
    own_rewards,
    try_own,
)
from perpo_pipeline.schemas import BOX, SCORES
from perpo_pipeline.stage import Run, make

STAGE_VERSION = 2
TRUTH_COLUMNS = [
    "prompt_id", "task", "width", "height", "gt_text", "gt_box", "gt_boxes", "gt_polygon",
]  # fmt: skip
KEYS = ["prompt_id", "sample_id"]
MOSTLY_UNPARSED = 0.9  # of the answers: then the settings are to blame, not the model


def score(run: Run, split: str) -> Version:
    """Write the scores of the run's samples of one split."""
    samples = run.latest("samples", split)
    prompts = run.latest("prompts") if "prompts" in run.inputs else input_of(samples, "prompts")
    model, weights = run.config.model, run.config.score.weights()
    own = own_rewards(weights)
    settings: dict[str, Any] = {"reward": weights, "own_rewards": own}
    if any(name == AUTO or (name in REWARDS and REWARDS[name].reads_geometry) for name in weights):
        settings |= {
            "box_format": describe_box_format(model.box_format), "box_frame": model.box_frame,
        }  # fmt: skip
    recipe = Recipe("scores", split, "score", STAGE_VERSION, settings,
                    {"samples": samples, "prompts": prompts})  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        lookup = PromptLookup(prompts, columns_of(weights))
        columns = _sample_columns(model.box_frame)
        todo = [i for i in range(len(samples.parts())) if not writer.has_part(i)]

        def answers_of(index: int) -> Answers:
            rows = pl.DataFrame(samples.part(index, columns))
            check_unique(rows, KEYS, str(samples.parts()[index]), "perpo sample")
            return _joined(rows, lookup.join(rows), model.box_format, model.box_frame)

        for name in own if todo else ():
            try_own(answers_of(todo[0]), name)
        workers = 1 if own else cores()
        scored = _in_order(todo, lambda i: _score(answers_of(i), weights), workers)
        for index, part in run.progress(scored, f"score {split}", len(todo)):
            writer.write_part(index, part)
        counts = _count(writer)
        run.say(f"score {split}: {_summary(counts, weights)}")
        if doubt := reading_doubt(counts["unparsed"], counts["rows"]):
            run.say(f"score {split}: {doubt} (model.box_format is {model.box_format})")
        return counts

    return make(run, recipe, work, out=run.out)


def score_samples(
    samples: pa.Table, prompts: pa.Table, *, reward: str | Mapping[str, float],
    box_format: str, box_frame: str,
) -> pa.Table:  # fmt: skip
    """Score completions; the result has SCORES' columns and the rows of `samples`, in order.

    `samples` needs prompt_id, sample_id, completion, and `resized` in the frame of that name;
    `prompts` the columns that `rewards.choice.columns_of` names; `reward` is a name of
    rewards/choice.py, or several with their weights. Raises `ArtifactError` if a sample's prompt,
    the truth that the reward needs, or a size that the frame needs is missing.
    """
    weights = {reward: 1.0} if isinstance(reward, str) else reward
    rows = pl.DataFrame(samples.select(_sample_columns(box_frame)))
    truth = pl.DataFrame(prompts.select(columns_of(weights)))
    joined = rows.join(truth, on="prompt_id", how="left", maintain_order="left")
    return _score(_joined(rows, joined, box_format, box_frame), weights)


def _sample_columns(box_frame: str) -> list[str]:
    return [*KEYS, "completion"] + ["resized"] * (box_frame == "resized")


def _joined(rows: pl.DataFrame, joined: pl.DataFrame, box_format: str, box_frame: str) -> Answers:
    """The answers with their prompts; raises `ArtifactError` where there is no such prompt."""
    lost = joined.filter(pl.col("task").is_null())
    if lost.height:
        raise ArtifactError(
            f"{lost.height} samples belong to no prompt, the first to {lost['prompt_id'][0]}",
            fix="give the prompts that were sampled with --prompts",
        )
    if joined.height != rows.height:
        raise ArtifactError(
            "a prompt_id occurs twice among the prompts", fix="rerun `perpo prepare`"
        )
    return Answers(joined, box_format, box_frame)


def _score(answers: Answers, weights: Mapping[str, float]) -> pa.Table:
    found = measure(answers, weights)
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


def _in_order(
    indices: Sequence[int], work: Callable[[int], pa.Table], workers: int
) -> Iterator[tuple[int, pa.Table]]:
    """(index, work(index)) in order, on several threads with a few results ahead.

    Threads are enough: what is slow (Polars, NumPy, RapidFuzz, Shapely) lets others run meanwhile.
    """
    ahead: deque[tuple[int, Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in indices:
                ahead.append((index, pool.submit(work, index)))
                if len(ahead) > 2 * workers:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def reading_doubt(unparsed: int, rows: int) -> str | None:
    """What to tell where hardly any answer could be read, or None."""
    if unparsed < MOSTLY_UNPARSED * rows or not rows:
        return None
    return f"only {rows - unparsed} of {rows} answers could be read: is the box format theirs?"


def _count(writer: Writer) -> dict[str, Any]:
    rows = unparsed = 0
    rewards = 0.0
    for part in writer.read_rows(["reward", "parse_ok"]):
        rows += part.num_rows
        unparsed += part.num_rows - int(pc.sum(part["parse_ok"]).as_py() or 0)
        rewards += float(pc.sum(part["reward"]).as_py() or 0.0)
    return {"rows": rows, "unparsed": unparsed, "mean_reward": rewards / rows if rows else None}


def _summary(counts: Mapping[str, Any], weights: Mapping[str, float]) -> str:
    mean, rows = counts["mean_reward"], counts["rows"]
    if mean is None:
        return "no completions"
    parsed = (rows - counts["unparsed"]) / rows
    return f"mean reward {mean:.3f} ({', '.join(weights)}), {parsed:.1%} of the answers parsed"
