"""Weights in 4 and 8 bits: which they are, how exact, what fits them; bitsandbytes stays quiet."""

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from bitsandbytes import cextension
from hub_stand_in import stand_in_hub
from safetensors.torch import load_file
from tiny_adapters import save_adapter
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image
from torch import Tensor, nn
from transformers import Qwen3VLMoeConfig

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError, MissingDependencyError
from perpo_pipeline.train.scope import make_trainable
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import inputs, quantization
from perpo_pipeline.vlm.adapters import describe_base, write_record
from perpo_pipeline.vlm.decoding import greedy_decode
from perpo_pipeline.vlm.files import ResolvedModel, resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.merging import merge_in_memory, merge_to_disk
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.quantization import (
    dequantise,
    model_bytes,
    quantised_linears,
    unquantised_linears,
    weight_bytes,
)

KINDS = ["nf4", "int8"]
LAYER = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}


def quantised(model: str, kind: str, dtype: str = "float32", adapter: Path | None = None) -> Vlm:
    resolved = replace(resolve_model(model), quantization=kind)
    return load_vlm(resolved, dtype=dtype, device="cpu", adapter=adapter)


def logps(vlm: Vlm) -> Tensor:
    prompt = encode_prompt(vlm, noise_image(1, 50, 30), "where is it")
    batch = pack_lists(vlm, [CompletionList(prompt, [[20, 21, 22], [30, 31]])])
    return packed_logps(vlm.model, batch)


def differentiated(vlm: Vlm) -> tuple[Tensor, Tensor]:
    """The log-probabilities, and the gradient of their sum at the input embeddings."""
    weight = base_model(vlm.model).get_input_embeddings().weight.requires_grad_(True)
    found = logps(vlm)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    return found.detach(), gradient


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An adapter that was trained on the testbed in 4 bits."""
    scope = ["language_model", "projector"]
    adapter = save_adapter(resolve_model("testbed").path, tmp_path / "adapter", scope)
    write_record(adapter, describe_base(quantised("testbed", "nf4")))
    return adapter


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_linear_layers_of_the_text_model_alone_are_quantised(
    model_type: str, tmp_path: Path
) -> None:
    """In every family all linear layers of the decoder's layers, and nothing of tower or head."""
    path = str(save_tiny_family(model_type, tmp_path))
    vlm = quantised(path, "nf4")
    found = {n for n, m in vlm.model.named_modules() if isinstance(m, LAYER["nf4"])}
    empty = load_without_weights(resolve_model(path)).model
    assert found == set(quantised_linears(empty)) == set(quantised_linears(vlm.model))
    linears = {n for n, m in empty.named_modules() if isinstance(m, nn.Linear)}
    assert linears - found == set(unquantised_linears(empty))
    layers = [n for n in linears if ".layers." in n and ".language_model." in n]
    assert found == set(layers) and len(found) in (7 * 2, 7 * 3)  # q k v o, gate up down
    assert "lm_head" in linears - found and any("visual" in n or "vision" in n for n in linears)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_layer_computes_with_the_weights_that_its_bits_stand_for(
    kind: str, dtype: str
) -> None:
    """In training and in evaluation, with gradients and without; and it is not the full model."""
    vlm = quantised("testbed", kind, dtype)
    with torch.no_grad():
        evaluated = logps(vlm)
        trained_mode = logps(replace(vlm, model=vlm.model.train()))
        vlm.model.eval()
    with_gradients, gradient = differentiated(vlm)
    assert torch.equal(evaluated, trained_mode)
    dequantise(vlm, dtype)
    assert {type(m) for m in quantised_linears(vlm.model).values()} == {nn.Linear}
    plain, expected = differentiated(vlm)
    near = {"rtol": 1e-4, "atol": 1e-3} if dtype == "float32" else {"rtol": 0.02, "atol": 0.5}
    for found in (evaluated, with_gradients):
        assert torch.allclose(found, plain, **near)
    assert (gradient - expected).norm() < (1e-3 if dtype == "float32" else 0.1) * expected.norm()
    with torch.no_grad():
        full = logps(load_vlm(resolve_model("testbed"), dtype=dtype, device="cpu"))
    assert (evaluated - full).abs().max() > 1e-2


def test_the_bytes_of_a_weight_are_those_that_bitsandbytes_allocates() -> None:
    """192 x 192 weights in 4 bits: 18,432 bytes, 576 scales of a byte, 3 scales of 4 bytes."""
    layer = base_model(quantised("testbed", "nf4").model).get_decoder().layers[0].self_attn.q_proj
    state = layer.weight.quant_state
    sizes = [layer.weight.nbytes, state.absmax.nbytes, state.state2.absmax.nbytes]
    assert sizes == [18432, 576, 12]
    assert weight_bytes("nf4", "bfloat16") * 192 * 192 == pytest.approx(sum(sizes), rel=1e-3)
    layer = base_model(quantised("testbed", "int8").model).get_decoder().layers[0].self_attn.q_proj
    assert layer.weight.nbytes == weight_bytes("int8", "bfloat16") * 192 * 192
    assert (weight_bytes(None, "float32"), weight_bytes(None, "bfloat16")) == (4, 2)


def test_the_bytes_of_a_model_count_what_stays_unquantised_in_full() -> None:
    empty = load_without_weights(resolve_model("testbed")).model
    every = sum(p.numel() for p in empty.parameters())
    inside = 5 * (4 * 192 * 192 + 3 * 192 * 384)
    assert model_bytes(empty, None, "bfloat16") == 2 * every
    assert model_bytes(empty, "int8", "bfloat16") == 2 * (every - inside) + inside
    four = 2 * (every - inside) + inside * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert model_bytes(empty, "nf4", "bfloat16") == pytest.approx(four, abs=1)


def test_an_adapter_is_refused_on_a_base_that_is_held_in_another_way(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="quantised to nf4, and the model has weights in full"):
        load_vlm(resolve_model("testbed"), dtype="float32", device="cpu", adapter=trained)
    with pytest.raises(ArtifactError, match=r"quantised to nf4, and .* quantised to int8"):
        load_without_weights(
            replace(resolve_model("testbed"), quantization="int8"), adapter=trained
        )
    plain = save_adapter(resolve_model("testbed").path, tmp_path / "plain", ["language_model"])
    with pytest.raises(ArtifactError, match=r"weights in full, and .* quantised to nf4") as refused:
        quantised("testbed", "nf4", adapter=plain)
    assert refused.value.fix == "set model.quantization to null"


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_in_the_models_dtype_beside_quantised_weights(
    kind: str, tmp_path: Path
) -> None:
    """In training and in evaluation: PEFT would compute the products of LoRA in fp32."""
    vlm = quantised("testbed", kind, "bfloat16")
    record = describe_base(vlm)
    scope = ["language_model", "projector"]
    policy = make_trainable(vlm, TrainSettings.model_validate({"scope": scope}))
    dtypes = [{p.dtype for p in policy.parameters() if p.requires_grad}]
    adapter = save_adapter(resolve_model("testbed").path, tmp_path, scope)
    write_record(adapter, record)
    beside = merge_in_memory(quantised("testbed", kind, "bfloat16", adapter))
    dtypes.append({p.dtype for name, p in beside.model.named_parameters() if "lora_" in name})
    assert dtypes == [{torch.bfloat16}, {torch.bfloat16}]


def test_a_merged_model_is_the_adapter_on_the_dequantised_base(
    trained: Path, tmp_path: Path
) -> None:
    """Beside the quantised weights nothing is merged; the folder needs no setting."""
    beside = quantised("testbed", "nf4", adapter=trained)
    assert merge_in_memory(beside) is beside
    with torch.no_grad():
        expected = logps(beside)
    resolved = replace(resolve_model("testbed"), quantization="nf4")
    folder = merge_to_disk(resolved, trained, "float32", tmp_path / "m", tmp_path / "ids.json")
    merged = load_vlm(resolve_model(str(folder)), dtype="float32", device="cpu")
    assert merged.quantization is None
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    with torch.no_grad():
        assert torch.allclose(logps(merged), expected, atol=1e-3)
    prompt = encode_prompt(merged, noise_image(2, 64, 64), "where is the red circle")
    answers = [greedy_decode(v, [prompt], max_new_tokens=24)[0].token_ids for v in (merged, beside)]
    assert answers[0] == answers[1]
    base = merge_to_disk(resolved, None, "float32", tmp_path / "m", tmp_path / "ids.json")
    assert base != folder
    expected_weight = _query_weight(base) + 2 * _low_rank(trained)  # alpha 8, rank 4
    assert torch.allclose(_query_weight(folder), expected_weight, atol=1e-6)


def test_merging_in_another_dtype_starts_from_the_bits_of_the_training(
    trained: Path, tmp_path: Path
) -> None:
    """Trained in bfloat16, merged in float32: the base's part has bfloat16's eight bits."""
    record = json.loads((trained / "perpo_adapter.json").read_text())
    assert record["base_dtype"] == "float32" and record["base_quantization"] == "nf4"
    resolved = replace(resolve_model("testbed"), quantization="nf4")
    delta = 2 * _low_rank(trained)  # alpha 8, rank 4

    def rounding_of_the_base() -> float:
        folder = merge_to_disk(resolved, trained, "float32", tmp_path / "m", tmp_path / "ids.json")
        base = _query_weight(folder) - delta
        shutil.rmtree(folder)
        return float((base.bfloat16().float() - base).abs().max())

    assert rounding_of_the_base() > 1e-5
    write_record(trained, record | {"base_dtype": "bfloat16"})
    assert rounding_of_the_base() < 1e-6


def _query_weight(folder: Path) -> Tensor:
    found = load_file(folder / "model.safetensors")
    end = "layers.0.self_attn.q_proj.weight"
    return next(w for n, w in found.items() if n.endswith(end) and "vision" not in n)


def _low_rank(adapter: Path) -> Tensor:
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (next(w for n, w in lora.items() if f"0.self_attn.q_proj.lora_{x}" in n) for x in "AB")
    return b @ a


def test_without_bitsandbytes_there_is_one_error_before_any_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(*_: object, **__: object) -> ResolvedModel:
        raise AssertionError("downloads")

    monkeypatch.setattr(inputs, "resolve_model", download)
    monkeypatch.setattr(quantization, "is_installed", lambda: False)
    with pytest.raises(MissingDependencyError, match="quantization: nf4 needs bits") as missing:
        inputs.find_model(ModelConfig(quantization="nf4"), tmp_path)
    assert missing.value.fix == "run: pip install -c constraints.txt -e '.[quantization]'"
    with pytest.raises(AssertionError, match="downloads"):
        inputs.find_model(ModelConfig(), tmp_path)


def test_a_model_that_was_saved_quantised_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_model("testbed").path, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(config))
    for kind in (None, "nf4"):
        with pytest.raises(InputError, match=r"saved with quantised weights \(bitsandbytes\)"):
            load_vlm(replace(resolve_model(str(model)), quantization=kind), device="cpu")


class Experts(nn.Module):
    """A layer whose weights are mostly in experts, which are no linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.experts = nn.Parameter(torch.empty(4, 8, 8))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts()])

    def get_decoder(self) -> nn.Module:
        return self


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="would quantise only 20% of the weights"):
        quantization.load_quantised("nf4", Mixture(), torch.float32, torch.device("cpu"))


def test_a_hub_model_is_refused_before_its_weights_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its settings are enough: a mixture of experts, and a model that was saved quantised."""
    asked = stand_in_hub(monkeypatch, tmp_path)
    mixture = Qwen3VLMoeConfig(
        text_config={"num_hidden_layers": 1, "moe_intermediate_size": 512, "num_experts": 16},
        vision_config={"depth": 1},
    )
    mixture.save_pretrained(tmp_path)
    config = ModelConfig(id="somebody/model", device="cpu", quantization="nf4")
    with pytest.raises(ConfigError, match=r"would quantise only .* of the weights"):
        inputs.find_model(config, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"saved with quantised weights \(awq\)"):
        inputs.find_model(config, tmp_path)
    assert len(asked) == 2 and "*.safetensors" not in {*asked[0], *asked[1]}


def test_a_bitsandbytes_without_its_library_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = cextension.ErrorHandlerMockBNBNativeLibrary("no library")
    monkeypatch.setattr(cextension, "lib", broken)
    with pytest.raises(ConfigError, match="whose library cannot be loaded"):
        quantised("testbed", "int8")


NOISY = """
import logging
try:
    import kernels
except ImportError as error:
    logging.getLogger("bitsandbytes.backends.cpu").warning("Failed to load: %s", error)
"""


def test_importing_bitsandbytes_prints_nothing_and_looks_for_no_kernel(tmp_path: Path) -> None:
    """As its release 0.50.2 would on a CPU with bf16 instructions; `kernels` stays usable."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(NOISY)
    (tmp_path / "kernels.py").write_text("print('asks the hub')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}

    def imported(*modules: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", "; ".join(f"import {name}" for name in modules)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, done.stderr

    assert imported("bitsandbytes") == ("asks the hub\n", "")
    assert imported("perpo_pipeline", "bitsandbytes") == ("", "")
    assert imported("perpo_pipeline", "bitsandbytes", "kernels") == ("asks the hub\n", "")
    assert imported("kernels", "perpo_pipeline", "bitsandbytes") == ("asks the hub\n", "")


def test_the_8_bit_layers_of_a_gpu_share_a_prefix_within_the_self_checks_bound() -> None:
    """LLM.int8 quantises the inputs, too; on the CPU that is what it does without gradients."""
    from perpo_pipeline.config.train import TrainSettings
    from perpo_pipeline.train.engine import ready_model
    from perpo_pipeline.train.self_check import check_shared_prefix

    vlm = quantised("testbed", "int8")
    for module in vlm.model.modules():
        module._forward_pre_hooks = OrderedDict()
    ready_model(vlm, "shared-prefix", TrainSettings())
    prompt = encode_prompt(vlm, noise_image(1, 64, 64), "where is it")
    words = [[20, 21, 22, 23], [30, 31], [40] * 9]
    check_shared_prefix(vlm, CompletionList(prompt, words), max_tokens=4096)
