"""One row of a file of chats: its turns as texts, with `<image>` for each image, and its images.

    messages        [{"role", "content"}]: OpenAI, TRL, ms-swift. The content is a text or a list of
                    parts: {"type": "text", "text"}, {"type": "image"} for the next of the row's
                    images, or an image of its own: {"type": "image", "image"}, {"type":
                    "image_url", "image_url": {"url"}}
    conversations   [{"from", "value"}]: ShareGPT as LLaVA and LLaMA-Factory write it, with human
                    and gpt, and one answer in `chosen`, where the row has one
    prompt          messages without the answer, which is in `completion` or `chosen` (TRL), or in
                    columns of truth (`perpo export --to grpo`)

The keys are those of each project's own description: TRL's docs/source/dataset_formats.md,
LLaVA's Finetune_Custom_Data.md, LLaMA-Factory's data/README.md, ms-swift's
docs/source_en/Customization/Custom-dataset.md, OpenAI's reference of chat completions. Keys of a
part without a value are none: tables give every part all keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perpo_pipeline.json_files import Row, RowFault
from perpo_pipeline.prepare.fields import text_fault
from perpo_pipeline.vlm.image_place import ASSISTANT, IMAGE_PLACE, SYSTEM, USER, image_in_turn_of

Layout = Literal["messages", "conversations", "prompt"]
ROLES = {
    **{name: SYSTEM for name in ("system", "developer")},
    **{name: USER for name in ("user", "human")},
    **{name: ASSISTANT for name in ("assistant", "gpt")},
}
ANSWERS: dict[Layout, tuple[str, ...]] = {
    "messages": (),
    "conversations": ("chosen",),
    "prompt": ("completion", "chosen"),
}
"""Where the answer is that a chat does not have itself."""
KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
IMAGE_KEYS = ("image", "image_url", "path", "url")
CALLS = ("tool_calls", "function_call")  # what an assistant does beside what it says
USED = ("system", "images", "image")
OTHER_MEDIA = ("videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Chat:
    """The turns of a row, (role, text) each, and the values of its images, in their order.

    `own_images` are in the turns; the others are those of the row. `used` are the keys that were
    read.
    """

    layout: Layout
    turns: list[tuple[str, str]]
    images: list[Any]
    used: tuple[str, ...]

    @property
    def has_answer(self) -> bool:
        return bool(self.turns) and self.turns[-1][0] == ASSISTANT


def layout_of(row: Row) -> Layout:
    """Which of the layouts a row has; raises `RowFault` for none, or more than one."""
    found: list[Layout] = [name for name in ANSWERS if row.get(name) is not None]
    if not found:
        raise RowFault(f"there is no chat: none of {', '.join(f'`{name}`' for name in ANSWERS)}")
    if len(found) > 1:
        raise RowFault(f"the row has {' and '.join(f'`{name}`' for name in found)}; keep one")
    return found[0]


def read_chat(row: Row) -> Chat:
    """The chat of a row; raises `RowFault` for its first fault."""
    layout = layout_of(row)
    if other := next((key for key in OTHER_MEDIA if row.get(key)), None):
        raise RowFault(f"the row has `{other}`, which the prompt would be without: images are read")
    answer = next((key for key in ANSWERS[layout] if row.get(key) is not None), None)
    messages = _messages(row, layout) + ([] if answer is None else _answer(row, answer))
    turns, own = list[tuple[str, str]](), list[Any]()
    for number, message in enumerate(messages, start=1):
        role, text, images = _turn(message, number)
        turns.append((role, text))
        own += images
    if system := row.get("system"):
        if not isinstance(system, str):
            raise RowFault(f"`system` is no text: {system!r}")
        if any(role == SYSTEM for role, _ in turns):
            raise RowFault("the row has `system` and a system turn; keep one")
        turns.insert(0, (SYSTEM, system))
    for role, text in turns:
        if fault := text_fault(f"the turn of the {role}", text):
            raise RowFault(fault)
    used = (layout, *USED, *([] if answer is None else [answer]))
    return Chat(layout, turns, _images(row, own), used)


def _messages(row: Row, layout: Layout) -> list[Any]:
    messages = row[layout]
    if not isinstance(messages, list) or not messages:
        raise RowFault(f"`{layout}` is no list of turns: {messages!r}")
    return list(messages)


def _answer(row: Row, key: str) -> list[Any]:
    """The turns in `key`: one message, or a list of messages."""
    found = row[key]
    if isinstance(found, Mapping):
        return [found]
    if not isinstance(found, list) or not found:
        raise RowFault(f"`{key}` is no turn: {found!r}")
    return found


def _turn(message: Any, number: int) -> tuple[str, str, list[Any]]:
    """Role, text and own images of a message."""
    if not isinstance(message, Mapping):
        raise RowFault(f"turn {number} is no object: {message!r}")
    names = next((keys for keys in KEYS.values() if message.get(keys[0]) is not None), None)
    if names is None:
        raise RowFault(f"turn {number} has neither `role` nor `from`")
    role_key, content_key = names
    role, content = message[role_key], message.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        raise RowFault(
            f"turn {number} is of {role!r}; turns of {SYSTEM}, {USER} and {ASSISTANT} are read"
        )
    if called := next((key for key in CALLS if message.get(key)), None):
        raise RowFault(f"turn {number} has `{called}`, which is not read: {message[called]!r}")
    if isinstance(content, str):
        return ROLES[role], content, []
    if not isinstance(content, list):
        raise RowFault(f"turn {number} has no text in `{content_key}`: {content!r}")
    text, images = _of_parts(content, number)
    if images and ROLES[role] != USER:
        raise RowFault(f"turn {number}: {image_in_turn_of(ROLES[role])}")
    return ROLES[role], text, images


def _of_parts(parts: list[Any], number: int) -> tuple[str, list[Any]]:
    """The text of parts, and an image or None (the next one of the row) for each place in it."""
    texts, images = list[str](), list[Any]()
    for part in parts:
        found = (
            {key: value for key, value in part.items() if value is not None}
            if isinstance(part, Mapping)
            else {"text": part}
        )
        kind = found.get("type", "text" if "text" in found else "image")
        if kind in ("image", "image_url"):
            texts.append(IMAGE_PLACE)
            images.append(next((found[key] for key in IMAGE_KEYS if key in found), None))
        elif kind == "text" and isinstance(found.get("text"), str):
            texts.append(found["text"])
        else:
            raise RowFault(f"turn {number} has a part that is neither text nor image: {part!r}")
    return "".join(texts), images


def _images(row: Row, own: list[Any]) -> list[Any]:
    """The images of a chat: those in its turns, each None being the next one of the row."""
    given = [row[key] for key in ("images", "image") if row.get(key) is not None]
    if len(given) > 1 and all(given):
        raise RowFault("the row has `images` and `image`; keep one")
    listed: Any = next((one for one in given if one), [])
    rest = list(listed) if isinstance(listed, list) else [listed]
    if not own:
        return rest
    waiting = sum(image is None for image in own)
    if waiting != len(rest):
        raise RowFault(
            f"{_count(waiting, 'place')} for images in the turns, and {_count(len(rest), 'image')} "
            "in the row"
        )
    return [rest.pop(0) if image is None else image for image in own]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
