"""How much of the accelerator a training step uses (model FLOPs utilisation).

Only the necessary work of the text model and its head counts: no vision tower, no recomputation.
Linear layers of all kinds count. What layers with a recurrent state do beside those (convolutions
and the work on the state itself) does not, so the MFU of such models comes out too low by it. The
peak is the measured rate of a large matrix product on the device, so no table of cards is needed.
"""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from perpo_pipeline.train.separate_rows import SeparateBatch
from perpo_pipeline.train.shared_prefix import PackedBatch
from perpo_pipeline.vlm.layers import HYBRID, Reach, layer_kinds
from perpo_pipeline.vlm.models import base_model, head_size

MATRIX = 8192
REPEATS = 10


class FlopCounter:
    """FLOPs of a forward and backward over a batch; the model's sizes are read once.

    Per weight and token: 2 for the forward, 2 for the gradient of the activations, 2 more if the
    weight is trained. Attention counts the pairs that see each other: 1 forward, 2 backward.
    `reaches`: how many layers attend with each reach, those included that also carry a state.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = base_model(model)
        text = inner.config.get_text_config()
        linears = [m for m in inner.get_decoder().modules() if isinstance(m, nn.Linear)]
        self.per_token = sum(map(_flops_per_token, linears))
        self.per_target = _flops_per_token(inner.lm_head)
        self.reaches = _attending_layers(inner.config)
        # In one layer: query x key and weight x value.
        self.per_pair = 3 * 2 * 2 * head_size(text) * text.num_attention_heads

    def count(self, lists: PackedBatch | SeparateBatch) -> float:
        """FLOPs of one training forward and backward over `lists`."""
        num_targets = float(lists.num_tokens.sum())
        linear = self.per_token * lists.num_packed + self.per_target * num_targets
        pairs = sum(n * _visible_pairs(lists, reach) for reach, n in self.reaches.items())
        return float(linear + self.per_pair * pairs)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of an 8192 x 8192 x 8192 product on a CUDA device."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    for repeats in (2, REPEATS):  # the first round warms up
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize(device)
    return float(2 * MATRIX**3 * REPEATS / (time.perf_counter() - start))


def _attending_layers(config: Any) -> Counter[Reach]:
    """How many layers of a VLM's text model attend with each reach; none of a type without one."""
    text, reaches = config.get_text_config(), layer_kinds(config).reaches
    types = getattr(text, "layer_types", None) or list(reaches) * text.num_hidden_layers
    attending = (HYBRID.get(name, name) for name in types)
    return Counter(reaches[name] for name in attending if name in reaches)


def _flops_per_token(linear: nn.Linear) -> int:
    # Not the size of its weight: ZeRO-3 shards it, and a quantised one holds two numbers in a byte.
    numbers = linear.in_features * linear.out_features
    return numbers * (6 if linear.weight.requires_grad else 4)


def _visible_pairs(lists: PackedBatch | SeparateBatch, reach: Reach) -> float:
    """Pairs of query and key in a layer with this reach; images look back only."""
    if isinstance(lists, SeparateBatch):
        lengths = lists.attention_mask.sum(1)
        index = torch.arange(int(lengths.max()), device=lengths.device)
        seen = (index + 1 - reach.first_seen(index)).cumsum(0)
        return float(seen[lengths - 1].double().sum())
    spans = lists.spans.within(replace(reach, ahead=False))
    places = torch.arange(spans.own_start.shape[1], device=spans.own_start.device)
    return float((spans.prefix_end - spans.prefix_start + places + 1 - spans.own_start).sum())
