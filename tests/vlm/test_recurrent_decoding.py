"""Completions that grow from one prefix in layers with a recurrent state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import noise_image
from tiny_recurrent import LAYERS, WIDTH, OneLayer, as_qwen3_5, ready, tiny_layer
from torch import Tensor

from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList
from perpo_pipeline.vlm.decoding import greedy_decode, sample_lists
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.recurrent import takes_left_padding
from perpo_pipeline.vlm.recurrent_decoding import GrowingStates

PREFIXES = [3, 70, 3, 20]  # tokens of each prompt
STEPS = 9


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_growing_completions_give_the_outputs_of_whole_rows(name: str) -> None:
    """After 3 tokens the second completions end, after 6 the first prompt's last one."""
    layer, own = tiny_layer(name), tiny_layer(name)
    model = ready(OneLayer(layer))
    generator = torch.Generator().manual_seed(0)
    prefixes = torch.randn(4, max(PREFIXES), WIDTH, generator=generator)
    tokens = torch.randn(4, 3, STEPS, WIDTH, generator=generator)
    is_token = torch.arange(max(PREFIXES)) >= max(PREFIXES) - torch.tensor(PREFIXES)[:, None]

    def row(prompt: int, completion: int) -> Tensor:
        prefix = prefixes[prompt, -PREFIXES[prompt] :]
        return own(torch.cat([prefix, tokens[prompt, completion]])[None])[0]

    states = GrowingStates(num_samples=3)
    steps = states.read_prefixes(is_token, left_padding=takes_left_padding(model))
    output = layer(prefixes, attention_mask=steps)
    for prompt, length in enumerate(PREFIXES):
        assert_close(output[prompt, -length:], row(prompt, 0)[:length])
    for step in range(STEPS):
        prompts = torch.arange(4) if step < 6 else torch.tensor([1, 2, 3])
        completions = torch.arange(3) if step < 3 else torch.tensor([2, 0])
        completions = completions.expand(len(prompts), -1)
        hidden = tokens[prompts[:, None], completions, step]
        output = layer(hidden, attention_mask=states.read_tokens(prompts, completions))
        for r, prompt in enumerate(prompts.tolist()):
            for w, completion in enumerate(completions[r].tolist()):
                expected = row(prompt, completion)[PREFIXES[prompt] + step]
                assert_close(output[r, w], expected)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def sampled_and_expected(vlm: Vlm) -> tuple[Tensor, Tensor]:
    """Log-probabilities of drawn completions: as drawn, and of the whole rows."""
    prompts = [
        encode_prompt(vlm, noise_image(seed, *size), "where is it?" + " red" * seed)
        for seed, size in enumerate([(48, 40), (90, 40), (64, 64)])
    ]
    drawn = sample_lists(
        vlm, prompts, num_samples=5, temperature=1.0, max_new_tokens=12, seeds=[0, 1, 2]
    )
    lengths = {len(c.token_ids) for row in drawn for c in row}
    assert len(lengths) > 3  # completions end at different steps
    lists = [
        CompletionList(prompt, [c.token_ids for c in row])
        for prompt, row in zip(prompts, drawn, strict=True)
    ]
    with torch.no_grad():
        expected = separate_logps(vlm.model, separate_lists(vlm, lists))
    return torch.tensor([[c.sampler_logprob for c in row] for row in drawn]), expected


@pytest.fixture
def vlm(tiny_qwen3_5: Path) -> Vlm:
    vlm = as_qwen3_5(tiny_qwen3_5)
    vlm.eos_token_ids = tuple(range(10, 50))  # so that completions end often
    assert vlm.way.shares_prefix, vlm.way.why
    return vlm


def test_sampled_logprobs_equal_teacher_forcing(vlm: Vlm) -> None:
    sampled, expected = sampled_and_expected(vlm)
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("draws", [True, False])
def test_a_model_that_is_first_asked_for_completions_shares_the_prompt(
    tiny_qwen3_5: Path, draws: bool
) -> None:
    """Both are in inference mode; the proof needs gradients, and training uses what it leaves."""
    vlm = as_qwen3_5(tiny_qwen3_5)
    prompt = encode_prompt(vlm, noise_image(0, 48, 40), "where is it?")
    if draws:
        sample_lists(vlm, [prompt], num_samples=2, temperature=1.0, max_new_tokens=3, seeds=[1])
    else:
        greedy_decode(vlm, [prompt], max_new_tokens=3)
    assert vlm.way.shares_prefix, vlm.way.why
    vlm.model.requires_grad_(True)
    batch = separate_lists(vlm, [CompletionList(prompt, [[7, vlm.eos_token_ids[0]]])])
    separate_logps(vlm.model, batch).sum().backward()


def test_states_of_another_completion_are_seen(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that stay where they were when the completions before them ended."""
    own = GrowingStates.read_tokens

    def unmoved(self: GrowingStates, prompts: Tensor, completions: Tensor) -> Any:
        steps = own(self, prompts, completions)
        if steps.moved is None:
            return steps
        return type(steps)(self, torch.arange(len(steps.moved)))

    monkeypatch.setattr(GrowingStates, "read_tokens", unmoved)
    sampled, expected = sampled_and_expected(vlm)
    assert (sampled - expected).abs().max() > 0.1
