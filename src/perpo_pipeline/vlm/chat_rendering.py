"""A model's chat template, rendered as the run says: its system turn, arguments and date.

The run says which system turn stands before a question, which arguments the template gets, and
which date it writes as today's (chat_settings.py). All backends, training and servers read prompts
that come from here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ConfigError, InputError, first_line
from perpo_pipeline.vlm.chat_settings import ChatSettings
from perpo_pipeline.vlm.processors import writes_begin_token

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

# Stand for texts of a turn.
QUESTION, THOUGHT, ANSWER, SYSTEM = "Aquestion", "Bthought", "Canswer", "Dsystem"
EARLIER = "Eearlier"
DATE_FUNCTION = "strftime_now"  # what templates call for today's date
DATE_VARIABLE = "date_string"  # what some of them let the caller give
DATE_FORMAT = "%d %b %Y"  # as in Llama's templates

_READS = "what a template reads is in the model's chat_template.jinja"

_QUOTE = r"(?:[\"']|&#?\w+;)"
# A part that a template wrote out instead of its text: {'type': 'text', 'text': 'Dsystem'}.
_WRITTEN_PART = re.compile(rf"{_QUOTE}text{_QUOTE}\s*:\s*{_QUOTE}({SYSTEM}|{EARLIER})")

Message = Mapping[str, Any]
Form = Callable[[str], Any]


def template_text(template: Any) -> str:
    """The source of a processor's chat template; of several, all of them."""
    return "\n".join(template.values()) if isinstance(template, Mapping) else str(template or "")


def writes_date(template: str) -> bool:
    """Whether a chat template writes a date that the caller decides."""
    return DATE_FUNCTION in template or DATE_VARIABLE in template


def render_chat(vlm: "Vlm", messages: Sequence[Message], *, generation: bool) -> str:
    """The chat template's text of some messages; `generation` starts the assistant's turn.

    The run's system turn stands before them, unless they begin with their own. Raises InputError
    where the template refuses that, or an argument of the run's; what it raises without them
    otherwise.
    """
    try:
        return _render(vlm, vlm.chat, messages, generation)
    except refusals() as error:
        if (name := _refused_setting(vlm, messages, generation)) is None:
            raise
        raise InputError(
            f"the model's chat template refuses {name}: {first_line(error)}",
            fix=f"remove it or change its value, or use another chat template; {_READS}",
        ) from error


def _render(
    vlm: "Vlm", settings: ChatSettings, messages: Sequence[Message], generation: bool
) -> str:
    system = []
    if settings.system_prompt is not None and messages[0]["role"] != "system":
        form = _known_form(vlm, settings)
        system = [system_turn(form, vlm.plain.mark(settings.system_prompt))]
    return _apply(vlm.processor, settings, [*system, *messages], generation)


def _known_form(vlm: "Vlm", settings: ChatSettings) -> Form:
    """`system_form`, found once for a model with these settings and this template."""
    key = (template_text(vlm.processor.chat_template), settings)
    if key not in vlm.system_forms:
        vlm.system_forms[key] = system_form(vlm.processor, settings)
    return vlm.system_forms[key]


def _apply(
    processor: Any, settings: ChatSettings, messages: Sequence[Message], generation: bool
) -> str:
    """The template's text of these messages, which are all there are."""
    return str(
        processor.apply_chat_template(
            [*map(dict, messages)],
            add_generation_prompt=generation,
            **_read_arguments(processor, settings),
            **_date_arguments(processor, settings),
        )
    )


def system_form(processor: Any, settings: ChatSettings) -> Form:
    """The form of a system turn's content that the template reads, one of `FORMS`.

    Templates differ: some write what the content holds, in others (GLM-4.1V) a list of parts would
    stand in the prompt as Python writes it. The form is the first with which a text stands in the
    prompt and no part does; if there is none, the first that changes nothing (`idle_settings` warns
    of it). Raises InputError if the template reads neither form, and what the template raises if it
    refuses both.
    """
    refused, written = None, []
    for form in FORMS:
        try:
            found = _apply(processor, settings, [system_turn(form, SYSTEM), asked()], True)
        except refusals() as error:
            refused = refused or error
            continue
        if SYSTEM in found and not _WRITTEN_PART.search(found):
            return form
        written.append((form, found))
    if refused and not written:
        raise refused
    without = _apply(processor, settings, [asked()], True)
    for form, found in written:
        if found == without:
            return form
    raise InputError(
        "the model's chat template does not write the text of model.system_prompt, neither from a "
        "list of parts nor from a string",
        fix="remove model.system_prompt, or use another chat template (the model's "
        "chat_template.jinja)",
    )


def leaves_begin_token(processor: Any, settings: ChatSettings) -> bool:
    """Whether the tokenizer adds the begin token to a rendered question, after the system turn.

    Then vLLM's server must be asked for it (`add_special_tokens`): it adds none to a chat by
    itself.
    """
    tokenizer, turns = processor.tokenizer, [asked()]
    if settings.system_prompt is not None:  # some templates refuse a question without one
        turns.insert(0, system_turn(system_form(processor, settings), settings.system_prompt))
    text = _apply(processor, settings, turns, True)
    return tokenizer.num_special_tokens_to_add() > 0 and not writes_begin_token(tokenizer, text)


def turn_form(vlm: "Vlm", role: str) -> Form:
    """The form of an earlier turn's content that the template reads, one of `FORMS`.

    Raises InputError if it reads neither in a turn of this role.
    """
    for form in FORMS:
        text = {"role": role, "content": form(EARLIER)}
        turns = [text, asked()] if role == "system" else [asked(), text, user_turn(text_part("Z"))]
        try:
            found = _apply(vlm.processor, vlm.chat, turns, True)
        except refusals():
            continue
        if EARLIER in found and not _WRITTEN_PART.search(found):
            return form
    raise InputError(
        f"the model's chat template does not read earlier turns of the {role}",
        fix="leave out the rows with `history`, or use another chat template",
    )


def system_turn(form: Form, text: str) -> Message:
    """A system turn with this text, in one of `FORMS`."""
    return {"role": "system", "content": form(text)}


def refusals() -> tuple[type[Exception], ...]:
    """What rendering a template raises that cannot do what it is asked."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, KeyError


def _not_rendered() -> tuple[type[Exception], ...]:
    """`refusals`, and what `system_form` raises where the template reads no form."""
    return (*refusals(), InputError)


def _refused_setting(vlm: "Vlm", messages: Sequence[Message], generation: bool) -> str | None:
    """The setting that the template refuses; None if it refuses the messages without any."""
    nothing = ChatSettings(vlm.chat.day)
    if not _renders(vlm, nothing, messages, generation):
        return None
    for name, alone in _each_setting(vlm.chat):
        if not _renders(vlm, alone, messages, generation):
            return name
    return "model.system_prompt together with model.chat_template_kwargs"


def _each_setting(settings: ChatSettings) -> list[tuple[str, ChatSettings]]:
    """The name of every setting of the run, with settings that have this one alone."""
    found = []
    if settings.system_prompt is not None:
        alone = ChatSettings(settings.day, settings.system_prompt)
        found.append(("model.system_prompt", alone))
    for name, value in settings.arguments:
        alone = ChatSettings(settings.day, None, ((name, value),))
        found.append((f"model.chat_template_kwargs.{name}", alone))
    return found


def _renders(
    vlm: "Vlm", settings: ChatSettings, messages: Sequence[Message], generation: bool
) -> bool:
    try:
        _render(vlm, settings, messages, generation)
    except _not_rendered():
        return False
    return True


def idle_settings(vlm: "Vlm") -> list[str]:
    """Warnings: what the run says about the chat template and changes nothing in a prompt of it."""
    source, warnings = template_text(vlm.processor.chat_template), []
    whole = render_chat(vlm, [asked()], generation=True) if _each_setting(vlm.chat) else ""
    for name, _ in _each_setting(vlm.chat):
        if _without(vlm, name) != whole:
            continue
        own, last = vlm.chat.system_prompt, name.rpartition(".")[2]
        if name == "model.system_prompt" and vlm.plain.mark(own or "").strip() not in whole:
            why = "it writes no system turn"
        elif name == "model.system_prompt" or _is_read(last, source):
            why = "it writes the same without it"
        else:
            why = f"it does not read it ({_READS})"
        warnings.append(
            f"{name} changes nothing in the prompts of the model's chat template: {why}"
        )
    return warnings


def idle_notes(vlm: "Vlm") -> dict[str, str]:
    """`idle_settings` as a backend's notes."""
    found = idle_settings(vlm)
    return {"chat_template": f"warning: {'; '.join(found)}"} if found else {}


def _without(vlm: "Vlm", name: str) -> str | None:
    """The text of a question without one of the run's settings; None if it is refused."""
    chat = vlm.chat
    system = None if name == "model.system_prompt" else chat.system_prompt
    left = tuple(one for one in chat.arguments if name != f"model.chat_template_kwargs.{one[0]}")
    try:
        return _render(vlm, ChatSettings(chat.day, system, left), [asked()], True)
    except _not_rendered():
        return None


def _is_read(name: str, source: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _read_arguments(processor: Any, settings: ChatSettings) -> dict[str, Any]:
    """The arguments that the template reads: transformers gives others to the processor."""
    source = template_text(processor.chat_template)
    return {name: value for name, value in settings.arguments if _is_read(name, source)}


def _date_arguments(processor: Any, settings: ChatSettings) -> dict[str, Any]:
    """The run's date in place of today's; nothing for a template without a date."""
    source, day = template_text(processor.chat_template), settings.day
    if DATE_FUNCTION in source:
        return {DATE_FUNCTION: day.strftime}
    return {DATE_VARIABLE: day.strftime(DATE_FORMAT)} if DATE_VARIABLE in source else {}


def arguments_for_server(vlm: "Vlm", *, takes_arguments: bool) -> dict[str, Any]:
    """What a server's chat template must be given to write training's prompts; often nothing.

    Raises ConfigError where it would write others: the server takes no arguments for its template
    (`takes_arguments`), or the date would be that of its own clock.
    """
    found = _read_arguments(vlm.processor, vlm.chat)
    if found and not takes_arguments:
        raise ConfigError(
            f"model.chat_template_kwargs: the OpenAI protocol has no such field, and this server "
            f"does not identify itself as vLLM: it may ignore {', '.join(found)}, and sampling and "
            "training would read different prompts",
            fix="use the backend transformers or vllm, ask vLLM, or remove the arguments",
        )
    return found | date_for_server(vlm, takes_arguments=takes_arguments)


def system_message(vlm: "Vlm") -> Message | None:
    """The run's system turn as a server gets it, as a string; None if there is none.

    Some servers give their template a list of parts instead. Raises ConfigError for a text that a
    server would read as control tokens.
    """
    text = vlm.chat.system_prompt
    if text is None:
        return None
    if token := vlm.plain.spelled(text):
        raise ConfigError(
            f"model.system_prompt spells {token!r}, a control token of the model, and a server "
            "reads it as that token, not as text",
            fix="use the backend transformers or vllm, or remove it from the text",
        )
    return system_turn(str, text)


def date_for_server(vlm: "Vlm", *, takes_arguments: bool) -> dict[str, str]:
    """What a server's chat template must be given to write the run's date; often nothing.

    Raises ConfigError where the server would write the date of its own clock: it takes no
    arguments for its template, or the template reads none.
    """
    source, day = template_text(vlm.processor.chat_template), vlm.chat.day
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


def text_parts(text: str) -> list[Message]:
    """A text as the content of a message in parts."""
    return [text_part(text)]


IMAGE_PART: Message = {"type": "image"}
FORMS: tuple[Form, ...] = (text_parts, str)
"""The forms of a message's content that templates read."""


def asked() -> Message:
    """A user's turn with an image and `QUESTION`."""
    return user_turn(IMAGE_PART, text_part(QUESTION))
