"""What the layers of a text model see, as its config says: `layer_kinds(config)`, and nowhere else.

A layer sees all earlier tokens, the last few (a sliding window), or those of its own chunk. Windows
and chunks count tokens of the sequence that the family itself would see, prefix and one answer,
wherever these stand in a packed row. Layers with a recurrent state have steps in the mask's place
(vlm/recurrent.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# transformers' names for layers that carry a state instead of looking back.
RECURRENT = frozenset({"linear_attention", "conv", "mamba", "mamba2", "hybrid", "hybrid_sliding"})
# Layers that do both: the mask of their attention.
HYBRID = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
# model_type -> the layer types in which the tokens of one image see each other, both ways, as far
# as the window allows (transformers' `create_masks_for_vision_model` of these families).
SEES_AHEAD: dict[str, tuple[str, ...]] = {
    "gemma3": ("full_attention", "sliding_attention"),
    "gemma4": ("sliding_attention",),
    "paligemma": ("full_attention",),
}
IMAGE_TYPES = (1, 2)  # of tokens: image, video
# PaliGemma marks the whole prompt, which is one block, with 0, and the answer's tokens with 1.
PROMPT_IS_BLOCK = frozenset({"paligemma"})
# model_type of text models whose attention has sinks: a score that takes weight and has no value.
WITH_SINKS = frozenset({"gpt_oss", "mimo_v2_flash", "granite_swa", "granitemoe_swa"})


@dataclass(frozen=True)
class Reach:
    """How far the layers of one type see.

    `window`: the last so many tokens, its own included; `chunk`: only tokens of the same chunk of
    this size; neither: all earlier ones. `ahead`: a token of an image also sees the later tokens of
    that image.
    """

    window: int | None = None
    chunk: int | None = None
    ahead: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every earlier token is seen, and no later one."""
        return self == Reach()

    def first_seen(self, index: Tensor) -> Tensor:
        """The first index that a token at each `index` sees; both count prefix and one answer."""
        if self.window is not None:
            return (index - self.window + 1).clamp(min=0)
        if self.chunk is not None:
            return index // self.chunk * self.chunk
        return torch.zeros_like(index)


@dataclass(frozen=True)
class LayerKinds:
    """What the text layers of a model see.

    `reaches` by transformers' layer type; `recurrent` the types that carry a state; `why_not` is
    why no mask can describe the layers, or None. `changed_scores`: the config names a softcap of
    the scores or sinks, which transformers' SDPA leaves out. Where blocks attend both ways,
    `block_types` are the types of their tokens; `answer_type` is the type of an answer's tokens.
    """

    reaches: dict[str, Reach]
    recurrent: tuple[str, ...] = ()
    why_not: str | None = None
    changed_scores: bool = False
    block_types: tuple[int, ...] = IMAGE_TYPES
    answer_type: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether every layer sees all earlier tokens, and nothing changes the scores."""
        changed = self.changed_scores or self.recurrent
        return self.why_not is None and not changed and self.alike == Reach()

    @property
    def alike(self) -> Reach | None:
        """What every layer sees, or None where layers differ."""
        found = set(self.reaches.values())
        return next(iter(found)) if len(found) == 1 else None

    @property
    def ahead(self) -> bool:
        """Whether some layers let the tokens of an image see each other."""
        return any(reach.ahead for reach in self.reaches.values())

    @property
    def longest_limit(self) -> int:
        """Tokens of the largest window or chunk; 0 if there is none."""
        return max((reach.window or reach.chunk or 0 for reach in self.reaches.values()), default=0)

    def __str__(self) -> str:
        """For messages: `sliding_attention (the last 512 tokens) and full_attention`."""
        if self.why_not is not None:
            return self.why_not
        names = [f"{name}{_words(reach)}" for name, reach in self.reaches.items()]
        names += [f"{name} (a state)" for name in self.recurrent]
        return " and ".join(names + ["scores with a softcap or sinks"] * self.changed_scores)


def layer_kinds(config: Any) -> LayerKinds:
    """Read from a transformers VLM's config what its text layers see."""
    text = config.get_text_config()
    types = tuple(dict.fromkeys(getattr(text, "layer_types", None) or [_only_type(text)]))
    recurrent = tuple(name for name in types if name in RECURRENT)
    ahead = _types_that_see_ahead(config, text)
    reaches: dict[str, Reach] = {}
    why_not = None
    for name in (HYBRID.get(name, name) for name in types):
        if name in RECURRENT:
            continue
        limit = _limit(text, name)
        if limit is None:
            why_not = f"some of its layers look back in a way of their own ({name})"
            continue
        reaches[name] = Reach(**limit, ahead=name in ahead)
    changed = _changes_scores(text)
    if config.model_type in PROMPT_IS_BLOCK:
        return LayerKinds(reaches, recurrent, why_not, changed, block_types=(0,), answer_type=1)
    why_not = why_not or _looks_ahead(text) or _counts_row_places(text) or _looks_at_images(text)
    return LayerKinds(reaches, recurrent, why_not, changed)


def by_layer_type(kinds: LayerKinds, mask_of: Callable[[Reach], Any]) -> Any:
    """Masks as transformers' models take them: one where all layers are alike, else one by type."""
    if kinds.alike is not None and not kinds.recurrent:
        return mask_of(kinds.alike)
    made = {reach: mask_of(reach) for reach in dict.fromkeys(kinds.reaches.values())}
    return {name: made[reach] for name, reach in kinds.reaches.items()}


def ends_of_blocks(token_types: Tensor, block_types: tuple[int, ...] = IMAGE_TYPES) -> Tensor:
    """(P,) types -> (P,) for each token of an image the index after the image's last; else 0.

    Images without a token between them are one, as transformers has it. `block_types` are those of
    `LayerKinds`, if the blocks are no images.
    """
    is_image = torch.isin(token_types, torch.tensor(block_types))
    ends, end = torch.zeros_like(token_types, dtype=torch.long), 0
    for index in range(len(token_types) - 1, -1, -1):
        if is_image[index]:
            end = end or index + 1
            ends[index] = end
        else:
            end = 0
    return ends


def _only_type(text: Any) -> str:
    """The type of all layers where the config lists none, by transformers' own rule."""
    if getattr(text, "sliding_window", None) is not None:
        return (
            "sliding_attention" if getattr(text, "use_sliding_window", True) else "full_attention"
        )
    has_chunks = getattr(text, "attention_chunk_size", None) is not None
    return "chunked_attention" if has_chunks else "full_attention"


def _limit(text: Any, name: str) -> dict[str, int] | None:
    """The window or chunk of a layer type; None for a type that no mask describes."""
    if name == "full_attention":
        return {}
    setting = {
        "sliding_attention": ("window", "sliding_window"),
        "chunked_attention": ("chunk", "attention_chunk_size"),
    }.get(name)
    value = getattr(text, setting[1], None) if setting else None
    return {setting[0]: int(value)} if setting and value else None


def _types_that_see_ahead(config: Any, text: Any) -> tuple[str, ...]:
    if config.model_type == "gemma4" and text.use_bidirectional_attention != "vision":
        return ()
    return SEES_AHEAD.get(config.model_type, ())


def _counts_row_places(text: Any) -> str | None:
    """Llama 4 scales queries by their place in the row, from `floor_scale` tokens on."""
    tuned = getattr(text, "attn_temperature_tuning", False) and not all(
        getattr(text, "no_rope_layers", None) or [True]
    )
    if tuned and text.max_position_embeddings >= text.floor_scale:
        return "some of its layers scale by the place in the row (attn_temperature_tuning)"
    return None


def _looks_ahead(text: Any) -> str | None:
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    return "its text attends both ways (use_bidirectional_attention)" if both_ways else None


def _looks_at_images(text: Any) -> str | None:
    if getattr(text, "cross_attention_layers", None):
        return "some of its layers look at images instead of tokens (cross_attention_layers)"
    return None


def _changes_scores(text: Any) -> bool:
    has_sinks = getattr(text, "model_type", None) in WITH_SINKS
    return has_sinks or bool(getattr(text, "attn_logit_softcapping", None))


def _words(reach: Reach) -> str:
    limit = f"the last {reach.window} tokens" if reach.window else ""
    limit = f"chunks of {reach.chunk} tokens" if reach.chunk else limit
    parts = [limit] * bool(limit) + ["images both ways"] * reach.ahead
    return f" ({', '.join(parts)})" if parts else ""
