"""`perpo score`: measures every completion against the truth -> the scores artifact.

The core, `score_samples`, is pure; rows keep the order of the samples. Parts are scored on all
cores, a few at a time, and written in order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.config.fingerprints import (
    STAGE_VERSIONS,
    counted_settings,
    reading_settings,
)
from perpo_pipeline.machine import cores
from perpo_pipeline.rewards.builtin import Answers, Measured
from perpo_pipeline.rewards.choice import columns_of, compares_texts, measure
from perpo_pipeline.rewards.doubts import Doubts
from perpo_pipeline.rewards.normalise import named_forms
from perpo_pipeline.rewards.own import own_rewards, try_own
from perpo_pipeline.rewards.scoring import (
    KEYS,
    join_truth,
    sample_columns,
    scores_table,
)
from perpo_pipeline.run import Run, make
from perpo_pipeline.score.examples import example_lines
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.places import prompts_named
from perpo_pipeline.store.prompt_lookup import PromptLookup, check_unique
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = STAGE_VERSIONS["scores"]
Done = TypeVar("Done")


def score(run: Run, split: str) -> Version:
    """Write the scores of the run's samples of one split."""
    samples = run.latest("samples", split)
    prompts = run.latest("prompts") if "prompts" in run.inputs else input_of(samples, "prompts")
    model, weights = run.config.model, run.config.score.weights()
    reading, normalise = model.reading(), run.config.score.normalise
    own = own_rewards(weights)
    found = {"reward": weights, "own_rewards": own, **reading_settings(model)}
    settings = counted_settings("scores", run.config.score, found)
    recipe = Recipe(
        "scores", split, "score", STAGE_VERSION, settings, {"samples": samples, "prompts": prompts}
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        lookup = PromptLookup(prompts, columns_of(weights))
        columns = sample_columns(reading)
        todo = [i for i in range(len(samples.parts())) if not writer.has_part(i)]

        def answers_of(index: int) -> Answers:
            rows = pl.DataFrame(samples.part(index, columns))
            check_unique(rows, KEYS, str(samples.parts()[index]), samples)
            return join_truth(rows, lookup.join(rows), reading, normalise)

        for name in own if todo else ():
            try_own(answers_of(todo[0]), name)
        workers = 1 if own else cores()
        doubts = Doubts(reading)

        def scored_part(index: int) -> tuple[pa.Table, Measured, pl.Series]:
            answers = answers_of(index)
            found = measure(answers, weights)
            return scores_table(answers, found), found, answers.texts

        scored = _in_order(todo, scored_part, workers)
        for index, (part, found, texts) in run.progress(
            scored, f"score {split}", len(todo), "parts"
        ):
            writer.write_part(index, part)
            doubts.add(found, texts)
        for index in set(range(len(samples.parts()))) - set(todo):  # by an earlier sitting
            read = writer.read_part(index, ["parse_ok"])["parse_ok"].to_numpy()
            doubts.add_texts(read, answers_of(index).texts)
        counts = _count(writer) | {"empty": doubts.empty}
        run.say(f"score {split}: {_summary(counts, weights)}")
        if len(prompts.table(columns=["task"])["task"].unique()) > 1:
            for line in _task_lines(writer, lookup):
                run.say(f"score {split}: {line}")
        if normalise and any(map(compares_texts, weights)):
            run.say(f"score {split}: {named_forms(normalise)}")
        for line in doubts.lines():
            run.say(f"score {split}: {line}")
        if examples := example_lines(writer, samples, prompts):
            run.say("\n".join([f"score {split}: examples", *examples]))
        return counts

    with prompts_named(prompts):
        return make(run, recipe, work, out=run.out)


def _in_order(
    indices: Sequence[int], work: Callable[[int], Done], workers: int
) -> Iterator[tuple[int, Done]]:
    """(index, work(index)) in order, on several threads with a few results ahead.

    Threads are enough: the slow parts (Polars, NumPy, RapidFuzz, Shapely) release the GIL.
    """
    ahead: deque[tuple[int, Future[Done]]] = deque()
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


def _count(writer: Writer) -> dict[str, Any]:
    rows = unparsed = 0
    rewards = 0.0
    for part in writer.read_rows(["reward", "parse_ok"]):
        rows += part.num_rows
        unparsed += part.num_rows - int(pc.sum(part["parse_ok"]).as_py() or 0)
        rewards += float(pc.sum(part["reward"]).as_py() or 0.0)
    return {"rows": rows, "unparsed": unparsed, "mean_reward": rewards / rows if rows else None}


def _task_lines(writer: Writer, lookup: PromptLookup) -> Iterator[str]:
    """The mean reward and the parse rate of each task's completions."""
    parts = [
        lookup.join(pl.DataFrame(part))
        .group_by("task", maintain_order=True)
        .agg(pl.len(), pl.sum("reward"), pl.sum("parse_ok"))
        for part in writer.read_rows(["prompt_id", "reward", "parse_ok"])
    ]
    every = pl.concat(parts).group_by("task", maintain_order=True).sum()
    for task, n, reward, parsed in every.iter_rows():
        yield (
            f"{task}: mean reward {reward / n:.3f}, {parsed / n:.1%} of its {n:,} answers parsed"
        )


def _summary(counts: Mapping[str, Any], weights: Mapping[str, float]) -> str:
    mean, rows = counts["mean_reward"], counts["rows"]
    if mean is None:
        return "no completions"
    parsed, empty = (rows - counts["unparsed"] - counts["empty"]) / rows, counts["empty"] / rows
    rest = f", {empty:.1%} empty" if empty else ""
    return (
        f"mean reward {mean:.3f} ({', '.join(weights)}), {parsed:.1%} of the answers parsed{rest}"
    )
