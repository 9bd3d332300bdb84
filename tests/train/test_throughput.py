"""Counted FLOPs against those that torch counts while the same batch runs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tiny_models import save_tiny_llava
from tiny_recurrent import as_qwen3_5, tiny_hybrid
from torch.utils.flop_counter import FlopCounterMode

from perpo_pipeline.train import throughput
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.train.separate_rows import (
    SeparateBatch,
    separate_lists,
    separate_logps,
)
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.train.throughput import FlopCounter, measured_peak
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.layers import Reach
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm

# The tiny model's text part, see tiny_models.
LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2, 64, 128, 4, 2, 16, 300
Q, KV, MLP = WIDTH * WIDTH, WIDTH * KV_HEADS * HEAD_DIM, WIDTH * INNER
WEIGHTS = LAYERS * (2 * Q + 2 * KV + 3 * MLP)  # q and o, k and v, gate and up and down
# Scores and weighted sum, 2 FLOPs a multiplication, forward once and backward twice.
IN_A_LAYER = 2 * 2 * 3 * HEADS * HEAD_DIM
A_PAIR = IN_A_LAYER * LAYERS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def vlm(directory: Path) -> Vlm:
    """With attention as plain matrix products, which torch counts; all pairs, seen or not."""
    vlm = load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")
    vlm.model.set_attn_implementation("eager")
    return vlm


def text_list(num_prompt: int, lengths: list[int]) -> CompletionList:
    """Without an image: the vision tower does not run."""
    ids = torch.arange(20, 20 + num_prompt)
    prompt = EncodedPrompt(
        ids, {}, torch.arange(num_prompt)[None], num_prompt, (1, 1), (1, 1), None
    )
    return CompletionList(prompt, [[*range(30, 30 + n - 1), 2] for n in lengths])


def measured(vlm: Vlm, batch: PackedBatch | SeparateBatch) -> float:
    forward = packed_logps if isinstance(batch, PackedBatch) else separate_logps
    vlm.model.train()
    with FlopCounterMode(display=False) as counter:
        forward(vlm.model, batch).sum().backward()
    # Some versions of transformers compute the angles of the positions as a product of matrices.
    rotary = [
        sum(of_module.values())
        for name, of_module in counter.get_flop_counts().items()
        if name.endswith(".rotary_emb")
    ]
    return float(counter.get_total_flops() - sum(rotary))


def test_a_packed_list_costs_what_torch_measures_minus_the_unseen_pairs(vlm: Vlm) -> None:
    unfreeze(vlm, ["language_model"])
    batch = pack_lists(vlm, [text_list(40, [5, 9, 13])])
    length = 40 + 4 + 8 + 12
    assert batch.input_ids.shape == (1, length)
    # Causal in the prefix and in each answer, and each answer token sees the prefix.
    seen = sum(n * (n + 1) // 2 for n in (40, 4, 8, 12)) + 40 * (4 + 8 + 12)
    assert int(batch.spans.visible().sum()) == seen
    counted = FlopCounter(vlm.model).count(batch)
    assert counted == 6 * (WEIGHTS * length + WIDTH * VOCABULARY * 27) + A_PAIR * seen
    unseen = A_PAIR * (length**2 - seen)
    assert measured(vlm, batch) == counted + unseen


def test_plain_rows_cost_what_torch_measures_minus_the_pairs_ahead(vlm: Vlm) -> None:
    """Two rows of equal length, so that none is padded; every row is read in full."""
    unfreeze(vlm, ["language_model"])
    batch = separate_lists(vlm, [text_list(40, [10, 10])])
    counted = FlopCounter(vlm.model).count(batch)
    seen = 2 * 50 * 51 // 2
    assert counted == 6 * (WEIGHTS * 100 + WIDTH * VOCABULARY * 20) + A_PAIR * seen
    unseen = A_PAIR * (2 * 50**2 - seen)
    assert measured(vlm, batch) == counted + unseen


@pytest.mark.parametrize(
    ("reach", "packed", "plain"),
    [
        # The first seven tokens see 1 to 7, every other one sees 7.
        (Reach(window=7), 28 + 33 * 7 + 24 * 7, 2 * (28 + 43 * 7)),
        # Chunks of 1 to 16; 40 to 47 are the second half of the third chunk.
        (
            Reach(chunk=16),
            2 * 136 + 36 + sum(range(9, 13)) + sum(range(9, 17)) + sum(range(9, 17)) + 10,
            2 * (3 * 136 + 3),
        ),
    ],
)
def test_windows_and_chunks_leave_pairs_out(
    vlm: Vlm, reach: Reach, packed: int, plain: int
) -> None:
    """In half of the layers."""
    counter = FlopCounter(vlm.model)
    lists = pack_lists(vlm, [text_list(40, [5, 9, 13])])
    rows = separate_lists(vlm, [text_list(40, [10, 10])])
    whole = counter.count(lists), counter.count(rows)
    counter.reaches = Counter({reach: 1, Reach(): 1})
    seen = sum(n * (n + 1) // 2 for n in (40, 4, 8, 12)) + 40 * (4 + 8 + 12)
    assert whole[0] - counter.count(lists) == IN_A_LAYER * (seen - packed)
    assert whole[1] - counter.count(rows) == IN_A_LAYER * (2 * 50 * 51 // 2 - plain)


def test_of_a_hybrid_only_the_layers_that_attend_have_pairs(tiny_qwen3_5: Path) -> None:
    """Qwen3.5 with one attention layer of four; torch counts the forward products of its pairs."""
    hybrid = as_qwen3_5(tiny_qwen3_5)
    hybrid.model.set_attn_implementation("eager")
    unfreeze(hybrid, ["language_model"])
    lists = separate_lists(hybrid, [text_list(40, [10])])
    counter = FlopCounter(hybrid.model)
    seen = 50 * 51 // 2
    linear = counter.per_token * 50 + counter.per_target * 10
    assert counter.count(lists) == linear + IN_A_LAYER * seen
    with torch.no_grad(), FlopCounterMode(display=False) as measuring:
        separate_logps(hybrid.model, lists)
    measured_pairs = sum(
        of_module[torch.ops.aten.bmm]
        for name, of_module in measuring.get_flop_counts().items()
        if name.endswith(".self_attn")
    )
    assert 3 * measured_pairs == IN_A_LAYER * 50**2  # forward once, backward twice


def test_layers_that_attend_and_carry_a_state_have_pairs(vlm: Vlm) -> None:
    """Falcon-H1: every layer does both."""
    model = tiny_hybrid("falcon_h1")
    text = model.config
    counter, lists = FlopCounter(model), pack_lists(vlm, [text_list(40, [5, 9, 13])])
    linear = counter.per_token * lists.num_packed + counter.per_target * 27
    heads = text.num_hidden_layers * text.num_attention_heads
    pairs = 2 * 2 * 3 * heads * text.head_dim * int(lists.spans.visible().sum())
    assert pairs > 0
    assert counter.count(lists) == linear + pairs


def test_frozen_weights_under_lora_cost_no_gradient_of_their_own(vlm: Vlm) -> None:
    """As counted, except in the first layer: nothing below it is trained, so torch does not compute
    the gradients of the inputs of q, k and v there."""
    rank = 4
    vlm.model = get_peft_model(vlm.model, lora_config(vlm, rank=rank, alpha=8))
    batch = pack_lists(vlm, [text_list(40, [5, 9, 13])])
    length = batch.input_ids.shape[1]
    narrow = KV_HEADS * HEAD_DIM
    into, out = [WIDTH] * 6 + [INNER], [WIDTH, WIDTH, narrow, narrow, INNER, INNER, WIDTH]
    adapter = LAYERS * rank * (sum(into) + sum(out))
    seen = int(batch.spans.visible().sum())
    counted = FlopCounter(vlm.model).count(batch)
    linear = (4 * WEIGHTS + 6 * adapter) * length + 4 * WIDTH * VOCABULARY * 27
    assert counted == linear + A_PAIR * seen
    spared = 2 * length * (Q + 2 * KV + 3 * rank * WIDTH)
    unseen = A_PAIR * (length**2 - seen)
    assert measured(vlm, batch) == counted - spared + unseen
    assert spared < 0.05 * counted


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights_count_as_the_numbers_that_they_stand_for(
    directory: Path, vlm: Vlm, quantization: str
) -> None:
    """A weight of 4 bits has half as many entries as numbers."""
    batch = pack_lists(vlm, [text_list(40, [5, 9, 13])])
    resolved = replace(resolve_model(str(directory)), quantization=quantization)
    quantised = load_vlm(resolved, dtype="float32", device="cpu")
    assert FlopCounter(quantised.model).count(batch) == FlopCounter(vlm.model).count(batch)


def test_padding_is_not_counted(vlm: Vlm) -> None:
    """Except the pair of a padding token with itself, which gives its softmax a value."""
    counter = FlopCounter(vlm.model)
    lists = [text_list(40, [5, 9]), text_list(17, [3])]
    alone = sum(counter.count(pack_lists(vlm, [entry])) for entry in lists)
    for one_row, places in ((False, 2 * 52), (True, 128)):
        padding = places - (52 + 19)
        together = pack_lists(vlm, lists, one_row=one_row)
        assert counter.count(together) == alone + A_PAIR * padding
    rows = [separate_lists(vlm, [entry], left_padding=7) for entry in lists]
    assert counter.count(separate_lists(vlm, lists)) == sum(map(counter.count, rows))


def test_the_peak_is_the_products_flops_over_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten products of 8 x 8 x 8 in half a second; the rounds that warm up are not counted."""
    times = iter([0.0, 7.0, 7.5])
    monkeypatch.setattr(throughput, "MATRIX", 8)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert measured_peak(torch.device("cpu"), torch.float32) == 10 * 2 * 8**3 / 0.5
