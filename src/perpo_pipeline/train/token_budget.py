"""How many tokens lists take up in a forward, and which lists share one of a bounded number.

Both are known before an image is encoded. With a shared prefix a list is one row, without it one
row for each completion. A forward's rows are padded to its longest row, except where all its lists
stand in one row.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

Forward = Literal["shared-prefix", "separate"]

# The tokens of each row of a list, without padding.
Rows = tuple[int, ...]


def rows_of(prompt_tokens: int, answers: Sequence[int], forward: Forward) -> Rows:
    """The rows of a list whose completions have `answers` tokens."""
    if forward == "shared-prefix":
        return (prompt_tokens + sum(tokens - 1 for tokens in answers),)
    return tuple(prompt_tokens + tokens for tokens in answers)


def are_in_one_row(forward: Forward, *, packs: bool) -> bool:
    """Whether all lists of a forward stand in one row; `packs`: whether the model can do that."""
    return packs and forward == "shared-prefix"


def forward_tokens(lists: Iterable[Rows], *, in_one_row: bool) -> int:
    """Tokens of a forward over these lists, padding included.

    In one row only the row's end is padded, which does not count here (`row_length`).
    """
    rows = [tokens for some in lists for tokens in some]
    return sum(rows) if in_one_row else len(rows) * max(rows, default=0)


def group_by_tokens(lists: Sequence[Rows], max_tokens: int, *, in_one_row: bool) -> list[list[int]]:
    """Split lists into groups whose forwards have at most `max_tokens` tokens.

    The longest list goes first (where rows are padded: that with the longest row), each into the
    first group with room, so the rows of a group have similar lengths. A list of more than
    `max_tokens` is a group by itself. Returns indices into `lists`.
    """
    longest = sum if in_one_row else max
    groups: list[list[int]] = []
    for index in sorted(range(len(lists)), key=lambda i: (-longest(lists[i]), i)):
        for group in groups:
            together = [lists[i] for i in (*group, index)]
            if forward_tokens(together, in_one_row=in_one_row) <= max_tokens:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups
