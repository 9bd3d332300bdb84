"""Count the graphs that Dynamo compiles of decoder layers, without computing anything in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.train.shared_prefix import CompletionList
from perpo_pipeline.vlm.models import EncodedPrompt


class GraphCounter:
    """A backend for layers whose inputs are `width` wide: a graph returns what it is given.

    It depends on the trained weights, if there are any, so that the next layer's input does, too.
    """

    def __init__(self, width: int) -> None:
        self.width, self.graphs = width, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        self.graphs += 1

        def run(*given: Any) -> tuple[Tensor]:
            tensors = [t for t in given if isinstance(t, Tensor)]
            rows = next(t for t in tensors if t.ndim == 3 and t.shape[-1] == self.width)
            trained = [t for t in tensors if t.requires_grad and t.ndim == 2]
            return (rows + 0 * trained[0].sum() if trained else rows.clone(),)

        return run


def text_list(num_prompt: int, lengths: Sequence[int], *, axes: int = 1) -> CompletionList:
    """A list without an image: the vision tower does not run. `axes` of rotary positions."""
    ids = torch.arange(num_prompt) % 100 + 20
    positions = torch.arange(num_prompt).expand(axes, -1)
    prompt = EncodedPrompt(ids, {}, positions, num_prompt, (1, 1), (1, 1), None)
    return CompletionList(prompt, [[*range(30, 30 + n - 1), 2] for n in lengths])
