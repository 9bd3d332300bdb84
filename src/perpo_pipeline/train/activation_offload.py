"""Activations in the machine's memory between forward and backward (`train.activation_offload`).

With gradient checkpointing a decoder layer keeps only its input. Here that input waits in pinned
host memory, and the device holds the activations of one layer, whatever the number of layers. The
copies run on the stream that computes: the allocator may use a copied input's memory at once, and
nothing has to be synchronised. transformers has the same from 5.19 on
(`gradient_checkpointing_enable(offload=True)`), but copies a frozen vision tower's inputs too and
fails without an accelerator.

Simplified: copying does not overlap with computing. For a layer of width D it moves 4 D bytes per
token in bf16 and computes about 72 D^2 operations (6 per weight with LoRA), so copying is 4 % of
computing on an RTX 4090 (80 TFLOP/s, 25 GB/s over PCIe, D = 4096) and 11 % on an H200 (400 TFLOP/s,
50 GB/s): computed, not measured.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

MIN_BYTES = 2**16  # a smaller tensor stays where it is: a copy costs more than it frees

Packed = Tensor | tuple[torch.device, Tensor]


def offload_layer_inputs(decoder: nn.Module) -> None:
    """Keep the inputs of a decoder's layers, for which checkpointing is on, in host memory."""
    for layer in decoder.layers:  # type: ignore[union-attr]
        layer._gradient_checkpointing_func = _offloaded_checkpoint


def _offloaded_checkpoint(layer: Any, *inputs: Any) -> Any:
    # Within the layer checkpoint's own hooks are in force: these see only the layer's inputs.
    with saved_tensors_hooks(_to_host, _to_device):
        return checkpoint(layer, *inputs, use_reentrant=False)


def _to_host(tensor: Tensor) -> Packed:
    if tensor.nbytes < MIN_BYTES:
        return tensor
    on_cuda = tensor.is_cuda
    host = torch.empty_like(tensor, device="cpu", pin_memory=on_cuda)
    return tensor.device, host.copy_(tensor, non_blocking=on_cuda)


def _to_device(packed: Packed) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, host = packed
    return host.to(device, non_blocking=True)
