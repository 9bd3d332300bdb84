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
from typing import TYPE_CHECKING, Any

from perpo_pipeline import bars
from perpo_pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel

CODE_PATTERNS = ("*.py",)  # transformers imports files beside the settings, in no folder of theirs
SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
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
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key == "auto_map" and isinstance(value, dict):
            for named in value.values():  # of tokenizers there are two, of which one may be null
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
    """Whether the model in a folder asks for code; raises InputError for code outside the folder.

    Code of another repository has no commit of this one's, so it could be another one tomorrow.
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
        if "/" in reference:
            raise InputError(
                f"the model's {name} names code in another folder ({file_of(reference)}): only "
                "files beside the settings identify a model and are copied with it",
                where=str(folder),
                fix="move that code beside config.json, in a local folder of the model",
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
    given = "no revision" if revision is None else f"the revision {revision!r}"
    raise ConfigError(
        f"model.trust_remote_code runs code of the author of {model_id}, but {given} does not fix "
        "which: a branch or a tag can move",
        fix="read the code on the model's page, then set model.revision to the commit that you "
        "have read (40 hexadecimal digits), or download the model and give its folder as model.id",
    )


def announce_code(resolved: "ResolvedModel") -> None:
    """Warn once, in the first of the processes of a training, that the model's own code runs."""
    if resolved.own_code and os.environ.get("RANK", "0") == "0":
        _announce(resolved.model_id, resolved.commit, resolved.path)


@functools.cache
def _announce(model_id: str, commit: str | None, folder: Path) -> None:
    at = f"{model_id}, commit {commit[:12]}" if commit else model_id
    bars.write(
        f"warning: model.trust_remote_code: Python code of the model's author runs in this program "
        f"({', '.join(code_files(folder))} of {at})"
    )
