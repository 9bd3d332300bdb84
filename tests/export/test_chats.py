"""Turns and images in columns are those of each row, whatever is in the texts."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.errors import InputError
from perpo_pipeline.export import chats
from perpo_pipeline.store.prompt_images import image_lists, images_of
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, row_turns

Row = dict[str, Any]
TEXT = st.text("a <>\n\t\x1c\u3000\u200bé", max_size=4).filter(lambda t: IMAGE_PLACE not in t)
FACTS = {"width": 4, "height": 3}


@st.composite
def prompt(draw: st.DrawFn) -> Row:
    """A row of the prompts: earlier turns, one to three images, and their places or none."""
    images, turns = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    texts = [draw(TEXT) for _ in range(2 * turns + 1)]
    if draw(st.booleans()):
        for _ in range(images):
            turn = 2 * draw(st.integers(0, turns))
            texts[turn] += IMAGE_PLACE + draw(TEXT)
    said = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    system = [{"role": "system", "content": draw(TEXT)}] * draw(st.booleans())
    facts = [{"sha256": f"sha{i}", "notes": [f"note{i}"], **FACTS} for i in range(images)]
    files = [{"bytes": None, "path": f"{i}.png"} for i in range(images)]
    files[0] = {"bytes": b"png", "path": None}
    box = draw(st.integers(0, images - 1))
    several = images > 1
    return {
        "prompt_id": draw(st.text("abc", min_size=1, max_size=3)),
        "prompt": texts[-1],
        "history": [*system, *said[:-1]] or None,
        "image": files[box],
        "image_sha256": facts[box]["sha256"],
        "image_notes": facts[box]["notes"],
        "more_images": [*files[:box], *files[box + 1 :]] if several else None,
        "more_image_facts": [*facts[:box], *facts[box + 1 :]] if several else None,
        "box_image": box if several else None,
    }


def table(rows: list[Row]) -> pa.Table:
    names = PROMPTS.pick("prompt_id", "prompt", "history", "image_notes", role="image")
    return pa.Table.from_pylist(rows, pa.schema([PROMPTS.columns.field(name) for name in names]))


@settings(deadline=None)
@given(st.lists(prompt(), max_size=4), st.sampled_from([None, "Find things.", f"a{IMAGE_PLACE}b"]))
def test_columns_of_turns_are_the_turns_of_each_row(rows: list[Row], system: str | None) -> None:
    found = chats.turns_of(table(rows), system)
    expected = []
    for row in rows:
        turns = [(turn.role, [*turn.texts]) for turn in row_turns(row)]
        if system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", [system]))
        expected.append(turns)
    assert [[(t["role"], t["texts"]) for t in chat] for chat in found.to_pylist()] == expected

    marked = [i for i, turns in enumerate(expected) if any("a" in t for _, ts in turns for t in ts)]
    assert chats.chats_with(found, "a").tolist() == marked
    spelled = [[{"role": r, "content": IMAGE_PLACE.join(t)} for r, t in c] for c in expected]
    assert chats.openai_chats(found).to_pylist() == spelled
    answers = pa.array([f"answer {i}" for i in range(len(rows))], pa.string())
    for chat, answer in zip(spelled, answers.to_pylist(), strict=True):
        chat.append({"role": "assistant", "content": answer})
    assert chats.openai_answered(chats.openai_chats(found), answers).to_pylist() == spelled
    assert chats.structured_prompts(found).to_pylist() == [
        [{"role": role, "content": parts_of(texts)} for role, texts in turns] for turns in expected
    ]
    before = [[*(row["history"] or [])] for row in rows]
    for turns_before in before:
        if system is not None and [t["role"] for t in turns_before[:1]] != ["system"]:
            turns_before.insert(0, {"role": "system", "content": system})
    assert chats.turns_before(table(rows), system).to_pylist() == [one or None for one in before]


def parts_of(texts: list[str]) -> list[Row]:
    """The texts of a turn and the images between them, as TRL documents them."""
    found: list[Row] = []
    for index, text in enumerate(texts):
        found += [{"type": "image", "text": None}] * (index > 0)
        found += [{"type": "text", "text": text}] * (text != "" or len(texts) == 1)
    return found


@settings(deadline=None, max_examples=30)
@given(st.lists(prompt(), max_size=4))
def test_columns_of_images_are_the_images_of_each_row(rows: list[Row]) -> None:
    names = ("bytes", "path", "sha256", "notes")
    expected = [[{name: one[name] for name in names} for one in images_of(row)] for row in rows]
    assert image_lists(table(rows)).to_pylist() == expected


def test_places_of_other_images_are_refused_as_for_one_row() -> None:
    row = {"prompt_id": "a", "prompt": f"{IMAGE_PLACE} and {IMAGE_PLACE}", "image_notes": []}
    row |= {"image": {"bytes": None, "path": "a.png"}, "image_sha256": "0"}
    good = row | {"prompt": "a"}
    with pytest.raises(InputError, match="more than once"):
        chats.turns_of(table([good, row]), None)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": IMAGE_PLACE}]
    with pytest.raises(InputError, match="in a turn of the assistant"):
        chats.turns_of(table([good, good | {"history": said}]), None)
