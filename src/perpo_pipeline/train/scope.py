"""Which weights of a model are trained: a LoRA adapter, or the weights themselves."""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from perpo_pipeline import bars
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.activation_offload import offload_layer_inputs
from perpo_pipeline.train.processes import is_first_process
from perpo_pipeline.vlm.adapters import cast_lora
from perpo_pipeline.vlm.models import Vlm, base_model

if TYPE_CHECKING:
    from peft import LoraConfig

    from perpo_pipeline.config.train import TrainSettings

LANGUAGE_MODEL = "language_model"
# Attention (Phi-3's is in one), layers with a recurrent state, feed-forward (LFM2's are w1 to w3,
# GLM's first two are one).
LORA_LINEARS = (
    "q_proj|k_proj|v_proj|qkv_proj|o_proj|out_proj|in_proj|in_proj_qkv|in_proj_z|in_proj_qkvz"
    "|gate_proj|up_proj|gate_up_proj|down_proj|w1|w2|w3"
)
# Linear layers beside these that stay as they are: the routers of experts, and small ones that give
# a number to each head or layer (Qwen3.5, Gemma 4).
LEFT_FROZEN = frozenset(
    [
        "gate",
        "router",
        "shared_expert_gate",
        "in_proj_a",
        "in_proj_b",
        "in_proj_ba",
        "per_layer_input_gate",
        "per_layer_projection",
        "per_layer_model_projection",
    ]
)


def lora_config(
    vlm: Vlm, rank: int, alpha: int, scope: Collection[str] = (LANGUAGE_MODEL,)
) -> "LoraConfig":
    """LoRA on the linear layers that `scope` names, without dropout (a shared prefix needs that).

    `language_model`: attention and feed-forward; `vision_tower`: every linear layer of the tower;
    `projector`: trained in full next to the adapter, as in the authors' scripts. The pattern has
    whole module paths, so layers of the same name elsewhere stay frozen. Raises ConfigError for a
    part whose place is unknown, because the family has no record.
    """
    from peft import LoraConfig

    _check_scope(vlm, scope)
    patterns = []
    if LANGUAGE_MODEL in scope:
        patterns.append(rf".*{re.escape(_text_model(vlm))}\..*\.({LORA_LINEARS})")
    if "vision_tower" in scope:
        patterns += [re.escape(name) for name in _tower_linears(vlm)]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="|".join(f"({pattern})" for pattern in patterns) or None,
        modules_to_save=list(_projectors(vlm)) if "projector" in scope else None,
    )


def unfreeze(vlm: Vlm, scope: Collection[str]) -> None:
    """Turn on the gradients of every weight in the parts that `scope` names (full fine-tuning)."""
    _check_scope(vlm, scope)
    inner = base_model(vlm.model)
    projectors = list(_projectors(vlm)) if vlm.family.known else []
    for name, parameter in inner.named_parameters():
        if any(f".{projector}." in f".{name}" for projector in projectors):
            part = "projector"
        elif f".{vlm.family.vision_tower}." in f".{name}":
            part = "vision_tower"
        elif name.startswith(f"{_text_model(vlm)}.") or name.startswith("lm_head."):
            part = LANGUAGE_MODEL
        else:
            continue
        parameter.requires_grad_(part in scope)


def make_trainable(vlm: Vlm, settings: "TrainSettings") -> Any:
    """Turn on the gradients that the settings ask for; returns the model that is trained.

    With LoRA this attaches the adapter to the model, in the model's own dtype, and returns a
    PeftModel. Raises ConfigError as `lora_config` does.
    """
    policy: Any = vlm.model
    if settings.tuning == "lora":
        lora = settings.lora
        policy, attached = attach_lora(vlm, lora.rank, lora.alpha, settings.scope)
        for warning in attached.warnings if is_first_process() else []:
            bars.write(f"train: warning: {warning}")
        if vlm.quantization is not None:
            cast_lora(policy, vlm.dtype)
        if settings.levers:
            from perpo_pipeline.train.levers.lora import use_lean_lora

            use_lean_lora(policy, settings.levers)
    else:
        unfreeze(vlm, settings.scope)
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        spare_the_tower(base_model(policy))
    if settings.activation_offload:
        offload_layer_inputs(base_model(policy).get_decoder())
    return policy


@dataclass(frozen=True)
class Attached:
    """What PEFT put LoRA on, by the last part of the names: linear layers, and weights of experts.

    `missed` are linear layers that the scope names and that got no adapter; `unknown` are those of
    the decoder layers whose names are neither in LORA_LINEARS nor in LEFT_FROZEN.
    """

    layers: Counter[str] = field(default_factory=Counter)
    experts: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def warnings(self) -> list[str]:
        """What got no adapter, in words."""
        found = []
        if self.missed:
            found.append(
                f"PEFT puts no LoRA on {self.missed.total()} linear layers that train.scope names "
                f"({numbers_of(self.missed)}): it changes the choice of layers for this family"
            )
        if self.unknown:
            found.append(
                f"no LoRA on {self.unknown.total()} linear layers of the text model "
                f"({numbers_of(self.unknown)}): their names are unknown, and they stay as they are"
            )
        return found


def numbers_of(found: "Counter[str]") -> str:
    """For messages: `k_proj 3, q_proj 3`."""
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items()))


def attach_lora(
    vlm: Vlm, rank: int, alpha: int, scope: Collection[str] = (LANGUAGE_MODEL,)
) -> tuple[Any, Attached]:
    """Attach LoRA to the layers of `scope`, in the model's own dtype.

    Returns the PeftModel, which holds the model, and what PEFT attached. Raises ConfigError as
    `lora_config` does, and for LoRA on a layer that the scope does not name.
    """
    from peft import get_peft_model

    config = lora_config(vlm, rank, alpha, scope)
    pattern = str(config.target_modules)  # PEFT writes its own into the config
    # PEFT's own default, an fp32 adapter on a bf16 base, costs a third of the speed.
    policy: Any = get_peft_model(vlm.model, config, autocast_adapter_dtype=False)
    return policy, _check_attached(policy, vlm, pattern)


def _check_attached(policy: Any, vlm: Vlm, pattern: str) -> Attached:
    """What got LoRA; raises ConfigError for LoRA on a layer that the scope does not name.

    For some models with experts PEFT replaces our pattern by names of layers, which a vision tower
    may have, too, and adapts the experts besides.
    """
    inside, attached = f"{_text_model(vlm)}.", Attached()
    text_layers = f"{inside}layers." if LORA_LINEARS in pattern else None
    for name, module in base_model(policy).named_modules():
        last, is_named = name.rpartition(".")[2], re.fullmatch(pattern, name) is not None
        if not hasattr(module, "lora_A"):
            if not isinstance(module, nn.Linear) or ".lora_" in name or ".base_layer" in name:
                continue
            if is_named:
                attached.missed[last] += 1
            elif text_layers and name.startswith(text_layers) and last not in LEFT_FROZEN:
                attached.unknown[last] += 1
        elif name.startswith(inside) and ".experts" in name:
            attached.experts[getattr(module, "parameter_name", last)] += 1
        elif is_named:
            attached.layers[last] += 1
        else:
            raise ConfigError(
                f"PEFT would also adapt {name}, which train.scope does not name: it changes the "
                f"choice of layers for '{base_model(policy).config.model_type}' models",
                fix="use train.tuning: full, or another base model",
            )
    return attached


def spare_the_tower(inner: Any) -> None:
    """Give only the text model's input a gradient, not the tower's patches.

    transformers gives both one, which reentrant checkpointing would need: the backward pass would
    compute a frozen tower again and go through it, for gradients of pixels. The text model's input
    keeps it, so that all decoder layers are compiled into the same graph.
    """
    inner.disable_input_require_grads()
    inner.get_decoder().enable_input_require_grads()


def count_trained(model: nn.Module) -> int:
    """How many numbers of the model are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _check_scope(vlm: Vlm, scope: Collection[str]) -> None:
    unknown = sorted(set(scope) - {LANGUAGE_MODEL})
    if unknown and not vlm.family.known:
        raise ConfigError(
            f"train.scope has {unknown}, whose place in a '{vlm.family.name}' model is unknown",
            fix="use scope: [language_model]",
        )


def _text_model(vlm: Vlm) -> str:
    """Path of the text model in the transformers model."""
    inner: Any = base_model(vlm.model)
    decoder = inner.get_decoder()
    return str(next(name for name, module in inner.named_modules() if module is decoder))


def _projectors(vlm: Vlm) -> Iterator[str]:
    """Paths of the modules that map image features to the text model's width."""
    core: Any = base_model(vlm.model).model
    for path in vlm.family.projector:
        module = core.get_submodule(path)
        if isinstance(module, nn.ModuleList):  # it has no forward that LoRA could wrap
            yield from (f"{path}.{index}" for index in range(len(module)))
        else:
            yield path


def _tower_linears(vlm: Vlm) -> list[str]:
    """Full paths of the vision tower's linear layers, without those of the projector."""
    tower, projectors = f".{vlm.family.vision_tower}.", tuple(_projectors(vlm))
    return [
        name
        for name, module in base_model(vlm.model).named_modules()
        if isinstance(module, nn.Linear)
        and tower in f".{name}"
        and not any(f".{projector}." in f".{name}." for projector in projectors)
    ]
