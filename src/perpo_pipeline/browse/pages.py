"""The HTML of a view, of a fault, and the style sheet; with the report's templates and colours."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.browse.detail import Details
from perpo_pipeline.browse.index import REWARD
from perpo_pipeline.browse.state import State, as_number
from perpo_pipeline.browse.versions import Artifacts
from perpo_pipeline.browse.views import CHANGE, DISAGREE, ROWS_PER_PAGE, Column, View
from perpo_pipeline.browse.visible import as_typed, visible
from perpo_pipeline.config.evaluations import model_of
from perpo_pipeline.drawing.marks import TRUTH
from perpo_pipeline.report.page.colours import reward_colour, themed
from perpo_pipeline.report.page.html import PLACE_OF_COLOURS, page_environment, with_colours
from perpo_pipeline.store.artifacts import Version

SCALE = [reward_colour(step / 10) for step in range(11)]
MOST_MODELS = 5
"""Columns of rewards in the table; further models are beside the prompt."""
MOST_RANKS = 64
"""Answers whose box is shown alone while the pointer, or the keyboard, is on their row."""
POINTED = ":is(:hover, :focus-visible)"
BOUNDED = ("margin", "best", "mean")
HEADS = ("margin", "mean")
"""Columns of lists that the form bounds, and that the table has beside the sorted one."""

Json = dict[str, Any]


class Pages:
    """Renders the views of one run."""

    def __init__(self, artifacts: Artifacts, views: Mapping[str, View]) -> None:
        self.run, self.notes, self.views = artifacts.config.run, artifacts.notes, views
        self.details = Details(artifacts, image_url)
        self.environment = environment()

    def view(self, state: State) -> str:
        """The page of a state; raises `PerpoError` for one that cannot be meant."""
        view = self.views[state.view]
        order = view.order(state)
        at = view.place_of(state.prompt) if state.prompt else None
        position = _position(order, at)
        pages = max(1, -(-len(order) // ROWS_PER_PAGE))
        page = min(state.page or (position or 0) // ROWS_PER_PAGE + 1, pages)
        places = order[(page - 1) * ROWS_PER_PAGE : page * ROWS_PER_PAGE]
        if not state.prompt and len(places):
            at, position = int(places[0]), (page - 1) * ROWS_PER_PAGE
        text = self.environment.get_template("browse.html").render(
            run=self.run,
            notes=self.notes,
            views=[self._tab(one) for one in self.views.values()],
            view=view,
            state=state,
            total=len(order),
            page=page,
            pages=pages,
            **self._table(view, state, places, at),
            **self._detail(view, state, order, at, position),
        )
        return visible(text)

    def fault(self, what: str, where: str | None = None, fix: str | None = None) -> str:
        """A page that says what is wrong with an address, or with the run's files."""
        template = self.environment.get_template("error.html")
        return visible(template.render(what=what, where=where, fix=fix))

    def style_sheet(self) -> str:
        """The report's style sheet, the page's own, and the colours of this run's models."""
        return style_sheet(self.details)

    def _table(self, view: View, state: State, places: Any, at: int | None) -> Json:
        """The form and the rows of one page."""
        heads = _heads(view, state)
        rows = zip(map(int, places), view.shown(places, state), strict=True)
        return {
            "pair": view.pair(state) if view.models else None,
            "fields": [self._field(column, state) for column in _bounded(view, state)],
            "orders": view.columns,
            "heads": [self._head(view, column, state) for column in heads],
            "sorted_by": self._sorted_by(view, state),
            "rows": [self._row(view, row, state, place == at) for place, row in rows],
            "has_rewards": "rewards" in view.rows.columns,
            "every": view.rows.height,
        }

    def _tab(self, view: View) -> Json:
        url = State(view.name).url()
        return {"name": view.name, "title": view.title, "number": view.number, "url": url}

    def _field(self, column: Column, state: State) -> Json:
        low, high = ("" if one is None else as_number(one) for one in state.limit(column.name))
        return {"name": column.name, "label": column.label, "low": low, "high": high}

    def _head(self, view: View, column: Column, state: State) -> Json:
        turned = "descending" if state.is_descending else "ascending"
        return {
            "label": column.label,
            "meaning": column.meaning,
            "is_extra": _is_extra(view, column, state),
            "url": state.sorted_url(column.name),
            "order": turned if state.column == column.name else None,
        }

    def _sorted_by(self, view: View, state: State) -> str:
        labels = {column.name: column.label for column in view.columns}
        if not state.sort:
            return ""
        return f"{labels[state.column]}, {'largest' if state.is_descending else 'smallest'} first"

    def _row(self, view: View, row: Json, state: State, is_chosen: bool) -> Json:
        version = self.details.prompts[row["prompts"]]
        return {
            "is_chosen": is_chosen,
            "url": state.url(prompt=row["prompt_id"], page=None),
            "thumb": f"{image_url(version, row, 0)}?size=thumb",
            "question": shown_question(row["prompt"]),
            "reason": row.get("reason"),
            "dataset": row["dataset"] if len(view.datasets) > 1 else "",
            "best": row.get("best"),
            "worst": row.get("worst"),
            "dots": _dots(row.get("rewards")),
            "cells": [
                (_cell(column, row.get(column.name)), _is_extra(view, column, state))
                for column in _heads(view, state)
            ],
        }

    def _detail(
        self, view: View, state: State, order: Any, at: int | None, position: int | None
    ) -> Json:
        """The prompt beside the table and its neighbours."""
        nothing: Json = {
            "d": None,
            "previous": None,
            "next": None,
            "position": None,
            "elsewhere": [],
        }
        if at is None:
            return nothing | {"large": None}
        row = view.rows.row(at, named=True)
        neighbours: dict[str, str | None] = {"previous": None, "next": None}
        for name, step in (("previous", -1), ("next", 1)):
            other = -1 if position is None else position + step
            if 0 <= other < len(order):
                key = view.rows["prompt_id"][int(order[other])]
                neighbours[name] = state.url(prompt=key, page=None)
        return {
            "d": self._shown(view, row, state),
            "large": f"{image_url(self.details.prompts[row['prompts']], row, 0)}?size=full",
            "position": None if position is None else position + 1,
            "elsewhere": self._elsewhere(view, row),
            **neighbours,
        }

    def _shown(self, view: View, row: Json, state: State) -> Json:
        if view.test_set is None:
            return self.details.of_list(row)
        found = self.details.of_predictions(view.test_set, row)
        for answer in found["guesses"]:
            other = answer["other_image"]
            answer["other_url"] = other and state.url(prompt=other, page=None)
        return found

    def _elsewhere(self, view: View, row: Json) -> list[Json]:
        """The other views that have the prompt."""
        others = [one for one in self.views.values() if one is not view]
        return [
            {"title": one.title, "url": State(one.name, prompt=row["prompt_id"]).url()}
            for one in others
            if row["prompts"] in one.prompts and one.place_of(row["prompt_id"]) is not None
        ]


def _position(order: Any, at: int | None) -> int | None:
    """Where a row is in an order, from 0; None if the filters leave it out."""
    if at is None:
        return None
    found = np.flatnonzero(order == at)
    return int(found[0]) if len(found) else None


def environment() -> jinja2.Environment:
    """The templates of this room and of the report, with what both pages need."""
    found = page_environment(Path(__file__).parent)
    found.filters["as_typed"] = as_typed
    found.filters["words"] = lambda reason: reason.replace("_", " ")
    found.globals["scale"] = SCALE
    found.globals["most_ranks"] = MOST_RANKS
    found.globals["truth_colour"] = TRUTH.colour
    return found


def style_sheet(details: Details) -> str:
    """All rules; the colours of boxes in SVG are attributes there."""
    parts = [
        resources.files("perpo_pipeline.report.page").joinpath("page.css").read_text("utf-8"),
        resources.files("perpo_pipeline.browse").joinpath("browse.css").read_text("utf-8"),
        PLACE_OF_COLOURS,
    ]
    for _, number, style in details.models.values():
        parts.append(f".m{number} {{ background: {themed(style.colour)}; }}")
    ranks = range(1, MOST_RANKS + 1)
    alone = ",\n".join(
        f'.parts:has(tr[data-rank="{n}"]{POINTED}) .one[data-rank="{n}"]' for n in ranks
    )
    parts.append(f"{alone} {{ visibility: visible; }}")
    parts.append(f".parts:has(tr[data-rank]{POINTED}) .all {{ opacity: 0.18; }}")
    return with_colours("\n".join(parts))


def image_url(prompts: Version, row: Mapping[str, Any], which: int) -> str:
    """The address of a prompt's image: no path is in it, only keys."""
    return f"/image/{prompts.fingerprint}/{quote(row['prompt_id'], safe='')}/{which}"


def _bounded(view: View, state: State) -> list[Column]:
    """The columns that the form has bounds for."""
    if view.test_set is None:
        names: Sequence[str] = BOUNDED
    else:
        first, second = view.pair(state)
        names = [f"{REWARD}{first}", f"{REWARD}{second}", DISAGREE]
    given = [name for name, _, _ in state.limits]
    known = {column.name: column for column in view.columns}
    return [known[name] for name in dict.fromkeys((*names, *given)) if name in known]


def _heads(view: View, state: State) -> list[Column]:
    """The columns of the table: the usual ones, and the one that it is sorted by."""
    if view.test_set is None:
        names = list(HEADS)
    else:
        pair = view.pair(state)
        own = [model for model in view.models if model_of(model) == model and model not in pair]
        names = [f"{REWARD}{model}" for model in (*pair, *own)[:MOST_MODELS]]
        names.append(CHANGE)
    if state.sort and state.column not in names:
        names.append(state.column)
    return [column for column in view.columns if column.name in names]


def _is_extra(view: View, column: Column, state: State) -> bool:
    """Whether a phone leaves the column out: a model that is not compared."""
    if view.test_set is None or column.name in (CHANGE, state.column):
        return False
    return column.name not in {f"{REWARD}{model}" for model in view.pair(state)}


def _cell(column: Column, value: float | None) -> str:
    if value is None:
        return "–"
    if column.name == "n":
        return f"{value:,}"
    if column.name == "parsed":
        return f"{value:.0%}"
    if column.name == CHANGE:
        return f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"
    return f"{value:.2f}"


def _dots(rewards: Sequence[float] | None) -> list[tuple[str, str]]:
    """Each different reward of a list at its place from 0 to 1, in its colour."""
    if not rewards:
        return []
    low, high = min(rewards), max(rewards)
    places = {round(one, 3): one for one in rewards}  # the colour is that of a reward itself
    return [
        (
            f"{100 * min(max(place, 0.0), 1.0):.1f}",
            reward_colour((value - low) / (high - low) if high > low else 1.0),
        )
        for place, value in sorted(places.items())
    ]
