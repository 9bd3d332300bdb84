"""The shared-prefix forward against plain forwards: same numbers, same gradients."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tiny_models import noise_image, save_tiny_llava
from torch import Tensor

from perpo_pipeline.errors import InputError
from perpo_pipeline.models import (
    EncodedPrompt,
    Vlm,
    encode_prompt,
    load_vlm,
    lora_config,
    resolve_model,
)
from perpo_pipeline.train import shared_prefix
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    ListPolicy,
    completion_logps,
    completion_logps_separate,
    pack_lists,
    reference_logps,
)

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
    """Three lists of other prefixes, other sizes and other lengths, one of a single token."""
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
def packed(vlm: Vlm, lists: Sequence[CompletionList]) -> Tensor:
    return completion_logps(vlm.model, pack_lists(vlm, lists))


def test_packed_logps_equal_one_forward_of_transformers_for_each_completion(vlm: Vlm) -> None:
    lists = uneven_lists(vlm)
    logps = packed(vlm, lists)
    for b, entry in enumerate(lists):
        for n, completion in enumerate(entry.completions):
            ids = torch.cat([entry.prompt.input_ids, torch.tensor(completion)])[None]
            with torch.no_grad():
                logits = vlm.model(input_ids=ids, **entry.prompt.tensors).logits[0]
            start = entry.prompt.num_tokens
            table = logits[start - 1 : -1].log_softmax(-1)
            expected = sum(table[i, token].item() for i, token in enumerate(completion))
            assert logps[b, n].item() == pytest.approx(expected, abs=1e-4)


def test_the_batched_plain_way_gives_the_same(vlm: Vlm) -> None:
    lists = uneven_lists(vlm)
    with torch.no_grad():
        plain = completion_logps_separate(vlm, lists, rows_per_forward=4)
    assert (packed(vlm, lists) - plain).abs().max() < 1e-4


def test_lora_gradients_equal_those_of_separate_forwards(lora_vlm: Vlm) -> None:
    lists = uneven_lists(lora_vlm)
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    batch = pack_lists(lora_vlm, lists)
    (completion_logps(lora_vlm.model, batch) * weights).sum().backward()
    ours = lora_gradients(lora_vlm)
    (completion_logps_separate(lora_vlm, lists) * weights).sum().backward()
    plain = lora_gradients(lora_vlm)
    assert len(ours) == 28 and ours.keys() == plain.keys()
    for name, gradient in ours.items():
        assert gradient.norm() > 0
        assert (gradient - plain[name]).norm() < 1e-4 * plain[name].norm(), name


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
        logps = completion_logps(vlm.model, batch)
    assert torch.equal(logps == 0, ~batch.mask)


def test_a_row_is_the_prefix_and_the_completions_without_their_last_tokens(vlm: Vlm) -> None:
    prompt = prompts(vlm)[0]
    length = prompt.num_tokens
    batch = pack_lists(vlm, [CompletionList(prompt, [[11, 12, 13], [21, EOS]])])
    assert batch.input_ids[0, length:].tolist() == [11, 12, 21]
    assert batch.segments[0, length - 1 :].tolist() == [0, 1, 1, 2]
    assert batch.positions[0, 0, length:].tolist() == [length, length + 1, length]
    last = length - 1  # the last prefix token predicts both first tokens
    assert batch.predictors.tolist() == [last, length, length + 1, last, length + 2]
    assert batch.targets.tolist() == [11, 12, 13, 21, EOS]


def test_the_head_in_chunks_gives_the_same_values_and_gradients(
    lora_vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack_lists(lora_vlm, uneven_lists(lora_vlm))
    whole = completion_logps(lora_vlm.model, batch)
    whole.sum().backward()
    gradients = lora_gradients(lora_vlm)
    rows_seen: list[int] = []
    lora_vlm.model.get_base_model().lm_head.register_forward_hook(
        lambda module, args, output: rows_seen.append(output.shape[0])
    )
    vocab = lora_vlm.model.get_base_model().lm_head.weight.shape[0]
    monkeypatch.setattr(shared_prefix, "LOGIT_BUDGET", 7 * vocab)
    chunked = completion_logps(lora_vlm.model, batch)
    assert max(rows_seen) == 7 and sum(rows_seen) == len(batch.targets)
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)
    for name, gradient in lora_gradients(lora_vlm).items():
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradients[name].norm()


def test_each_image_is_encoded_once_and_without_a_graph(lora_vlm: Vlm) -> None:
    seen: list[tuple[int, bool]] = []
    core = lora_vlm.model.get_base_model().model
    core.multi_modal_projector.register_forward_hook(
        lambda module, args, output: seen.append((output.shape[0], output.requires_grad))
    )
    completion_logps(lora_vlm.model, pack_lists(lora_vlm, uneven_lists(lora_vlm)))
    assert seen == [(3, False)]  # three lists of nine completions


def test_a_trained_projector_gets_gradients(model_dir: Path) -> None:
    vlm = load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")
    config = lora_config(vlm, rank=2, alpha=4, scope="language_model+projector")
    vlm.model = get_peft_model(vlm.model, config)
    completion_logps(vlm.model, pack_lists(vlm, uneven_lists(vlm))).sum().backward()
    named = dict(vlm.model.named_parameters())
    trained = [n for n, p in named.items() if "projector" in n and p.requires_grad]
    assert trained and all(named[name].grad.norm() > 0 for name in trained)


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
    logps = completion_logps(vlm.model, pack_lists(vlm, lists))
    assert logps.dtype == torch.float32 and logps.isfinite().all()
    logps.sum().backward()
    assert all(gradient.isfinite().all() for gradient in lora_gradients(vlm).values())


def test_a_list_is_independent_of_its_neighbours(vlm: Vlm) -> None:
    lists = uneven_lists(vlm)
    alone = [packed(vlm, [entry])[0] for entry in lists]
    together = packed(vlm, lists)
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


def test_the_reference_is_the_model_without_its_adapter(vlm: Vlm, lora_vlm: Vlm) -> None:
    batches = [pack_lists(vlm, [entry]) for entry in uneven_lists(vlm)]
    references = reference_logps(lora_vlm.model, batches)
    for batch, reference in zip(batches, references, strict=True):
        with torch.no_grad():
            base = completion_logps(vlm.model, batch)
            adapted = completion_logps(lora_vlm.model, batch)
        assert torch.equal(reference, base)
        assert (adapted - base).abs().min() > 1e-3
        assert not reference.requires_grad
    assert lora_vlm.model.training


def test_the_policy_module_trains_the_adapter_through_its_forward(lora_vlm: Vlm) -> None:
    batch = pack_lists(lora_vlm, uneven_lists(lora_vlm))
    policy = ListPolicy(lora_vlm.model)
    logps = policy(batch)
    assert torch.equal(logps, completion_logps(lora_vlm.model, batch))
    logps.sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert len(trained) == 28 and all(p.grad is not None for p in trained)


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
        completion_logps_separate(vlm, lists)


def test_the_shipped_model_gives_the_same_packed_and_separate() -> None:
    shipped = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu")
    drawn = [encode_prompt(shipped, noise_image(i, 64, 64), f"red square {i}") for i in range(2)]
    lists = [
        CompletionList(p, [random_completion(n, n) for n in range(15, 23)][: 8 - 3 * i])
        for i, p in enumerate(drawn)
    ]
    with torch.no_grad():
        plain = completion_logps_separate(shipped, lists)
    assert (packed(shipped, lists) - plain).abs().max() < 1e-4
