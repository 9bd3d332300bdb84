"""Load a vision-language model; the one place that knows what differs between families.

`load_vlm` gives a `Vlm`, `encode_prompt` turns an image and an instruction into what the model
reads. Sampling, training and evaluation all go through these two, so they see the same tokens
and pixels; where another engine holds the weights, `load_front` gives the rest. Image processing
uses the PIL backend: it is always there, and pixel values of the torchvision backend differ a
little.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perpo_pipeline.errors import ConfigError, InputError, first_line
from perpo_pipeline.machine import compute_on_cpu
from perpo_pipeline.model_files import ResolvedModel, model_identity, resolve_model
from perpo_pipeline.processors import load_processor, writes_begin_token

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FAMILIES",
    "EncodedPrompt",
    "Family",
    "ResolvedModel",
    "Vlm",
    "adds_special_tokens",
    "encode_prompt",
    "load_front",
    "load_vlm",
    "merge_adapter",
    "model_identity",
    "prepare_image",
    "render_prompt",
    "resolve_model",
]


@dataclass(frozen=True)
class Family:
    """What differs between model families, as data.

    `projector` and `vision_tower` are module paths inside the transformers model; `box_format` and
    `frame` what the family's own answers use (see boxes.py), a default for the config;
    `position_axes` is 3 for multimodal rotary positions (time, height, width). A family that is not
    `known` was never tried: it is sampled and trained the plain way.
    """

    name: str
    projector: tuple[str, ...] = ("multi_modal_projector",)
    vision_tower: str = "vision_tower"
    box_format: str = "llava"
    frame: str = "full"
    position_axes: int = 1
    known: bool = True


_QWEN_MERGERS = ("visual.merger", "visual.deepstack_merger_list")
# transformers' model_type -> family
FAMILIES: dict[str, Family] = {
    "llava": Family("llava"),
    "llava_next": Family("llava-next"),
    "llava_onevision": Family("llava-onevision"),
    "qwen2_5_vl": Family("qwen2.5-vl", _QWEN_MERGERS[:1], "visual", "qwen2.5-vl", "resized", 3),
    "qwen3_vl": Family("qwen3-vl", _QWEN_MERGERS, "visual", "qwen3-vl", "full", 3),
    "internvl": Family("internvl", box_format="internvl"),
}


@dataclass
class Vlm:
    """A loaded model with everything needed to talk to it.

    `model` is the transformers model, or a PeftModel around it. `identity` names the base model
    exactly. `image_token_ids` are the placeholders that stand for image features: they are input
    only, no completion may hold one. `full_attention` is false where a text layer attends
    otherwise (sliding window, softcap, linear), so that sharing a prefix would be wrong.
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
    full_attention: bool = True

    @property
    def shares_prefix(self) -> bool:
        """Whether completions may share one prefix: tried with this family, and exact."""
        return self.family.known and self.full_attention

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """The placeholders that the head has a logit for: it cannot draw any other."""
        vocabulary = int(base_model(self.model).config.get_text_config().vocab_size)
        return tuple(token for token in self.image_token_ids if token < vocabulary)

    @property
    def pad_token_id(self) -> int:
        """Fills unused places; masked everywhere, so its value never matters."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos_token_ids[0]


@dataclass(frozen=True)
class EncodedPrompt:
    """One image with its instruction, as the model reads it.

    `input_ids` (P,) with the image placeholders expanded; `tensors` the pixel tensors, each with
    a leading image axis; `positions` (A, P) rotary positions, A = 1 or 3 axes; the answer's first
    token has position `next_position` on every axis. `image_size` and `resized` are (width,
    height) of the given image and of what the vision tower sees (None where the image is cut
    into tiles); `padded_size` is the size after `preprocess="pad"`. `token_types` (P,) is what
    the models with three axes need to work out positions by themselves.
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


def load_vlm(
    resolved: ResolvedModel,
    *,
    dtype: str = "auto",
    device: str = "auto",
    adapter: Path | None = None,
    identity_cache: Path | None = None,
) -> Vlm:
    """Load a model (and an adapter) ready for inference, gradients off.

    dtype: auto (bfloat16 on CUDA, else float32), float32 or bfloat16. device: auto, cpu or cuda.
    Raises InputError for a model that cannot be used, ArtifactError for an adapter that does not
    belong to it, ConfigError for an impossible dtype or device. Code from a model's directory is
    never run and pickled weights are never read.
    """
    target = _choose_device(device)
    torch_dtype = _choose_dtype(dtype, target)
    identity = model_identity(resolved, identity_cache)
    model, processor = _load_pretrained(resolved, torch_dtype)
    _disable_dropout(model)
    model = model.to(target).requires_grad_(False).eval()
    vlm = _wrap(resolved, model, processor, target, torch_dtype, identity)
    if adapter is None:
        return vlm
    from perpo_pipeline.adapters import attach_adapter

    return attach_adapter(vlm, adapter)


def load_front(
    resolved: ResolvedModel, *, adapter: Path | None = None, identity_cache: Path | None = None
) -> Vlm:
    """Load all but the weights (about a second): for backends whose weights are elsewhere.

    The model has shapes only, on torch's meta device: enough for `encode_prompt`, and for the
    checks of an adapter, which are those of `load_vlm`. Raises as `load_vlm` does.
    """
    identity = model_identity(resolved, identity_cache)
    model, processor = _load_empty(resolved)
    vlm = _wrap(resolved, model, processor, torch.device("cpu"), torch.float32, identity)
    if adapter is None:
        return vlm
    from perpo_pipeline.adapters import attach_adapter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: weights put on the meta device are lost
        return attach_adapter(vlm, adapter)


def family_of(resolved: ResolvedModel) -> Family:
    """The family that a model's config.json names, without loading the model."""
    config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("model_type"))
    return _family(name)


def _family(model_type: str) -> Family:
    return FAMILIES.get(model_type) or Family(model_type, known=False)


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PeftModel (adapter layers stay active), or itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def render_prompt(vlm: Vlm, prompt: str) -> str:
    """The chat template's text: image first, then `prompt`, then the assistant's turn opened."""
    placeholder = str(getattr(vlm.processor, "image_token", "<image>"))
    if placeholder in prompt:
        raise InputError(
            f"The prompt holds the model's image placeholder {placeholder!r}.",
            where=prompt[:80],
            fix="remove it: the image is put before the text by itself",
        )
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return str(vlm.processor.apply_chat_template(messages, add_generation_prompt=True))


def prepare_image(vlm: Vlm, image: "Image.Image", preprocess: str) -> "Image.Image":
    """The RGB image that is handed to the processor.

    preprocess: `processor` leaves it as it is; `pad` pads it to a centred square with the
    processor's mean colour (LLaVA's `image_aspect_ratio pad`). Raises ConfigError for others.
    """
    if preprocess not in ("processor", "pad"):
        raise ConfigError(f"preprocess is {preprocess!r}; it must be 'processor' or 'pad'.")
    if preprocess == "processor":
        return image
    from perpo_pipeline.images import pad_to_square

    red, green, blue = vlm.processor.image_processor.image_mean
    return pad_to_square(image, (red, green, blue))


def adds_special_tokens(vlm: Vlm, text: str) -> bool:
    """Whether the model's tokenizer shall add its begin token to a rendered prompt."""
    return not writes_begin_token(vlm.tokenizer, text)


def encode_prompt(
    vlm: Vlm, image: "Image.Image", prompt: str, *, preprocess: str = "processor"
) -> EncodedPrompt:
    """Encode an RGB image and an instruction; tensors stay on the CPU.

    preprocess: see `prepare_image`. Raises InputError if the prompt holds the image placeholder,
    ConfigError for an unknown `preprocess`.
    """
    given = image.size
    image = prepare_image(vlm, image, preprocess)
    text = render_prompt(vlm, prompt)
    inputs = vlm.processor(
        images=[image],
        text=[text],
        add_special_tokens=adds_special_tokens(vlm, text),
        return_tensors="pt",
    )
    input_ids = inputs.pop("input_ids")
    inputs.pop("attention_mask", None)
    token_types = inputs.pop("mm_token_type_ids", None)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    positions = _prompt_positions(vlm, input_ids, token_types, tensors)
    return EncodedPrompt(
        input_ids=input_ids[0],
        tensors=tensors,
        positions=positions,
        next_position=int(positions.max()) + 1,
        image_size=given,
        padded_size=image.size,
        resized=_resized(vlm, tensors),
        text=text,
        token_types=None if token_types is None else token_types[0],
    )


def merge_adapter(vlm: Vlm) -> Vlm:
    """Fold the adapter into the weights: the same function to rounding, at the base's speed."""
    merge = getattr(vlm.model, "merge_and_unload", None)
    if callable(merge):
        vlm.model = merge().eval()
    return vlm


def _choose_device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; it must be auto, cpu or cuda.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        compute_on_cpu()
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is cuda, but torch sees no CUDA device.",
            fix="set device to cpu or auto, or install a CUDA build of torch",
        )
    return torch.device(device)


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in known:
        raise ConfigError(f"dtype is {dtype!r}; it must be auto, float32 or bfloat16.")
    return known[dtype]


def _wrap(
    resolved: ResolvedModel, model: Any, processor: Any, device: torch.device, dtype: torch.dtype,
    identity: str,
) -> Vlm:  # fmt: skip
    return Vlm(
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        family=_family(model.config.model_type),
        device=device,
        dtype=dtype,
        eos_token_ids=_eos_token_ids(model, processor.tokenizer, str(resolved.path)),
        image_token_ids=_image_token_ids(model.config),
        identity=identity,
        full_attention=_has_full_attention(model.config),
    )


@contextmanager
def _load_errors_explained(resolved: ResolvedModel) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(
            f"Model {resolved.model_id!r} cannot be loaded: {first_line(error)}",
            where=str(resolved.path),
            fix="give a vision-language model in transformers' own layout, whole",
        ) from error


def _load_empty(resolved: ResolvedModel) -> tuple[Any, Any]:
    """The model on the meta device, as `from_pretrained` would make it, and its processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    files_only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    build: Any = AutoModelForImageTextToText
    with _load_errors_explained(resolved):
        config = AutoConfig.from_pretrained(resolved.path, **files_only)
        with torch.device("meta"):
            model = build.from_config(config).requires_grad_(False).eval()
        if (resolved.path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                resolved.path, local_files_only=True
            )
        return model, load_processor(resolved.path)


def _load_pretrained(resolved: ResolvedModel, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    with _load_errors_explained(resolved):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            resolved.path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = load_processor(resolved.path)
    model, info = loaded
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if absent:
        raise InputError(
            f"Model {resolved.model_id!r} lacks {len(absent)} weights its config asks for "
            f"(first: {absent[0]}): they would be random.",
            where=str(resolved.path),
        )
    return model, processor


def _has_full_attention(config: Any) -> bool:
    """Whether every text layer attends to all that came before, without softcap."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    windowed = layers != {"full_attention"} or (
        getattr(text, "sliding_window", None) is not None
        and getattr(text, "use_sliding_window", True)
    )
    return not windowed and not getattr(text, "attn_logit_softcapping", None)


def _disable_dropout(model: nn.Module) -> None:
    """With dropout, completions that share a prefix would share its noise too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _eos_token_ids(model: Any, tokenizer: Any, where: str) -> tuple[int, ...]:
    """End tokens: the generation config's (chat models list several), else the tokenizer's.

    Nothing else of generation_config.json is ever used.
    """
    eos = model.generation_config.eos_token_id if model.generation_config else None
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        raise InputError("The model names no end token.", where=where)
    return tuple(int(i) for i in eos) if isinstance(eos, (list, tuple)) else (int(eos),)


def _image_token_ids(config: Any) -> tuple[int, ...]:
    names = ("image_token_id", "video_token_id")
    found = {getattr(config, name, None) for name in names}
    return tuple(sorted(int(i) for i in found if i is not None))


def _prompt_positions(
    vlm: Vlm, input_ids: Tensor, token_types: Tensor | None, tensors: dict[str, Tensor]
) -> Tensor:
    """Rotary positions (A, P) of a prompt; three axes follow the image's grid."""
    if vlm.family.position_axes == 1:
        return torch.arange(input_ids.shape[1])[None]
    positions, _ = base_model(vlm.model).model.get_rope_index(
        input_ids, mm_token_type_ids=token_types, image_grid_thw=tensors.get("image_grid_thw")
    )
    return torch.as_tensor(positions)[:, 0]


def _resized(vlm: Vlm, tensors: dict[str, Tensor]) -> tuple[int, int] | None:
    grid = tensors.get("image_grid_thw")
    if grid is not None:
        patch = int(vlm.processor.image_processor.patch_size)
        return int(grid[0, 2]) * patch, int(grid[0, 1]) * patch
    pixels = tensors.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[0] != 1:
        return None
    return pixels.shape[3], pixels.shape[2]
