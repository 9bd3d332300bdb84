"""What a page shows, as its URL has it: a view, its filters, its order and the prompt beside it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from perpo_pipeline.errors import InputError
from perpo_pipeline.suggestions import did_you_mean

TEXTS = ("q", "dataset", "task", "reason", "a", "b", "sort", "prompt")
EXACT = ("dataset", "task", "reason")
"""Compared with values of the artifacts, which may begin or end with a space."""
LEAST, MOST = "min_", "max_"


@dataclass(frozen=True)
class State:
    """The filters of a view, its order and place.

    `limits` are (column, least, most), bounds included; `sort` is a column, behind a "-" from the
    largest on, "" for the artifact's order. `page` counts from 1; without it a page is that of
    `prompt`, if there is one.
    """

    view: str
    q: str = ""
    dataset: str = ""
    task: str = ""
    reason: str = ""
    a: str = ""
    b: str = ""
    sort: str = ""
    prompt: str = ""
    page: int | None = None
    limits: tuple[tuple[str, float | None, float | None], ...] = ()

    @property
    def column(self) -> str:
        """The column of the order."""
        return self.sort.removeprefix("-")

    @property
    def is_descending(self) -> bool:
        """Whether the largest comes first."""
        return self.sort.startswith("-")

    @property
    def filters(self) -> "State":
        """What decides the rows and their order."""
        return replace(self, prompt="", page=None)

    @property
    def is_filtered(self) -> bool:
        """Whether rows may be left out."""
        return bool(self.q or self.dataset or self.task or self.reason or self.limits)

    def limit(self, column: str) -> tuple[float | None, float | None]:
        """The least and the most of a column."""
        return next(((low, high) for name, low, high in self.limits if name == column), (None,) * 2)

    def url(self, **changes: Any) -> str:
        """The URL of this state after changes; a changed filter or order leaves the page."""
        if not {"page", "prompt"} & changes.keys():
            changes["page"] = None
        state = replace(self, **changes)
        pairs = [(name, getattr(state, name)) for name in TEXTS if getattr(state, name)]
        for name, low, high in state.limits:
            pairs += [(LEAST + name, as_number(low))] if low is not None else []
            pairs += [(MOST + name, as_number(high))] if high is not None else []
        pairs += [("page", str(state.page))] if state.page not in (None, 1) else []
        return f"/{state.view}" + (f"?{urlencode(pairs)}" if pairs else "")

    def sorted_url(self, column: str) -> str:
        """The URL that sorts by a column: from the largest on, then from the smallest, then not."""
        turns = {f"-{column}": column, column: ""}
        return self.url(sort=turns.get(self.sort, f"-{column}"))


def read_state(view: str, query: Mapping[str, str], columns: Iterable[str]) -> State:
    """The state of a URL's query; raises `InputError` for a value that cannot be meant.

    `columns` are those that can be sorted and bounded. A parameter without a value counts as
    absent, since forms send all of theirs.
    """
    kept = {name: value for name, value in query.items() if value.strip()}
    given = {name: v if name in EXACT else v.strip() for name, v in kept.items()}
    known = list(columns)
    named = {LEAST + c for c in known} | {MOST + c for c in known}
    if unknown := sorted(given.keys() - {*TEXTS, "page"} - named):
        raise InputError(
            f"the address has an unknown parameter: {unknown[0]}"
            + did_you_mean(unknown[0], [*TEXTS, "page", *sorted(named)])
        )
    sort = given.get("sort", "")
    if sort and sort.removeprefix("-") not in known:
        raise InputError(
            f"the address sorts by {sort}, which this view has not"
            + did_you_mean(sort.removeprefix("-"), known),
            fix=f"sort by one of {', '.join(known)}",
        )
    bounds = ((c, _number(given, LEAST + c), _number(given, MOST + c)) for c in known)
    limits = tuple(one for one in bounds if one[1:] != (None, None))
    page = _number(given, "page")
    if page is not None and (page < 1 or page != int(page)):
        raise InputError(f"page={given['page']} in the address is not a whole number from 1 on")
    texts = {name: given[name] for name in TEXTS if name in given}
    return State(view, **texts, page=None if page is None else int(page), limits=limits)


def as_number(bound: float) -> str:
    """A bound as an address and the form have it: read again it is the same number."""
    return repr(bound).removesuffix(".0")


def _number(given: Mapping[str, str], name: str) -> float | None:
    if name not in given:
        return None
    try:
        value = float(given[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name}={given[name]} in the address is not a number")
    return value
