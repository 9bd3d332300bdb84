"""The views of a run, and the rows of each that a state asks for, in its order."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.browse.index import REWARD, different, predicted_index, row_of, sampled_index
from perpo_pipeline.browse.state import State
from perpo_pipeline.browse.versions import Artifacts, TestSet
from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.errors import InputError
from perpo_pipeline.suggestions import did_you_mean

ROWS_PER_PAGE = 50
ORDERS_HELD = 16
LISTS, DROPPED, SAMPLES, PREDICTIONS = "lists", "dropped", "samples", "predictions"
CHANGE = "change"
"""What model B gains over model A, and how far they disagree."""
DISAGREE = "disagree"

Row = dict[str, Any]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """A number of each row: its column, as pages name it, and what it means."""

    name: str
    label: str
    meaning: str = ""


@dataclass
class View:
    """One table of prompts: its name in the URL, its title, how many rows it has and their numbers.

    The rows are loaded when the view is first shown. `prompts` are the fingerprints of the prompts
    artifacts that they are of; `test_set` is None for what was sampled.
    """

    name: str
    title: str
    number: int
    load: Callable[[], pl.DataFrame]
    columns: Sequence[Column]
    prompts: frozenset[str]
    test_set: TestSet | None = None
    main_model: str = ""
    _orders: "OrderedDict[State, Places]" = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The rows, as index.py has them."""
        return self.load()

    @cached_property
    def datasets(self) -> Sequence[str]:
        """The datasets of the rows."""
        return different(self.rows, "dataset")

    @cached_property
    def tasks(self) -> Sequence[str]:
        """The tasks of the rows."""
        return different(self.rows, "task")

    @cached_property
    def reasons(self) -> Sequence[str]:
        """Why lists were dropped; empty where no row says so."""
        return different(self.rows, "reason") if "reason" in self.rows.columns else []

    @cached_property
    def models(self) -> Sequence[str]:
        """The models whose predictions are shown."""
        return [] if self.test_set is None else list(self.test_set.predictions)

    @cached_property
    def _questions(self) -> pl.Series:
        """What is searched: each question as it is shown, in lower case, and its place."""
        shown = (shown_question(prompt) for prompt in self.rows["prompt"])
        return pl.Series(shown, dtype=pl.String).str.to_lowercase()

    def pair(self, state: State) -> tuple[str, str]:
        """The two models that are compared; raises `InputError` for one that is not here."""
        first = BASE if BASE in self.models else self.models[0]
        chosen = (state.a or first, state.b or self.main_model or self.models[-1])
        for model in chosen:
            if model not in self.models:
                raise InputError(
                    f"the address names the model {model}, which has no predictions here"
                    + did_you_mean(model, list(self.models)),
                    fix=f"choose one of {', '.join(self.models)}",
                )
        return chosen

    def order(self, state: State) -> Places:
        """The places in `rows` that the filters leave, in the state's order."""
        key = state.filters
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        found = self._select(key)
        with self._lock:
            self._orders[key] = found
            while len(self._orders) > ORDERS_HELD:
                self._orders.popitem(last=False)
        return found

    def place_of(self, prompt_id: str) -> int | None:
        """The row of a prompt in `rows`, whatever the filters say."""
        return row_of(self.rows, prompt_id)

    def shown(self, places: Sequence[int] | Places, state: State) -> list[Row]:
        """Some rows, each with CHANGE where two models are compared."""
        return self._compared(self.rows[list(places)], state).to_dicts()

    def _compared(self, rows: pl.DataFrame, state: State) -> pl.DataFrame:
        if self.test_set is None:
            return rows
        first, second = (pl.col(f"{REWARD}{model}") for model in self.pair(state))
        return rows.with_columns((second - first).alias(CHANGE)).with_columns(
            pl.col(CHANGE).abs().alias(DISAGREE)
        )

    def _select(self, state: State) -> Places:
        rows = self._compared(self.rows, state).with_row_index("_place")
        for name in ("dataset", "task", "reason"):
            if value := getattr(state, name):
                if name not in rows.columns:
                    raise InputError(f"the address asks for a {name}, which this view has not")
                rows = rows.filter(pl.col(name).cast(pl.String) == value)
        for name, low, high in state.limits:
            rows = rows if low is None else rows.filter(pl.col(name) >= low)
            rows = rows if high is None else rows.filter(pl.col(name) <= high)
        if state.q:
            rows = rows.filter(self._matches(state.q).gather(rows["_place"]))
        if state.sort:
            order = {"descending": state.is_descending, "nulls_last": True, "maintain_order": True}
            rows = rows.sort(state.column, **order)
        return rows["_place"].to_numpy().astype(np.int64)

    def _matches(self, q: str) -> pl.Series:
        """Whether each row's question has the text, in any case, or its id or place is the text."""
        is_named = (self.rows["prompt_id"] == q) | (self.rows["place"] == q)
        return self._questions.str.contains(q.lower(), literal=True) | is_named


def open_views(artifacts: Artifacts, main_model: str) -> dict[str, View]:
    """The views of a run by name; `main_model` is the one that the base is compared with."""
    found = _sampled_views(artifacts) if artifacts.sampled is not None else []
    for test_set in artifacts.test_sets:
        models = list(test_set.predictions)
        columns = [
            *(Column(f"{REWARD}{model}", model, f"the reward of {model}") for model in models),
            Column(CHANGE, "change", "the reward of model B minus that of model A"),
            Column(DISAGREE, "disagreement", "the size of the change"),
        ]
        found.append(
            View(
                f"{PREDICTIONS}/{test_set.split}",
                f"Predictions on {test_set.split}",
                int(test_set.prompts.manifest["rows"]),
                partial(predicted_index, test_set),
                columns,
                frozenset({test_set.prompts.fingerprint}),
                test_set,
                main_model if main_model in models else "",
            )
        )
    return {view.name: view for view in found}


def _sampled_views(artifacts: Artifacts) -> list[View]:
    assert artifacts.sampled is not None
    rows = sampled_index(artifacts.sampled)
    numbers = [
        Column("margin", "margin", "the largest reward of the list minus the smallest"),
        Column("best", "best", "the largest reward of the list"),
        Column("mean", "mean", "the mean reward of the list"),
        Column("worst", "worst", "the smallest reward of the list"),
        Column("parsed", "read", "the share of the answers that could be read"),
        Column("n", "samples", "how many answers were sampled"),
    ]
    columns = [column for column in numbers if column.name in rows.columns]
    sampled = artifacts.sampled
    prompts = frozenset(one.fingerprint for one in (sampled.prompts, *sampled.others))

    def view(name: str, title: str, own: pl.DataFrame) -> View:
        return View(name, title, own.height, lambda: own, columns, prompts)

    if sampled.preferences is None:
        return [view(SAMPLES, "Samples", rows)]
    return [
        view(LISTS, "Lists", rows.filter(pl.col("list_at").is_not_null())),
        view(DROPPED, "Dropped", rows.filter(pl.col("reason").is_not_null())),
        view(SAMPLES, "Samples", rows.filter(pl.col("n").is_not_null())),
    ]
