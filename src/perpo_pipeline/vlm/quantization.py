"""Weights in 4 or 8 bits (`model.quantization`): which ones, how many bytes, the package for it.

bitsandbytes quantises while the model is loaded. Quantised are the linear layers in the text
model's decoder layers, which are nearly all weights of a large model and the ones that LoRA trains
beside. The vision tower and the projector keep their numbers because boxes depend on them and they
are small; embeddings, norms and head because every token's probability passes through them
unscaled, and the training loss uses the head's own weights.
"""

import importlib.util
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, InputError, MissingDependencyError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from perpo_pipeline.vlm.files import ResolvedModel
    from perpo_pipeline.vlm.models import Vlm

Quantization = Literal["nf4", "int8"]
INSTALL = advice.install("quantization")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share the scale which they are quantised with."""
LEAST_SHARE = 0.9  # of the weights of the layers; the rest are norms and biases


def weight_bytes(quantization: str | None, dtype: str) -> float:
    """Bytes of one weight of a quantised layer, with its share of the scales.

    `nf4`: half a byte, a scale of one byte for 64 weights, and four bytes for 256 scales (double
    quantisation, arXiv:2305.14314). `int8`: one byte; the scale of a row (four bytes for thousands
    of weights) is left out. None: a weight in `dtype` (float32 or bfloat16).
    """
    if quantization == "nf4":
        return 0.5 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NF4_OUTER_BLOCK)
    return 1.0 if quantization == "int8" else float(DTYPE_BYTES[dtype])


def model_bytes(model: "nn.Module", quantization: str | None, dtype: str) -> int:
    """Bytes of all weights once loaded; `model` may be on the meta device, not yet quantised."""
    every = sum(parameter.numel() for parameter in model.parameters())
    quantised = sum(layer.weight.numel() for layer in quantised_linears(model).values())
    rest = every - quantised
    return round(quantised * weight_bytes(quantization, dtype) + rest * weight_bytes(None, dtype))


def quantised_linears(model: "nn.Module") -> "dict[str, nn.Linear]":
    """By path, the layers of a transformers model that `model.quantization` quantises."""
    decoder: Any = getattr(model, "get_decoder")()  # noqa: B009 - not every module has it
    inside = {id(module) for layer in decoder.layers for module in layer.modules()}
    return {name: layer for name, layer in _linears(model) if id(layer) in inside}


def unquantised_linears(model: "nn.Module") -> list[str]:
    """Paths of the linear layers that stay as they are."""
    quantised = quantised_linears(model)
    return [name for name, _ in _linears(model) if name not in quantised]


def _linears(model: "nn.Module") -> "Iterator[tuple[str, nn.Linear]]":
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def check_not_quantised(resolved: "ResolvedModel") -> None:
    """Raise InputError for a model that was saved quantised, by any method."""
    config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    texts = (config, config.get("text_config") or {})
    saved = next((c["quantization_config"] for c in texts if c.get("quantization_config")), None)
    if saved is not None:
        raise InputError(
            f"Model {resolved.model_id!r} was saved with quantised weights "
            f"({saved.get('quant_method', 'an unknown method')}), which are not supported.",
            where=str(resolved.path / "config.json"),
            fix="give the model with its full weights; model.quantization: nf4 or int8 quantises "
            "them while they are loaded",
        )


def load_quantised(
    quantization: str, empty: "nn.Module", dtype: "torch.dtype", device: "torch.device"
) -> dict[str, Any]:
    """The arguments with which transformers' `from_pretrained` quantises the model it loads.

    `empty` is that model on the meta device. Raises ConfigError for a model whose layers hold most
    of their weights elsewhere than in linear layers, and where bitsandbytes lacks its library.
    """
    check_layers(quantization, empty)
    _check_library(quantization)
    import torch
    import transformers

    build: Any = transformers.BitsAndBytesConfig
    skipped: Any = {"llm_int8_skip_modules": unquantised_linears(empty)}
    four_bits: Any = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    how = four_bits if quantization == "nf4" else {"load_in_8bit": True}
    place = torch.cuda.current_device() if device.type == "cuda" else device.type
    return {"quantization_config": build(**how, **skipped), "device_map": {"": place}}


def compute_alike(model: "nn.Module", device: "torch.device") -> None:
    """Let quantised layers compute the same with and without gradients, in the model's dtype.

    On a CPU, bitsandbytes computes without gradients in another way than with them: 4-bit layers
    in bf16, 8-bit layers with quantised inputs. Reference and policy would differ before any
    training. On CUDA both do the same.
    """
    if device.type != "cpu":
        return
    from bitsandbytes import nn

    kinds: Any = nn
    for module in model.modules():
        if isinstance(module, kinds.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, kinds.Linear8bitLt):
            module.register_forward_pre_hook(_as_in_training)


def dequantise(vlm: "Vlm", dtype: str) -> None:
    """Replace quantised weights by what they stand for, and cast all weights to `dtype`.

    They are dequantised in the dtype that the model computes in, as its layers do at each forward.
    """
    import torch
    from transformers.utils import logging

    model: Any = vlm.model
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model.dequantize(vlm.dtype)
    finally:
        logging.set_verbosity(level)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # PEFT and transformers read them
        vars(model).pop(name, None)
    vlm.dtype = getattr(torch, dtype)
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(vlm.dtype)  # `model.to` would round buffers, too


def _as_in_training(layer: "nn.Module", _: Any) -> None:
    layer.training = True


def check_layers(quantization: str, empty: "nn.Module") -> None:
    """Raise ConfigError for a model whose layers hold most weights elsewhere than in linear ones.

    `empty` is the model on the meta device.
    """
    layers: Any = getattr(empty, "get_decoder")().layers  # noqa: B009
    quantised = sum(layer.weight.numel() for layer in quantised_linears(empty).values())
    every = sum(parameter.numel() for parameter in layers.parameters())
    if quantised < LEAST_SHARE * every:
        raise ConfigError(
            f"model.quantization: {quantization} would quantise only {quantised / every:.0%} of "
            "the weights of this model's layers: the others are not in linear layers (experts of a "
            "mixture, for example), and bitsandbytes leaves them as they are",
            fix="remove model.quantization, or use a model without experts",
        )


def _check_library(quantization: str) -> None:
    from bitsandbytes import cextension

    if isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary):
        raise ConfigError(
            f"model.quantization: {quantization} needs bitsandbytes, whose library cannot be "
            "loaded here",
            fix="run `python -m bitsandbytes` to see why; it must have a build for torch's CUDA "
            "version",
        )


def check_installed(quantization: str | None) -> None:
    """Raise MissingDependencyError, with the command that installs it, without bitsandbytes."""
    if quantization is not None and not is_installed():
        raise MissingDependencyError(
            f"model.quantization: {quantization} needs bitsandbytes", fix=f"run: {INSTALL}"
        )


def is_installed() -> bool:
    """Whether bitsandbytes is there; it is not imported."""
    return importlib.util.find_spec("bitsandbytes") is not None
