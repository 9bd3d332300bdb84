"""What a model's chat template writes around a question and an answer.

Everything is found by rendering a turn: where an answer ends, whether the template opens a thought
for the model, and how it closes one. The date that some templates write is fixed by the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

OPEN, CLOSE = "<think>", "</think>"
QUESTION, THOUGHT, ANSWER = "Aquestion", "Bthought", "Canswer"  # stand for texts of a turn
DATE_FUNCTION = "strftime_now"  # what templates call for today's date
DATE_VARIABLE = "date_string"  # what some of them let the caller give
DATE_FORMAT = "%d %b %Y"  # as in Llama's templates

Message = Mapping[str, Any]


def template_text(template: Any) -> str:
    """The source of a processor's chat template; of several, all of them."""
    return "\n".join(template.values()) if isinstance(template, Mapping) else str(template or "")


def writes_date(template: str) -> bool:
    """Whether a chat template writes a date that the caller decides."""
    return DATE_FUNCTION in template or DATE_VARIABLE in template


def render_chat(vlm: "Vlm", messages: Sequence[Message], *, generation: bool) -> str:
    """The chat template's text of some messages; `generation` starts the assistant's turn."""
    return str(
        vlm.processor.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=generation,
            **_date_arguments(vlm),
        )
    )


def _date_arguments(vlm: "Vlm") -> dict[str, Any]:
    """The run's date in place of today's; nothing for a template without a date."""
    source, day = template_text(vlm.processor.chat_template), vlm.template_date
    if DATE_FUNCTION in source:
        return {DATE_FUNCTION: day.strftime}
    return {DATE_VARIABLE: day.strftime(DATE_FORMAT)} if DATE_VARIABLE in source else {}


def date_for_server(vlm: "Vlm", *, takes_arguments: bool) -> dict[str, str]:
    """What a server's chat template must be given to write the run's date; often nothing.

    Raises ConfigError where the server would write the date of its own clock: it takes no
    arguments for its template, or the template reads none.
    """
    source, day = template_text(vlm.processor.chat_template), vlm.template_date
    if DATE_VARIABLE in source and takes_arguments:
        return {DATE_VARIABLE: day.strftime(DATE_FORMAT)}
    if DATE_FUNCTION in source:
        raise ConfigError(
            "the model's chat template writes today's date, and this server would write that of "
            "its own clock: sampling and training would read different prompts",
            fix="use the backend transformers or vllm, or a chat template without a date",
        )
    return {}


def user_turn(*content: Message) -> Message:
    """A user's message with these parts."""
    return {"role": "user", "content": list(content)}


def text_part(text: str) -> Message:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


IMAGE_PART: Message = {"type": "image"}


def _asked() -> Message:
    return user_turn(IMAGE_PART, text_part(QUESTION))


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
    rendered = _rendered_or_none(vlm, [_asked()], generation=True) or ""
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
        rendered = _rendered_or_none(vlm, [_asked(), answer])
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
    forms: list[Callable[[str], Any]] = [lambda text: [text_part(text)], str]
    return [
        *(
            {"role": "assistant", "content": form(ANSWER), key: THOUGHT}
            for key in ("reasoning_content", "reasoning")
            for form in forms
        ),
        *({"role": "assistant", "content": form(whole)} for form in forms),
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
    for content in ([text_part(ANSWER)], ANSWER):
        turn = {"role": "assistant", "content": content}
        rendered = _rendered_or_none(vlm, [_asked(), turn]) or ""
        _, is_written, rest = rendered.rpartition(ANSWER)
        found = [token for token in added if rest.lstrip().startswith(token)]
        if is_written and found:
            return added[max(found, key=len)]
    return None


def _rendered_or_none(
    vlm: "Vlm", messages: Sequence[Message], *, generation: bool = False
) -> str | None:
    """The text, or None where there is no template or it refuses the form of a message."""
    from jinja2 import TemplateError

    try:
        return render_chat(vlm, messages, generation=generation)
    except (TemplateError, TypeError, ValueError, KeyError):
        return None
