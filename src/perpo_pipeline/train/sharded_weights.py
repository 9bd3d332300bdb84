"""ZeRO-3 from the first byte: weights are sharded over the processes while they are loaded.

No process ever holds a whole model, so a base may be larger than one GPU. What runs before a
DeepSpeed engine exists (the self-check, the reference) gathers each module's weights during that
module's forward. All processes take part in that, so they must run the same number of forwards.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.zero import ZeroConfig, complete_zero_config, zero_stage
from perpo_pipeline.vlm.layers import layer_kinds
from perpo_pipeline.vlm.processors import files_only

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel


@contextmanager
def sharded_loading(
    config: ZeroConfig | None, resolved: "ResolvedModel", dtype: str
) -> Iterator[None]:
    """Under ZeRO-3, shard a model that is loaded in this context over the processes.

    This is transformers' own way: the first process reads the files, module by module, and sends
    the others their shards. `config` is the run's DeepSpeed settings, `dtype` float32 or bfloat16.
    Without ZeRO-3 nothing changes. Raises ConfigError for a model with recurrent layers.
    """
    if zero_stage(config) != 3 or config is None:
        yield
        return
    from transformers import AutoConfig
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    how = files_only(own_code=resolved.own_code)
    model_config = AutoConfig.from_pretrained(resolved.path, **how)
    _refuse_recurrent_layers(model_config)
    whole = complete_zero_config(
        config,
        dtype=getattr(torch, dtype),
        hidden_size=model_config.get_text_config().hidden_size,
    )
    known = {name: value for name, value in whole.items() if value != "auto"}
    loading = {
        # DeepSpeed requires a batch size; it has no meaning here, and the Trainer sets its own.
        "train_micro_batch_size_per_gpu": 1,
        # All buffers: in bf16, rotary frequencies would give other angles than in the whole model.
        "data_types": {"keep_in_fp32_modules": ["*"]},
    }
    try:
        kept_alive = HfDeepSpeedConfig({**known, **loading})  # type: ignore[no-untyped-call]
        yield
        del kept_alive
    finally:  # also if DeepSpeed is not installed: every later model would be loaded for it
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _refuse_recurrent_layers(model_config: Any) -> None:
    """They use the weights of their convolution without a call of it, which would gather them."""
    recurrent = layer_kinds(model_config).recurrent
    if recurrent:
        raise ConfigError(
            f"ZeRO-3 cannot shard this '{model_config.model_type}' model: it has layers with a "
            f"recurrent state ({', '.join(recurrent)})",
            fix="set train.deepspeed: zero2, or leave train.deepspeed out; each GPU then holds "
            "the whole model",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are sharded over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered_by_module(model: nn.Module) -> Iterator[None]:
    """Let forwards without gradients run on a sharded model; a whole model is not changed.

    A module's own weights are gathered before its forward and released after it, module by module,
    as ZeRO-3 does; without its prefetching, so somewhat slower.
    """
    if not is_sharded(model):
        yield
        return
    import deepspeed

    gathered: dict[nn.Module, list[Any]] = {}

    def gather(module: nn.Module, *_: Any) -> None:
        whole = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
        whole.__enter__()
        gathered.setdefault(module, []).append(whole)

    def release(module: nn.Module, *_: Any) -> None:
        gathered[module].pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_pre_hook(gather).remove)
                # Also after an error, which a caller may catch.
                hooks.callback(module.register_forward_hook(release, always_call=True).remove)
        yield
