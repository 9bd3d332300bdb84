"""A loaded model (`Vlm`) and a prompt in the form that it reads (`EncodedPrompt`)."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpo_pipeline.vlm.chat_settings import UNSET, ChatSettings
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.image_limits import NO_LIMITS, ImageLimits
from perpo_pipeline.vlm.layers import LayerKinds, layer_kinds
from perpo_pipeline.vlm.plain_text import PlainTokenizer, control_tokens
from perpo_pipeline.vlm.processors import image_arguments

# What processors and models of the families call the types of tokens.
TYPE_NAMES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Way:
    """How the completions of one prompt are computed, and why, in words for messages.

    `shares_prefix`: the prompt is read once for all of them; else once per completion.
    """

    shares_prefix: bool
    why: str


@dataclass
class Vlm:
    """A loaded model with everything needed to use it.

    `model` is the transformers model, or a PeftModel around it. `identity` names the base model
    exactly. `image_token_ids` are the placeholders for image features: they are input only, and no
    completion may hold one. `prove` finds out whether completions may share a prefix; None without
    weights. `chat` is what the run says about the chat template; `own_marks` is text with special
    tokens that are words of the answers. `processor` keeps `limits`. `quantization` says how the
    weights are held (`model.quantization`). `own_code`: its Python code is not transformers'.
    """

    model: nn.Module
    processor: Any
    tokenizer: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    image_token_ids: tuple[int, ...]
    identity: str
    adapter: Path | None = None
    prove: "Callable[[Vlm], Way] | None" = None
    chat: ChatSettings = UNSET
    own_marks: str = ""
    limits: ImageLimits = NO_LIMITS
    quantization: str | None = None
    own_code: bool = False

    @functools.cached_property
    def plain(self) -> PlainTokenizer:
        """Keeps control tokens that a user's text spells as text."""
        ids = {*self.eos_token_ids, *self.image_token_ids}
        return PlainTokenizer(
            self.tokenizer, control_tokens(self.tokenizer, self.processor, ids, self.own_marks)
        )

    @functools.cached_property
    def system_forms(self) -> dict[tuple[str, ChatSettings], Callable[[str], Any]]:
        """The form of a system turn for each chat template and settings (vlm/chat_rendering.py)."""
        return {}

    @property
    def image_arguments(self) -> dict[str, Any]:
        """The arguments with which another engine's processor keeps `limits`; often none."""
        model_type = base_model(self.model).config.model_type
        return image_arguments(self.processor.image_processor, model_type, self.limits)

    @functools.cached_property
    def layers(self) -> LayerKinds:
        """What the text layers see."""
        return layer_kinds(base_model(self.model).config)

    @property
    def is_tested(self) -> bool:
        """Whether tests cover the model: a tested family whose layers see all earlier tokens."""
        return self.family.is_tested and self.layers.is_plain

    @property
    def why_never(self) -> str | None:
        """Why no packed row can be right on this model, or None."""
        if has_own_head(base_model(self.model)):
            return self.layers.why_not
        return "its head is inside its language model"

    @functools.cached_property
    def way(self) -> Way:
        """Whether completions may share one prefix, for sampling and for training.

        Tested families with plain layers may. Others are proven on their own weights, once, when
        this is first asked for; without weights the proof is taken to succeed.
        """
        if self.why_never is not None:
            return Way(False, self.why_never)
        if self.is_tested:
            return Way(True, "tests of this family show it to be exact")
        if self.prove is None:
            return Way(True, f"its layers allow it: {self.layers}")
        # Sampling asks in inference mode: no gradient can be recorded in it, and what a module
        # keeps of the proof, such as rotary angles, could not be trained.
        with torch.inference_mode(False), torch.no_grad():
            return self.prove(self)

    @property
    def shares_prefix(self) -> bool:
        """Whether completions may share one prefix (`way`)."""
        return self.way.shares_prefix

    @property
    def position_axes(self) -> int:
        """Axes of the rotary positions: several (3) where the model has a rule for image grids."""
        if self.family.known:
            return self.family.position_axes
        core = getattr(base_model(self.model), "model", None)
        return 3 if hasattr(core, "get_rope_index") else 1

    @property
    def vocab_size(self) -> int:
        """How many tokens have a logit; the tokenizer may know fewer."""
        return int(base_model(self.model).config.get_text_config().vocab_size)

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """The placeholders that have a logit: the model cannot draw the others."""
        return tuple(token for token in self.image_token_ids if token < self.vocab_size)

    @property
    def pad_token_id(self) -> int:
        """Fills unused positions; always masked, so its value never matters."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos_token_ids[0]


@dataclass(frozen=True)
class EncodedPrompt:
    """One image with its instruction, in the form that the model reads.

    `input_ids` (P,) with the image placeholders expanded; `tensors` the pixel tensors, each with
    a leading image axis; `positions` (A, P) rotary positions, A = 1 or 3 axes; the answer's first
    token has position `next_position` on every axis. `image_size` and `resized` are (width,
    height) of the given image and of what the vision tower sees (None if the image is cut into
    tiles); `padded_size` is the size after `preprocess="pad"`. From `token_types` (P,), where 1 is
    an image and 2 a video, models compute positions of three axes, and see what attends both ways.
    """

    input_ids: Tensor
    tensors: dict[str, Tensor]
    positions: Tensor
    next_position: int
    image_size: tuple[int, int]
    padded_size: tuple[int, int]
    resized: tuple[int, int] | None
    text: str = field(repr=False, default="")
    token_types: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PeftModel (adapter layers stay active), or itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def has_own_head(model: Any) -> bool:
    """Whether this transformers VLM is a `model` and an `lm_head`, as a shared prefix needs it."""
    return hasattr(model, "model") and isinstance(getattr(model, "lm_head", None), nn.Module)


def type_arguments(model: Any, types: Tensor | None) -> dict[str, Tensor]:
    """The argument by which this transformers VLM takes the types of tokens (B, T), if it does."""
    if types is None:
        return {}
    takes = inspect.signature(getattr(model, "model", model).forward).parameters
    return {name: types for name in TYPE_NAMES if name in takes}


def head_size(text_config: Any) -> int:
    """Numbers of one attention head of a text model; not every config states them."""
    stated = getattr(text_config, "head_dim", None)
    return int(stated or text_config.hidden_size // text_config.num_attention_heads)
