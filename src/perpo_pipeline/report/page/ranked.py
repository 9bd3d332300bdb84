"""Ranked lists: all answers to one question, and how much each pair counts in the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.drawing import marks
from perpo_pipeline.drawing.overlay import overlay
from perpo_pipeline.report.differences import differences, shortened
from perpo_pipeline.report.page.colours import reward_colour
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.texts import EXCERPT, marked
from perpo_pipeline.report.pictures import embedded, shortened_text
from perpo_pipeline.report.ranked import RankedAnswer, RankedList, compares_answers
from perpo_pipeline.vlm.inputs import prompt_image
from perpo_pipeline.vlm.thumbnails import thumbnails

Json = dict[str, Any]

MOST_ROWS = 24
"""A longer list shows this many rows: its best and its worst answers."""
HEAVIEST = 3


def ranked_lists(contents: Contents) -> Json | None:
    """The data of the section; None if the headline's method learned from no lists."""
    main = contents.main
    if main is None or not contents.ranked or not METHODS[main.kind].needs_preferences:
        return None
    settings = contents.settings[main.variants[0]]
    return {
        "method": main.label,
        "kind": main.kind,
        "gamma": f"{settings['gamma']:g}",
        "weighs": compares_answers(settings),
        "lists": [
            _list(at, one, any_space=contents.any_space)
            for at, one in enumerate(contents.ranked, 1)
        ],
    }


def _list(at: int, one: RankedList, *, any_space: bool) -> Json:
    prompt = one.prompt
    size = (prompt["width"], prompt["height"])
    drawn = _marks(one)
    truth = prompt["gt_text"]
    return {
        "id": f"list-{at}",
        "question": shortened_text(shown_question(prompt["prompt"])),
        "truth": truth,
        "size": one.size,
        "different": len(one.answers),
        "repeated": len(one.answers) < one.size,
        "margin": f"{one.margin:.2f}",
        "source": embedded(prompt_image(prompt)),
        "more": thumbnails(prompt),
        "width": size[0],
        "height": size[1],
        "overlay": Markup(overlay(drawn, *size, labels=False)),
        "alt": _alt(one),
        "rows": _rows(one, truth, any_space=any_space),
        "left_out": max(0, len(one.answers) - MOST_ROWS),
        "heaviest": _heaviest(one),
        "map": Markup(_weight_map(one)),
    }


def _marks(one: RankedList) -> list[marks.Mark]:
    """The boxes from the worst to the best, then the truth."""
    boxes = [
        marks.box(answer.box, marks.Style(_colour(answer, one), line_px=2.0))
        for answer in reversed(one.answers)
        if answer.box is not None
    ]
    return [*boxes, *marks.truth_marks(one.prompt)]


def _colour(answer: RankedAnswer, one: RankedList) -> str:
    best, worst = one.answers[0].reward, one.answers[-1].reward
    return reward_colour((answer.reward - worst) / (best - worst) if best > worst else 1.0)


def _alt(one: RankedList) -> str:
    question = shown_question(one.prompt["prompt"])
    boxes = sum(answer.box is not None for answer in one.answers)
    best, worst = one.answers[0].reward, one.answers[-1].reward
    drawn = f"{boxes} different boxes, " if boxes else ""
    return (
        f"{shortened_text(question)}. {drawn}rewards from {worst:.2f} to {best:.2f}. "
        + marks.describe(marks.truth_marks(one.prompt))
    ).strip()


def _rows(one: RankedList, truth: str | None, *, any_space: bool) -> list[Json]:
    """The answers; `gains` and `losses` are the shares of the weights in which they are better
    and worse, as widths in per cent of the largest of the list."""
    better, worse = one.weights.sum(1), one.weights.sum(0)
    most = max(float(better.max()), float(worse.max()), 1e-12)
    rows = []
    for at in _shown(len(one.answers)):
        answer = one.answers[at]
        rows.append(
            {
                "rank": at + 1,
                "reward": f"{answer.reward:.2f}",
                "colour": _colour(answer, one),
                "count": answer.count,
                "answer": _answer(answer, truth, any_space=any_space),
                "better": f"{100 * better[at]:.1f}",
                "worse": f"{100 * worse[at]:.1f}",
                "better_width": f"{100 * better[at] / most:.0f}",
                "worse_width": f"{100 * worse[at] / most:.0f}",
            }
        )
    return rows


def _shown(number: int) -> Sequence[int]:
    if number <= MOST_ROWS:
        return range(number)
    return [*range(MOST_ROWS // 2), *range(number - MOST_ROWS // 2, number)]


def _answer(answer: RankedAnswer, truth: str | None, *, any_space: bool) -> Markup | str:
    if truth is None:
        left = len(answer.text) - EXCERPT
        return f"{answer.text[:EXCERPT]} [… {left:,} characters]" if left > 0 else answer.text
    pieces = differences(answer.text, truth, any_space=any_space)
    return marked(shortened(pieces, most=EXCERPT), on_one_line=True)


def _heaviest(one: RankedList) -> list[Json]:
    """The pairs that count most, as ranks from 1; equal ones in the order of their ranks."""
    flat = np.argsort(-one.weights, axis=None, kind="stable")[:HEAVIEST]
    pairs = [divmod(int(index), len(one.answers)) for index in flat]
    return [
        {
            "better": i + 1,
            "worse": j + 1,
            "weight": f"{100 * one.weights[i, j]:.1f}",
            "gap": f"{one.answers[i].reward - one.answers[j].reward:.2f}",
        }
        for i, j in pairs
        if one.weights[i, j] > 0
    ]


def _weight_map(one: RankedList) -> str:
    """All pairs as an SVG: rows are the better answer, columns the worse, darker weighs more."""
    k = len(one.answers)
    most = float(one.weights.max()) or 1.0
    shares = one.weights / most
    cells = [
        f'<rect x="{j}" y="{i}" width="1" height="1" fill-opacity="{shares[i, j]:.2f}"/>'
        for i, j in zip(*np.nonzero(one.weights), strict=True)
    ]
    return (
        f'<svg class="pairs" viewBox="-0.5 -0.5 {k + 1} {k + 1}" role="img" '
        f'aria-label="Weights of all pairs of {k} answers; the pairs that count most are listed '
        f'beside it"><rect class="frame" x="0" y="0" width="{k}" height="{k}"/>'
        + "".join(cells)
        + "</svg>"
    )
