"""The whole of one training run on random weights: what 3,000 lists take on a card."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from train_step_models import Regime, random_lists

from perpo_pipeline.train.engine import ListPolicy
from perpo_pipeline.train.losses import perpo_loss
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists
from perpo_pipeline.vlm.models import Vlm

NUM_LISTS = 3000
TEXT_SPREAD, ANSWER_SPREAD = 10, 4  # tokens: rows differ in length, as in a real run


def run_recipe(vlm: Vlm, regime: Regime, num_lists: int = NUM_LISTS) -> str:
    """Reference pass and one epoch of PerPO with the optimiser; images are encoded in both.

    Random pixels are made before the clock starts; packing and compilation count.
    """
    lists = random_lists(
        vlm, regime, num_lists, text_spread=TEXT_SPREAD, answer_spread=ANSWER_SPREAD
    )
    steps = [lists[i : i + regime.lists] for i in range(0, num_lists, regime.lists)]
    start = time.perf_counter()
    reference = reference_pass(vlm, steps)
    between = time.perf_counter()
    train(vlm, steps, reference)
    end = time.perf_counter()
    return (
        f"{num_lists} lists, {len(steps)} steps: reference pass {(between - start) / 60:.2f} min, "
        f"training {(end - between) / 60:.2f} min, together {(end - start) / 60:.2f} min"
    )


@torch.no_grad()
def reference_pass(vlm: Vlm, steps: Sequence[Sequence[CompletionList]]) -> list[Tensor]:
    """(B, N) reference log-probabilities of each step, on the CPU."""
    policy = ListPolicy(vlm.model)
    with vlm.model.disable_adapter():
        return [policy(pack_lists(vlm, step)).cpu() for step in steps]


def train(vlm: Vlm, steps: Sequence[Sequence[CompletionList]], reference: Sequence[Tensor]) -> None:
    """As `perpo train` does it: clipped gradients, fp32 masters of bf16 adapters."""
    policy = ListPolicy(vlm.model)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = MasterAdamW(trained, lr=5e-6)
    for step, ref_logps in zip(steps, reference, strict=True):
        logps = policy(pack_lists(vlm, step))
        rewards = torch.linspace(0, 1, logps.shape[1], device=vlm.device).expand_as(logps)
        perpo_loss(logps, ref_logps.to(vlm.device), rewards).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if vlm.device.type == "cuda":
        torch.cuda.synchronize()
