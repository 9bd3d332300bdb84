"""How much memory training takes on each GPU, computed and not measured.

What is counted: weights, what is trained with its gradients and AdamW's state, what the backward
pass keeps of a forward of `tokens` tokens, and logits. Not counted: the vision tower's own
activations (frozen: none are kept), what allocators and kernels hold beside. Against the one
measurement there is (LLaVA-1.5-7B, 9,248 tokens a forward, no checkpointing: 52 to 63 GiB at its
peak) this gives 60 GiB.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.train.scope import trainable
from perpo_pipeline.train.shared_prefix import LOGIT_BUDGET
from perpo_pipeline.vlm.models import Vlm, base_model

GIB = 2**30
STATE_BYTES = 8  # AdamW's two moments in fp32; 4 more for an fp32 master of a half-precision weight
LOGIT_COPIES = 3  # logits, their fp32 softmax, its gradient


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory; all but `parameters` and `trained` is the text model's.

    `width` hidden size, `inner` of the feed-forward, `kv_width` keys of all heads together.
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
    """Bytes on each GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All together, while it trains; loading, self-check and reference take less."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def shape_of(vlm: Vlm, settings: TrainSettings, *, weight_bytes: int) -> Shape:
    """The shape of a model with what the settings would train; puts that on the model."""
    inner: Any = base_model(vlm.model)
    parameters = sum(p.numel() for p in inner.parameters())
    policy: nn.Module = trainable(vlm, settings)
    text = inner.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=parameters,
        trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
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

    ZeRO-1 cuts the optimiser's state in `processes` pieces, ZeRO-2 gradients, ZeRO-3 weights, too
    (of which two layers at a time are whole); offloaded pieces lie in the machine's memory.
    """
    cut = processes if zero_stage >= 2 else 1
    state = STATE_BYTES + (4 if shape.weight_bytes < 4 else 0)
    weights = float(shape.parameters * shape.weight_bytes)
    if zero_stage == 3:
        layer = (shape.parameters - 2 * shape.vocabulary * shape.width) / max(1, shape.layers)
        whole = 2 * max(0.0, layer) * shape.weight_bytes
        weights = (0 if offload else weights / processes) + min(weights, whole)
    a_layer = tokens * _kept_a_token(shape)
    boundary = tokens * shape.width * shape.weight_bytes
    activations = shape.layers * boundary + a_layer if checkpointing else shape.layers * a_layer
    rows = min(tokens, max(1, LOGIT_BUDGET // shape.vocabulary))
    return Estimate(
        weights=weights,
        gradients=shape.trained * shape.weight_bytes / cut,
        optimizer=0 if offload else shape.trained * state / (processes if zero_stage else 1),
        activations=activations,
        logits=LOGIT_COPIES * 4 * rows * shape.vocabulary,
    )


def _kept_a_token(shape: Shape) -> float:
    """Bytes that a decoder layer keeps of a token for the backward pass, LoRA on all its linears.

    Widths: the two norms' inputs, their outputs, queries and the attention's output (6 in all),
    keys and values; gate, up, gate after its activation, and their product (4 inner widths).
    """
    numbers = 6 * shape.width + 2 * shape.kv_width + 4 * shape.inner
    return numbers * shape.weight_bytes
