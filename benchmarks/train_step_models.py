"""Random models and lists of the shapes that train_step.py times; nothing is downloaded."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
)

from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.shared_prefix import CompletionList
from perpo_pipeline.vlm.families import FAMILIES
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.windows import use_window_attention

PAD, UNKNOWN, END, IMAGE = range(4)
FIRST_WORD = 10  # token ids below are special
PATCH_PX = 14
TILES = 5  # LLaVA-NeXT: the whole image, and 2 x 2 parts of it
WORDS_BEFORE_IMAGE = 5


@dataclass(frozen=True)
class Shape:
    """Sizes of a vision-language model.

    `tower` is (hidden, intermediate, layers, heads); `tile_px` the side of the square that a CLIP
    tower sees (Qwen's tower takes any size); `rank` that of the LoRA, whose alpha is twice that.
    """

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tower: tuple[int, int, int, int]
    tile_px: int
    rank: int


@dataclass(frozen=True)
class Regime:
    """A kind of list, and the number of lists per step.

    The image of `image_px` (height, width) gives `image_tokens` of the `prefix_tokens`. `lists` go
    into one step of the shared prefix, `full_lists` into one of the ways with full rows.
    `checkpointing`: all ways recompute activations; `full_checkpointing`: those with full rows.
    """

    shape: Shape
    image_px: tuple[int, int]
    image_tokens: int
    prefix_tokens: int
    answer_tokens: int
    num_samples: int
    lists: int
    full_lists: int = 1
    checkpointing: bool = False
    full_checkpointing: bool = False

    @property
    def token_bound(self) -> float:
        """The speed-up from sharing if the time depended only on the number of tokens."""
        prefix, answer, num = self.prefix_tokens, self.answer_tokens, self.num_samples
        return num * (prefix + answer) / (prefix + num * answer)


def settings_of(row_lengths: str = "any", levers: Sequence[str] = ()) -> Any:
    """What `perpo train` takes from its settings to prepare a model; needs no pydantic."""
    return SimpleNamespace(
        compile=None, deepspeed=None, row_lengths=row_lengths, levers=list(levers)
    )


def build_vlm(
    shape: Shape, dtype: torch.dtype, device: torch.device, settings: Any = None
) -> tuple[Vlm, nn.Module]:
    """A random model with a LoRA whose B is not zero, prepared as `perpo train` does.

    Also its twin for TRL: modules of their own, without adapter, compilation and our attention,
    around the same weights. `settings` are those of `settings_of`.
    """
    from peft import get_peft_model  # here: after this package, which keeps its imports quiet

    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForImageTextToText.from_config(
            model_config(shape), dtype=dtype, attn_implementation="sdpa"
        )
    model.requires_grad_(False)
    use_window_attention(model)
    shared = {id(weight): weight for weight in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    vlm = Vlm(
        model=model,
        processor=None,
        tokenizer=SimpleNamespace(pad_token_id=PAD),
        family=FAMILIES[shape.model_type],
        device=device,
        dtype=dtype,
        eos_token_ids=(END,),
        image_token_ids=(IMAGE,),
        identity="random",
    )
    lora = lora_config(vlm, shape.rank, 2 * shape.rank)
    settings = settings or settings_of()
    ready_model(vlm, "shared-prefix", settings)
    vlm.model = get_peft_model(model, lora, autocast_adapter_dtype=False).train()
    if settings.levers:
        from perpo_pipeline.train.levers.lora import use_lean_lora

        use_lean_lora(vlm.model, settings.levers)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return vlm, twin


def random_lists(
    vlm: Vlm, regime: Regime, num_lists: int, *, text_spread: int = 0, answer_spread: int = 0
) -> list[CompletionList]:
    """Lists of random tokens and pixels; the spreads are the largest differences in tokens."""
    generator = torch.Generator().manual_seed(0)

    def tokens(mean: int, spread: int) -> Tensor:
        length = mean + int(torch.randint(-spread, spread + 1, (), generator=generator))
        return torch.randint(FIRST_WORD, regime.shape.vocab, (length,), generator=generator)

    lists = []
    for _ in range(num_lists):
        text = tokens(regime.prefix_tokens - regime.image_tokens, text_spread)
        before, after = text[:WORDS_BEFORE_IMAGE], text[WORDS_BEFORE_IMAGE:]
        ids = torch.cat([before, torch.full((regime.image_tokens,), IMAGE), after])
        prompt = _prompt(vlm, ids, _pixels(regime, generator))
        answers = [
            tokens(regime.answer_tokens, answer_spread).tolist() for _ in range(regime.num_samples)
        ]
        lists.append(CompletionList(prompt, answers))
    return lists


def _pixels(regime: Regime, generator: torch.Generator) -> dict[str, Tensor]:
    """What the family's image processor would give for one image."""
    height, width = regime.image_px
    if regime.shape.model_type == "qwen2_5_vl":
        rows, columns = height // PATCH_PX, width // PATCH_PX
        patches = torch.randn(rows * columns, 2 * 3 * PATCH_PX**2, generator=generator)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}
    tile = (3, regime.shape.tile_px, regime.shape.tile_px)
    if regime.shape.model_type == "llava":
        return {"pixel_values": torch.randn(1, *tile, generator=generator)}
    pixels = torch.randn(1, TILES, *tile, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def _prompt(vlm: Vlm, ids: Tensor, tensors: dict[str, Tensor]) -> EncodedPrompt:
    positions, types = torch.arange(len(ids))[None], None
    if vlm.family.position_axes == 3:
        types = (ids == IMAGE).long()
        found, _ = base_model(vlm.model).model.get_rope_index(
            ids[None], mm_token_type_ids=types[None], image_grid_thw=tensors["image_grid_thw"]
        )
        positions = found[:, 0]
    no_size = (0, 0)  # of the image: nothing here asks for it
    return EncodedPrompt(
        ids,
        tensors,
        positions,
        int(positions.max()) + 1,
        no_size,
        no_size,
        None,
        token_types=types,
    )


def model_config(shape: Shape) -> PreTrainedConfig:
    text: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "max_position_embeddings": 8192,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": END,
    }
    hidden, intermediate, layers, heads = shape.tower
    if shape.model_type == "qwen2_5_vl":
        axes = shape.hidden // shape.heads // 16  # time, height, width: 2 : 3 : 3 of the half head
        sections = [2 * axes, 3 * axes, 3 * axes]
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        return Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope, "use_sliding_window": False},
            vision_config={
                "depth": layers,
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_heads": heads,
                "out_hidden_size": shape.hidden,
                "fullatt_block_indexes": [(i + 1) * layers // 4 - 1 for i in range(4)],
            },
            image_token_id=IMAGE,
            video_token_id=4,
            vision_start_token_id=5,
            vision_end_token_id=6,
            tie_word_embeddings=False,
        )
    tower = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=shape.tile_px,
        patch_size=PATCH_PX,
    )
    both: dict[str, Any] = {
        "vision_config": tower,
        "text_config": LlamaConfig(**text),
        "image_token_index": IMAGE,
        "image_seq_length": (shape.tile_px // PATCH_PX) ** 2,
    }
    if shape.model_type == "llava":
        return LlavaConfig(**both)
    side = 2 * shape.tile_px
    return LlavaNextConfig(**both, image_grid_pinpoints=[[side, side]])
