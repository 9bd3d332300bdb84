"""What is trained: exactly the layers that the scope names, on every family."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tiny_by_hand import vlm_by_hand
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.scope import attach_lora, lora_config, make_trainable, unfreeze
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.families import Family, family_of_type
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt

QWEN = ("qwen2_5_vl", "qwen3_vl")
TEXT_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

GLM_LINEARS = ("o_proj", "gate_up_proj", "down_proj")

# Blocks of the tiny towers x linear layers of a block.
TOWER_LINEARS = {
    "llava": 2 * 6,
    "llava_next": 2 * 6,
    "llava_onevision": 2 * 6,
    "internvl": 2 * 6,
    "qwen2_5_vl": 2 * 5,
    "qwen3_vl": 3 * 4,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save_tiny_family(name, root / name) for name in MODEL_TYPES}


@pytest.fixture(params=MODEL_TYPES)
def vlm(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Vlm:
    return load(directories[request.param])


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def part_of(name: str, model_type: str) -> str:
    """The part that a weight of transformers' model belongs to, by the paths of its family."""
    if model_type in QWEN:
        if name.startswith(("model.visual.merger.", "model.visual.deepstack_merger_list.")):
            return "projector"
        tower = "model.visual."
    else:
        tower = "model.vision_tower."
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    if name.startswith(tower):
        return "vision_tower"
    if name.startswith(("model.language_model.", "lm_head.")):
        return "language_model"
    assert name == "model.image_newline"
    return "none"


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def with_lora(vlm: Vlm, scope: Collection[str]) -> Any:
    return get_peft_model(vlm.model, lora_config(vlm, rank=2, alpha=4, scope=scope))


def adapted_layers(model: nn.Module) -> set[str]:
    """Paths in the transformers model of the layers with a LoRA adapter, both halves of it."""
    halves = [
        {
            name.removeprefix("base_model.model.").split(f".lora_{half}.")[0]
            for name in trained(model)
            if f".lora_{half}." in name
        }
        for half in "AB"
    ]
    assert halves[0] == halves[1]
    return halves[0]


def in_full(model: nn.Module) -> set[str]:
    """Names in the transformers model of the weights that train next to the adapter."""
    return {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name in trained(model)
        if ".lora_" not in name
    }


def named_linears(vlm: Vlm, part: str) -> set[str]:
    kind = vlm.model.config.model_type
    return {
        name
        for name, module in vlm.model.named_modules()
        if isinstance(module, nn.Linear) and part_of(f"{name}.weight", kind) == part
    }


def named_weights(vlm: Vlm, parts: Collection[str]) -> set[str]:
    kind = vlm.model.config.model_type
    return {n for n, _ in vlm.model.named_parameters() if part_of(n, kind) in parts}


def some_lists(vlm: Vlm) -> list[CompletionList]:
    end = vlm.eos_token_ids[0]
    completions = [[11, 12, 13, end], [21, end], [31, 32, end]]
    sizes = [(48, 40), (90, 40)]
    return [
        CompletionList(encode_prompt(vlm, noise_image(i, *size), "where?"), completions)
        for i, size in enumerate(sizes)
    ]


def test_lora_is_on_every_linear_layer_of_the_language_model_and_on_no_other(vlm: Vlm) -> None:
    layers = len(vlm.model.model.language_model.layers)
    model = get_peft_model(vlm.model, lora_config(vlm, rank=2, alpha=4))
    assert adapted_layers(model) == {
        f"model.language_model.layers.{i}.{linear}"
        for i in range(layers)
        for linear in TEXT_LINEARS
    }
    assert in_full(model) == set()


def test_lora_on_the_vision_tower_is_only_on_its_linear_layers(vlm: Vlm) -> None:
    expected = named_linears(vlm, "vision_tower")
    assert len(expected) == TOWER_LINEARS[vlm.model.config.model_type]
    model = with_lora(vlm, ["vision_tower"])
    assert adapted_layers(model) == expected
    assert in_full(model) == set()


def test_the_projector_is_trained_in_full_next_to_the_adapter(vlm: Vlm) -> None:
    expected = named_weights(vlm, ["projector"])
    assert len(expected) >= 4
    text = named_linears(vlm, "language_model") - {"lm_head"}
    model = with_lora(vlm, ["language_model", "projector"])
    assert in_full(model) == expected
    assert adapted_layers(model) == text


def test_all_three_parts_together_and_gradients_reach_them(vlm: Vlm) -> None:
    tower, text = named_linears(vlm, "vision_tower"), named_linears(vlm, "language_model")
    projector = named_weights(vlm, ["projector"])
    lists = some_lists(vlm)
    vlm.model = with_lora(vlm, ["language_model", "projector", "vision_tower"])
    assert adapted_layers(vlm.model) == tower | (text - {"lm_head"})
    assert in_full(vlm.model) == projector
    packed_logps(vlm.model, pack_lists(vlm, lists)).sum().backward()
    reached = {
        name.removeprefix("base_model.model.")
        .split(".lora_B.")[0]
        .replace(".modules_to_save.default", "")
        for name, p in vlm.model.named_parameters()
        if p.grad is not None and p.grad.norm() > 0 and ".lora_A." not in name
    }
    assert projector <= reached and (text - {"lm_head"}) <= reached
    assert reached & tower  # some towers' last layer is not used


@pytest.mark.parametrize(
    "scope",
    [
        ["language_model"],
        ["projector"],
        ["vision_tower"],
        ["projector", "vision_tower"],
        ["language_model", "projector", "vision_tower"],
    ],
)
def test_full_tuning_trains_exactly_the_parts_named(vlm: Vlm, scope: list[str]) -> None:
    for parameter in vlm.model.parameters():
        parameter.requires_grad_(False)
    unfreeze(vlm, scope)
    expected = named_weights(vlm, scope)
    assert expected and trained(vlm.model) == expected


def test_full_tuning_of_another_scope_freezes_what_was_trained(vlm: Vlm) -> None:
    unfreeze(vlm, ["language_model", "vision_tower"])
    unfreeze(vlm, ["projector"])
    assert trained(vlm.model) == named_weights(vlm, ["projector"])


@pytest.mark.parametrize("scope", [["language_model", "projector"], ["vision_tower"]])
def test_parts_of_an_untested_family_are_refused_by_name(
    directories: dict[str, Path], scope: list[str]
) -> None:
    vlm = replace(load(directories["llava"]), family=Family("newcomer", known=False))
    with pytest.raises(ConfigError, match=f"'{scope[-1]}'.*'newcomer'"):
        lora_config(vlm, rank=2, alpha=4, scope=scope)
    with pytest.raises(ConfigError, match=f"'{scope[-1]}'.*'newcomer'"):
        unfreeze(vlm, scope)
    assert trained(vlm.model) == set()
    unfreeze(vlm, ["language_model"])
    assert trained(vlm.model) == named_weights(vlm, ["language_model"])


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("scope", [["language_model"], ["language_model", "projector"]])
def test_each_image_is_encoded_once_and_frozen_parts_keep_no_graph(
    directories: dict[str, Path], model_type: str, scope: list[str]
) -> None:
    """Six completions of two images: their pixels go through the tower once, in one call."""
    vlm = load(directories[model_type])
    lists = some_lists(vlm)
    pixels = sum(entry.prompt.tensors["pixel_values"].shape[0] for entry in lists)
    core = vlm.model.model
    tower = core.visual if model_type in QWEN else core.vision_tower
    first = tower.blocks[0] if model_type in QWEN else tower
    seen: list[int] = []
    graphs: dict[str, bool] = {}
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(next(tensors_in((args, kwargs))).shape[0]),
        with_kwargs=True,
    )
    first.register_forward_hook(
        lambda module, args, output: graphs.update(
            tower=any(t.requires_grad for t in tensors_in(output))
        )
    )
    text = core.language_model
    text.register_forward_pre_hook(
        lambda module, args, kwargs: graphs.update(
            features=any(t.requires_grad for t in tensors_in((args, kwargs)))
        ),
        with_kwargs=True,
    )
    vlm.model = with_lora(vlm, scope).train()
    logps = packed_logps(vlm.model, pack_lists(vlm, lists))
    assert logps.shape == (2, 3) and logps.requires_grad
    assert seen == [pixels]
    assert graphs == {"tower": False, "features": "projector" in scope}


@pytest.mark.parametrize("model_type", ["llava", "internvl", "qwen2_5_vl"])
def test_checkpointing_does_not_go_backwards_through_a_frozen_tower(
    directories: dict[str, Path], model_type: str
) -> None:
    """transformers gives the output of a tower's patch embedding a gradient, too."""
    vlm = load(directories[model_type])
    core = vlm.model.model
    tower = core.visual if model_type in QWEN else core.vision_tower
    calls: list[bool] = []
    for module in tower.modules():
        module.register_forward_hook(
            lambda _, args, output: calls.extend(t.requires_grad for t in tensors_in(output))
        )
    settings = TrainSettings(lora=LoraSettings(rank=4), gradient_checkpointing=True)
    vlm.model = make_trainable(vlm, settings).train()
    inputs: list[bool] = []
    core.language_model.layers[0].register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].requires_grad)
    )
    logps = packed_logps(vlm.model, pack_lists(vlm, some_lists(vlm)))
    assert calls and not any(calls)
    assert inputs == [True]  # as in the other layers: one graph for all
    encoded = len(calls)
    logps.sum().backward()
    assert len(calls) == encoded  # it is not computed again
    gradients = {n: p.grad for n, p in vlm.model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())


def test_the_adapter_has_no_dropout_and_the_rank_it_was_asked_for(vlm: Vlm) -> None:
    model = get_peft_model(vlm.model, lora_config(vlm, rank=3, alpha=6))
    layer = model.get_base_model().model.language_model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].out_features == 3
    assert layer.scaling["default"] == 2.0
    assert isinstance(layer.lora_dropout["default"], nn.Identity)
    assert torch.count_nonzero(layer.lora_B["default"].weight) == 0  # the start is the base


def test_of_a_family_that_peft_takes_as_named_no_layer_is_missed(
    vlm: Vlm, capsys: pytest.CaptureFixture[str]
) -> None:
    _, attached = attach_lora(vlm, rank=2, alpha=4)
    assert attached.layers.total() == len(adapted_layers(vlm.model))
    assert attached.layers["q_proj"] == len(base_model(vlm.model).get_decoder().layers)
    assert not attached.missed
    assert not attached.experts
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "adapted", "unknown"),
    [
        ("phi3", {"qkv_proj": 2, "o_proj": 2, "gate_up_proj": 2, "down_proj": 2}, {}),
        ("glm4", dict.fromkeys(("q_proj", "k_proj", "v_proj", *GLM_LINEARS), 2), {}),
        ("phi", {"q_proj": 2, "k_proj": 2, "v_proj": 2}, {"dense": 2, "fc1": 2, "fc2": 2}),
    ],
)
def test_a_llava_with_any_text_model_has_all_of_its_layers_adapted_or_named(
    text: str,
    adapted: dict[str, int],
    unknown: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Joined projections are adapted; layers of names that nobody has listed are said."""
    vlm = _llava_with(text)
    _, attached = attach_lora(vlm, rank=2, alpha=4)
    assert (attached.layers, attached.unknown) == (adapted, unknown)
    assert len(attached.warnings) == bool(unknown)
    if unknown:
        make_trainable(_llava_with(text), TrainSettings())
        said = "no LoRA on 6 linear layers of the text model (dense 2, fc1 2, fc2 2)"
        assert said in capsys.readouterr().err


def _llava_with(text: str) -> Vlm:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    tower = {"model_type": "clip_vision_model", **size, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={**tower, "image_size": 28, "patch_size": 14},
        text_config={"model_type": text, **size, **heads, "vocab_size": 100, "pad_token_id": 0},
        image_token_index=99,
    )
    model = LlavaForConditionalGeneration(config)
    return SimpleNamespace(model=model, family=family_of_type("llava"), quantization=None)  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, for experts
def test_layers_without_an_adapter_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """GLM-4.5V: PEFT attaches to the attention and the experts, not to the other linear layers."""
    vlm = vlm_by_hand("glm4v_moe")
    policy = make_trainable(vlm, TrainSettings())
    on_layers = {
        name.rpartition(".")[2] for name in adapted_layers(policy) if "experts" not in name
    }
    assert on_layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    missed = Counter(
        name.rpartition(".")[2]
        for name, module in policy.get_base_model().model.language_model.named_modules()
        if type(module) is nn.Linear and name.endswith(("gate_proj", "up_proj", "down_proj"))
    )
    assert missed.total() == 9
    assert (
        "train: warning: PEFT puts no LoRA on 9 linear layers that train.scope names "
        "(down_proj 3, gate_proj 3, up_proj 3)"
    ) in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, for experts
def test_layers_that_peft_adds_to_the_scope_are_refused() -> None:
    """GLM-4.5V: PEFT takes layers by name, wherever they are, and the experts."""
    vlm = vlm_by_hand("glm4v_moe")
    make_trainable(vlm, TrainSettings())
    tower = vlm_by_hand("glm4v_moe")
    tower.model.model.visual.blocks[0].attn.q_proj = torch.nn.Linear(4, 4)  # type: ignore
    with pytest.raises(ConfigError, match=r"adapt model\.visual\.blocks\.0\.attn\.q_proj"):
        make_trainable(tower, TrainSettings())
