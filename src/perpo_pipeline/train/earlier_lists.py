"""Whether the token ids of earlier lists (`filter.earlier`) are those of the model's tokenizer.

Training takes the ids as they are, not the texts: ids of another tokenizer would be other words.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from perpo_pipeline import advice
from perpo_pipeline.errors import InputError
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.list_prompts import num_new_lists

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

CHECKED = 256  # lists at most, evenly spaced: a pass over pages of text would take minutes
COLUMNS = ["prompt_id", "completions", "completion_token_ids"]


def check_token_ids(vlm: "Vlm", preferences: Version) -> None:
    """Raise InputError where ids of earlier lists do not give their texts with this tokenizer.

    Compares all completions of at most `CHECKED` earlier lists.
    """
    earlier = preferences.table(columns=COLUMNS).slice(num_new_lists(preferences))
    if not earlier.num_rows:
        return
    rows = earlier.take(list(range(0, earlier.num_rows, ceil(earlier.num_rows / CHECKED))))
    keys, texts, ids = [], [], []
    for row in rows.to_pylist():
        keys += [row["prompt_id"]] * len(row["completions"])
        texts += row["completions"]
        ids += row["completion_token_ids"]
    others = _others(vlm, texts, ids)
    if not others:
        return
    first, read = next(iter(others.items()))
    raise InputError(
        f"{len(others):,} of {len(texts):,} completions of earlier lists have the token ids of "
        f"another tokenizer than the model's; the first is of prompt {keys[first]}: its text is "
        f"{texts[first][:80]!r}, and the model reads {read[:80]!r}",
        where=str(preferences.path),
        fix="filter.earlier must name lists that this model, or one with the same tokenizer, has "
        "sampled; name others, or remove filter.earlier and filter.keep_earlier, and run: "
        + advice.command("filter"),
    )


def _others(vlm: "Vlm", texts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[int, str]:
    """What the model reads instead of a text, by the text's place; empty where all agree."""
    from perpo_pipeline.vlm.processors import decode_completions

    known = [[token for token in one if token < vlm.vocab_size] for one in ids]
    read = decode_completions(vlm.tokenizer, known)
    return {
        at: text
        for at, text in enumerate(read)
        if known[at] != ids[at]
        or (text != texts[at] and not _is_from_text(vlm, texts[at], ids[at]))
    }


def _is_from_text(vlm: "Vlm", text: str, ids: Sequence[int]) -> bool:
    """Whether the ids were made from the text (released lists, a server without ids).

    Then decoding them need not give the same text: a tokenizer may change spaces, for example.
    """
    try:
        made = vlm.plain.ids(vlm.plain.mark(text))
    except InputError:
        return False
    return list(ids[: len(made)]) == made and len(ids) - len(made) <= 1  # the end token
