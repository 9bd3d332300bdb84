"""The prompts on which settings are measured: the same for all of them, and apart from others."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perpo_pipeline.config.fingerprints import counts_in
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.apart import refuse_meeting, rows_to_compare
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.prompt_images import hashes_of
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.sweep.file import SweepFile

Rows = list[dict[str, Any]]


def check_prompts(
    file: SweepFile, prompts: Mapping[str, Iterable[Version]], *, allowed: bool
) -> None:
    """Check the prompts of each measured split, of which there may be versions for some settings.

    Raises `ConfigError` where settings are measured on different prompts or true answers, and
    `InputError` where prompts on which a setting is chosen meet those on which it is reported
    (evaluate/apart.py; `allowed` is `eval.allow_train_images`).
    """
    rows: dict[str, Rows] = {}
    for split, versions in prompts.items():
        first, *others = versions
        rows[split] = rows_to_compare(first)
        for other in others:
            if _ids(rows_to_compare(other)) != _ids(rows[split]):
                raise _different(file, split, "prompts")
            if _truths(other) != _truths(first):
                raise _different(file, split, "true answers")
    if file.select_on in rows and file.report_on in rows:
        use = f"of '{file.select_on}', on which settings are chosen"
        splits = (file.select_on, file.report_on)
        refuse_meeting(rows[splits[0]], rows[splits[1]], splits, use, allowed=allowed)


def _ids(rows: Rows) -> Sequence[tuple[str, list[str]]]:
    """The prompts and their images; how a question is worded may depend on a setting."""
    return [(row["prompt_id"], hashes_of(row)) for row in rows]


def _truths(prompts: Version) -> Rows:
    columns = PROMPTS.pick("prompt_id", role="truth")
    return list(prompts.table(columns=columns).to_pylist())


def _different(file: SweepFile, split: str, what: str) -> ConfigError:
    named = [key for names in file.together() for key in names if "prompts" in counts_in(key)]
    keys = [key for key in named if key.split(".")[0] != "prepare" or key.split(".")[1] == split]
    return ConfigError(
        f"parameters: {' and '.join(keys)}: other values give other {what} of '{split}', on which "
        "the settings are compared",
        where=f"the sweep {file.sweep}",
        fix="remove it from `parameters`; `set` gives every cell the same value",
    )
