"""Prompts and completions as chats, in columns: the forms in which other tools read them.

    structured   content is a list of parts, {"type": "image"} or {"type": "text", "text": ...}, as
                 TRL documents it for models with images (docs/source/dataset_formats.md, 'Vision
                 datasets'); the images are in a column of their own
    openai       content is a text with `<image>` where the next image stands: ms-swift
                 (docs/source_en/Customization/Custom-dataset.md, 'Multimodal')
    sharegpt     the same under `from` and `value`, with human and gpt: LLaMA-Factory
                 (data/README.md, 'Sharegpt Format')

All completions are one turn of the assistant each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from perpo_pipeline.vlm.image_place import (
    ASSISTANT,
    IMAGE_PLACE,
    SYSTEM,
    USER,
    Turn,
    history_of,
    row_turns,
)

Row = Mapping[str, Any]
IMAGE, TEXT = "image", "text"
SHAREGPT_ROLES = {SYSTEM: "system", USER: "human", ASSISTANT: "gpt"}
_PART = pa.struct([pa.field("type", pa.string()), pa.field("text", pa.string())])


def turns_of(row: Row, system_prompt: str | None) -> list[Turn]:
    """The turns of a prompt, after the run's system turn unless they have one of their own."""
    turns = row_turns(row)
    if system_prompt is None or turns[0].role == SYSTEM:
        return [*turns]
    return [Turn(SYSTEM, (system_prompt,)), *turns]


def told_before(row: Row, system_prompt: str | None) -> list[dict[str, str]] | None:
    """The turns before a prompt in the form of its `history`, with the run's system turn."""
    told = [{"role": role, "content": text} for role, text in history_of(row)]
    if system_prompt is not None and (not told or told[0]["role"] != SYSTEM):
        told.insert(0, {"role": SYSTEM, "content": system_prompt})
    return told or None


def written(texts: Sequence[str]) -> str:
    """The texts of a turn as one text, with `<image>` for each image."""
    return IMAGE_PLACE.join(texts)


@dataclass
class _Structured:
    """Collects turns as three flat columns and where each message and each chat begins."""

    roles: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    messages: list[int] = field(default_factory=lambda: [0])
    chats: list[int] = field(default_factory=lambda: [0])

    def add(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            for index, text in enumerate(turn.texts):
                if index:
                    self.kinds.append(IMAGE)
                    self.texts.append(None)
                if text or not turn.num_images:
                    self.kinds.append(TEXT)
                    self.texts.append(text)
            self.roles.append(turn.role)
            self.messages.append(len(self.kinds))
        self.chats.append(len(self.roles))

    def column(self) -> pa.Array:
        parts = pa.array(self.kinds, pa.string()), pa.array(self.texts, pa.string())
        contents = pa.StructArray.from_arrays(list(parts), fields=list(_PART))
        return _chats(
            self.chats,
            role=pa.array(self.roles, pa.string()),
            content=pa.ListArray.from_arrays(pa.array(self.messages, pa.int32()), contents),
        )


def structured_prompts(chats: Iterable[Sequence[Turn]]) -> pa.Array:
    """Prompts of several turns as lists of messages with parts."""
    found = _Structured()
    for turns in chats:
        found.add(turns)
    return found.column()


def structured_answers(texts: pa.Array) -> pa.Array:
    """One message of the assistant per text, as a list of messages with parts."""
    count = len(texts)
    kinds = pa.array([TEXT] * count, pa.string())
    contents = pa.StructArray.from_arrays([kinds, texts], fields=list(_PART))
    each = pa.array(np.arange(count + 1), pa.int32())
    return _chats(
        each,
        role=pa.array([ASSISTANT] * count, pa.string()),
        content=pa.ListArray.from_arrays(each, contents),
    )


def openai_chats(chats: Iterable[Sequence[Turn]]) -> pa.Array:
    """Chats as lists of {role, content}, the contents as texts with `<image>`."""
    starts, roles, texts = _flat(chats)
    return _chats(starts, role=pa.array(roles, pa.string()), content=pa.array(texts, pa.string()))


def sharegpt_chats(chats: Iterable[Sequence[Turn]]) -> pa.Array:
    """Chats as lists of {from, value}."""
    starts, roles, texts = _flat(chats)
    named = pa.array([SHAREGPT_ROLES[role] for role in roles], pa.string())
    return _chats(starts, **{"from": named, "value": pa.array(texts, pa.string())})


def sharegpt_answers(texts: pa.Array) -> pa.Array:
    """One {from, value} of gpt per text."""
    gpt = pa.array([SHAREGPT_ROLES[ASSISTANT]] * len(texts), pa.string())
    return pa.StructArray.from_arrays([gpt, texts], names=["from", "value"])


def _flat(chats: Iterable[Sequence[Turn]]) -> tuple[list[int], list[str], list[str]]:
    starts, roles, texts = [0], list[str](), list[str]()
    for turns in chats:
        for turn in turns:
            roles.append(turn.role)
            texts.append(written(turn.texts))
        starts.append(len(roles))
    return starts, roles, texts


def _chats(starts: Any, **columns: pa.Array) -> pa.Array:
    """Lists of structs: list i has the rows from starts[i] to starts[i + 1] of the columns."""
    messages = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), messages)
