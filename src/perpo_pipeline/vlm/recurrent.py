"""Layers with a recurrent state on rows that share a prefix: gated delta nets, Mamba2, short convs.

Such a layer reads its tokens in order, so in a row `[prefix | y_1 | ... | y_n]` y_2 would continue
from y_1. Here the layer instead runs twice: over the prefixes, which leaves their states, and over
all answers as one batch that starts from copies of these states. Each token still costs one token.

The layer's own forward does all of it; only its cache is replaced. transformers' cache copies
states in place, where they lose their gradients; `LayerStates` has the same methods and keeps them.
A forward finds what to do in its `attention_mask`: transformers hands one to each layer type
(`masks_by_layer_type`), also when gradient checkpointing runs the layer again.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.layers import RECURRENT

# What transformers' models call the masks of layers with a recurrent state (its masking_utils).
LAYER_TYPES = ("linear_attention", "conv")
CACHE_ARGUMENTS = ("cache_params", "past_key_values")  # what a layer calls its cache
PROBE_TOKENS = 4
LEFT_PADDING = "perpo_left_padding"  # attribute of a prepared text model: see takes_left_padding


class LayerStates:
    """The states of one layer for G sequences, with the methods of transformers' cache.

    `conv_states` has the last inputs of each convolution (G, C, K) and `recurrent_states` what else
    the layer keeps (G, ...), by number; most layers have one of each. No method writes in place, so
    gradients flow through the states; only Mamba2's step of a single token does (no training).
    """

    record_past = True  # no convolution may write its state in place, also not for a single token

    def __init__(
        self,
        conv_states: Mapping[int, Tensor] | None = None,
        recurrent_states: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.conv_states = dict(conv_states or {})
        self.recurrent_states = dict(recurrent_states or {})

    @property
    def layers(self) -> "_OneForAll":
        """What the layer indexes with its number."""
        return _OneForAll(self)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether there is a state to continue from."""
        return bool(self.conv_states or self.recurrent_states)

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        *,
        conv_kernel_size: int,
        **_: Any,
    ) -> Tensor:
        """Keep a convolution's last inputs; returns the kept ones before and the new ones."""
        before = self.conv_states.get(state_idx)
        whole = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        missing = max(0, conv_kernel_size - whole.shape[-1])
        self.conv_states[state_idx] = F.pad(whole, (missing, 0))[..., -conv_kernel_size:]
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Tensor:
        """Keep the state after the last token."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def map(self, function: Callable[[Tensor], Tensor]) -> "LayerStates":
        """The states with `function` applied to each tensor."""
        parts = (self.conv_states, self.recurrent_states)
        return LayerStates(*({i: function(s) for i, s in part.items()} for part in parts))

    def repeated(self, counts: Sequence[int]) -> "LayerStates":
        """`counts[g]` copies of sequence g's states, one after another."""
        # Not repeat_interleave: its backward pass adds up in any order on CUDA.
        return self.map(
            lambda state: torch.cat(
                [state[g : g + 1].expand(n, *state.shape[1:]) for g, n in enumerate(counts)]
            )
        )


def joined(states: Sequence[LayerStates]) -> LayerStates:
    """The states of several batches as those of one."""
    first = states[0]
    conv, recurrent = (
        {i: torch.cat([getattr(one, name)[i] for one in states]) for i in getattr(first, name)}
        for name in ("conv_states", "recurrent_states")
    )
    return LayerStates(conv, recurrent)


@dataclass(frozen=True)
class _OneForAll:
    """Stands for the list of a cache's layers: every number is the one layer."""

    states: LayerStates

    def __getitem__(self, layer_idx: int) -> LayerStates:
        return self.states


# (hidden states (G, T, D), the layer's states, (G, T) true at tokens or None) -> (G, T, D)
LayerForward = Callable[[Tensor, LayerStates, Tensor | None], Tensor]


class Steps(Protocol):
    """How a layer with a recurrent state runs over rows; it stands in the mask's place."""

    def run(self, layer: int, forward: LayerForward, hidden: Tensor) -> Tensor:
        """The output (R, T, D) of layer number `layer` for the hidden states (R, T, D)."""
        ...


@dataclass(frozen=True, eq=False)
class Prefixes:
    """G prefixes that run as one batch: `places` (G, P) of their tokens among the R*T places.

    `is_token` (G, P) is false at padding on the left; None if there is none.
    """

    places: Tensor
    is_token: Tensor | None


@dataclass(frozen=True, eq=False)
class PackedSteps:
    """Packed lists as batches of prefixes, and all their answers as one batch that continues.

    `answers` (S, A) are the places of the answers' tokens, padded on the right, in the order of the
    prefixes; `counts` has each prefix's answers. `back` (R*T,) says where the output of each place
    is, counted over prefixes and answers; at the rows' padding it is any, which nothing reads.
    """

    prefixes: tuple[Prefixes, ...]
    counts: tuple[int, ...]
    answers: Tensor
    back: Tensor

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def run(self, layer: int, forward: LayerForward, hidden: Tensor) -> Tensor:
        """See `Steps`."""
        flat = hidden.flatten(0, 1)
        states, outputs = [], []
        for some in self.prefixes:
            after = LayerStates()
            outputs.append(forward(flat[some.places], after, some.is_token))
            states.append(after)
        continued = joined(states).repeated(self.counts)
        outputs.append(forward(flat[self.answers], continued, None))
        found = torch.cat([output.flatten(0, 1) for output in outputs])
        return found[self.back].view(hidden.shape)


class RecurrentLayer:
    """Mixed into a layer with a recurrent state; see `use_recurrent_steps`."""

    cache_argument: str

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(R, T, D) -> (R, T, D); as ever, unless `attention_mask` holds `Steps`."""
        steps = kwargs.get("attention_mask")
        if not hasattr(steps, "run"):  # a tensor or None
            usual: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
            return usual
        hidden = args[0] if args else kwargs["hidden_states"]
        found: Tensor = steps.run(self.layer_idx, self.forward_from, hidden)  # type: ignore[union-attr]
        return found

    def forward_from(
        self: Any, hidden: Tensor, states: LayerStates, is_token: Tensor | None
    ) -> Tensor:
        """The layer's own forward, continuing from `states`, which it leaves at the last token."""
        kwargs = {self.cache_argument: states, "attention_mask": is_token}
        found: Tensor = super().forward(hidden, **kwargs)  # type: ignore[misc]
        return found


def recurrent_layers(model: Any) -> list[nn.Module]:
    """The modules of a transformers VLM's text model that keep a state from token to token.

    They own a convolution of each channel by itself, which all such layers in transformers begin
    with.
    """
    return [
        module
        for module in model.get_decoder().modules()
        if any(_is_depthwise(child) for child in module.children())
    ]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d) and module.groups == module.in_channels > 1


def use_recurrent_steps(model: Any) -> None:
    """Let the recurrent layers of a transformers VLM take `Steps` as their mask.

    Raises InputError for a layer that cannot continue from a state with gradients (`obstacle`),
    and for recurrent layers of a kind that `recurrent_layers` does not find.
    """
    layers = recurrent_layers(model)
    _check_all_found(model, layers)
    found = {kind: obstacle(layer) for kind, layer in {type(one): one for one in layers}.items()}
    for kind, why in found.items():
        if why is not None:
            raise InputError(
                f"{kind.__name__} cannot continue from a shared prefix: {why}",
                fix="use train.forward: separate",
            )
    for layer in layers:
        _mix_in(layer)
    if layers:
        setattr(model.get_decoder(), LEFT_PADDING, not any(map(_adds_bias, layers)))


def _check_all_found(model: Any, layers: Sequence[nn.Module]) -> None:
    """Raise InputError if the config names more layers with a state than were found."""
    text = model.config.get_text_config()
    types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    named = sum(kind in RECURRENT for kind in types)
    if named > len(layers):
        raise InputError(
            f"{named} layers of the text model have a recurrent state, but only {len(layers)} of a "
            "kind that can continue from a shared prefix",
            fix="use train.forward: separate",
        )


def uses_recurrent_steps(model: Any) -> bool:
    """Whether the model has recurrent layers, and they take `Steps`."""
    return hasattr(model.get_decoder(), LEFT_PADDING)


def takes_left_padding(model: Any) -> bool:
    """Whether padding before a prefix leaves the state of every recurrent layer at zero, exactly.

    transformers sets padded inputs to zero, and the state stays zero where no projection and no
    convolution adds a bias. For models that `use_recurrent_steps` has prepared.
    """
    return bool(getattr(model.get_decoder(), LEFT_PADDING))


def _adds_bias(layer: nn.Module) -> bool:
    return any(
        name.endswith(".bias") and not name.startswith(("out_proj.", "o_proj.", "norm."))
        for name, _ in layer.named_parameters()
    )


def _mix_in(layer: nn.Module) -> None:
    kind: Any = type(layer)
    if not issubclass(kind, RecurrentLayer):
        layer.__class__ = _mixed(kind)


@cache  # one class for all layers: compiled layers of unlike classes are compiled one by one
def _mixed(kind: type) -> type:
    members = {"cache_argument": _cache_argument(kind)}
    return type(f"SharedPrefix{kind.__name__}", (RecurrentLayer, kind), members)


def _cache_argument(kind: type) -> str | None:
    forward: Any = kind.forward  # type: ignore[attr-defined]
    parameters = inspect.signature(forward).parameters
    if not {"hidden_states", "attention_mask"} <= parameters.keys():
        return None
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def obstacle(layer: nn.Module) -> str | None:
    """Why a recurrent layer cannot continue from a prefix's state, with gradients; None if it can.

    The layer is tried with a few tokens: an answer's output must depend on every state that the
    prefix left. Mamba's first version ignores the state where a call has several tokens.
    """
    if isinstance(layer, RecurrentLayer):
        return None
    name = _cache_argument(type(layer))
    if name is None:
        return "its forward has no cache that we know"
    size = _input_size(layer)
    if size is None:
        return "its input has no known size"
    weight: Any = next(child.weight for child in layer.children() if _is_depthwise(child))
    tokens = torch.randn(2, PROBE_TOKENS, size, generator=torch.Generator().manual_seed(0))
    tokens, after = tokens.to(weight.device, weight.dtype), LayerStates()
    with torch.no_grad():
        layer(tokens, **{name: after, "attention_mask": None})
    states = after.map(lambda state: state.detach().requires_grad_())
    given = [*states.conv_states.values(), *states.recurrent_states.values()]
    if not given:
        return "it leaves no state"
    with torch.enable_grad():
        output = layer(tokens, **{name: states, "attention_mask": None}).sum()
    found = (
        torch.autograd.grad(output, given, allow_unused=True) if output.requires_grad else [None]
    )
    if any(gradient is None for gradient in found):
        return "it ignores the state if a call has several tokens"
    return None


def state_bytes(model: Any, weight_bytes: int) -> int:
    """Bytes of the states of all recurrent layers of a transformers VLM for one sequence.

    Each layer is asked with a few tokens, which needs no weights. Convolutions keep their inputs in
    the model's dtype (`weight_bytes`), and what else is kept is in fp32, as transformers computes
    it. Layers without a cache that we know have none.
    """
    return sum(_state_bytes(layer, weight_bytes) for layer in recurrent_layers(model))


def _state_bytes(layer: nn.Module, weight_bytes: int) -> int:
    name, size = _cache_argument(type(layer)), _input_size(layer)
    if isinstance(layer, RecurrentLayer):
        name = layer.cache_argument
    if name is None or size is None:
        return 0
    weight: Any = next(child.weight for child in layer.children() if _is_depthwise(child))
    tokens, after = weight.new_zeros(1, PROBE_TOKENS, size), LayerStates()
    with torch.no_grad():
        layer(tokens, **{name: after, "attention_mask": None})
    conv, other = (
        sum(state.numel() for state in states.values())
        for states in (after.conv_states, after.recurrent_states)
    )
    return conv * weight_bytes + 4 * other


def _input_size(layer: nn.Module) -> int | None:
    """D of the hidden states; every such layer in transformers says it in one of these ways."""
    size = getattr(layer, "hidden_size", None)
    if size is None:
        size = getattr(getattr(layer, "config", None), "hidden_size", None)
    return None if size is None else int(size)


def masks_by_layer_type(mask: Any, steps: Steps) -> dict[str, Any]:
    """What transformers' hybrids take for `attention_mask`: one entry for each layer type.

    `mask` is the one of layers with full attention, or has one for each type of attention layer.
    """
    masks = mask if isinstance(mask, dict) else {"full_attention": mask}
    return masks | dict.fromkeys(LAYER_TYPES, steps)
