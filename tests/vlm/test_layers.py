"""What the layers of a text model see, against configs and transformers' own mask rules."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_by_hand import BY_HAND
from tiny_untried import NARROW, UNTRIED
from torch import Tensor
from transformers import Llama4TextConfig, Qwen3_5TextConfig
from transformers.masking_utils import (
    blockwise_overlay,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from perpo_pipeline.vlm.attention import (
    Segments,
    Spans,
    causal_segments,
    segment_masks,
    visible_segments,
)
from perpo_pipeline.vlm.layers import (
    LayerKinds,
    Reach,
    by_layer_type,
    ends_of_blocks,
    layer_kinds,
)

PREFIX, ANSWERS, START = 11, (4, 1, 6), 3  # tokens; START stand before the prefix in its row
IMAGE = (2, 7)  # its tokens in the prefix
WINDOW, FULL = Reach(window=NARROW), Reach()


def kinds_of(text: Any, model_type: str = "some") -> LayerKinds:
    return layer_kinds(SimpleNamespace(model_type=model_type, get_text_config=lambda: text))


@pytest.mark.parametrize(
    ("name", "reaches"),
    [
        ("mistral", {"sliding_attention": WINDOW}),
        ("gemma2", {"sliding_attention": WINDOW, "full_attention": FULL}),
        (
            "gemma3",
            {
                "sliding_attention": Reach(window=NARROW, ahead=True),
                "full_attention": Reach(ahead=True),
            },
        ),
        (
            "gemma4",
            {"sliding_attention": Reach(window=NARROW, ahead=True), "full_attention": FULL},
        ),
        ("gemma4-causal", {"sliding_attention": WINDOW, "full_attention": FULL}),
        ("qwen2_vl-window", {"full_attention": FULL, "sliding_attention": WINDOW}),
        ("qwen3_vl_moe", {"full_attention": FULL}),
        ("cohere2_vision", {"sliding_attention": WINDOW, "full_attention": FULL}),
    ],
)
def test_windows_are_read_from_the_config(name: str, reaches: dict[str, Reach]) -> None:
    model = UNTRIED[name]()[0] if name in UNTRIED else BY_HAND[name][0]()
    kinds = layer_kinds(model.config)
    assert kinds.reaches == reaches and kinds.why_not is None
    assert kinds.changed_scores is (name == "gemma2")
    assert kinds.longest_limit == (0 if name == "qwen3_vl_moe" else NARROW)


def test_chunks_and_scales_by_place_are_read_from_the_config() -> None:
    """Llama 4 scales the queries of layers without rotary positions from 8,192 tokens on."""
    settings = {"num_hidden_layers": 4, "attention_chunk_size": 16}
    tuned = kinds_of(Llama4TextConfig(**settings))
    assert tuned.reaches == {"chunked_attention": Reach(chunk=16), "full_attention": FULL}
    assert "attn_temperature_tuning" in str(tuned.why_not)
    untuned = kinds_of(Llama4TextConfig(**settings, attn_temperature_tuning=False))
    short = kinds_of(Llama4TextConfig(**settings, max_position_embeddings=8191))
    assert untuned.why_not is None and short.why_not is None
    assert str(untuned) == "chunked_attention (chunks of 16 tokens) and full_attention"


def test_layers_with_a_state_are_named() -> None:
    kinds = kinds_of(Qwen3_5TextConfig(num_hidden_layers=4))
    assert kinds.recurrent == ("linear_attention",)
    assert (
        kinds.why_not is None and not kinds.is_plain and list(kinds.reaches) == ["full_attention"]
    )
    assert str(kinds) == "full_attention and linear_attention (a state)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ({"layer_types": ["new_attention"]}, "a way of their own (new_attention)"),
        ({"layer_types": ["sliding_attention"]}, "a way of their own (sliding_attention)"),
        ({"use_bidirectional_attention": True}, "attends both ways"),
        ({"cross_attention_layers": [1, 3]}, "look at images instead of tokens"),
    ],
)
def test_what_no_mask_describes_has_a_reason(text: dict[str, Any], why: str) -> None:
    assert why in str(kinds_of(SimpleNamespace(**text)).why_not)


def test_one_mask_where_layers_are_alike_else_one_by_type() -> None:
    made: list[Reach] = []

    def mask_of(reach: Reach) -> str:
        made.append(reach)
        return f"mask {len(made)}"

    assert by_layer_type(LayerKinds({"sliding_attention": WINDOW}), mask_of) == "mask 1"
    kinds = LayerKinds({"a": WINDOW, "b": FULL, "c": WINDOW})
    assert by_layer_type(kinds, mask_of) == {"a": "mask 2", "b": "mask 3", "c": "mask 2"}


def test_images_end_where_text_follows() -> None:
    types = torch.tensor([0, 1, 1, 0, 2, 0, 0, 1])
    assert ends_of_blocks(types).tolist() == [0, 3, 3, 0, 5, 0, 0, 8]
    assert ends_of_blocks(types, (0,)).tolist() == [1, 0, 0, 4, 0, 7, 7, 0]


# --- masks against transformers' own rules on the unpacked sequence -------------------------------


def allowed(reach: Reach, length: int) -> Tensor:
    """(T, T) bool: which key a query sees in prefix and one answer, by transformers' functions."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    zero, batch = torch.zeros(1, dtype=torch.long), torch.tensor(0)
    seen = key <= query
    if reach.chunk is not None:
        seen = chunked_causal_mask_function(reach.chunk, zero)(batch, 0, query, key)
    if reach.window is not None and not reach.ahead:
        seen = sliding_window_causal_mask_function(reach.window)(batch, 0, query, key)
    if reach.ahead:
        groups = torch.full((1, length), -1)
        groups[0, IMAGE[0] : IMAGE[1]] = 0
        seen = seen | blockwise_overlay(groups)(batch, 0, query, key)
        if reach.window is not None:
            seen = seen & sliding_window_overlay(reach.window)(batch, 0, query, key)
    return seen


REACHES = [
    FULL,
    *(Reach(window=size) for size in (1, 3, 9, 12, 40)),
    *(Reach(chunk=size) for size in (1, 4, 11, 13, 40)),
    *(Reach(window=size, ahead=True) for size in (1, 3, 40)),
    Reach(ahead=True),
]


def packed_spans() -> Spans:
    """One list after START tokens of another, and two tokens of padding."""
    total = START + PREFIX + sum(ANSWERS) + 2
    spans = [torch.zeros(total, dtype=torch.long) for _ in range(4)]
    spans[2][START : START + PREFIX] = START
    place = START + PREFIX
    for count in ANSWERS:
        spans[0][place : place + count] = START
        spans[1][place : place + count] = START + PREFIX
        spans[2][place : place + count] = place
        place += count
    spans[2][place:] = torch.arange(place, total)
    spans[3][START + IMAGE[0] : START + IMAGE[1]] = START + IMAGE[1]
    return Spans(*(span[None] for span in spans))


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_a_packed_token_sees_what_it_sees_alone(reach: Reach) -> None:
    seen = packed_spans().within(reach).visible()[0]
    prefix = list(range(START, START + PREFIX))
    place = START + PREFIX
    for count in ANSWERS:
        alone = [*prefix, *range(place, place + count)]
        expected = torch.zeros(len(alone), seen.shape[1], dtype=torch.bool)
        expected[:, alone] = allowed(reach, len(alone))
        assert torch.equal(seen[alone], expected)
        place += count
    assert seen[place:].sum() == 2  # padding sees itself


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_causal_start_of_a_row_is_causal(reach: Reach) -> None:
    spans = packed_spans()
    parts = (spans.prefix_start, spans.prefix_end, spans.own_start, spans.image_end)
    moved = [(part[:, START:] - START).clamp(min=0) for part in parts if part is not None]
    spans = Spans(*moved).within(reach)
    first = spans.num_causal()
    causal = torch.ones(first, first, dtype=torch.bool).tril()
    assert torch.equal(spans.visible()[0, :first, :first], causal)
    assert not spans.visible()[0, :first, first:].any()
    if reach == FULL:
        assert first == PREFIX


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_a_growing_cache_shows_what_a_token_sees_alone(reach: Reach) -> None:
    """Two answers of three tokens grow in turn after a prompt with two tokens of padding."""
    kinds = LayerKinds({"any": reach})
    padding = 2
    index = torch.tensor([[0] * padding + list(range(PREFIX))])
    ends = torch.zeros_like(index)
    ends[0, padding + IMAGE[0] : padding + IMAGE[1]] = IMAGE[1]
    keys = Segments(torch.tensor([[-1] * padding + [0] * PREFIX]), index)
    prompt = replace(keys, image_end=ends)
    mask = segment_masks(kinds, prompt, keys, causal_segments(keys.owners), torch.float32)
    expected = allowed(reach, PREFIX + 3)
    assert torch.equal(mask[0, 0, padding:, padding:] == 0, expected[:PREFIX, :PREFIX])
    for step in range(3):
        queries = Segments(torch.tensor([[1, 2]]), torch.tensor([[PREFIX + step] * 2]))
        keys = Segments(
            torch.cat([keys.owners, queries.owners], 1), torch.cat([keys.index, queries.index], 1)
        )
        visible = visible_segments(queries.owners, keys.owners)
        mask = segment_masks(kinds, queries, keys, visible, torch.float32)
        for row, owner in enumerate((1, 2)):
            sequence = (keys.owners[0] == 0) | (keys.owners[0] == owner)
            seen = mask[0, 0, row] == 0
            assert not seen[~sequence].any()
            assert torch.equal(seen[sequence], expected[PREFIX + step, : PREFIX + step + 1])
