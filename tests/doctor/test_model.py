"""`perpo doctor --model ID`: how a model would be sampled and trained, without a run."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_by_hand import vlm_by_hand
from tiny_families import without
from tiny_models import noise_image
from tiny_untried import NARROW, save_untried

from perpo_pipeline import cli
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.doctor import model as doctor_model
from perpo_pipeline.doctor.model import examine_model
from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm import families
from perpo_pipeline.vlm.families import FAMILIES, Family
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt


@pytest.mark.parametrize(
    ("record", "tests"),
    [
        (FAMILIES["gemma3"], "gemma3, tested"),
        (None, "gemma3, not among the tested"),
        (
            replace(FAMILIES["gemma3"], own_processor=False),
            "gemma3, tested with images that were prepared without its own processor",
        ),
    ],
)
def test_a_model_with_windows_is_proven_and_described(
    tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch, record: Family | None, tests: str
) -> None:
    if record is None:
        monkeypatch.setattr(families, "FAMILIES", without("gemma3"))
    else:
        monkeypatch.setitem(FAMILIES, "gemma3", record)
    found = examine_model(ModelConfig(id=str(tiny_gemma3), dtype="float32", device="cpu"))
    assert found["family"] == tests
    assert found["text layers"] == (
        f"sliding_attention (the last {NARROW} tokens, images both ways) and "
        "full_attention (images both ways)"
    )
    assert found["a prompt is"].startswith(
        "read once for all its answers: it is exact on this model's own weights: shared prefix"
    )
    assert found["positions"] == "1 axis"
    assert found["boxes"] == "set model.box_format and model.box_frame"
    assert found["adapter"] == (
        "LoRA on 21 linear layers (down_proj 3, gate_proj 3, k_proj 3, o_proj 3, q_proj 3, "
        "up_proj 3, v_proj 3)"
    )
    assert found["tokens"].startswith("end <|im_end|> ")
    assert found["image"].startswith("640 x 480 takes 16 tokens, with the example question ")
    assert found["vllm"] == "an adapter is merged first"


def test_a_tested_model_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", "testbed", "--json", str(file)])
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert "family         llava, tested" in printed
    assert " GB in float32\n" in printed
    assert "read once for all its answers: tests of this family show it to be exact" in printed
    assert "boxes          llava, frame full" in printed
    assert "vllm           applies an adapter of the language model as it is" in printed
    found = json.loads(file.read_text())
    assert list(found) == [line.split("  ")[0] for line in printed.splitlines()]
    vlm = load_without_weights(resolve_model("testbed"))
    encoded = encode_prompt(vlm, noise_image(0, 640, 480), "Where is the dog?")
    images = sum(int(i) in vlm.image_token_ids for i in encoded.input_ids)
    assert images > 1
    assert found["image"] == (
        f"640 x 480 takes {images} tokens, with the example question {encoded.num_tokens}"
    )
    assert json.loads(found["chat template"]) == encoded.text
    (end,) = vlm.eos_token_ids
    assert found["thinking"].startswith("not opened by the chat template; an answer ends with ")
    assert found["thinking"].endswith(f" {end}")
    assert f" {end}; image and video " in found["tokens"]
    assert found["tokens"].endswith(f" {vlm.pad_token_id}")


def test_a_template_that_opens_a_thought_and_one_that_is_missing(tmp_path: Path) -> None:
    directory = save_untried("gemma3", tmp_path)
    template = directory / "chat_template.jinja"
    opening = "{% if add_generation_prompt %}<think>\n{% endif %}"
    template.write_text(template.read_text() + opening)
    config = ModelConfig(id=str(directory), device="cpu")
    found = examine_model(config)
    assert found["chat template"].endswith('<think>\\n"')
    assert found["thinking"].startswith("the chat template opens a thought")
    template.unlink()
    found = examine_model(config)
    assert found["chat template"].startswith("none: ")
    assert found["image"].startswith("640 x 480 cannot be encoded (")


@pytest.mark.parametrize("way", ["on the card", "while it loads", "by its size"])
def test_a_model_without_enough_memory_is_described_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def load(*given: Any, **settings: Any) -> Vlm:
        assert way != "by its size"
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if way == "on the card":
            raise full
        raise InputError("cannot be loaded") from full

    monkeypatch.setattr(doctor_model, "load_vlm", load)
    if way == "by its size":
        monkeypatch.setattr(doctor_model, "memory_bytes", lambda: 1000)
    config = ModelConfig(id=str(save_untried("aya_vision", tmp_path)), device="cpu")
    monkeypatch.setattr(families, "FAMILIES", without("aya_vision"))
    found = examine_model(config)
    assert found["a prompt is"].startswith("not proven (not enough memory)")
    assert ", not enough memory: " in found["weights"]
    assert found["adapter"].startswith("LoRA on ")
    assert found["image"].startswith("640 x 480 takes ")
    if way != "while it loads":
        return
    found = examine_model(ModelConfig(device="cpu"))  # tests need no weights for this answer
    assert found["a prompt is"].endswith("tests of this family show it to be exact")


def test_other_errors_of_loading_are_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*given: Any, **settings: Any) -> Vlm:
        raise InputError("lacks 3 weights")

    monkeypatch.setattr(doctor_model, "load_vlm", load)
    with pytest.raises(InputError, match="lacks 3 weights"):
        examine_model(ModelConfig(device="cpu"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_quantised_weights_are_loaded_as_in_a_run() -> None:
    config = ModelConfig(device="cpu", dtype="float32")
    whole, quantised = map(
        examine_model, (config, config.model_copy(update={"quantization": "nf4"}))
    )
    assert quantised["weights"].endswith(" GB in nf4, computed in float32")
    assert float(quantised["weights"].split()[0]) < float(whole["weights"].split()[0])
    assert quantised["adapter"] == whole["adapter"]


def test_lora_is_counted_where_peft_puts_it() -> None:
    """GLM-4.5V: PEFT takes the attention and the experts; the pattern names 21 linear layers."""
    found = doctor_model._adapter(vlm_by_hand("glm4v_moe"))
    assert found == (
        "LoRA on 12 linear layers (k_proj 3, o_proj 3, q_proj 3, v_proj 3) and on 4 weights of "
        "experts (down_proj 2, gate_up_proj 2); none on 9 in its scope (down_proj 3, gate_proj 3, "
        "up_proj 3)"
    )


def test_settings_of_the_model_are_taken_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", *options])
        assert ended.value.code == 2
        return capsys.readouterr().err

    wrong = error_of("--model", "testbed", "--set", "model.quantization=nf5")
    assert "model.quantization (--set model.quantization=nf5)" in wrong
    other = error_of("--model", "testbed", "--set", "train.beta=1")
    assert "--set train.beta=1: without a run's file, only settings of the model" in other
    assert "--set needs --model" in error_of("--set", "model.device=cpu")


def test_a_model_and_a_gpu_are_two_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", "testbed", "--gpu"])
    assert ended.value.code == 2
    assert "--model and --gpu are two checks" in capsys.readouterr().err
