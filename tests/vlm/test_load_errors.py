"""One message for each reason why a model cannot be loaded."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_by_hand import vlm_by_hand
from tiny_families import save_tiny_family

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.load_errors import load_errors_explained
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def error_of(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_vlm(resolve_model(str(folder)), dtype="float32", device="cpu")
    assert caught.value.fix and caught.value.where == str(folder)
    return caught.value


def test_code_of_its_own_is_refused_by_name_and_not_run(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (copy / "homebrew.py").write_text(f"open({str(witness)!r}, 'w').close()")
    code = {"AutoConfig": "homebrew.Config", "AutoModelForImageTextToText": "homebrew.Model"}
    edit_config(copy, model_type="homebrew", auto_map=code)
    error = error_of(copy)
    assert "asks for Python code of its own (homebrew.py), which perpo never runs" in str(error)
    assert "trust_remote_code=True" not in str(error) and not witness.exists()
    assert "read that code, and set model.trust_remote_code: true" in str(error.fix)


def test_a_type_that_transformers_does_not_know_is_named(copy: Path) -> None:
    edit_config(copy, model_type="homebrew")
    assert "model type `homebrew`" in str(error_of(copy))


def test_an_encoder_with_a_decoder_is_refused_with_and_without_weights(copy: Path) -> None:
    """Florence-2."""
    (copy / "config.json").write_text(json.dumps({"model_type": "florence2"}))
    error = error_of(copy)
    assert "(florence2) reads the prompt with an encoder and writes the answer with" in str(error)
    with pytest.raises(InputError, match="florence2"):
        load_without_weights(resolve_model(str(copy)))


def test_weights_of_other_shapes_than_the_config_says(copy: Path) -> None:
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_config(copy, text_config=text | {"intermediate_size": 96})
    error = error_of(copy)
    assert "its weights have other shapes than its config.json says" in str(error)
    assert "ignore_mismatched_sizes" not in str(error)
    assert error.fix == "take config.json and weights from the same model"


def test_weights_that_the_config_needs_and_the_files_lack(copy: Path) -> None:
    text = json.loads((copy / "config.json").read_text())["text_config"]
    layers = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    edit_config(copy, text_config=text | layers)
    error = error_of(copy)
    assert "lacks 12 weights that its config needs (first: model.language_model.layers.3" in str(
        error
    )
    assert error.fix == "take config.json and weights from the same model"


def test_an_image_processor_without_pil_is_refused_by_name(copy: Path) -> None:
    """Cohere 2 Vision: torchvision would not help, so nobody is sent to install it."""
    for file in [*copy.glob("*processor_config.json"), copy / "model.safetensors"]:
        file.unlink()
    vlm_by_hand("cohere2_vision").model.save_pretrained(copy)  # type: ignore[operator]
    settings = {
        "processor_class": "Cohere2VisionProcessor",
        "image_processor_type": "Cohere2VisionImageProcessor",
    }
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    error = error_of(copy)
    assert "its image processor Cohere2VisionImageProcessor has no PIL version" in str(error)
    assert "pixels must be the same everywhere" in str(error.fix)


def _as_gemma4_fails() -> None:
    """transformers names the package in the cause alone."""
    try:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    except ModuleNotFoundError as cause:
        raise ModuleNotFoundError("Could not import module 'Gemma4Processor'.") from cause


def _as_pixtral_fails() -> None:
    raise ImportError(
        "\nPixtralProcessor requires the Torchvision library but it was not found in your "
        "environment. Check out the instructions on the\ninstallation page"
    )


@pytest.mark.parametrize("load", [_as_gemma4_fails, _as_pixtral_fails])
def test_a_missing_package_is_named(copy: Path, load: Any) -> None:
    with pytest.raises(InputError) as caught, load_errors_explained(resolve_model(str(copy))):
        load()
    assert "it needs the package torchvision, which is not installed (" in str(caught.value)
    assert re.search(r"(Gemma4|Pixtral)Processor[^.]*\)$", str(caught.value).splitlines()[0])
    assert caught.value.fix == "install torchvision, in the version that belongs to your torch"
