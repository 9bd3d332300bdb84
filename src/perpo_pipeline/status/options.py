"""The options of the command that made an artifact, or that chose it last.

They are no part of a fingerprint. They explain why an artifact differs from the run's file: what
was asked for on a command line is no mistake, and is only named.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perpo_pipeline.store.artifacts import OPTIONS, Json


@dataclass(frozen=True)
class Options:
    """Settings by their dotted key, and inputs by their artifact, each as the user typed it.

    `stale` are the differences that --allow-stale accepted: label -> what it was.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)

    def setting(self, key: str, label: str, variant: str) -> str | None:
        """The option that gave a setting, a part of it, or the whole of which it is a part.

        `variant` is that of the artifact which was made with the setting.
        """
        if label in self.stale:
            return None
        for given, option in self.settings.items():
            own = given if key == "train" else _of_variant(given, variant)
            if own is None:
                continue
            if own == key or key.startswith(f"{own}.") or own.startswith(f"{key}."):
                return option
        return None

    def as_json(self) -> Json:
        """What is recorded: only what was given."""
        every = {"settings": self.settings, "inputs": self.inputs, "stale": self.stale}
        return {name: dict(given) for name, given in every.items() if given}


def _of_variant(key: str, variant: str) -> str | None:
    """`train.methods.dpo.beta` is `train.beta` of that method's adapters, and None of others."""
    parts = key.split(".")
    if parts[:2] != ["train", "methods"]:
        return key
    is_own = not parts[2:] or re.fullmatch(rf"{re.escape(parts[2])}(-seed\d+)?", variant)
    return ".".join(["train", *parts[3:]]) if is_own else None


def options_of(version: Path, manifest: Json) -> Options:
    """The options that chose a version last, or else those that made it."""
    found = manifest.get("options", {})
    try:
        beside = json.loads((version.parent / OPTIONS).read_text(encoding="utf-8"))
        found = beside.get(version.name, found)
        return Options(
            **{name: dict(found.get(name, {})) for name in ("settings", "inputs", "stale")}
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return Options()
