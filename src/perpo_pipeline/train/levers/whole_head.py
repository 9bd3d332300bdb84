"""The lever `whole-head`: the head in one chunk where memory allows, so that nothing is computed
again in the backward pass."""

from typing import Any

import torch
from torch import Tensor

# For each logit: itself and its gradient in bf16, and in fp32 a copy, its logarithm of the softmax
# and its gradient.
BYTES_PER_LOGIT = 2 * 2 + 3 * 4
SHARE = 0.5  # of the free memory


def use_whole_head(model: Any) -> None:
    """Let the head of a transformers VLM be bounded by the free memory."""
    model.lm_head.fits_memory = True


def fitting_rows(lm_head: Any, hidden: Tensor) -> int:
    """How many positions the head may compute at once on this device; 0 without the lever."""
    if not getattr(lm_head, "fits_memory", False):
        return 0
    return int(SHARE * free_bytes(hidden.device)) // (BYTES_PER_LOGIT * int(lm_head.out_features))


def free_bytes(device: torch.device) -> int:
    """Memory that torch may still use on a GPU, without waiting for it; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
