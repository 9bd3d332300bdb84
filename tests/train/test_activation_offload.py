"""Offloaded inputs of layers: equal gradients, the right tensors are moved, and memory is freed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import save_tiny_family
from tiny_models import noise_image
from tiny_training import add_adapter
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.train import activation_offload
from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that are moved; everything but empty tensors is large enough."""
    found: list[Tensor] = []
    to_host = activation_offload._to_host

    def watched(tensor: Tensor) -> Any:
        packed = to_host(tensor)
        found.extend([] if isinstance(packed, Tensor) else [tensor])
        return packed

    monkeypatch.setattr(activation_offload, "MIN_BYTES", 1)
    monkeypatch.setattr(activation_offload, "_to_host", watched)
    return found


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def policy_of(
    directory: Path, quantization: str | None = None, **settings: Any
) -> tuple[Vlm, PackedBatch]:
    """A model with an adapter, ready to train, and a batch."""
    resolved = replace(resolve_model(str(directory)), quantization=quantization)
    vlm = load_vlm(resolved, dtype="float32", device="cpu")
    wanted = TrainSettings(lora=LoraSettings(rank=4), **settings)
    ready_model(vlm, "shared-prefix", wanted)
    end = vlm.eos_token_ids[0]
    lists = [
        CompletionList(encode_prompt(vlm, noise_image(i), "where" + "?" * i), some)
        for i, some in enumerate([[[11, 12, 13, end], [21, end]], [[31, 32, end], [end]]])
    ]
    batch = pack_lists(vlm, lists)
    return add_adapter(vlm, wanted), batch


def trained(directory: Path, *how: str | None, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    vlm, batch = policy_of(directory, *how, **settings)
    logps = packed_logps(vlm.model, batch)
    return logps.detach(), gradients(vlm, logps)


def gradients(vlm: Vlm, logps: Tensor) -> dict[str, Tensor]:
    logps.sum().backward()
    named = dict(vlm.model.named_parameters())
    return {name: p.grad for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_gradients_are_bit_equal_and_only_the_inputs_of_layers_are_moved(
    directory: Path, moved: list[Tensor], quantization: str | None
) -> None:
    """No parameter, nothing of the tower, no logits: (R, T, D) numbers for each decoder layer."""
    logps, expected = trained(directory, quantization, gradient_checkpointing=True)
    assert moved == []
    vlm, batch = policy_of(
        directory, quantization, gradient_checkpointing=True, activation_offload=True
    )
    found = packed_logps(vlm.model, batch)
    text: Any = base_model(vlm.model).config.get_text_config()
    rows = tuple(batch.input_ids.shape)
    assert [tuple(t.shape) for t in moved] == [(*rows, text.hidden_size)] * text.num_hidden_layers
    ours = gradients(vlm, found)
    assert torch.equal(found.detach(), logps)
    assert ours.keys() == expected.keys() and any(g.any() for g in ours.values())
    assert all(torch.equal(gradient, expected[name]) for name, gradient in ours.items())


@pytest.mark.parametrize("offload", [False, True])
def test_the_memory_of_the_inputs_is_free_between_forward_and_backward(
    directory: Path, moved: list[Tensor], offload: bool
) -> None:
    vlm, batch = policy_of(directory, gradient_checkpointing=True, activation_offload=offload)
    inputs: list[StorageWeakRef] = []
    for layer in base_model(vlm.model).get_decoder().layers:
        layer.register_forward_pre_hook(
            lambda _, args: inputs.append(StorageWeakRef(args[0].untyped_storage()))
        )
    logps = packed_logps(vlm.model, batch)
    moved.clear()
    assert len(inputs) > 1
    assert [one.expired() for one in inputs] == [offload] * len(inputs)
    logps.sum().backward()


def test_small_tensors_stay(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = torch.zeros(activation_offload.MIN_BYTES // 4 - 1)
    assert activation_offload._to_host(few) is few
    device, host = activation_offload._to_host(torch.ones(activation_offload.MIN_BYTES // 4))
    assert device.type == "cpu" and host.sum() == activation_offload.MIN_BYTES // 4
    assert activation_offload._to_device((device, host)) is host


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
@pytest.mark.parametrize("directory", ["llava"], indirect=True)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layers_keep_their_inputs_there_too(directory: Path, moved: list[Tensor]) -> None:
    """Traced and split into forward and backward as on CUDA, but without generating code."""
    found = []
    for offload in (False, True):
        vlm, batch = policy_of(directory, gradient_checkpointing=True, activation_offload=offload)
        for layer in base_model(vlm.model).get_decoder().layers:
            layer.compile(backend="aot_eager_decomp_partition")
        logps = packed_logps(vlm.model, batch)
        found.append((logps.detach(), gradients(vlm, logps)))
    (plain, expected), (logps, ours) = found
    assert len(moved) == 2  # layers
    assert torch.equal(logps, plain)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in ours.items())


def test_it_is_refused_without_checkpointing() -> None:
    fault = TrainSettings(activation_offload=True).fault()
    assert fault is not None and "needs gradient_checkpointing: true" in fault
    assert TrainSettings(activation_offload=True, gradient_checkpointing=True).fault() is None
