"""The prompts of preferences: of new lists, and of earlier ones that are trained on again.

Each list belongs to the prompts that it was sampled for: a prompt_id alone says nothing about the
question and the image.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.store.artifacts import Version, input_of, open_version


def num_new_lists(preferences: Version) -> int:
    """How many lists come from the samples of these preferences: its first rows.

    The rows after them are lists of earlier preferences (`filter.earlier`).
    """
    manifest = preferences.manifest
    return int(manifest["rows"]) - int(manifest["counts"].get("earlier", {}).get("kept", 0))


def new_lists_by_task(preferences: Version) -> Counter[str]:
    """How many of the lists of `num_new_lists` have prompts of each task."""
    tasks = preferences.table(columns=["task"])["task"].to_pylist()
    return Counter(tasks[: num_new_lists(preferences)])


def prompts_with_lists(preferences: Version) -> list[tuple[Version, set[str]]]:
    """The prompts artifacts of all lists, each once, with the prompt_ids of the lists it has here.

    Those of the new lists come first, then those of the earlier ones. An earlier artifact may have
    no list here. Raises `ArtifactError` if an artifact is not there.
    """
    found: dict[Path, tuple[Version, set[str]]] = {}
    for filtered, ids in filterings_of_lists(preferences):
        prompts = input_of(filtered, "prompts")
        found.setdefault(prompts.path.resolve(), (prompts, set()))[1].update(ids)
    return list(found.values())


def filterings_of_lists(preferences: Version) -> Iterator[tuple[Version, set[str]]]:
    """The preferences that all lists were new in, with the prompt_ids of those lists.

    First these preferences, then the earlier ones, which may have no list here.
    """
    at: Version | None = preferences
    wanted: set[str] | None = None
    while at is not None:
        ids = at.table(columns=["prompt_id"])["prompt_id"].to_pylist()
        wanted = set(ids) if wanted is None else wanted
        new = set(ids[: num_new_lists(at)])
        yield at, wanted & new
        wanted -= new
        at = _earlier_of(at)


def prompts_of_lists(preferences: Version) -> list[Version]:
    """The artifacts of `prompts_with_lists`."""
    return [prompts for prompts, _ in prompts_with_lists(preferences)]


def rows_of_prompts(preferences: Version, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the prompts of all lists, part by part, each from the list's own artifact.

    `columns` has prompt_id. Raises `ArtifactError` if an artifact is not there.
    """
    for prompts, ids in prompts_with_lists(preferences):
        wanted = pa.array(sorted(ids), pa.string())
        for part in prompts.batches(columns):
            yield part.filter(pc.is_in(part["prompt_id"], wanted))


def _earlier_of(preferences: Version) -> Version | None:
    """The preferences of which these have lists, too; None without them."""
    for record in preferences.manifest["inputs"].values():
        if record["artifact"] == preferences.artifact:
            return open_version(preferences.path / record["path"])
    return None
