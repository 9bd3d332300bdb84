"""Prompts and completions as chats, in columns: the forms in which other tools read them.

    structured   content is a list of parts, {"type": "image"} or {"type": "text", "text": ...}, as
                 TRL documents it for models with images (docs/source/dataset_formats.md, 'Vision
                 datasets'); the images are in a column of their own
    openai       content is a text with `<image>` where the next image stands: ms-swift
                 (docs/source_en/Customization/Custom-dataset.md, 'Multimodal')
    sharegpt     the same under `from` and `value`, with human and gpt: LLaMA-Factory
                 (data/README.md, 'Sharegpt Format')

All completions are one turn of the assistant each. Where images stand is the rule of `row_turns` in
vlm/image_place.py, here for all rows of a table at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.store.list_columns import (
    Places,
    insert,
    lengths_of,
    list_column,
    starts_of,
)
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import ASSISTANT, IMAGE_PLACE, SYSTEM, USER, row_turns

IMAGE, TEXT = "image", "text"
SHAREGPT_ROLES = {SYSTEM: "system", USER: "human", ASSISTANT: "gpt"}
_PART = pa.struct([pa.field("type", pa.string()), pa.field("text", pa.string())])
_TURNS = PROMPTS.columns.field("history").type


def turns_of(prompts: pa.Table, system_prompt: str | None) -> pa.ListArray:
    """The turns of each prompt, `(P,)`, after the run's system turn unless they have one.

    A turn is a struct of its `role` and its `texts`, one more than its images, which are between
    them. The table has the columns of `PROMPTS.role("asked")`. Raises InputError as `row_turns`.
    """
    asked = _structs(USER, prompts["prompt"].combine_chunks(), "content")
    history = prompts["history"].combine_chunks()
    turns = insert(history, asked, np.arange(len(asked)), lengths_of(history))
    starts, roles = _starts(turns), pc.struct_field(turns.flatten(), "role")
    contents = pc.struct_field(turns.flatten(), "content")
    images = 1 + lengths_of(prompts["more_image_facts"].combine_chunks())
    places = _places(prompts, starts, roles, contents, images)

    users = np.flatnonzero(_flags(pc.equal(roles, USER)))
    first = users[np.searchsorted(users, starts[:-1])]
    in_front = np.zeros(len(roles), np.int64)
    in_front[first] = np.where(places == 0, images, 0)
    marks = pc.binary_repeat(IMAGE_PLACE, pa.array(in_front))
    texts = pc.split_pattern(pc.binary_join_element_wise(marks, contents, ""), IMAGE_PLACE)
    texts = _without_space(texts, np.repeat(places > 0, np.diff(starts)))
    split = pa.StructArray.from_arrays([roles, texts], names=["role", "texts"])
    return _after_system(list_column(starts, split), system_prompt)


def _places(
    prompts: pa.Table, starts: Places, roles: pa.Array, contents: pa.Array, images: Places
) -> Places:
    """How many places for images each prompt's texts have, `(P,)`: none, or one for each image."""
    found = pc.count_substring(contents, IMAGE_PLACE).to_numpy()
    of_users = np.where(_flags(pc.equal(roles, USER)), found, 0)
    every, places = (np.diff(starts_of(one)[starts]) for one in (found, of_users))
    wrong = (every != places) | ((places != 0) & (places != images))
    for row in np.flatnonzero(wrong)[:1]:
        row_turns(prompts.slice(row, 1).to_pylist()[0])  # says what is wrong
    return places


def _without_space(texts: pa.ListArray, has_places: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Turns `(T,)` without white space alone beside an image, and after images that come first."""
    lengths = lengths_of(texts)
    starts, parts = starts_of(lengths), texts.flatten()
    beside = has_places & (lengths > 1)
    blank = _flags(pc.equal(pc.utf8_trim_whitespace(parts), "")) & np.repeat(beside, lengths)
    parts = pc.if_else(pa.array(blank), "", parts)
    filled = starts_of(_flags(pc.not_equal(parts, "")).astype(np.int64))
    last = starts[1:] - 1
    follows = np.zeros(len(parts), bool)
    follows[last] = beside & (filled[last] == filled[starts[:-1]])
    return list_column(
        starts, pc.if_else(pa.array(follows), pc.utf8_ltrim_whitespace(parts), parts)
    )


def _after_system(turns: pa.ListArray, system_prompt: str | None) -> pa.ListArray:
    if system_prompt is None:
        return turns
    starts, roles = _starts(turns), pc.struct_field(turns.flatten(), "role")
    first = pc.equal(roles.take(pa.array(starts[:-1])), SYSTEM)
    without = np.flatnonzero(~_flags(first))
    texts = pa.array([[system_prompt]] * len(without), pa.list_(pa.string()))
    return insert(turns, _structs(SYSTEM, texts, "texts"), without, np.zeros_like(without))


def turns_before(prompts: pa.Table, system_prompt: str | None) -> pa.ListArray:
    """The turns before each prompt in the form of its `history`, with the run's system turn."""
    history = prompts["history"].combine_chunks()
    if system_prompt is not None:
        roles = pc.struct_field(pc.list_slice(history, 0, 1).flatten(), "role")
        has_system = np.zeros(len(history), bool)
        has_system[lengths_of(history) > 0] = _flags(pc.equal(roles, SYSTEM))
        without = np.flatnonzero(~has_system)
        turns = _structs(SYSTEM, pa.repeat(system_prompt, len(without)), "content")
        history = insert(history, turns, without, np.zeros_like(without))
    empty = lengths_of(history) == 0
    starts = pa.array(_starts(history), pa.int32())
    return pa.ListArray.from_arrays(starts, history.flatten(), _TURNS, mask=pa.array(empty))


def structured_prompts(chats: pa.ListArray) -> pa.Array:
    """The chats of `turns_of` as lists of messages with parts."""
    turns = chats.flatten()
    texts = pc.struct_field(turns, "texts")
    lengths, parts = lengths_of(texts), texts.flatten()
    starts = starts_of(lengths)
    # An image may come before each part of a text: both have a place here, and some are left out.
    kept = np.ones((len(parts), 2), bool)
    kept[starts[:-1], 0] = False
    alone = np.repeat(lengths == 1, lengths)
    kept[:, 1] = _flags(pc.not_equal(parts, "")) | alone
    places = np.flatnonzero(kept)
    is_text = places % 2
    kinds = pa.array([IMAGE, TEXT]).take(pa.array(is_text))
    said = parts.take(pa.array(places // 2, mask=is_text == 0))
    contents = pa.StructArray.from_arrays([kinds, said], fields=list(_PART))
    content = list_column(starts_of(kept.sum(1))[starts], contents)
    return _chats(_starts(chats), role=pc.struct_field(turns, "role"), content=content)


def structured_answers(texts: pa.Array) -> pa.Array:
    """One message of the assistant per text, as a list of messages with parts."""
    kinds = pa.repeat(TEXT, len(texts))
    contents = pa.StructArray.from_arrays([kinds, texts], fields=list(_PART))
    each = np.arange(len(texts) + 1)
    roles = pa.repeat(ASSISTANT, len(texts))
    return _chats(each, role=roles, content=list_column(each, contents))


def openai_chats(chats: pa.ListArray) -> pa.Array:
    """The chats of `turns_of` as lists of {role, content}, the contents as texts with `<image>`."""
    roles, texts = _roles_and_texts(chats)
    return _chats(_starts(chats), role=roles, content=texts)


def openai_answered(chats: pa.Array, texts: pa.Array) -> pa.Array:
    """Chats of `openai_chats`, each with the answer of the assistant, `(R,)`, as its last turn."""
    answers = _structs(ASSISTANT, texts, "content")
    return insert(chats, answers, np.arange(len(texts)), lengths_of(chats))


def sharegpt_chats(chats: pa.ListArray) -> pa.Array:
    """The chats of `turns_of` as lists of {from, value}."""
    roles, texts = _roles_and_texts(chats)
    known = pc.index_in(roles, pa.array([*SHAREGPT_ROLES]))
    named = pa.array([*SHAREGPT_ROLES.values()]).take(known)
    return _chats(_starts(chats), **{"from": named, "value": texts})


def sharegpt_answers(texts: pa.Array) -> pa.Array:
    """One {from, value} of gpt per text."""
    gpt = pa.repeat(SHAREGPT_ROLES[ASSISTANT], len(texts))
    return pa.StructArray.from_arrays([gpt, texts], names=["from", "value"])


def chats_with(chats: pa.ListArray, mark: str) -> Places:
    """The places of the chats of `turns_of` of which a text holds `mark`."""
    texts = pc.struct_field(chats.flatten(), "texts")
    found = starts_of(_flags(pc.match_substring(texts.flatten(), mark)).astype(np.int64))
    return np.flatnonzero(np.diff(found[starts_of(lengths_of(texts))[_starts(chats)]]))


def _roles_and_texts(chats: pa.ListArray) -> tuple[pa.Array, pa.Array]:
    """The role of each turn, and its texts as one with `<image>` for each image."""
    turns = chats.flatten()
    texts = pc.binary_join(pc.struct_field(turns, "texts"), IMAGE_PLACE)
    return pc.struct_field(turns, "role"), texts


def _structs(role: str, values: pa.Array, name: str) -> pa.StructArray:
    """One turn of a role per value."""
    return pa.StructArray.from_arrays([pa.repeat(role, len(values)), values], names=["role", name])


def _chats(starts: Places, **columns: pa.Array) -> pa.Array:
    """Lists of structs: list i has the rows from starts[i] to starts[i + 1] of the columns."""
    return list_column(
        starts, pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    )


def _starts(lists: pa.Array) -> Places:
    return starts_of(lengths_of(lists))


def _flags(column: Any) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return found
