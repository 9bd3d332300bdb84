"""Which completions of the lists are exported: best and worst, all pairs, or the best alone.

All functions work on the lists of one part: `rewards` of all lists one after the other, `(M,)`, and
`offsets`, `(L + 1,)`, where each of the L lists begins and ends. They return places in `(M,)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from perpo_pipeline.rewards.margins import ROUNDING
from perpo_pipeline.seeds import tie_break_of_text

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
TokenIds = Callable[[Places], Sequence[str]]
"""The token ids of the completions at some places, each with commas between them: they decide
between equal rewards."""


@dataclass(frozen=True)
class Pairs:
    """The chosen and the rejected completions, `(P,)` each, and the list of each pair, `(P,)`."""

    of_list: Places
    chosen: Places
    rejected: Places


def best_of_lists(rewards: Floats, offsets: Places, token_ids: TokenIds) -> Places:
    """The best completion of each list, `(L,)`; among equals as `perpo train` chooses for DPO."""
    return _extremes(rewards, offsets, token_ids, np.maximum)


def best_and_worst(
    rewards: Floats, offsets: Places, token_ids: TokenIds, min_margin: float
) -> Pairs:
    """The best and the worst completion of each list whose margin is `min_margin` or more.

    It is the pair that `perpo train` takes for DPO. A list whose rewards are all equal has none.
    """
    highest = np.maximum.reduceat(rewards, offsets[:-1])
    margins = highest - np.minimum.reduceat(rewards, offsets[:-1])
    kept = np.flatnonzero((margins > 0) & (margins >= min_margin - ROUNDING))
    best = _extremes(rewards, offsets, token_ids, np.maximum)
    worst = _extremes(rewards, offsets, token_ids, np.minimum)
    return Pairs(kept, best[kept], worst[kept])


def all_pairs(rewards: Floats, offsets: Places, _: TokenIds, min_margin: float) -> Pairs:
    """All pairs of a list whose rewards differ, and by `min_margin` or more."""
    none = np.empty(0, np.int64)
    of_list, chosen, rejected = [none], [none], [none]
    for index, (start, end) in enumerate(pairwise(offsets.tolist())):
        gaps = rewards[start:end, None] - rewards[None, start:end]
        better, worse = np.nonzero((gaps > 0) & (gaps >= min_margin - ROUNDING))
        of_list.append(np.full(len(better), index))
        chosen.append(better + start)
        rejected.append(worse + start)
    return Pairs(*map(np.concatenate, (of_list, chosen, rejected)))


PAIRS: dict[str, Callable[[Floats, Places, TokenIds, float], Pairs]] = {
    "best-worst": best_and_worst,
    "all": all_pairs,
}


def _extremes(rewards: Floats, offsets: Places, token_ids: TokenIds, of: np.ufunc) -> Places:
    """The place of each list's best (`np.maximum`) or worst completion.

    Among equals it is the one whose token ids have the smallest hash (seeds.py).
    """
    sizes = np.diff(offsets)
    is_extreme = rewards == np.repeat(of.reduceat(rewards, offsets[:-1]), sizes)
    places = np.flatnonzero(is_extreme)
    starts = np.searchsorted(places, offsets)
    found: Places = places[starts[:-1]]
    tied = np.flatnonzero(np.diff(starts) > 1)
    if not len(tied):
        return found
    in_tie = np.repeat(np.diff(starts) > 1, np.diff(starts))
    hashes = np.full(len(places), "", dtype=object)
    hashes[in_tie] = [tie_break_of_text(text) for text in token_ids(places[in_tie])]
    for index in tied.tolist():
        start, end = int(starts[index]), int(starts[index + 1])
        found[index] = places[min(range(start, end), key=hashes.__getitem__)]
    return found
