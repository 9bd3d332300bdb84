"""How much memory training takes on each GPU: computed, not measured.

Counted are the weights, the gradients and AdamW state of what is trained, the activations that the
backward pass keeps from a forward of `tokens` tokens, and logits. Not counted are the vision
tower's activations (a frozen tower keeps none) and what allocators and kernels hold in addition.
One measurement exists, of a prototype and not of this code: LLaVA-1.5-7B with 9,248 tokens per
forward and without checkpointing peaked at 52 to 63 GiB; this module computes 60 GiB.
"""

from dataclasses import dataclass
from typing import Any

from perpo_pipeline.train.shared_prefix import LOGIT_BUDGET
from perpo_pipeline.vlm.models import Vlm, base_model

GIB = 2**30
STATE_BYTES = 8  # AdamW's two moments in fp32; 4 more for an fp32 master of a half-precision weight
LOGIT_COPIES = 3  # logits, their fp32 softmax, its gradient


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a model's memory; all but `parameters` and `trained` are the text
    model's.

    `width` is the hidden size, `inner` the feed-forward size, `kv_width` the size of the keys of
    all heads together; `trained` counts the numbers that are trained, LoRA's included.
    """

    parameters: int
    trained: int
    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int
    weight_bytes: int = 2


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum, during training; loading, self-check and reference take less."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def shape_of(vlm: Vlm, *, weight_bytes: int) -> Shape:
    """The sizes of a model without an adapter, of which nothing is trained yet."""
    inner: Any = base_model(vlm.model)
    text = inner.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in inner.parameters()),
        trained=0,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        kv_width=head_dim
        * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        vocabulary=text.vocab_size,
        weight_bytes=weight_bytes,
    )


def estimate_memory(
    shape: Shape,
    tokens: int,
    *,
    processes: int = 1,
    zero_stage: int = 0,
    checkpointing: bool = False,
    offload: bool = False,
) -> Estimate:
    """Bytes on each of `processes` GPUs for forwards of `tokens` packed tokens.

    ZeRO-1 shards the optimiser state over the processes, ZeRO-2 also the gradients, ZeRO-3 also the
    weights (of which two layers at a time are whole). Offloaded shards are in the machine's memory.
    """
    gradient_shards = processes if zero_stage >= 2 else 1
    state = STATE_BYTES + (4 if shape.weight_bytes < 4 else 0)
    weights = float(shape.parameters * shape.weight_bytes)
    if zero_stage == 3:
        layer = (shape.parameters - 2 * shape.vocabulary * shape.width) / max(1, shape.layers)
        whole = 2 * max(0.0, layer) * shape.weight_bytes
        weights = (0 if offload else weights / processes) + min(weights, whole)
    per_layer = tokens * _kept_bytes_per_token(shape)
    boundary = tokens * shape.width * shape.weight_bytes
    boundaries = shape.layers * boundary
    activations = boundaries + per_layer if checkpointing else shape.layers * per_layer
    rows = min(tokens, max(1, LOGIT_BUDGET // shape.vocabulary))
    return Estimate(
        weights=weights,
        gradients=shape.trained * shape.weight_bytes / gradient_shards,
        optimizer=0 if offload else shape.trained * state / (processes if zero_stage else 1),
        activations=activations,
        logits=LOGIT_COPIES * 4 * rows * shape.vocabulary,
    )


def _kept_bytes_per_token(shape: Shape) -> float:
    """Bytes that a decoder layer keeps per token for the backward pass, with LoRA on all linears.

    These are the two norms' inputs and outputs, queries and the attention's output (6 widths), keys
    and values, and gate, up, gate after its activation and their product (4 inner widths).
    """
    numbers = 6 * shape.width + 2 * shape.kv_width + 4 * shape.inner
    return numbers * shape.weight_bytes
