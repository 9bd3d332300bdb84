"""A model without weights encodes like the whole model and refuses the same adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.vlm.adapters import save_trained, write_record
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def lora(model_dir: Path, tmp_path: Path) -> Path:
    vlm = load(model_dir)
    save_trained(get_peft_model(vlm.model, lora_config(vlm, 4, 8)), tmp_path / "lora", {})
    write_record(tmp_path / "lora", {"base_identity": vlm.identity})
    return tmp_path / "lora"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_encodes_a_prompt_like_the_whole_model(model_type: str, tmp_path: Path) -> None:
    directory = save_tiny_family(model_type, tmp_path)
    whole, weightless = load(directory), load_without_weights(resolve_model(str(directory)))
    assert all(parameter.is_meta for parameter in weightless.model.parameters())
    for name in ("eos_token_ids", "image_token_ids", "identity", "family", "layers"):
        assert getattr(weightless, name) == getattr(whole, name), name
    expected, found = (
        encode_prompt(vlm, noise_image(1, 50, 30), "Where?", preprocess="pad")
        for vlm in (whole, weightless)
    )
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.positions, expected.positions)
    assert found.resized == expected.resized
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert torch.equal(found.tensors[name], value), name


def test_a_lora_adapter_is_checked_and_leaves_no_weights(model_dir: Path, lora: Path) -> None:
    vlm = load_without_weights(resolve_model(str(model_dir)), adapter=lora)
    assert vlm.adapter == lora
    encode_prompt(vlm, noise_image(1), "Where?")


def test_fully_trained_weights_are_checked_against_the_base(
    model_dir: Path, tmp_path: Path
) -> None:
    vlm = load(model_dir)
    unfreeze(vlm, ["projector"])
    save_trained(vlm.model, tmp_path / "full", {})
    write_record(tmp_path / "full", {"base_identity": vlm.identity})
    assert load_without_weights(resolve_model(str(model_dir)), adapter=tmp_path / "full").adapter
    write_record(tmp_path / "full", {"base_identity": "sha256:other"})
    with pytest.raises(ArtifactError, match="another base model"):
        load_without_weights(resolve_model(str(model_dir)), adapter=tmp_path / "full")


def _of_another_base(adapter: Path) -> None:
    write_record(adapter, {"base_identity": "sha256:other"})


def _lacks_a_weight(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_of_another_base, "another base model"),
        (_lacks_a_weight, "not those that its config describes"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    model_dir: Path, lora: Path, damage: Any, message: str
) -> None:
    damage(lora)
    with pytest.raises(ArtifactError, match=message):
        load_without_weights(resolve_model(str(model_dir)), adapter=lora)


def test_another_kind_of_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_without_weights(resolve_model(str(tmp_path)))
