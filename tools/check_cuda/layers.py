"""The decoder layers to compile: one of each kind of model, at the width of real ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from perpo_pipeline.train.shared_prefix import CompletionList
    from perpo_pipeline.vlm.models import Vlm

LEVERS = ("lora-addmm", "joined-lora")  # those that change the layers
VOCABULARY = 1000  # the head and the embeddings are not compiled
PROMPT_TOKENS, ANSWER_TOKENS, NUM_SAMPLES = 700, 26, 20
TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}


@dataclass(frozen=True)
class Case:
    """A decoder layer of `model`, and the rows that it is compiled for."""

    model: str
    dtype: str
    row_lengths: Literal["any", "bucketed"]
    levers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.model, self.dtype, self.row_lengths, *self.levers))


def cases() -> Iterator[Case]:
    """Every model in bf16 and fp32, with rows of any length and of bucketed ones; and levers."""
    ways: tuple[Literal["any", "bucketed"], ...] = ("any", "bucketed")
    for model, dtype, row_lengths in product(MODELS, ("bfloat16", "float32"), ways):
        yield Case(model, dtype, row_lengths)
    for model in MODELS:
        yield Case(model, "bfloat16", "any", LEVERS)


def build(case: Case) -> "Vlm":
    """The model of one layer with random weights, on the CPU."""
    from transformers import AutoModelForImageTextToText

    from perpo_pipeline.vlm.families import FAMILIES
    from perpo_pipeline.vlm.models import Vlm

    dtype: torch.dtype = getattr(torch, case.dtype)
    config = MODELS[case.model]()
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False)
    return Vlm(
        model=model,
        processor=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        family=FAMILIES[config.model_type],
        device=torch.device("cpu"),
        dtype=dtype,
        eos_token_ids=(2,),
        image_token_ids=(3,),
        identity="random",
    )


def two_lists(vlm: "Vlm") -> "list[CompletionList]":
    """Two lists of text in one row, as long as lists of LLaVA-1.5 with an image."""
    from perpo_pipeline.train.shared_prefix import CompletionList
    from perpo_pipeline.vlm.models import EncodedPrompt

    axes = 3 if "vl" in vlm.family.name else 1
    ids = torch.full((PROMPT_TOKENS,), 10)
    positions = torch.arange(PROMPT_TOKENS).expand(axes, -1)
    prompt = EncodedPrompt(ids, {}, positions, PROMPT_TOKENS, (1, 1), (1, 1), None)
    return [CompletionList(prompt, [[11] * ANSWER_TOKENS] * NUM_SAMPLES)] * 2


def _text(hidden: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": 32_768,
    }


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, num_hidden_layers=2, image_size=56, patch_size=14),
        text_config=LlamaConfig(**_text(4096, 11008, 32, 32)),
        image_token_index=3,
    )


def _qwen2_5_vl() -> Any:
    """28 heads: transformers repeats the keys and values of the 4 heads that have them."""
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    return Qwen2_5_VLConfig(
        text_config=_text(3584, 18944, 28, 4) | {"rope_parameters": rope},
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "depth": 1}
        | {"out_hidden_size": 3584, "fullatt_block_indexes": [0]},
        image_token_id=3,
    )


def _qwen3_vl() -> Any:
    """Groups of 4 heads in the kernel, and norms of queries and keys."""
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}
    return Qwen3VLConfig(
        text_config=_text(2560, 9728, 32, 8) | {"rope_parameters": rope},
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "depth": 1}
        | {"out_hidden_size": 2560, "deepstack_visual_indexes": [0]},
        image_token_id=3,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": _llava,
    "qwen2.5-vl-7b": _qwen2_5_vl,
    "qwen3-vl-4b": _qwen3_vl,
}
