"""Packing lists into rows; the packed forward gives the same numbers and gradients."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tiny_models import noise_image, save_tiny_llava
from torch import Tensor

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import InputError
from perpo_pipeline.train import shared_prefix
from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import (
    LENGTHS_PER_OCTAVE,
    CompletionList,
    pack_lists,
    packed_logps,
    row_length,
)
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

EOS = 2


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def vlm(model_dir: Path) -> Vlm:
    return load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")


@pytest.fixture
def lora_vlm(model_dir: Path) -> Vlm:
    """A model with a LoRA adapter whose B matrices are not zero, in training mode."""
    vlm = load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")
    torch.manual_seed(3)
    vlm.model = get_peft_model(vlm.model, lora_config(vlm, rank=4, alpha=8))
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    vlm.model.train()
    return vlm


def prompts(vlm: Vlm) -> list[EncodedPrompt]:
    texts = ["where is it?", "Where is the red square right_of the blue circle?", "red"]
    return [encode_prompt(vlm, noise_image(i), text) for i, text in enumerate(texts)]


def random_completion(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(10, 290, (length - 1,), generator=generator).tolist(), EOS]


def uneven_lists(vlm: Vlm) -> list[CompletionList]:
    """Three lists with different prefixes, sizes and lengths; one completion has a single token."""
    lengths = [[5, 9, 2, 7], [1, 12], [4, 4, 3]]
    return [
        CompletionList(prompt, [random_completion(n, 10 * b + i) for i, n in enumerate(row)])
        for b, (prompt, row) in enumerate(zip(prompts(vlm), lengths, strict=True))
    ]


def lora_gradients(vlm: Vlm) -> dict[str, Tensor]:
    named = vlm.model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    vlm.model.zero_grad()
    return gradients


@torch.no_grad()
def packed(vlm: Vlm, lists: Sequence[CompletionList], one_row: bool = False) -> Tensor:
    return packed_logps(vlm.model, pack_lists(vlm, lists, one_row=one_row))


def test_the_order_of_completions_does_not_matter(vlm: Vlm) -> None:
    entry = uneven_lists(vlm)[0]
    turned = CompletionList(entry.prompt, list(reversed(entry.completions)))
    torch.testing.assert_close(
        packed(vlm, [turned]).flip(1), packed(vlm, [entry]), atol=1e-4, rtol=0
    )


def test_merged_duplicates_give_what_unmerged_ones_give(vlm: Vlm) -> None:
    prompt, (first, second) = prompts(vlm)[0], [random_completion(6, s) for s in (1, 2)]
    merged = packed(vlm, [CompletionList(prompt, [first, second])])[0]
    unmerged = packed(vlm, [CompletionList(prompt, [first, second, first, first])])[0]
    expected = merged[torch.tensor([0, 1, 0, 0])]
    torch.testing.assert_close(unmerged, expected, atol=1e-4, rtol=0)


def test_shorter_lists_are_padded_with_zeros_and_masked(vlm: Vlm) -> None:
    batch = pack_lists(vlm, uneven_lists(vlm))
    assert batch.num_tokens.tolist() == [[5, 9, 2, 7], [1, 12, 0, 0], [4, 4, 3, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False], [True] * 3 + [False]]
    with torch.no_grad():
        logps = packed_logps(vlm.model, batch)
    assert torch.equal(logps == 0, ~batch.mask)


def test_a_row_is_the_prefix_and_the_completions_without_their_last_tokens(vlm: Vlm) -> None:
    prompt = prompts(vlm)[0]
    length = prompt.num_tokens
    batch = pack_lists(vlm, [CompletionList(prompt, [[11, 12, 13], [21, EOS]])])
    assert batch.input_ids[0, length:].tolist() == [11, 12, 21]
    assert batch.positions[0, 0, length:].tolist() == [length, length + 1, length]
    spans = batch.spans
    assert spans.prefix_start[0].tolist() == [0] * (length + 3)
    assert spans.prefix_end[0].tolist() == [0] * length + [length] * 3
    assert spans.own_start[0].tolist() == [0] * length + [length, length, length + 2]
    last = length - 1  # the last prefix token predicts both first tokens
    assert batch.predictors.tolist() == [last, length, length + 1, last, length + 2]
    assert batch.targets.tolist() == [11, 12, 13, 21, EOS]
    assert batch.places.tolist() == [0, 1, 2, 3, 4]
    assert batch.num_packed == length + 3


def test_in_one_row_lists_follow_each_other_and_the_end_is_padding(vlm: Vlm) -> None:
    """Prefixes of P and Q tokens, completions of 3 and 2 tokens: P + 2 tokens, then Q + 1."""
    first, second = prompts(vlm)[:2]
    lists = [CompletionList(first, [[11, 12, 13]]), CompletionList(second, [[21, EOS]])]
    batch = pack_lists(vlm, lists, one_row=True)
    begin = first.num_tokens + 2
    end = begin + second.num_tokens + 1
    assert batch.input_ids.shape == (1, 128) and batch.num_packed == end < 128
    ids = [*first.input_ids.tolist(), 11, 12, *second.input_ids.tolist(), 21]
    assert batch.input_ids[0].tolist() == ids + [vlm.pad_token_id] * (128 - end)
    positions = [*range(begin), *range(second.num_tokens + 1), *[0] * (128 - end)]
    assert batch.positions[0, 0].tolist() == positions
    seen = batch.spans.visible()[0]
    assert seen[begin].nonzero().flatten().tolist() == [begin]  # nothing of the list before
    assert seen[end - 1].nonzero().flatten().tolist() == list(range(begin, end))
    assert torch.equal(seen[end:], torch.eye(128).bool()[end:])
    last_of_first, last_of_second = first.num_tokens - 1, end - 2
    assert batch.predictors.tolist() == [
        last_of_first,
        last_of_first + 1,
        last_of_first + 2,
        last_of_second,
        last_of_second + 1,
    ]
    assert batch.places.tolist() == [0, 1, 2, 3, 4]  # (B, N, L) = (2, 1, 3)


def test_a_batch_moves_with_every_tensor_in_it(vlm: Vlm) -> None:
    moved = pack_lists(vlm, uneven_lists(vlm)).to("meta")
    spans = moved.spans
    tensors = [
        moved.input_ids,
        moved.positions,
        moved.predictors,
        moved.targets,
        moved.places,
        moved.num_tokens,
        spans.prefix_start,
        spans.prefix_end,
        spans.own_start,
        *moved.tensors.values(),
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_rows_of_any_length_are_padded_to_whole_blocks() -> None:
    assert [row_length(n) for n in (1, 128, 129, 1000, 9001)] == [128, 128, 256, 1024, 9088]


def test_bucketed_rows_have_few_lengths_and_little_padding() -> None:
    tokens = range(1, 2**15 + 1)
    lengths = [row_length(n, "bucketed") for n in tokens]
    for n, length in zip(tokens, lengths, strict=True):
        assert length >= n and length % 128 == 0
        assert length - n < max(128, n / LENGTHS_PER_OCTAVE)
    for octave in range(7, 15):
        assert len({x for x in lengths if 2**octave < x <= 2 ** (octave + 1)}) <= LENGTHS_PER_OCTAVE


def test_the_head_in_chunks_gives_the_same_values_and_gradients(
    lora_vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack_lists(lora_vlm, uneven_lists(lora_vlm))
    whole = packed_logps(lora_vlm.model, batch)
    whole.sum().backward()
    gradients = lora_gradients(lora_vlm)
    rows_seen: list[int] = []
    lora_vlm.model.get_base_model().lm_head.register_forward_hook(
        lambda module, args, output: rows_seen.append(output.shape[0])
    )
    vocab = lora_vlm.model.get_base_model().lm_head.weight.shape[0]
    monkeypatch.setattr(shared_prefix, "LOGIT_BUDGET", 7 * vocab)
    chunked = packed_logps(lora_vlm.model, batch)
    assert max(rows_seen) == 7 and sum(rows_seen) == len(batch.targets)
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)
    for name, gradient in lora_gradients(lora_vlm).items():
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradients[name].norm()


def test_eager_attention_gives_the_same(model_dir: Path, vlm: Vlm) -> None:
    eager = load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")
    eager.model.set_attn_implementation("eager")
    lists = uneven_lists(vlm)
    torch.testing.assert_close(packed(eager, lists), packed(vlm, lists), atol=1e-4, rtol=0)


def test_padding_gives_no_nan_in_bfloat16(model_dir: Path) -> None:
    vlm = load_vlm(resolve_model(str(model_dir)), dtype="bfloat16", device="cpu")
    vlm.model = get_peft_model(vlm.model, lora_config(vlm, rank=2, alpha=4))
    long_row = [random_completion(40, seed) for seed in range(5)]
    lists = [
        CompletionList(prompts(vlm)[0], [[7, EOS]]),
        CompletionList(prompts(vlm)[1], long_row),
    ]
    logps = packed_logps(vlm.model, pack_lists(vlm, lists))
    assert logps.dtype == torch.float32 and logps.isfinite().all()
    logps.sum().backward()
    assert all(gradient.isfinite().all() for gradient in lora_gradients(vlm).values())


@pytest.mark.parametrize("one_row", [False, True])
def test_a_list_is_independent_of_its_neighbours(vlm: Vlm, one_row: bool) -> None:
    lists = uneven_lists(vlm)
    alone = [packed(vlm, [entry])[0] for entry in lists]
    together = packed(vlm, lists, one_row)
    for b, logps in enumerate(alone):
        torch.testing.assert_close(together[b, : len(logps)], logps, atol=1e-4, rtol=0)


def test_completions_do_not_see_each_other(vlm: Vlm) -> None:
    prompt, kept = prompts(vlm)[0], random_completion(6, 1)
    one, other = (
        packed(vlm, [CompletionList(prompt, [random_completion(6, seed), kept])])[0]
        for seed in (2, 3)
    )
    assert one[0] != other[0]
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([[5, 3, EOS]], "image placeholder token 3"),
        ([[5, EOS], []], "no tokens"),
        ([], "no completions"),
    ],
)
def test_unusable_lists_are_refused(vlm: Vlm, completions: list[list[int]], message: str) -> None:
    lists = [CompletionList(prompts(vlm)[0], completions)]
    with pytest.raises(InputError, match=message):
        pack_lists(vlm, lists)
    with pytest.raises(InputError, match=message):
        separate_lists(vlm, lists)


def test_no_lists_are_refused(vlm: Vlm) -> None:
    with pytest.raises(InputError, match="No lists"):
        pack_lists(vlm, [])


def test_the_shipped_model_gives_the_same_packed_and_separate() -> None:
    shipped = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu")
    drawn = [encode_prompt(shipped, noise_image(i, 64, 64), f"red square {i}") for i in range(2)]
    lists = [
        CompletionList(p, [random_completion(n, n) for n in range(15, 23)][: 8 - 3 * i])
        for i, p in enumerate(drawn)
    ]
    with torch.no_grad():
        plain = separate_logps(shipped.model, separate_lists(shipped, lists))
    assert (packed(shipped, lists) - plain).abs().max() < 1e-4


def test_lists_of_pages_are_the_same_packed_and_separate_with_every_attention() -> None:
    """20 answers of 40 to 90 tokens that the shipped model draws: below 1e-4 nats."""
    shipped = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu")
    endless = replace(shipped, eos_token_ids=(-1,))
    drawn = [encode_prompt(shipped, noise_image(i, 96, 96), "What does it say?") for i in range(2)]
    sampled = sample_lists(
        endless, drawn, num_samples=20, temperature=0.5, max_new_tokens=90, seeds=[0, 1]
    )
    lists = [
        CompletionList(p, [one.token_ids[: 40 + 7 * n % 51] for n, one in enumerate(answers)])
        for p, answers in zip(drawn, sampled, strict=True)
    ]
    with torch.no_grad():
        plain = separate_logps(shipped.model, separate_lists(shipped, lists))
    for levers in ([], ["flash-parts"]):
        ready_model(shipped, "shared-prefix", TrainSettings(levers=levers))
        assert (packed(shipped, lists) - plain).abs().max() < 1e-4, levers
