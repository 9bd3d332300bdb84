"""Sharded models against the same models whole, one line of JSON per process of torchrun.

A case is named DTYPE:SETTINGS:MODEL.
"""

import json

import torch
from PIL import Image
from torch import nn

from perpo_pipeline.errors import InputError
from perpo_pipeline.train.processes import join_world, leave_world
from perpo_pipeline.train.sharded_weights import gathered_by_module, is_sharded, sharded_loading
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.train.throughput import FlopCounter
from perpo_pipeline.train.zero import read_zero_config
from perpo_pipeline.vlm.attention import use_shared_prefix_attention
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

COMPLETIONS = [[5, 6, 7, 8, 9], [6, 9, 11, 5, 30, 31, 7]]


def held(model: nn.Module) -> int:
    """How many numbers of the model's weights this process holds now."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure(vlm: Vlm) -> tuple[list[float], int]:
    """Log-probabilities of two completions and the FLOPs of training on them; then the largest
    number of weights that was held in any module's forward."""
    use_shared_prefix_attention(vlm.model, flex=False)
    picture = Image.radial_gradient("L").resize((70, 90)).convert("RGB")
    entry = CompletionList(encode_prompt(vlm, picture, "where is it?"), COMPLETIONS)
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, held(vlm.model))

    with torch.no_grad(), gathered_by_module(vlm.model):
        hooks = [module.register_forward_pre_hook(look) for module in vlm.model.modules()]
        batch = pack_lists(vlm, [entry])
        logps = packed_logps(vlm.model, batch)
        for hook in hooks:
            hook.remove()
    return [*logps.flatten().tolist(), FlopCounter(vlm.model).count(batch)], most


def compare(rank: int, dtype: str, settings: str, model: str) -> None:
    """Print what the test compares."""
    case = {"rank": rank, "case": f"{dtype}:{settings}:{model}"}
    resolved = resolve_model(model)
    try:
        with sharded_loading(read_zero_config(settings), resolved, dtype):
            sharded = load_vlm(resolved, dtype=dtype, device="cpu")
    except InputError as error:
        print(json.dumps({**case, "refused": str(error)}), flush=True)
        return
    whole = load_vlm(resolved, dtype=dtype, device="cpu")
    found = {
        **case,
        "is_sharded": [is_sharded(whole.model), is_sharded(sharded.model)],
        "dtype": str({p.dtype for p in sharded.model.parameters()}),
        "own": sum(p.ds_tensor.numel() for p in sharded.model.parameters()),
        "all": held(whole.model),
        "before": held(sharded.model),
        "largest": max(
            sum(p.numel() for p in m.parameters(recurse=False)) for m in whole.model.modules()
        ),
    }
    # In this order: DeepSpeed replaces torch's linear function by its own.
    found["sharded"], found["most"] = measure(sharded)
    found["whole"], _ = measure(whole)
    print(json.dumps({**found, "after": held(sharded.model)}), flush=True)


def main(*cases: str) -> None:
    """Compare each case."""
    world = join_world(on_cuda=False, with_deepspeed=True)
    for case in cases:
        compare(world.rank, *case.split(":", 2))
    leave_world()
