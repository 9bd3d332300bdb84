"""Load a vision-language model with its processor, and an adapter onto it.

Sampling, training and evaluation all use `load_vlm`, so they see the same tokens and pixels. If
another engine holds the weights, `load_without_weights` loads the rest. Images are processed with
the PIL backend: it is always installed, and the torchvision backend gives slightly other pixels.
"""

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.machine import compute_on_cpu
from perpo_pipeline.vlm.attention import attention_to_load
from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.files import ResolvedModel, compute_identity
from perpo_pipeline.vlm.load_errors import load_errors_explained
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.per_token import use_expert_types
from perpo_pipeline.vlm.processors import files_only, limit_grids, load_processor
from perpo_pipeline.vlm.quantization import (
    check_layers,
    check_not_quantised,
    compute_alike,
    load_quantised,
)
from perpo_pipeline.vlm.ways import prove_way
from perpo_pipeline.vlm.windows import use_window_attention


def load_vlm(
    resolved: ResolvedModel,
    *,
    dtype: str = "auto",
    device: str = "auto",
    adapter: Path | None = None,
    identity_cache: Path | None = None,
    computes: bool = True,
) -> Vlm:
    """Load a model (and an adapter) ready for inference, gradients off.

    dtype: auto (bfloat16 on CUDA, else float32), float32 or bfloat16. device: auto, cpu or cuda.
    computes: false where only the weights are wanted, to merge them.
    Raises InputError for a model that cannot be used, ArtifactError for an adapter that was not
    trained on it, ConfigError for an impossible dtype, device or quantisation. Code in a model's
    directory runs only where `resolved` says so, and pickled weights are never read.
    """
    target = _choose_device(device)
    torch_dtype = _choose_dtype(dtype, target)
    compute_whole_float32(torch_dtype, target)
    identity = compute_identity(resolved, identity_cache)
    model, processor = _load_pretrained(resolved, torch_dtype, target)
    _disable_dropout(model)
    use_window_attention(model)
    use_expert_types(model)
    if resolved.quantization is None:  # quantised weights are on their device already
        model = model.to(target)
    model = model.requires_grad_(False).eval()
    vlm = _wrap(resolved, model, processor, target, torch_dtype, identity)
    if computes:
        _check_kernels(vlm)
    vlm.prove = prove_way
    if adapter is None:
        return vlm
    from perpo_pipeline.vlm.adapters import attach_adapter

    return attach_adapter(vlm, adapter)


def load_without_weights(
    resolved: ResolvedModel, *, adapter: Path | None = None, identity_cache: Path | None = None
) -> Vlm:
    """Load everything except the weights (about a second), for engines that hold them elsewhere.

    The model has only shapes, on torch's meta device: enough for `encode_prompt` and for the checks
    of an adapter, which are the same as in `load_vlm`. Raises as `load_vlm` does.
    """
    identity = compute_identity(resolved, identity_cache)
    model, processor = _load_empty(resolved)
    vlm = _wrap(resolved, model, processor, torch.device("cpu"), torch.float32, identity)
    if adapter is None:
        return vlm
    from perpo_pipeline.vlm.adapters import attach_adapter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that weights on the meta device are lost
        return attach_adapter(vlm, adapter)


def check_quantisable(resolved: ResolvedModel) -> None:
    """Raise for a model that cannot be quantised as `resolved` says; needs no weights."""
    check_not_quantised(resolved)
    with load_errors_explained(resolved):
        empty = _build_on_meta(resolved)
    if resolved.quantization is not None:
        check_layers(resolved.quantization, empty)


def without_weights(vlm: Vlm) -> Vlm:
    """The same for processes that only encode prompts: its model has only shapes, so that it can
    be sent to them."""
    from transformers import AutoModelForImageTextToText

    build: Any = AutoModelForImageTextToText
    config = copy.deepcopy(base_model(vlm.model).config)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = build.from_config(config, trust_remote_code=vlm.own_code)
        return replace(vlm, model=model.requires_grad_(False).eval())


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


def _check_kernels(vlm: Vlm) -> None:
    """Raise ConfigError if gated delta nets would run on the CPU with kernels for a card.

    transformers uses the package wherever it can be imported.
    """
    on_cpu, needs_card = vlm.device.type == "cpu", "fla" in sys.modules
    if on_cpu and needs_card and "linear_attention" in vlm.layers.recurrent:
        raise ConfigError(
            f"{vlm.family.name} has gated delta nets, which transformers computes with the "
            "installed flash-linear-attention, and that runs on a CUDA card only",
            fix="set model.device: cuda, or pip uninstall flash-linear-attention fla-core",
        )


def compute_whole_float32(dtype: torch.dtype, device: torch.device) -> None:
    """Where a model computes in float32 on a card, let its convolutions do so, too.

    cuDNN otherwise rounds their inputs to TF32, of 10 bits, for some numbers of images and not for
    others. torch does so by default, in convolutions only.
    """
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in known:
        raise ConfigError(f"dtype is {dtype!r}; it must be auto, float32 or bfloat16.")
    return known[dtype]


def _wrap(
    resolved: ResolvedModel,
    model: Any,
    processor: Any,
    device: torch.device,
    dtype: torch.dtype,
    identity: str,
) -> Vlm:
    if resolved.limits.given():
        limit_grids(model.config, processor)
    return Vlm(
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        family=family_of_type(model.config.model_type, own_code=resolved.own_code),
        device=device,
        dtype=dtype,
        eos_token_ids=_eos_token_ids(model, processor.tokenizer, str(resolved.path)),
        image_token_ids=_image_token_ids(model.config),
        identity=identity,
        chat=resolved.chat,
        own_marks=resolved.own_marks,
        limits=resolved.limits,
        quantization=resolved.quantization,
        own_code=resolved.own_code,
    )


def _load_empty(resolved: ResolvedModel) -> tuple[Any, Any]:
    """The model on the meta device, as `from_pretrained` builds it, and its processor."""
    from transformers import GenerationConfig

    with load_errors_explained(resolved):
        model = _build_on_meta(resolved)
        if (resolved.path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                resolved.path, local_files_only=True
            )
        processor = load_processor(resolved.path, resolved.limits, own_code=resolved.own_code)
        return model, processor


def _build_on_meta(resolved: ResolvedModel) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    build: Any = AutoModelForImageTextToText
    config = AutoConfig.from_pretrained(resolved.path, **files_only(own_code=resolved.own_code))
    _check_decoder(resolved, config)
    config._attn_implementation = None  # transformers' choice, whatever config.json says
    with torch.device("meta"):
        model = build.from_config(config, trust_remote_code=resolved.own_code)
    return model.requires_grad_(False).eval()


def _load_pretrained(
    resolved: ResolvedModel, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText

    quantised: dict[str, Any] = {}
    how = files_only(own_code=resolved.own_code)
    with load_errors_explained(resolved):
        config = AutoConfig.from_pretrained(resolved.path, **how)
        _check_decoder(resolved, config)
        processor = load_processor(resolved.path, resolved.limits, own_code=resolved.own_code)
        check_not_quantised(resolved)
        if resolved.quantization is not None:
            empty = _build_on_meta(resolved)
            quantised = load_quantised(resolved.quantization, empty, dtype, device)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            resolved.path,
            config=config,  # read a second time, its own attention function would stay
            dtype=dtype,
            attn_implementation=attention_to_load(config),
            use_safetensors=True,
            output_loading_info=True,
            **how,
            **quantised,
        )
    model, info = loaded
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if absent:
        raise InputError(
            f"Model {resolved.model_id!r} lacks {len(absent)} weights that its config needs "
            f"(first: {absent[0]}): they would be random.",
            where=str(resolved.path),
            fix="take config.json and weights from the same model",
        )
    if resolved.quantization is not None:
        compute_alike(model, device)
    return model, processor


def _check_decoder(resolved: ResolvedModel, config: Any) -> None:
    """Raise InputError for an encoder with a decoder: its answer does not continue the prompt."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"Model {resolved.model_id!r} ({config.model_type}) reads the prompt with an encoder "
            "and writes the answer with a decoder; perpo needs a model whose answer continues the "
            "prompt.",
            where=str(resolved.path),
            fix="use a vision-language model that is a decoder only",
        )


def _disable_dropout(model: nn.Module) -> None:
    """Turn dropout off: completions that share a prefix would also share its noise.

    So are dropped paths and layers: whatever a module calls its rate of them.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _eos_token_ids(model: Any, tokenizer: Any, where: str) -> tuple[int, ...]:
    """End tokens: the generation config's (chat models list several), else the tokenizer's.

    Nothing else in generation_config.json is used.
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
