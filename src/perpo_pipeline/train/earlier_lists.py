"""Whether the token ids of lists are those of a model's tokenizer, for lists that another model may
have sampled (`filter.earlier`) and for a reference model (`train.reference_model`).

Training takes the ids as they are, not the texts: ids of another tokenizer would be other words.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import pyarrow as pa

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
    if (said := _reads_others(vlm, earlier)) is None:
        return
    number, first = said
    raise InputError(
        f"{number} completions of earlier lists have the token ids of another tokenizer than the "
        f"model's; {first}",
        where=str(preferences.path),
        fix="filter.earlier must name lists that this model, or one with the same tokenizer, has "
        "sampled; name others, or remove filter.earlier and filter.keep_earlier, and run: "
        + advice.command("filter"),
    )


def check_reference_reads(vlm: "Vlm", preferences: Version) -> None:
    """Raise InputError where `train.reference_model` reads other texts in the lists' token ids.

    Compares all completions of at most `CHECKED` lists.
    """
    if (said := _reads_others(vlm, preferences.table(columns=COLUMNS))) is None:
        return
    number, first = said
    raise InputError(
        f"the reference model has another tokenizer than the model that sampled: {number} "
        f"completions are other texts to it; {first}",
        where="train.reference_model",
        fix="name a model with the tokenizer of model.id, or remove train.reference_model",
    )


def _reads_others(vlm: "Vlm", lists: pa.Table) -> tuple[str, str] | None:
    """How many completions the model reads otherwise, and the first of them; None if it reads none.

    `lists` has the columns COLUMNS; at most `CHECKED` of its rows are compared.
    """
    rows = lists.take(list(range(0, lists.num_rows, max(1, ceil(lists.num_rows / CHECKED)))))
    keys, texts, ids = [], [], []
    for row in rows.to_pylist():
        keys += [row["prompt_id"]] * len(row["completions"])
        texts += row["completions"]
        ids += row["completion_token_ids"]
    others = _others(vlm, texts, ids)
    if not others:
        return None
    first, read = next(iter(others.items()))
    return f"{len(others):,} of {len(texts):,}", (
        f"the first is of prompt {keys[first]}: its text is {texts[first][:80]!r}, and the model "
        f"reads {read[:80]!r}"
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
