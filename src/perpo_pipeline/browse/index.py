"""A row per prompt with the numbers that views sort and filter by, from small columns alone.

`at` is a row's place in its artifact, counted over all parts: what a page shows of a prompt is read
from there when it is asked for.
"""

from collections.abc import Sequence

import polars as pl

from perpo_pipeline.browse.versions import Sampled, TestSet
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.list_prompts import num_new_lists
from perpo_pipeline.store.prompt_lookup import check_unique
from perpo_pipeline.store.schemas import PROMPTS

PROMPT_COLUMNS = PROMPTS.pick("prompt_id", "dataset", "task", "place", "prompt")
REWARD = "reward."
"""Before the name of a model: the column of its rewards."""
AT = "at."


def sampled_index(sampled: Sampled) -> pl.DataFrame:
    """All sampled prompts in their order, then those of earlier lists.

    Columns: those of PROMPT_COLUMNS, `prompts` (a fingerprint) and `prompt_at`; `samples_at`, `n`;
    with scores `rewards` (a list), `best`, `mean`, `worst`, `margin` (of all samples, or of the
    list as it was filtered) and `parsed` (a share); with lists `reason` (null if it was kept) and
    `list_at` (null if it was not). Of an earlier list the rewards are those in the list; `n` and
    `samples_at` are null.
    """
    rows = _samples(sampled)
    if sampled.scores is not None:
        reward = pl.col("rewards")
        rows = rows.with_columns(
            best=reward.list.max(), mean=reward.list.mean(), worst=reward.list.min()
        ).with_columns(margin=pl.col("best") - pl.col("worst"))
    if sampled.preferences is not None:
        rows = _with_lists(rows, sampled.preferences)
    prompts = pl.concat([prompt_rows(one) for one in (sampled.prompts, *sampled.others)])
    is_own = prompts["prompts"] == sampled.prompts.fingerprint
    known = pl.concat([prompts.filter(is_own), prompts.filter(~is_own)])
    return rows.join(known.unique("prompt_id", keep="first"), "prompt_id", "left").sort("order")


def prompt_rows(prompts: Version) -> pl.DataFrame:
    """PROMPT_COLUMNS of all prompts, `prompts` and `prompt_at`."""
    parts = [pl.DataFrame(part) for part in prompts.batches(PROMPT_COLUMNS)]
    empty = pl.DataFrame(schema=dict.fromkeys(PROMPT_COLUMNS, pl.String))
    return (
        pl.concat([empty, *parts])
        .with_row_index("prompt_at")
        .with_columns(
            pl.col("dataset", "task").cast(pl.Categorical),
            prompts=pl.lit(prompts.fingerprint),
        )
    )


def _samples(sampled: Sampled) -> pl.DataFrame:
    """A row per list of samples; those of scores have the same rows in the same order."""
    version, columns = sampled.samples, ["prompt_id"]
    if sampled.scores is not None:
        version, columns = sampled.scores, ["prompt_id", "reward", "parse_ok"]
        if version.manifest["rows"] != sampled.samples.manifest["rows"]:
            raise ArtifactError(
                "the samples and scores do not have the same rows",
                where=f"{sampled.samples.path} and {version.path}",
                fix=f"remove the scores and run: {version.remake()}",
            )
    measured = (
        {"rewards": pl.col("reward"), "parsed": pl.col("parse_ok").mean()}
        if sampled.scores is not None
        else {}
    )
    lists, start = [], 0
    for part in version.batches(columns):
        rows = pl.DataFrame(part).with_row_index("row", offset=start)
        row = pl.col("row")
        lists.append(
            rows.group_by("prompt_id", maintain_order=True).agg(
                samples_at=row.min(), last=row.max(), n=pl.len(), **measured
            )
        )
        start += rows.height
    if not lists:
        raise ArtifactError(
            "the artifact holds no rows",
            where=str(version.path),
            fix=f"remove it and run: {version.remake()}",
        )
    found = pl.concat(lists).with_row_index("order")
    check_unique(found, ["prompt_id"], str(version.path), version)
    if (found["last"] - found["samples_at"] + 1 != found["n"]).any():
        raise ArtifactError(
            "the samples of a prompt are not in consecutive rows",
            where=str(version.path),
            fix=f"remove them and run: {version.remake()}",
        )
    return found.drop("last")


def _with_lists(rows: pl.DataFrame, preferences: Version) -> pl.DataFrame:
    """The rows with why their list was dropped, or where it is; earlier lists are added."""
    lists = pl.DataFrame(preferences.table(columns=["prompt_id", "task", "margin"]))
    lists = lists.select("prompt_id", list_margin="margin").with_row_index("list_at")
    new = lists.head(num_new_lists(preferences))
    earlier = lists.slice(new.height).with_columns(
        order=pl.int_range(rows.height, rows.height + lists.height - new.height, dtype=pl.UInt32)
    )
    if earlier.height:
        earlier = earlier.join(_measured(preferences), "prompt_id", "left")
    dropped = pl.DataFrame(preferences.table("dropped"))
    dropped = dropped.filter(pl.col("sample_id").is_null()).select(
        "prompt_id", "reason", dropped_margin="margin"
    )
    joined = rows.join(dropped, "prompt_id", "left").join(new, "prompt_id", "left")
    found = pl.concat([joined, earlier], how="diagonal")
    margin = pl.coalesce("list_margin", "dropped_margin", "margin")
    return found.with_columns(margin=margin).drop("list_margin", "dropped_margin")


def _measured(preferences: Version) -> pl.DataFrame:
    """What earlier lists know of their rewards, which are in no scores of this run."""
    columns = ["prompt_id", "rewards", "parse_ok", "counts"]
    lists = pl.DataFrame(preferences.table(columns=columns)).slice(num_new_lists(preferences))
    reward, count = pl.col("rewards"), pl.col("counts")
    each = lists.explode("rewards", "parse_ok", "counts").group_by("prompt_id")
    return each.agg(
        reward,
        best=reward.max(),
        mean=(reward * count).sum() / count.sum(),
        worst=reward.min(),
        parsed=(pl.col("parse_ok") * count).sum() / count.sum(),
    )


def predicted_index(test_set: TestSet) -> pl.DataFrame:
    """All prompts of a split with, for each model, its reward and where its prediction is.

    Both are null where a model was not asked, as with the prompts beyond eval.condition_prompts.
    """
    rows = prompt_rows(test_set.prompts).with_row_index("order")
    for model, version in test_set.predictions.items():
        found = pl.DataFrame(version.table(columns=["prompt_id", "reward"]))
        check_unique(found, ["prompt_id"], str(version.path), version)
        named = found.rename({"reward": f"{REWARD}{model}"}).with_row_index(f"{AT}{model}")
        rows = rows.join(named, "prompt_id", "left", maintain_order="left")
    return rows


def row_of(rows: pl.DataFrame, prompt_id: str) -> int | None:
    """The row of a prompt; None if it has none."""
    found = (rows["prompt_id"] == prompt_id).arg_true()
    return int(found[0]) if len(found) else None


def different(rows: pl.DataFrame, column: str) -> Sequence[str]:
    """The values that a column of texts has, sorted."""
    return rows[column].drop_nulls().cast(pl.String).unique().sort().to_list()
