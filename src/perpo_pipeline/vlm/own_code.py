"""Python code that comes with a model: which files it is, and whether it may run.

transformers imports what a model's settings name under `auto_map`. It runs only where
`model.trust_remote_code` says so, and only from the model's own folder: a local one, or the
snapshot of one commit. So the code that a user has read is the code that runs, in every stage.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perpo_pipeline import bars
from perpo_pipeline.errors import ConfigError, InputError

CODE_PATTERNS = ("*.py",)  # transformers imports files beside the settings, in no folder of theirs
SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
# With this file transformers replaces the model's `generate`; no settings name it.
GENERATE = "custom_generate/generate.py"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def named_code(folder: Path) -> dict[str, str]:
    """What the settings in a model's folder name as code: `file.Class`, or `repository--file.Class`
    for code from elsewhere, each with the settings' file that names it."""
    found: dict[str, str] = {}
    for name in SETTINGS:
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found |= {reference: name for reference in _references(settings) if reference not in found}
    return found


def _references(settings: Any) -> Iterator[str]:
    """Of all `auto_map`s: a processor's settings hold those of its parts."""
    if isinstance(settings, list):
        for value in settings:
            yield from _references(value)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key == "auto_map" and isinstance(value, dict | list):
            # A list is the older form of a tokenizer's. Of these there are two, one perhaps null.
            for named in value.values() if isinstance(value, dict) else value:
                both = named if isinstance(named, list) else [named]
                yield from (one for one in both if isinstance(one, str))
        else:
            yield from _references(value)


def code_files(folder: Path) -> list[str]:
    """The files of code that the settings in a model's folder name."""
    return sorted({file_of(reference) for reference in named_code(folder)})


def file_of(reference: str) -> str:
    """The file of code that a reference names."""
    return f"{reference.rpartition('--')[2].rpartition('.')[0]}.py"


def has_code(folder: Path) -> bool:
    """Whether the model in a folder asks for code; raises InputError for code from elsewhere, and
    for a `generate` of its own.

    Code of another repository has no commit of this one's, so it could be another one tomorrow; and
    only files beside the settings identify a local model.
    """
    references = named_code(folder)
    for reference, name in references.items():
        if "--" in reference:
            other = reference.partition("--")[0]
            raise InputError(
                f"the model's {name} takes its code from another repository ({other}), of which no "
                "commit is fixed",
                where=str(folder),
                fix=f"copy the code of {other} into a local folder of the model, remove {other}-- "
                f"from {name}, and give that folder as model.id",
            )
        if (file := file_of(reference)) != Path(file).name:
            raise InputError(
                f"the model's {name} takes its code from another folder ({file})",
                where=str(folder),
                fix=f"put the code beside {name}, and name it there without a folder",
            )
    if references and (folder / GENERATE).is_file():
        raise InputError(
            f"the model's own code replaces how answers are sampled ({GENERATE}), which perpo does "
            "not use",
            where=str(folder),
            fix="copy the model into a local folder without custom_generate, and give that folder "
            "as model.id",
        )
    return bool(references)


def code_is_complete(folder: Path) -> bool:
    """Whether all files of code that a model's settings name are in its folder.

    What these import is beside them: transformers asks for it by name, too.
    """
    return all((folder / file).is_file() for file in code_files(folder))


def check_pinned(model_id: str, revision: str | None) -> None:
    """Raise ConfigError for a hub model whose code could change under a name of a revision."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return
    given = "without a revision nothing fixes which"
    if revision is not None:
        given = f"the revision {revision!r} does not fix which: a branch or a tag can move"
    raise ConfigError(
        f"model.trust_remote_code runs code of the author of {model_id}, but {given}",
        fix="read the code on the model's page, then set model.revision to the commit that you "
        "have read (40 hexadecimal digits), or download the model and give its folder as model.id",
    )


def announce(folder: Path, model_id: str, commit: str | None) -> None:
    """Warn once, in the first of the processes of a training, that the model's own code runs."""
    if os.environ.get("RANK", "0") == "0":
        at = f", commit {commit[:12]}" if commit else ""
        _announce(f"{', '.join(code_files(folder))} of {model_id}{at}")


@functools.cache
def _announce(what: str) -> None:
    bars.write(
        f"warning: model.trust_remote_code: Python code of the model's author runs in this program "
        f"({what})"
    )


def never_ask() -> None:
    """Let transformers refuse code about which its caller says nothing, such as that of a part of a
    model: it would ask on the terminal, and run the code after a `y`."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
