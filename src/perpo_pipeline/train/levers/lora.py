"""LoRA with fewer passes over memory: the levers `lora-addmm` and `joined-lora`.

PEFT computes `base(x) + B(A(x)) * scaling`. That writes the second product, reads it again to add
it, and in the backward pass writes the whole gradient once more, multiplied by `scaling`.
`lora-addmm` lets the matrix kernel add the product in place and multiplies only tensors of the
adapter's rank. `joined-lora` computes `A(x)` once for the layers that read the same x.

Layers of the trained model get a subclass of their own class: weights, names and files stay as
PEFT makes them, and a merged or disabled adapter runs PEFT's own code.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpo_pipeline.errors import ConfigError

# Layers of one module that read the same input, in the order in which it calls them.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@torch.library.custom_op("perpo::linear_plus_product", mutates_args=())
def linear_plus_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """`x weight^T + bias + scale * down up^T`, the second product added in place.

    `x` (T, I), `weight` (O, I), `bias` (O,), `down` (T, r), `up` (O, r) -> (T, O). An operator of
    its own, since a compiler turns an in-place `addmm_` into one that copies its first operand.
    """
    return F.linear(x, weight, bias).addmm_(down, up.t(), alpha=scale)


@linear_plus_product.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, down, up, ctx.scale = inputs
    ctx.save_for_backward(weight, down, up)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, down and up; weight and bias are frozen. `scale` meets only tensors of rank r."""
    weight, down, up = ctx.saved_tensors
    needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
    return (
        grad @ weight if needs_x else None,
        None,
        None,
        (grad @ up) * ctx.scale if needs_down else None,
        grad.t() @ (down * ctx.scale) if needs_up else None,
        None,
    )


linear_plus_product.register_autograd(_gradients, setup_context=_save)


class JoinedDown:
    """The first products of layers that read the same input, from one matrix product."""

    def __init__(self, layers: "list[LeanLora]") -> None:
        self.layers = layers
        self.x: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()

    def part(self, index: int, x: Tensor) -> Tensor:
        """`A(x)` of the layer `index`; the first layer computes those of all."""
        if index == 0:
            weights = [layer.down_weight for layer in self.layers]
            joined = F.linear(x, torch.cat(weights))
            ranks = [len(weight) for weight in weights]
            self.x, self.parts = x, torch.split(joined, ranks, dim=-1)
        if self.x is not x:  # a layer that is called for itself
            return F.linear(x, self.layers[index].down_weight)
        part = self.parts[index]
        if index == len(self.layers) - 1:  # nothing is kept alive
            self.x, self.parts = None, ()
        return part


class LeanLora:
    """Mixed into a PEFT LoRA layer with one plain adapter; see `use_lean_lora`."""

    adds_in_kernel: bool
    joined: JoinedDown | None
    place: int  # in `joined`

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's layer, to rounding: `x` (..., I) -> (..., O)."""
        if self.disable_adapters or self.merged or args or kwargs:
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        name = self.active_adapters[0]
        down = (
            F.linear(x, self.down_weight)
            if self.joined is None
            else self.joined.part(self.place, x)
        )
        if not self.adds_in_kernel:
            plain: Tensor = self.base_layer(x) + self.lora_B[name](down) * self.scaling[name]
            return plain
        up, scale, down = self.lora_B[name].weight, self.scaling[name], down.flatten(0, -2)
        base = self.base_layer
        if type(base) is nn.Linear:
            rows = linear_plus_product(x.flatten(0, -2), base.weight, base.bias, down, up, scale)
        else:  # a quantised layer makes its output itself
            rows = torch.addmm(base(x).flatten(0, -2), down, up.t(), alpha=scale)
        added: Tensor = rows.view(*x.shape[:-1], rows.shape[-1])
        return added

    @property
    def down_weight(self: Any) -> Tensor:
        """The adapter's first matrix, (r, I)."""
        weight: Tensor = self.lora_A[self.active_adapters[0]].weight
        return weight


def use_lean_lora(model: nn.Module, levers: Collection[str]) -> None:
    """Turn on the levers of LoRA in a PeftModel.

    Raises ConfigError for layers that are not PEFT's plain LoRA (dropout, DoRA, several adapters).
    """
    if not {"lora-addmm", "joined-lora"} & set(levers):
        return
    layers = list(_lora_layers(model))
    for name, layer in layers:
        if why := _not_plain(layer):
            raise ConfigError(
                f"train.levers changes LoRA's layers, but {name} {why}",
                fix="remove lora-addmm and joined-lora from train.levers",
            )
    for _, layer in layers:
        kind = type(layer)
        layer.__class__ = type(f"Lean{kind.__name__}", (LeanLora, kind), {})
        layer.adds_in_kernel, layer.joined, layer.place = "lora-addmm" in levers, None, 0
    if "joined-lora" in levers:
        for module in model.modules():
            _join(module)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers of PEFT's LoRA that are not lean yet."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, LeanLora):
            yield name, module


def _not_plain(layer: Any) -> str | None:
    """Why a LoRA layer computes something else than `base(x) + B(A(x)) * scaling`, or None."""
    from peft.tuners.lora import Linear  # here: PEFT takes seconds to import

    if type(layer) is not Linear and type(layer).__name__ not in ("Linear4bit", "Linear8bitLt"):
        return f"is a {type(layer).__name__}"
    names = list(layer.lora_A)
    if len(names) != 1 or list(layer.active_adapters) != names:
        return f"has the adapters {names}"
    (name,) = names
    if name in layer.lora_variant or layer.lora_bias.get(name):
        return "has a variant of LoRA, or a bias"
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "has dropout"
    weight = getattr(layer.base_layer, "weight", None)
    if getattr(layer, "fan_in_fan_out", False) or weight is None:
        return f"wraps a {type(layer.base_layer).__name__}"
    if weight.is_floating_point() and weight.dtype != layer.lora_A[name].weight.dtype:
        return "has an adapter in another dtype than its weight"
    return None


def _join(module: nn.Module) -> None:
    """Join the layers of a module that read the same input."""
    for names in SAME_INPUT:
        layers: list[Any] = [getattr(module, name, None) for name in names]
        if all(isinstance(layer, LeanLora) for layer in layers):
            group = JoinedDown(layers)
            for place, layer in enumerate(layers):
                layer.joined, layer.place = group, place
