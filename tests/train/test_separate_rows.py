"""The plain way where only it is right: a language model with sliding windows."""

import json
from pathlib import Path

import pytest
import torch
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.tensors import stack_image_tensors

COMPLETIONS = [[[11, 12, 13, 2], [21, 2]], [[31, 32, 33, 34, 2]]]


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A Mistral text model in which each token sees the last 8."""
    directory = save_tiny_llava(tmp_path_factory.mktemp("mistral"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "sliding_window": 8}
    (directory / "config.json").write_text(json.dumps(config))
    return load(directory)


def some_lists(vlm: Vlm) -> list[CompletionList]:
    return [
        CompletionList(encode_prompt(vlm, noise_image(i), "where is it" + "?" * i), completions)
        for i, completions in enumerate(COMPLETIONS)
    ]


@torch.no_grad()
def test_windows_are_kept_as_in_the_models_own_forward(windowed: Vlm) -> None:
    """In separate rows, and with the shared prefix, whose windows count the same tokens."""
    lists = some_lists(windowed)
    logps = separate_logps(windowed.model, separate_lists(windowed, lists))
    for b, entry in enumerate(lists):
        for n, completion in enumerate(entry.completions):
            ids = torch.cat([entry.prompt.input_ids, torch.tensor(completion)])[None]
            logits = windowed.model(input_ids=ids, **entry.prompt.tensors).logits[0]
            table = logits[entry.prompt.num_tokens - 1 : -1].log_softmax(-1)
            expected = float(table.gather(1, torch.tensor(completion)[:, None]).sum())
            assert logps[b, n].item() == pytest.approx(expected, abs=1e-4)
    shared = packed_logps(windowed.model, pack_lists(windowed, lists))
    torch.testing.assert_close(shared, logps, atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing_but_the_shape(windowed: Vlm) -> None:
    lists = some_lists(windowed)
    exact, padded = (separate_lists(windowed, lists, left_padding=n) for n in (0, 5))
    assert padded.input_ids.shape[1] == exact.input_ids.shape[1] + 5
    longest = max(entry.prompt.num_tokens for entry in lists) + 5
    assert exact.input_ids.shape == (3, longest)
    assert exact.num_tokens.tolist() == [[4, 2], [5, 0]] == padded.num_tokens.tolist()
    tokens = 2 * lists[0].prompt.num_tokens + lists[1].prompt.num_tokens + 4 + 2 + 5
    assert exact.num_packed == padded.num_packed == tokens
    torch.testing.assert_close(
        separate_logps(windowed.model, padded),
        separate_logps(windowed.model, exact),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_image_travels_once_per_list_and_is_repeated_for_its_rows(
    model_type: str, tmp_path: Path
) -> None:
    """Images of different sizes, two and one completions."""
    vlm = load(save_tiny_family(model_type, tmp_path))
    sizes = [(48, 40), (90, 40)]
    prompts = [encode_prompt(vlm, noise_image(i, *size), "red") for i, size in enumerate(sizes)]
    batch = separate_lists(
        vlm, [CompletionList(p, c) for p, c in zip(prompts, COMPLETIONS, strict=True)]
    )
    expected = stack_image_tensors([prompts[0], prompts[0], prompts[1]])
    found = batch.tensors
    assert found.keys() == expected.keys() and "pixel_values" in found
    assert all(torch.equal(found[name], expected[name]) for name in found)
    once = stack_image_tensors(prompts)
    assert all(torch.equal(batch.images[name], once[name]) for name in found)


def test_a_batch_moves_with_every_tensor_in_it(windowed: Vlm) -> None:
    moved = separate_lists(windowed, some_lists(windowed)).to("meta")
    tensors = [
        moved.input_ids,
        moved.attention_mask,
        moved.is_answer,
        moved.places,
        moved.num_tokens,
        *moved.tensors.values(),
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
