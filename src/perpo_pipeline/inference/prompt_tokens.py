"""Checks that every backend makes: a prompt's tokens match training's, and answers fit."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.backend import Failure
from perpo_pipeline.vlm.models import Vlm

SHOWN_TOKENS = 4
SHOWN_BEFORE, SHOWN_TEXT = 40, 120  # characters before the first difference, and in all


def prompt_too_long(prompt_tokens: int, context: int | None) -> Failure | None:
    """A Failure if the prompt leaves no room for an answer in the context (in tokens), or None."""
    if context is None or prompt_tokens < context:
        return None
    return Failure(
        f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer in the "
        f"context of {context}"
    )


def answer_too_long(prompt_tokens: int, answer_tokens: int, context: int | None) -> Failure | None:
    """A Failure if prompt and longest answer exceed the context (in tokens), or None.

    The whole list is dropped then. The model was not made for text beyond its context, and an
    answer that is truncated there is not a draw from the model's distribution.
    """
    if context is None or prompt_tokens + answer_tokens <= context:
        return None
    return Failure(
        f"the prompt has {prompt_tokens} tokens and an answer at least {answer_tokens}: more than "
        f"the context of {context}"
    )


def compare_prompt_tokens(
    vlm: Vlm,
    found: Sequence[int],
    expected: Sequence[int],
    *,
    reader: str,
    prompt: str,
    fix: str,
    where: str | None = None,
) -> None:
    """Raise ConfigError, showing both, if `reader` reads other tokens than training does.

    `prompt` is its name in the message. Uses the weightless model's tokenizer, which only one
    thread may use at a time.
    """
    if list(found) == list(expected):
        return
    place = _first_difference(found, expected)
    theirs, ours = _readable(vlm, found), _readable(vlm, expected)
    start = max(_first_difference(theirs, ours) - SHOWN_BEFORE, 0)
    tokens, text = slice(place, place + SHOWN_TOKENS), slice(start, start + SHOWN_TEXT)
    raise ConfigError(
        f"{reader} and training read different tokens for {prompt}: {len(found)} tokens "
        f"instead of {len(expected)}; from position {place} on {list(found[tokens])} instead of "
        f"{list(expected[tokens])}\n"
        f"  {reader}: {theirs[text]!r}\n"
        f"  training: {ours[text]!r}",
        where=where,
        fix=fix,
    )


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip_longest(one, other))
    return next((place for place, (a, b) in pairs if a != b), 0)


def _readable(vlm: Vlm, ids: Sequence[int]) -> str:
    """The text of tokens; a run of image placeholders is shown as one, with its length.

    Ids that the tokenizer lacks have no text.
    """
    size = len(vlm.tokenizer)
    text = vlm.tokenizer.decode([token for token in ids if 0 <= token < size])
    image = str(getattr(vlm.processor, "image_token", "<image>"))
    runs = rf"(?:{re.escape(image)})+"
    return re.sub(runs, lambda run: f"{image}*{len(run[0]) // len(image)}", text)
