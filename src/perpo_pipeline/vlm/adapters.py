"""Save trained weights, and load them onto the base model that they were trained on.

LoRA: PEFT's own files. Full fine-tuning: only the trained weights, by their names in the model.
With both goes a record that names the base by its content.
"""

import contextlib
import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import ArtifactError, first_line
from perpo_pipeline.store.atomic import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from perpo_pipeline.store.artifacts import Version
    from perpo_pipeline.vlm.files import ResolvedModel
    from perpo_pipeline.vlm.models import Vlm

ADAPTER_RECORD = "perpo_adapter.json"
PEFT_CONFIG = "adapter_config.json"
LORA_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = "trained_weights.safetensors"


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write the record beside the weights: what `describe_base` says, counts of lists."""
    data = json.dumps(record, indent=1).encode()
    write_atomically(directory / ADAPTER_RECORD, lambda sink: sink.write(data))


def name_base(directory: Path, base: "ResolvedModel") -> None:
    """Write the base into the adapter's PEFT configuration: its hub id and commit, never a path.

    A base that is no model of a hub has no name there: whoever loads the adapter gives it. Nothing
    is written for weights that were trained in full.
    """
    file = directory / PEFT_CONFIG
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    name = None if base.commit is None else base.model_id
    config |= {"base_model_name_or_path": name, "revision": base.commit}
    data = json.dumps(config, indent=2, sort_keys=True).encode()
    write_atomically(file, lambda sink: sink.write(data))


def describe_base(vlm: "Vlm") -> dict[str, str]:
    """The base of an adapter, for its record: `base_identity`.

    For a quantised base also `base_quantization`, and the `base_dtype` that it was quantised from.
    """
    record = {"base_identity": vlm.identity}
    if vlm.quantization is not None:
        dtype = str(vlm.dtype).removeprefix("torch.")
        record |= {"base_quantization": vlm.quantization, "base_dtype": dtype}
    return record


def read_record(directory: Path) -> dict[str, Any]:
    """The record that `write_record` wrote; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((directory / ADAPTER_RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def weights_sha256(adapter: "Version") -> str | None:
    """The sha256 of an adapter's weights, as its manifest has it; None if it names no such file.

    A fingerprint says how an adapter was trained. Trained again, on another card or with another
    number of processes, it has other weights under the same fingerprint.
    """
    sha256 = {one["file"]: str(one["sha256"]) for one in adapter.manifest["files"]}
    return sha256.get(FULL_WEIGHTS, sha256.get(LORA_WEIGHTS))


def save_trained(
    model: "nn.Module",
    directory: Path,
    masters: Mapping["Tensor", "Tensor"],
    leave_out: Collection["Tensor"] = (),
) -> None:
    """Write the trained weights of `model` except `leave_out`; no file if none is left.

    PEFT writes an adapter whole, so of an adapter nothing is left out unless all of it is. It is
    written in fp32 if the optimiser holds fp32 `masters`, fully trained weights
    in the dtype that they compute in.
    """
    from peft import PeftModel
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in leave_out}
    if not trained:
        return
    if isinstance(model, PeftModel):
        exact = {n: masters[p] for n, p in model.named_parameters() if p in masters}
        # By default PEFT may ask a hub for the base's vocabulary, which never changes here.
        model.save_pretrained(
            str(directory),
            state_dict={**model.state_dict(), **exact},
            save_embedding_layers=False,
        )
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        return
    weights = {n: masters.get(p, p).detach().to(p.dtype).contiguous() for n, p in trained.items()}
    save_file(weights, directory / FULL_WEIGHTS)


def cast_lora(model: "nn.Module", dtype: "torch.dtype") -> None:
    """Cast LoRA's weights beside quantised ones to the dtype that the model computes in.

    PEFT takes the dtype of the layer's weights, which 8-bit ones do not have, and loads an adapter
    in fp32: each product would be computed in fp32.
    """
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def has_trained(directory: Path) -> bool:
    """Whether `save_trained` has written weights there."""
    return any((directory / name).is_file() for name in (LORA_WEIGHTS, FULL_WEIGHTS))


def load_trained(model: "nn.Module", directory: Path) -> None:
    """Load saved weights into the model that is being trained (resume)."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(directory / LORA_WEIGHTS))
    else:
        _load_full(model, directory)


def attach_adapter(vlm: "Vlm", adapter: Path) -> "Vlm":
    """Load trained weights onto the model; raises ArtifactError if trained on another base."""
    from safetensors import SafetensorError

    check_adapter_files(adapter, vlm.identity, vlm.quantization)
    try:
        if (adapter / FULL_WEIGHTS).is_file():
            _load_full(vlm.model, adapter)
        else:
            vlm.model = _load_lora(vlm.model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"The adapter does not fit the model: {first_line(error)}", where=str(adapter)
        ) from error
    vlm.adapter = adapter
    return vlm


def _load_full(model: "nn.Module", directory: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(directory / FULL_WEIGHTS)
    unknown = sorted(set(weights) - {name for name, _ in model.named_parameters()})
    if unknown:
        raise ValueError(f"the model has no weight {unknown[0]} ({len(unknown)} in all)")
    model.load_state_dict(weights, strict=False)


def _load_lora(model: "nn.Module", adapter: Path) -> "nn.Module":
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    weights = adapter / LORA_WEIGHTS
    with safe_open(weights, framework="pt") as stored:
        saved = set(stored.keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing keys, which raise an error below
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    # By default ("auto") the library would ask a hub if the base has moved on this machine.
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if saved != expected:
        odd = sorted(saved ^ expected)
        raise ArtifactError(
            f"The adapter's weights are not those that its config describes: {len(odd)} differ "
            f"(first: {odd[0]}).",
            where=str(weights),
        )
    return wrapped.eval()


def check_adapter_files(adapter: Path, identity: str, quantization: str | None) -> None:
    """Raise ArtifactError if a file is missing or the adapter was trained on another base.

    `identity`: the base's, from `compute_identity`. `quantization`: how its weights are held, since
    a base in 4 bits is another function than the same base in 16.
    """
    weights = FULL_WEIGHTS if (adapter / FULL_WEIGHTS).is_file() else LORA_WEIGHTS
    needed = [weights, ADAPTER_RECORD] + ([PEFT_CONFIG] if weights == LORA_WEIGHTS else [])
    for name in needed:
        if not (adapter / name).is_file():
            raise ArtifactError(
                f"The adapter has no {name}.",
                where=str(adapter),
                fix="give a directory that `perpo train` wrote",
            )
    record = read_record(adapter)
    base = record.get("base_identity")
    if base != identity:
        raise ArtifactError(
            f"The adapter was trained on another base model: {base} instead of {identity}.",
            where=str(adapter),
            fix="load it with the model that it was trained on, or train an adapter on this model",
        )
    trained_on = record.get("base_quantization")
    if trained_on != quantization:
        raise ArtifactError(
            f"The adapter was trained on {_held(trained_on)}, and the model has "
            f"{_held(quantization)}: its corrections do not fit.",
            where=str(adapter),
            fix=f"set model.quantization to {trained_on or 'null'}"
            + ("; or merge it with `perpo merge` and use the merged model" if trained_on else ""),
        )


def _held(quantization: str | None) -> str:
    return f"weights quantised to {quantization}" if quantization else "weights in full"
