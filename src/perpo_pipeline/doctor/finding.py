"""What a check of `perpo doctor --gpu` found."""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One check's result: `text` has the figure, or what is wrong; `fix` says what to do then.

    `figures` has the numbers for the JSON, with units in their names.
    """

    state: State
    text: str
    fix: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def verdict(is_ok: bool, text: str, fix: str, **figures: Any) -> Finding:
    """Ok, or failed with `fix`."""
    return Finding("ok" if is_ok else "failed", text, None if is_ok else fix, figures)


def skipped(why: str, fix: str | None = None) -> Finding:
    """A check that this machine cannot run; it counts as no failure."""
    return Finding("skipped", why, fix)
