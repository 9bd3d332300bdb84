"""The lever `last-layer`: the last decoder layer's feed-forward part only where a token predicts.

Of a packed list, the prefix's last token and the answers' tokens predict; the rest of the prefix
only gives keys and values. Attention is computed as in the other layers, with the model's own code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.layout import PackedList

PARTS_OF_A_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class PredictingLayer:
    """Mixed into a decoder layer of the usual kind; see `use_last_layer`."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        *args: Any,
        predicting: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(R, T, D) -> (1, Q, D) at the places `predicting` (Q,) of the R*T; None: all, as ever."""
        if predicting is None:
            whole: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return whole
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden = (hidden_states + attended).flatten(0, 1)[predicting][None]
        added: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return added


def use_last_layer(model: Any) -> None:
    """Let the last decoder layer of a transformers VLM take `predicting`.

    Raises ConfigError for a layer with other parts, or if image features are added after it.
    """
    layers = model.get_decoder().layers
    layer: Any = layers[-1]
    others = {name for name, _ in layer.named_children()} ^ PARTS_OF_A_LAYER
    vision = getattr(model.config, "vision_config", None)
    deep = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    if others or deep >= len(layers):
        raise ConfigError(
            "train.levers has last-layer, but the model's last decoder layer is of another kind "
            f"({', '.join(sorted(others)) or 'image features are added after it'})",
            fix="remove last-layer from train.levers",
        )
    if not isinstance(layer, PredictingLayer):
        kind = type(layer)
        layer.__class__ = type(f"Predicting{kind.__name__}", (PredictingLayer, kind), {})


def uses_last_layer(model: Any) -> bool:
    """Whether the model's last decoder layer takes `predicting`."""
    return isinstance(model.get_decoder().layers[-1], PredictingLayer)


def predicting_places(lists: Sequence[PackedList], device: torch.device | str) -> Tensor:
    """(Q,) the places of all tokens that predict, in ascending order."""
    found = [
        place
        for entry in sorted(lists, key=lambda one: one.start)
        for place in range(entry.answers - 1, entry.answers + sum(entry.inside))
    ]
    return torch.tensor(found).to(device, non_blocking=True)
