"""Kernels that a model's config.json names: code that transformers takes from a hub.

A name such as `owner/repository` in place of an attention function makes transformers download that
repository and run its code, without asking, while it builds the model. So does the name of some
functions for experts. perpo computes attention in its own way, whatever a model's config.json says.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError

_SETTING = re.compile(r"(attn|experts)_implementation")  # some write an underscore before it
OTHER_FILES = "configuration_files"
LOCAL_EXPERTS = frozenset({"eager", "batched_mm", "grouped_mm"})
"""transformers' own functions for experts; the others are kernels."""


def named_kernels(folder: Path) -> dict[str, str]:
    """The kernels in the config.json of a model's folder, each with the setting that names it."""
    return _kernels(_read(folder))


def check_no_kernels(folder: Path) -> None:
    """Raise InputError if the config.json of a model's folder names a kernel, or another file that
    transformers would read in its place."""
    settings, away = _read(folder), "and give that folder as model.id"
    for kernel, name in _kernels(settings).items():
        raise InputError(
            f"the model's config.json names a kernel ({name}: {kernel}), code that transformers "
            "would take from a hub and run, at no fixed version",
            where=str(folder),
            fix=f"copy the model into a local folder, remove {name} from its config.json, {away}",
        )
    if isinstance(settings, Mapping) and settings.get(OTHER_FILES):
        raise InputError(
            f"the model's config.json names other files ({OTHER_FILES}), one of which transformers "
            "would read in its place",
            where=str(folder),
            fix="copy the model into a local folder, put the contents of the file for your version "
            f"of transformers into config.json, {away}",
        )


def _read(folder: Path) -> Any:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # loading says what is wrong with it
        return None


def _kernels(settings: Any) -> dict[str, str]:
    return {value: name for name, value in _functions(settings) if _is_kernel(name, value)}


def _functions(settings: Any) -> Iterator[tuple[str, str]]:
    """(setting, name of a function) of a model and of its parts: a function for each is a dict."""
    if isinstance(settings, list):
        for value in settings:
            yield from _functions(value)
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        if _SETTING.search(key):
            for one in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(one, str):
                    yield key, one
        else:
            yield from _functions(value)


def _is_kernel(name: str, value: str) -> bool:
    return "/" in value or ("experts" in name and value not in LOCAL_EXPERTS)
