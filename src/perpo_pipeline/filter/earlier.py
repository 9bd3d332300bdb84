"""Lists of an earlier filtering that are trained on again, beside the new ones.

Lists are known by prompt_id, which is made of a row's dataset, split and place in its file. So a
prompt_id that both have must stand for the same question, image and truth: `check_same_prompts`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.section import Json
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.list_prompts import prompts_of_lists
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.vlm.sampled_chats import chats_of_lists, sampled_chat, shown_beside

CONTENT = PROMPTS.pick(
    *("task", "prompt", "image_sha256", "more_image_facts", "box_image", "history"), role="truth"
)


def open_earlier(config: FilterConfig, place: Path) -> Mapping[str, Version]:
    """The preferences that `filter.earlier` names, as an input; empty without them.

    Raises `ArtifactError` if none are there, and `ConfigError` if it is `place`, where the stage
    writes: each call would add the lists of the call before.
    """
    if config.earlier is None:
        return {}
    if config.earlier.resolve() == place.resolve():
        raise ConfigError(
            "filter.earlier names the lists that this stage makes",
            where=str(place),
            fix="name those of another run, or one version of these: a folder in this one",
        )
    return {"earlier": open_version(config.earlier, "preferences")}


def check_same_prompts(prompts: Version, earlier: Mapping[str, Version]) -> None:
    """Raise `InputError` if new and earlier prompts share a prompt_id, but not its `CONTENT`.

    `prompts` are those of the new lists, `earlier` comes from `open_earlier`. Raises
    `ArtifactError` if prompts of earlier lists are not there.
    """
    new: dict[str, str] | None = None
    for one in (one for version in earlier.values() for one in prompts_of_lists(version)):
        if one.path.resolve() == prompts.path.resolve():
            continue
        new = new or dict(_digests(prompts))
        shared = [(key, digest == new[key]) for key, digest in _digests(one) if key in new]
        others = [key for key, is_same in shared if not is_same]
        if others:
            mine, theirs = _row(prompts, others[0]), _row(one, others[0])
            differ = [name for name in CONTENT if mine[name] != theirs[name]]
            raise InputError(
                f"{len(others):,} of the {len(shared):,} prompts whose prompt_id the new and the "
                f"earlier lists share are not the same prompts; the first is {name_prompt(mine)}: "
                f"{' and '.join(differ)} {'differs' if len(differ) == 1 else 'differ'}",
                where=f"{prompts.path} and {one.path}",
                fix="both data sets have the same names and places of rows: give the rows of one "
                "another `dataset` and begin with perpo prepare, or remove filter.earlier and "
                "filter.keep_earlier",
            )


def note_other_chats(run: Run, samples: Version, earlier: Mapping[str, Version]) -> None:
    """Say where earlier lists were sampled with another chat than the new ones.

    A training shows the model all of them in the chat of its own run.
    """
    new = sampled_chat(samples)
    for version in earlier.values():
        for chat, lists in chats_of_lists(version).items():
            if new is not None and chat != new:
                run.say(
                    f"filter: earlier lists ({lists}) were sampled with {shown_beside(chat, new)}, "
                    f"the new ones with {shown_beside(new, chat)}; a training shows the model all "
                    "of them as its own run says"
                )


def _digests(prompts: Version) -> Iterator[tuple[str, str]]:
    """Each prompt_id with a hash of its `CONTENT`, so that memory holds no texts."""
    for part in prompts.batches(["prompt_id", *CONTENT]):
        for row in part.to_pylist():
            content = repr([row[name] for name in CONTENT])
            yield row["prompt_id"], hashlib.sha256(content.encode()).hexdigest()


def _row(prompts: Version, prompt_id: str) -> Json:
    """The row of a prompt that is there."""
    parts = prompts.batches(["prompt_id", "place", *CONTENT])
    found = (part.filter(pc.equal(part["prompt_id"], prompt_id)).to_pylist() for part in parts)
    return next(row for rows in found for row in rows)


def choose_earlier(earlier: pl.DataFrame, new: pl.Series, share: float) -> pl.Series:
    """The prompt_ids of the earlier lists that are kept: of each task those of the widest margin.

    `earlier` has prompt_id, task and margin of every earlier list, `new` the prompt_ids of the new
    lists: their prompts get no earlier one. `share`, in (0, 1], is of all earlier lists of a task,
    rounded. Equal margins are ordered by the sha256 of the prompt_id, never by place.
    """
    ids = earlier["prompt_id"]
    ordered = earlier.with_columns(
        draw=pl.Series([hashlib.sha256(key.encode()).hexdigest() for key in ids], dtype=pl.String)
    ).sort(["margin", "draw"], descending=[True, False])
    chosen = [
        own.filter(~pl.col("prompt_id").is_in(new.implode()))["prompt_id"].head(
            round(share * own.height)
        )
        for own in ordered.partition_by("task", maintain_order=True)
    ]
    return pl.concat([pl.Series("prompt_id", [], pl.String), *chosen])


def write_earlier(
    run: Run,
    writer: Writer,
    earlier: Mapping[str, Version],
    new: pl.Series,
    config: FilterConfig,
    *,
    first_part: int,
) -> Json:
    """Write the earlier lists that are kept, from part `first_part` on; returns their counts.

    `earlier` comes from `open_earlier`, `new` are the prompt_ids of the new lists.
    """
    if config.keep_earlier is None:
        return {}
    (version,) = earlier.values()
    kept = 0
    for index, part in enumerate(_kept_parts(version, new, config.keep_earlier), first_part):
        kept += part.num_rows
        if not writer.has_part(index):
            writer.write_part(index, part)
    total = int(version.manifest["rows"])
    run.say(
        f"filter: {kept:,} of {total:,} earlier lists are trained on, too: those with the widest "
        "margin, of prompts without a new list"
    )
    return {"earlier": {"lists": total, "kept": kept}}


def _kept_parts(earlier: Version, new: pl.Series, share: float) -> Iterator[pa.Table]:
    """The lists of `choose_earlier` as PREFERENCES rows, in their order, part by part."""
    columns = ["prompt_id", "task", "margin"]
    chosen = choose_earlier(pl.DataFrame(earlier.table(columns=columns)), new, share)
    for part in earlier.batches():
        kept = part.filter(pc.is_in(part["prompt_id"], chosen.to_arrow()))
        if kept.num_rows:
            yield kept
