"""Compile the decoder layers, with few graphs: a graph takes Inductor many seconds.

All layers share the graphs of one layer. There is one with gradients, one without them (reference)
and one without the adapter; rows of `bucketed` lengths take one of each kind for every length.
"""

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from perpo_pipeline.train.shared_prefix import RowLengths
from perpo_pipeline.train.zero import read_zero_config, zero_stage

if TYPE_CHECKING:
    from perpo_pipeline.config.train import TrainSettings
    from perpo_pipeline.train.token_budget import Forward

RECOMPILE_LIMIT = 256  # bucketed lengths need more graphs than the 8 that torch allows


def is_compiled(
    settings: "TrainSettings", forward: "Forward", *, on_cuda: bool, quantization: str | None
) -> bool:
    """Whether a training compiles the decoder layers.

    Separate rows have another length at each step: nothing to compile for. ZeRO-3 gathers and frees
    the weights around each layer, which a compiled layer cannot follow. With quantised weights
    compiled layers have not run on a card yet, so they are compiled on request only.
    """
    if forward == "separate" or settings.compile is not None:
        return forward != "separate" and bool(settings.compile)
    zero = None if settings.deepspeed is None else read_zero_config(settings.deepspeed)
    return on_cuda and quantization is None and zero_stage(zero) < 3


def compile_layers(
    model: Any,
    row_lengths: RowLengths,
    *,
    backend: Any = "inductor",
    options: dict[str, Any] | None = None,
) -> None:
    """Compile the decoder layers of a transformers VLM in place, for rows of these lengths.

    `options` are Inductor's.
    """
    limit: dict[str, Any] = {} if options is None else {"options": options}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        limit["recompile_limit"] = RECOMPILE_LIMIT
    else:
        # From torch 2.12 on this holds in one thread only; gradient checkpointing runs the layers
        # in the backward's thread, too.
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(_give_gradient, with_kwargs=True)
    for layer in decoder.layers:
        layer.compile(dynamic=row_lengths == "any", backend=backend, **limit)


def _give_gradient(
    _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the first layer's input have a gradient, as that of all others has.

    Otherwise the first layer is compiled into a graph of its own, which takes as long as that of
    all others. The gradient is three more products, of one layer.
    """
    given = kwargs.get("inputs_embeds")
    if given is not None and torch.is_grad_enabled() and not given.requires_grad:
        kwargs["inputs_embeds"] = given.detach().requires_grad_()
    return args, kwargs


def whole_graphs() -> contextlib.AbstractContextManager[None]:
    """Keep DDP from splitting the graphs that are compiled in it, for this thread.

    Dynamo splits graphs in a DDP module where a bucket of gradients ends, so that DDP can send it
    earlier; each of our layers is a graph of its own already.
    """
    patched: contextlib.AbstractContextManager[None] = torch._dynamo.config.patch(
        optimize_ddp=False
    )
    return patched
