"""How much memory training takes on each GPU: computed, not measured.

Counted are the weights, the gradients and AdamW state of what is trained, the activations that the
backward pass keeps from a forward of `tokens` tokens, logits, what one layer computes in passing,
and a stated amount for the CUDA context. Not counted are the vision tower's activations (a frozen
tower keeps none), the states of recurrent layers (one for each answer and layer: docs/training.md)
and what the allocator holds in addition (planning leaves a tenth of the card for it). One
measurement exists, of a prototype and not of this code: LLaVA-1.5-7B with 9,248 tokens per forward
and without checkpointing peaked at 52 to 63 GiB; this module computes 56 GiB.
"""

from dataclasses import dataclass
from typing import Any

from perpo_pipeline.machine import GIB
from perpo_pipeline.train.shared_prefix import LOGIT_BUDGET
from perpo_pipeline.vlm.models import Vlm, base_model, head_size
from perpo_pipeline.vlm.quantization import weight_bytes
from perpo_pipeline.vlm.recurrent import recurrent_layers, state_bytes

MOMENTS = 8  # bytes: AdamW's two, in fp32
MASTER = 4  # bytes: the fp32 master of a half-precision weight; during a step its gradient, too
LOGIT_COPIES = 3  # logits, their fp32 softmax, its gradient
LORA_LINEARS = 7  # of a decoder layer
CONTEXT = 0.6 * GIB  # CUDA's context, kernels and cuBLAS workspaces: stated, not measured


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a model's memory; all but `parameters` and `trained` are the text
    model's.

    `width` is the hidden size, `inner` the feed-forward size, `query_width` and `kv_width` the
    sizes of the queries and of the keys of all heads together; `trained` counts the numbers that
    are trained, those of LoRA with its `rank` included. `weight_bytes` are those of the dtype that
    the model computes in; `quantization` is that of the linear layers. `norms_queries`: queries and
    keys are normalised, as in Qwen3. Of the layers `recurrent` keep a state instead of keys and
    values, `state_bytes` of all of them for one sequence.
    """

    parameters: int
    trained: int
    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int
    weight_bytes: int = 2
    query_width: int = 0  # 0: the width
    rank: int = 0
    quantization: str | None = None
    norms_queries: bool = False
    recurrent: int = 0
    state_bytes: int = 0

    @property
    def queries(self) -> int:
        """The size of the queries of all heads together."""
        return self.query_width or self.width

    @property
    def linears(self) -> int:
        """Weights of the linear layers in the decoder layers, which `model.quantization` holds."""
        attention = 2 * self.width * (self.queries + self.kv_width)
        return self.layers * (attention + 3 * self.width * self.inner)

    @property
    def weights(self) -> float:
        """Bytes of all weights."""
        if self.quantization is None:
            return float(self.parameters * self.weight_bytes)
        each = weight_bytes(self.quantization, "bfloat16")
        return self.linears * each + (self.parameters - self.linears) * self.weight_bytes

    def lora_numbers(self, rank: int) -> int:
        """Numbers of a LoRA adapter on all linear layers of the decoder layers."""
        attention = 2 * (self.width + self.queries) + 2 * (self.width + self.kv_width)
        return self.layers * rank * (attention + 3 * (self.width + self.inner))


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, by what holds them; `host` are pinned bytes of the machine's memory.

    `working` is what a layer needs in passing, forward and backward; `update` what the optimiser
    needs in passing, when no activations are left.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    working: float = 0.0
    update: float = 0.0
    host: float = 0.0
    context: float = CONTEXT

    @property
    def total(self) -> float:
        """The most at any time of the training."""
        kept = self.weights + self.gradients + self.optimizer + self.context
        return kept + max(self.activations + self.logits + self.working, self.update)

    @property
    def reference(self) -> float:
        """The most while the reference log-probabilities are computed, before the training."""
        return self.weights + self.logits + self.working + self.context


def shape_of(vlm: Vlm, *, weight_bytes: int, quantization: str | None = None) -> Shape:
    """The sizes of a model without an adapter, of which nothing is trained yet."""
    inner: Any = base_model(vlm.model)
    text = inner.config.get_text_config()
    head_dim = head_size(text)
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    modules = inner.get_decoder().layers[0].named_modules()
    return Shape(
        parameters=sum(p.numel() for p in inner.parameters()),
        trained=0,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        kv_width=head_dim * kv_heads,
        vocabulary=text.vocab_size,
        weight_bytes=weight_bytes,
        query_width=head_dim * text.num_attention_heads,
        quantization=quantization,
        norms_queries=any(name.endswith("q_norm") for name, _ in modules),
        recurrent=len(recurrent_layers(inner)),
        state_bytes=state_bytes(inner, weight_bytes),
    )


def estimate_memory(
    shape: Shape,
    tokens: int,
    *,
    processes: int = 1,
    zero_stage: int = 0,
    checkpointing: bool = False,
    activation_offload: bool = False,
    compiled: bool = True,
    offload: bool = False,
    answers: int = 0,
) -> Estimate:
    """Bytes on each of `processes` GPUs for forwards of `tokens` packed tokens.

    Without ZeRO, several processes hold the gradients twice: DDP sends them from buckets of its
    own. ZeRO-1 shards the optimiser state over the processes, ZeRO-2 also the gradients, ZeRO-3
    also the weights (of which two layers at a time are whole). Offloaded shards are in the
    machine's memory. `answers` of a forward continue from a prefix: each has copies of the states
    of recurrent layers, with checkpointing of one layer at a time.
    """
    gradient_shards = processes if zero_stage >= 2 else 1
    copies = 2 if processes > 1 and not zero_stage else 1
    is_half = shape.weight_bytes < 4
    weights = shape.weights
    if zero_stage == 3:
        layer = (shape.parameters - 2 * shape.vocabulary * shape.width) / max(1, shape.layers)
        whole = 2 * max(0.0, layer) * shape.weight_bytes
        weights = (0 if offload else weights / processes) + min(weights, whole)
    state = MOMENTS + (MASTER if is_half else 0)
    boundary = tokens * shape.width * shape.weight_bytes
    one_layer = tokens * kept_bytes_per_token(shape, compiled=compiled)
    inputs = shape.layers * boundary
    activations: float = shape.layers * one_layer
    if checkpointing:
        on_device = 2 * boundary if activation_offload else inputs
        activations = on_device + one_layer
    layers_kept = min(1, shape.recurrent) if checkpointing else shape.recurrent
    activations += answers * shape.state_bytes * layers_kept / max(1, shape.recurrent)
    rows = min(tokens, max(1, LOGIT_BUDGET // shape.vocabulary))
    return Estimate(
        weights=weights,
        gradients=copies * shape.trained * shape.weight_bytes / gradient_shards,
        optimizer=0 if offload else shape.trained * state / (processes if zero_stage else 1),
        activations=activations,
        logits=LOGIT_COPIES * 4 * rows * shape.vocabulary,
        working=working_bytes(shape, tokens),
        update=0 if offload or not is_half else shape.trained * MASTER / gradient_shards,
        host=inputs if activation_offload else 0.0,
    )


def kept_bytes_per_token(shape: Shape, *, compiled: bool) -> float:
    """Bytes that a decoder layer keeps per token for the backward pass, with LoRA on all linears.

    These are the inputs and outputs of the two norms (4 widths), queries and the attention's output
    (2 query widths), keys and values, gate, up and their product (3 inner widths), and what is
    between the two matrices of each LoRA; with normalised queries and keys also what goes into
    these norms. A layer that is not compiled keeps the norms' inputs in fp32, and the gate after
    its activation. The statistics of norms and softmax (a number per head) are not counted.
    """
    numbers = 4 * shape.width + 2 * (shape.queries + shape.kv_width) + 3 * shape.inner
    numbers += LORA_LINEARS * shape.rank
    normed = shape.queries + shape.kv_width if shape.norms_queries else 0
    numbers += normed
    if not compiled:
        numbers += shape.inner
        if shape.weight_bytes < 4:  # two fp32 copies instead of two in half precision
            numbers += 2 * shape.width + normed
    return float(numbers * shape.weight_bytes)


def working_bytes(shape: Shape, tokens: int) -> float:
    """Bytes that are needed in passing for `tokens` tokens.

    These are the gradients of a layer's feed-forward part (3 inner widths) and of its input and
    output, embeddings and last norm (4 widths); with quantised weights one dequantised matrix and
    its gradient's product.
    """
    passing = tokens * (3 * shape.inner + 4 * shape.width) * shape.weight_bytes
    matrix = shape.width * shape.inner * shape.weight_bytes
    return float(passing + (2 * matrix if shape.quantization else 0))
