"""From the text model's last hidden states to logits, as each family computes them.

`model.lm_head` is not always the end: some families cap or scale what it gives. Only families whose
own forward does so are listed; text configs also hold such values where the model ignores them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


def unchanged(logits: Tensor) -> Tensor:
    """The logits of the head, in most families."""
    return logits


def change_of_logits(config: Any) -> Change:
    """What a transformers VLM with this config does to the logits of its head."""
    made = _CHANGES.get(config.model_type)
    return unchanged if made is None else made(config.get_text_config())


def _capped(text: Any) -> Change:
    """cap * tanh(logits / cap); Gemma 2, arXiv:2408.00118."""
    cap = text.final_logit_softcapping
    return (lambda logits: torch.tanh(logits / cap) * cap) if cap is not None else unchanged


def _divided(text: Any) -> Change:
    return lambda logits: logits / text.logits_scaling


_CHANGES: dict[str, Callable[[Any], Change]] = {
    "gemma3n": _capped,
    "gemma4": _capped,
    "gemma4_unified": _capped,
    "granite4_vision": _divided,
}
