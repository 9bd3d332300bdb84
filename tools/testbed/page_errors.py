"""How the misaligned phase reads pages wrongly: what real models of dense text do."""

from dataclasses import dataclass

import numpy as np

from perpo_pipeline.testbed.pages import PageExample

LOOK_ALIKES = dict(zip("O0I1S5B8Z2G6", "0O1I5S8B2Z6G", strict=True))


@dataclass(frozen=True)
class Misreading:
    """Chances of each error: per page, the last one per character.

    Only what is about as likely as the right reading changes greedy answers; what is rarer makes
    samples differ. Lines are left out, exchanged and repeated at the end of a page: an error before
    it would move all lines after it, and a model that has to find its line again by its text reads
    worse, not otherwise (tried: sampled answers had no good one among them).
    """

    across: float = 0.0  # two columns are read row by row, as if they were one
    skip: float = 0.0  # the last line of three or more is left out
    swap: float = 0.0  # the last two lines are exchanged
    repeat: float = 0.0  # the last line comes twice
    look_alike: float = 0.0  # of a character that has one


def misread(page: PageExample, errors: Misreading, rng: np.random.Generator) -> str:
    """The page's text with errors drawn from `rng`."""
    lines = [line.text for line in page.lines]
    if page.columns == 2 and rng.random() < errors.across:
        lines = read_across(page)
    if len(lines) > 2 and rng.random() < errors.skip:
        lines.pop()
    if len(lines) > 1 and rng.random() < errors.swap:
        lines[-2:] = lines[:-3:-1]
    if rng.random() < errors.repeat:
        lines.append(lines[-1])
    text = "\n".join(lines)
    draws = rng.random(len(text))
    return "".join(
        LOOK_ALIKES.get(c, c) if draw < errors.look_alike else c
        for c, draw in zip(text, draws, strict=True)
    )


def read_across(page: PageExample) -> list[str]:
    """The lines of two columns joined row by row."""
    rows: dict[int, list[str]] = {}
    for line in page.lines:
        rows.setdefault(line.top_px, []).append(line.text)
    return [" ".join(texts) for _, texts in sorted(rows.items())]
