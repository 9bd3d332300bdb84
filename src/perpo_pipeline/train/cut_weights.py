"""ZeRO-3 from the first byte: weights are cut over the processes while they are loaded.

No process ever holds a whole model, so a base may be larger than one GPU. What runs before there
is a DeepSpeed engine (the self-check, the reference) has each module's weights whole during that
module's forward. Every forward is then a meeting: all processes must run as many of them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from perpo_pipeline.train.zero import ZeroConfig, complete_zero_config, zero_stage

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel


@contextmanager
def loaded_in_pieces(
    config: ZeroConfig | None, resolved: "ResolvedModel", dtype: str
) -> Iterator[None]:
    """Under ZeRO-3 a model that is loaded within is cut over the processes; else as ever.

    transformers' own way: the first process reads the files, a module at a time, and the others
    get their pieces of it. `config` are the run's DeepSpeed settings, `dtype` float32 or bfloat16.
    """
    if zero_stage(config) != 3 or config is None:
        yield
        return
    from transformers import AutoConfig
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    model_config = AutoConfig.from_pretrained(
        resolved.path, local_files_only=True, trust_remote_code=False
    )
    whole = complete_zero_config(
        config,
        dtype=getattr(torch, dtype),
        hidden_size=model_config.get_text_config().hidden_size,
    )
    known = {name: value for name, value in whole.items() if value != "auto"}
    loading = {
        # The batch is the Trainer's to say, and has no meaning here; DeepSpeed wants to hear one.
        "train_micro_batch_size_per_gpu": 1,
        # All buffers: in bf16, rotary frequencies would turn other angles than the whole model's.
        "data_types": {"keep_in_fp32_modules": ["*"]},
    }
    kept_alive = HfDeepSpeedConfig({**known, **loading})  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        del kept_alive
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def is_cut(model: nn.Module) -> bool:
    """Whether the model's weights lie in pieces at the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def whole_by_module(model: nn.Module) -> Iterator[None]:
    """Let forwards run on a model in pieces, without gradients; nothing changes for a whole one.

    A module's own weights are gathered before its forward and given up after it, one module after
    the other, as ZeRO-3 does; without its prefetching, so somewhat slower.
    """
    if not is_cut(model):
        yield
        return
    import deepspeed

    gathered: dict[nn.Module, list[Any]] = {}

    def gather(module: nn.Module, *_: Any) -> None:
        together = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
        together.__enter__()
        gathered.setdefault(module, []).append(together)

    def give_up(module: nn.Module, *_: Any) -> None:
        gathered[module].pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_pre_hook(gather).remove)
                # Also after an error, which may be told and survived.
                hooks.callback(module.register_forward_hook(give_up, always_call=True).remove)
        yield
