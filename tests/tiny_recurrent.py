"""Tiny layers and models with a recurrent state, from transformers' own classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_families import (
    TEXT,
    WEIGHT_STD,
    qwen3_vl_processor,
    qwen_tokenizer,
    qwen_vl_config,
)
from torch import nn
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Lfm2Config,
    Lfm2MoeConfig,
    Lfm2MoeForCausalLM,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    NemotronHConfig,
    NemotronHForCausalLM,
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    PreTrainedConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Siglip2VisionConfig,
    Zamba2Config,
    Zamba2ForCausalLM,
)
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer, compute_mup_vector
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
    GraniteMoeHybridMambaLayer,
)
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeShortConv
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.recurrent import use_recurrent_steps

WIDTH = 32
LFM2_IMAGE = 300
CHUNK = 16  # Mamba2's; gated delta nets always have 64
DELTA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": CHUNK,
}


def _short_conv(bias: bool) -> nn.Module:
    types = ["conv", "full_attention"]
    config = Lfm2Config(hidden_size=WIDTH, layer_types=types, num_hidden_layers=2, conv_bias=bias)
    return Lfm2ShortConv(config, 0)


def _falcon() -> nn.Module:
    config = FalconH1Config(**MAMBA, mamba_d_ssm=64)
    layer = FalconH1Mixer(config, 0)
    layer.register_buffer("mup_vector", compute_mup_vector(config))  # as its model does
    return layer


NEMOTRON = {
    "hidden_size": WIDTH,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "chunk_size": CHUNK,
}
ZAMBA = {
    "hidden_size": WIDTH,
    "n_mamba_heads": 8,
    "mamba_ngroups": 2,
    "mamba_d_state": 8,
    "chunk_size": CHUNK,
}


def _nemotron() -> nn.Module:
    config = NemotronHConfig(**NEMOTRON, layers_block_type=["mamba", "attention"])
    return NemotronHMamba2Mixer(config, 0)


def _zamba() -> nn.Module:
    types = ["mamba", "mamba"]
    config = Zamba2Config(
        **ZAMBA, num_hidden_layers=2, layers_block_type=types, num_attention_heads=4
    )
    return Zamba2MambaMixer(config, layer_idx=0)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "qwen3_5": lambda: Qwen3_5GatedDeltaNet(Qwen3_5TextConfig(**DELTA), 0),
    "qwen3_5_moe": lambda: Qwen3_5MoeGatedDeltaNet(Qwen3_5MoeTextConfig(**DELTA), 0),
    "qwen3_next": lambda: Qwen3NextGatedDeltaNet(Qwen3NextConfig(**DELTA), 0),
    "olmo_hybrid": lambda: OlmoHybridGatedDeltaNet(
        OlmoHybridConfig(**DELTA, num_attention_heads=4), 0
    ),
    "lfm2": lambda: _short_conv(bias=False),
    "lfm2-bias": lambda: _short_conv(bias=True),
    "lfm2_moe": lambda: Lfm2MoeShortConv(
        Lfm2MoeConfig(hidden_size=WIDTH, layer_types=["conv", "conv"], num_hidden_layers=2), 0
    ),
    "bamba": lambda: BambaMixer(BambaConfig(**MAMBA), 0),
    "granitemoehybrid": lambda: GraniteMoeHybridMambaLayer(
        GraniteMoeHybridConfig(**MAMBA, layer_types=["mamba", "attention"]), 0
    ),
    "falcon_h1": _falcon,
    "nemotron_h": _nemotron,
    "zamba2": _zamba,
}


# Whole text models with attention layers, too.
WORDS = {
    "vocab_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRIDS: dict[str, Callable[[], Any]] = {
    "qwen3_next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(**DELTA, **WORDS, **FEW_EXPERTS, head_dim=8)
    ),
    "olmo_hybrid": lambda: OlmoHybridForCausalLM(OlmoHybridConfig(**DELTA, **WORDS)),
    "bamba": lambda: BambaForCausalLM(BambaConfig(**MAMBA, **WORDS, attn_layer_indices=[1])),
    "granitemoehybrid": lambda: GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            **MAMBA,
            **WORDS,
            layer_types=["mamba", "attention"],
            num_local_experts=0,
            shared_intermediate_size=32,
        )
    ),
    "falcon_h1": lambda: FalconH1ForCausalLM(
        FalconH1Config(**MAMBA, **WORDS, mamba_d_ssm=64, head_dim=8)
    ),
    "nemotron_h": lambda: NemotronHForCausalLM(
        NemotronHConfig(
            **WORDS,
            **NEMOTRON,
            layers_block_type=["mamba", "attention", "mlp", "mamba"],
            head_dim=8,
        )
    ),
    "zamba2": lambda: Zamba2ForCausalLM(
        Zamba2Config(
            **WORDS,
            **ZAMBA,
            num_hidden_layers=3,
            layers_block_type=["mamba", "hybrid", "mamba"],
        )
    ),
    "lfm2_moe": lambda: Lfm2MoeForCausalLM(
        Lfm2MoeConfig(
            **WORDS,
            **FEW_EXPERTS,
            hidden_size=WIDTH,
            num_hidden_layers=3,
            layer_types=["conv", "full_attention", "conv"],
            num_dense_layers=1,
        )
    ),
}


def tiny_hybrid(name: str) -> Any:
    """A model of HYBRIDS with visible differences between logits."""
    torch.manual_seed(0)
    model = HYBRIDS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def tiny_layer(name: str) -> nn.Module:
    """A layer of LAYERS with weights that leave much of a state over tens of tokens."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter_name, parameter in layer.named_parameters():
            if "A_log" in parameter_name:
                parameter.uniform_(-3, 0)
            elif parameter.ndim > 2:
                parameter.normal_(std=0.5)  # kernels of convolutions
            elif parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif "norm" not in parameter_name:
                parameter.normal_(std=0.3)
    return layer


class OneLayer(nn.Module):
    """A text model of a single layer, as far as `use_recurrent_steps` looks at one."""

    def __init__(self, layer: nn.Module, layer_types: Sequence[str] = ()) -> None:
        super().__init__()
        self.layer = layer
        self.config = PreTrainedConfig(layer_types=list(layer_types))

    def get_decoder(self) -> nn.Module:
        return self


def ready(model: OneLayer) -> OneLayer:
    use_recurrent_steps(model)
    return model


def save_tiny_qwen3_5(
    directory: Path, seed: int = 0, *, experts: bool = False, **text: Any
) -> Path:
    """Three gated delta nets and one attention layer, Qwen3-VL's processor, 2 to 12 image tokens.

    `experts`: Qwen3.5-MoE. `text` replaces settings of the text model.
    """
    tokenizer = qwen_tokenizer()
    shared = qwen_vl_config(tokenizer, [2, 1, 1], mrope_interleaved=True)
    shared["text_config"].pop("use_sliding_window")
    shared["text_config"] |= {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "rope_parameters": shared["text_config"]["rope_parameters"]
        | {"partial_rotary_factor": 0.5},
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        **text,
    }
    if experts:
        shared["text_config"] |= {**FEW_EXPERTS, "shared_expert_intermediate_size": 16}
    config = (Qwen3_5MoeConfig if experts else Qwen3_5Config)(
        **shared,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": shared["text_config"]["hidden_size"],
            "num_position_embeddings": 64,
        },
    )
    torch.manual_seed(seed)
    model: Any = (
        Qwen3_5MoeForConditionalGeneration if experts else Qwen3_5ForConditionalGeneration
    )(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "conv1d" in name else WEIGHT_STD)
            elif "A_log" in name:
                parameter.uniform_(-3, 0)
    processor = qwen3_vl_processor(tokenizer)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def as_qwen3_5(directory: Path) -> Vlm:
    """The model of `save_tiny_qwen3_5`, with what its family shares with Qwen3-VL."""
    vlm = load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")
    return vlm


def tiny_lfm2_vl(vocabulary: int, image_token: int) -> Any:
    """Two short convolutions around an attention layer; images are 4 x 4 patches of 8 px.

    Its image processor needs torchvision, so there is none: tests make the patches themselves.
    """
    config = Lfm2VlConfig(
        text_config=Lfm2Config(
            **TEXT,
            layer_types=["conv", "full_attention", "conv"],
            vocab_size=vocabulary,
            block_multiple_of=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        vision_config=Siglip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=8,
            num_patches=16,
            vision_use_head=False,
        ),
        image_token_id=image_token,
        projector_hidden_size=32,
    )
    torch.manual_seed(0)
    model = Lfm2VlForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "conv.conv" in name else WEIGHT_STD)
    return model.eval()


def lfm2_vlm() -> Vlm:
    """The model of `tiny_lfm2_vl`, without a processor."""
    return without_processor(tiny_lfm2_vl(320, LFM2_IMAGE), (LFM2_IMAGE,))


def lfm2_prompt(extra: int, images: int = 1) -> EncodedPrompt:
    """Images of 16 patches of 8 x 8 pixels, which become 4 tokens each, and 3 + extra words."""
    generator = torch.Generator().manual_seed(extra)
    words = torch.randint(10, 290, (3 + extra,), generator=generator)
    shown = torch.cat([torch.full((4,), LFM2_IMAGE), words[:1]] * images)[:-1]
    ids = torch.cat([words[:2], shown, words[2:]])
    return EncodedPrompt(
        input_ids=ids,
        tensors={
            "pixel_values": torch.randn(images, 16, 3 * 8 * 8, generator=generator),
            "spatial_shapes": torch.tensor([[4, 4]] * images),
            "pixel_attention_mask": torch.ones(images, 16, dtype=torch.long),
        },
        positions=torch.arange(len(ids))[None],
        next_position=len(ids),
        image_size=(32, 32),
        padded_size=(32, 32),
        resized=(32, 32),
    )


def without_processor(model: Any, image_token_ids: tuple[int, ...] = ()) -> Vlm:
    class Words:
        pad_token_id = 0

    return Vlm(
        model=model,
        processor=None,
        tokenizer=Words(),
        family=family_of_type(model.config.model_type),
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=(2,),
        image_token_ids=image_token_ids,
        identity="tiny",
    )
