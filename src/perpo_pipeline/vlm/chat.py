"""What a model's chat template writes around a question and an answer.

Everything is found by rendering a turn (chat_rendering.py): where an answer ends, whether the
template opens a thought for the model, and how it closes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm.chat_rendering import (
    ANSWER,
    FORMS,
    QUESTION,
    THOUGHT,
    Message,
    asked,
    refusals,
    render_chat,
)

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class AnswerTurn:
    """What stands around an answer: the template's text before it and the token after it.

    `start` closes the thought that the template has opened; it is empty for most templates.
    """

    start: str
    end_id: int


def answer_turn(vlm: "Vlm") -> AnswerTurn:
    """What stands around an answer without a thought; raises InputError where it is unknown."""
    return AnswerTurn(find_thought_end(vlm) if opens_thought(vlm) else "", find_answer_end(vlm))


def opens_thought(vlm: "Vlm") -> bool:
    """Whether the rendered prompt ends inside a thought, so that every answer begins there."""
    rendered = _rendered_or_none(vlm, [asked()], generation=True) or ""
    start = rendered.rpartition(QUESTION)[2]
    return start.rfind(OPEN) > start.rfind(CLOSE)


def check_thinking(vlm: "Vlm", thinking: str) -> None:
    """Raise ConfigError if every answer begins inside a thought and the settings do not say so."""
    if thinking != "opened" and opens_thought(vlm):
        raise ConfigError(
            f"the chat template of this model ends a prompt inside a thought ({OPEN}), so an "
            f"answer begins with the rest of it; model.answer.thinking is {thinking}",
            fix="set model.answer.thinking to opened: what stands up to the last "
            f"{CLOSE} is then no answer",
        )


def find_thought_end(vlm: "Vlm") -> str:
    """What the template writes between a thought and the answer, `</think>` included.

    Raises InputError if no rendered turn shows it.
    """
    for answer in _turns_with_a_thought():
        rendered = _rendered_or_none(vlm, [asked(), answer])
        _, has_thought, after = (rendered or "").rpartition(THOUGHT)
        between, has_answer, _ = after.partition(ANSWER)
        if has_thought and has_answer and CLOSE in between:
            return between
    raise InputError(
        "the chat template opens a thought, but a rendered turn does not show how it closes one, "
        "so SFT cannot write a target",
        fix="remove sft from train.methods, or use a chat template that keeps the thought of an "
        "assistant's turn",
    )


def _turns_with_a_thought() -> list[Message]:
    """An assistant's turn in the forms that templates read."""
    whole = f"{OPEN}\n{THOUGHT}\n{CLOSE}\n\n{ANSWER}"
    return [
        *(
            {"role": "assistant", "content": form(ANSWER), key: THOUGHT}
            for key in ("reasoning_content", "reasoning")
            for form in FORMS
        ),
        *({"role": "assistant", "content": form(whole)} for form in FORMS),
    ]


def find_answer_end(vlm: "Vlm") -> int:
    """The token with which an answer ends: the one that the chat template writes after it.

    Where the template writes none (LLaVA-1.5), it is the model's only end token, or of several the
    tokenizer's own. Raises InputError if the template writes one at which the model does not stop,
    and if there is no such choice.
    """
    ends, own = vlm.eos_token_ids, vlm.tokenizer.eos_token_id
    written = _written_after_answer(vlm)
    if written in ends:
        return int(written)
    names = ", ".join(f"{vlm.tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ends)
    if written is not None:
        raise InputError(
            f"the chat template ends an answer with "
            f"{vlm.tokenizer.convert_ids_to_tokens(written)!r} ({written}), which is not one of "
            f"the model's end tokens: {names}",
            fix=f"add {written} to eos_token_id in the model's generation_config.json",
        )
    if len(ends) == 1 or own in ends:
        return int(own if own in ends else ends[0])
    raise InputError(
        f"it is unknown which token ends an answer: the chat template writes none after it, and "
        f"the model has several: {names}",
        fix="leave only the right one in eos_token_id in the model's generation_config.json, or "
        "use a chat template that ends an answer with it",
    )


def _written_after_answer(vlm: "Vlm") -> int | None:
    """The token that the template writes after an assistant's answer; None if there is none."""
    added = {token.content: int(i) for i, token in vlm.tokenizer.added_tokens_decoder.items()}
    for form in FORMS:
        turn = {"role": "assistant", "content": form(ANSWER)}
        rendered = _rendered_or_none(vlm, [asked(), turn]) or ""
        _, is_written, rest = rendered.rpartition(ANSWER)
        found = [token for token in added if rest.lstrip().startswith(token)]
        if is_written and found:
            return added[max(found, key=len)]
    return None


def _rendered_or_none(
    vlm: "Vlm", messages: Sequence[Message], *, generation: bool = False
) -> str | None:
    """The text, or None where there is no template or it refuses the form of a message."""
    try:
        return render_chat(vlm, messages, generation=generation)
    except refusals():
        return None
