"""Prepare a model for the log-probabilities of lists, and run the chosen forward.

Reference and policy use the same forward: the shared prefix where that is exact on this model, else
one full row per completion (`separate`).
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.compilation import compile_layers, is_compiled, whole_graphs
from perpo_pipeline.train.separate_rows import SeparateBatch, separate_logps
from perpo_pipeline.train.shared_prefix import PackedBatch, packed_logps
from perpo_pipeline.vlm.attention import use_shared_prefix_attention
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.recurrent import use_recurrent_steps

if TYPE_CHECKING:
    from perpo_pipeline.config.train import TrainSettings
    from perpo_pipeline.train.batches import TrainingBatch
    from perpo_pipeline.train.token_budget import Forward


KERNEL_TOO_LARGE = re.compile(r"out of resource: shared memory, Required: \d+, Hardware limit: \d+")


class ListPolicy(nn.Module):
    """The module that the Trainer wraps: `forward(lists)` gives log-probabilities `(B, N)`.

    DDP, FSDP and ZeRO act at the wrapped module's forward, so the whole computation is inside it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, lists: PackedBatch | SeparateBatch) -> Tensor:
        with whole_graphs():
            if isinstance(lists, PackedBatch):
                return packed_logps(self.model, lists)
            return separate_logps(self.model, lists)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, which checkpointing needs; but batch norms keep their statistics.

        Those of a batch would make an answer depend on the lists beside it, and no adapter would
        hold them.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def choose_forward(vlm: Vlm, wanted: str) -> "Forward":
    """Resolve `train.forward`; `auto` is what sampling does, too (`Vlm.way`).

    Raises ConfigError if sharing a prefix is asked for and cannot be right.
    """
    if wanted == "separate":
        return "separate"
    if wanted == "auto":
        return "shared-prefix" if vlm.shares_prefix else "separate"
    if vlm.why_never is not None:
        raise ConfigError(
            "forward is shared-prefix, but a shared prefix would change the language model's "
            f"results: {vlm.why_never}",
            fix="use train.forward: separate",
        )
    return "shared-prefix"


def ready_model(vlm: Vlm, forward: "Forward", settings: "TrainSettings") -> None:
    """Set the text model's attention and compilation; call it before reference and training."""
    inner = base_model(vlm.model)
    on_cuda = vlm.device.type == "cuda"
    if forward == "shared-prefix":
        if vlm.layers.recurrent:
            use_recurrent_steps(inner)
        use_shared_prefix_attention(inner, flex=on_cuda)
    options = None
    if settings.levers:
        from perpo_pipeline.train.levers.model import AUTOTUNE, use_model_levers

        use_model_levers(vlm, forward, settings.levers)
        options = AUTOTUNE if "flex-autotune" in settings.levers else None
    if is_compiled(settings, forward, on_cuda=on_cuda, quantization=vlm.quantization):
        compile_layers(inner, settings.row_lengths, options=options)


@torch.no_grad()
def reference_logps(model: nn.Module, batches: Sequence["TrainingBatch"]) -> dict[str, list[float]]:
    """By prompt_id, the log-probabilities of each completion under `model`, in nats."""
    policy = ListPolicy(model)
    found: dict[str, list[float]] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            counts = batch.lists.mask.sum(1).tolist()
            rows = policy(batch.lists).tolist()
            for prompt_id, count, row in zip(batch.prompt_ids, counts, rows, strict=True):
                found[prompt_id] = row[:count]
    finally:
        model.train(was_training)
    return found


@contextlib.contextmanager
def memory_explained(
    settings: "TrainSettings", num_lists: int = 0, *, backward: bool = False
) -> Iterator[None]:
    """Name the setting to lower if the accelerator's memory runs out on `num_lists` lists, and what
    to do where a compiled kernel needs more shared memory than the card has.

    `backward`: the activations are kept for it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = [f"lower train.max_tokens_per_forward (now {settings.max_tokens_per_forward})"]
        if num_lists == 1:  # a list is never split
            advice = [
                "use shorter lists: fewer sample.num_samples, lower sample.max_new_tokens",
                "or smaller images: model.max_pixels, model.max_tiles",
            ]
        if backward and not settings.gradient_checkpointing:
            advice.append("set train.gradient_checkpointing: true")
        elif backward and not settings.activation_offload:
            advice.append("set train.activation_offload: true")
        resumed = "then resumes from the last checkpoint" if backward else "goes on from there"
        raise ConfigError(
            f"the accelerator's memory ran out: {str(error).splitlines()[0]}",
            fix="; ".join(advice) + f"; the same command {resumed}. `perpo plan` names settings "
            "that fit",
        ) from error
    except RuntimeError as error:
        # Triton's words. In float32 Flex needs 147,968 bytes for heads of 128 (make check-cuda).
        if (needed := KERNEL_TOO_LARGE.search(str(error))) is None:
            raise
        raise ConfigError(
            f"a compiled kernel does not fit this card: {needed[0]}",
            fix="set model.dtype: bfloat16 (float32 needs twice as much), or train.forward: "
            "separate (slow, compiles nothing)",
        ) from error
