"""Models: what is loaded, what is refused, and how images and prompts are encoded."""

import hashlib
import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_families import MODEL_TYPES, save_tiny_family, without
from tiny_models import CHAT_TEMPLATE, noise_image, save_tiny_llava

from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import families, merging
from perpo_pipeline.vlm.attention import SPLIT
from perpo_pipeline.vlm.families import FAMILIES
from perpo_pipeline.vlm.files import compute_identity, keeping_no_digests, resolve_model
from perpo_pipeline.vlm.layers import Reach
from perpo_pipeline.vlm.loading import _disable_dropout, compute_whole_float32, load_vlm
from perpo_pipeline.vlm.merging import merge_in_memory
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

IMAGE_ID = 3
IMAGE_TOKENS = 16  # 32 px / 8 px patches, squared


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def vlm(model_dir: Path) -> Vlm:
    return load(model_dir)


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def load(directory: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu", adapter=adapter)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestResolve:
    def test_a_local_directory_is_taken_as_it_is(self, model_dir: Path) -> None:
        resolved = resolve_model(str(model_dir))
        assert resolved.path == model_dir
        assert resolved.commit is None

    def test_a_missing_directory_is_not_looked_up_on_the_hub(self) -> None:
        with pytest.raises(InputError, match=r"model directory .* does not exist"):
            resolve_model("./no/such/model")

    def test_an_id_that_cannot_be_downloaded_gives_one_error_that_names_the_offline_switch(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            resolve_model("nobody/such-a-model")
        assert "HF_HUB_OFFLINE" in str(caught.value.fix)

    def test_a_complete_snapshot_in_the_local_cache_is_used_without_network(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_dir: Path
    ) -> None:
        import huggingface_hub.constants

        commit = "0123456789abcdef0123456789abcdef01234567"
        repo = tmp_path / "models--somebody--tiny"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        shutil.copytree(model_dir, repo / "snapshots" / commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        resolved = resolve_model("somebody/tiny")
        assert compute_identity(resolved) == f"somebody/tiny@{commit}"

    def test_what_cannot_be_an_id_is_refused(self) -> None:
        with pytest.raises(InputError, match="neither `testbed`, a local directory nor a hub id"):
            resolve_model("what is this")

    def test_pickled_weights_are_refused(self, copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        torch.save(weights, copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"only pickled ones \(pytorch_model.bin\)"):
            resolve_model(str(copy))

    def test_a_missing_shard_is_named(self, copy: Path) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"lacks weights: model-00002\.safetensors"):
            resolve_model(str(copy))


class TestIdentity:
    def test_it_follows_the_content_of_the_model_and_nothing_else(
        self, model_dir: Path, copy: Path
    ) -> None:
        original = compute_identity(resolve_model(str(model_dir)))
        assert compute_identity(resolve_model(str(copy))) == original
        (copy / "README.md").write_text("a model card")
        assert compute_identity(resolve_model(str(copy))) == original
        weights = load_file(copy / "model.safetensors")
        weights["language_model.lm_head.weight"][0, 0] += 1
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        assert compute_identity(resolve_model(str(copy))) != original

    def test_cached_digests_are_used_until_a_file_changes(self, copy: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache.json"
        resolved = resolve_model(str(copy))
        original = compute_identity(resolved, cache)
        # Poisoned digests show that they are used ...
        cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), "0" * 64)))
        assert compute_identity(resolved, cache) != original
        # ... and a rewritten file is hashed again, so that this result and an uncached one differ.
        edit_json(copy / "config.json", note="changed")
        assert compute_identity(resolved, cache) != compute_identity(resolved)
        assert len(set(json.loads(cache.read_text()).values())) == 2

    def test_digests_may_be_kept_in_memory_alone(
        self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, resolved = tmp_path / "cache.json", resolve_model(str(copy))
        with keeping_no_digests():
            identity = compute_identity(resolved, cache)
            monkeypatch.setattr(hashlib, "file_digest", None)  # no file is hashed again
            assert compute_identity(resolved, cache) == identity and not cache.exists()
        monkeypatch.undo()
        assert compute_identity(resolved, cache) == identity and cache.exists()

    def test_a_damaged_cache_is_ignored(self, copy: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache.json"
        cache.write_text("{half")
        resolved = resolve_model(str(copy))
        assert compute_identity(resolved, cache) == compute_identity(resolved)


class TestLoad:
    def test_end_tokens_come_from_the_generation_config(self, copy: Path) -> None:
        edit_json(copy / "generation_config.json", eos_token_id=[2, 7])
        assert load(copy).eos_token_ids == (2, 7)

    def test_image_placeholders_are_known(self, vlm: Vlm) -> None:
        assert vlm.image_token_ids == vlm.banned_token_ids == (IMAGE_ID,)

    def test_a_placeholder_without_a_logit_is_known_but_not_banned(self, vlm: Vlm) -> None:
        beyond = replace(vlm, image_token_ids=(IMAGE_ID, 299, 300))
        assert beyond.banned_token_ids == (IMAGE_ID, 299)

    def test_truncated_weights_are_refused(self, copy: Path) -> None:
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(InputError, match="cannot be loaded"):
            load(copy)

    def test_missing_weights_are_not_filled_at_random(self, copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        del weights["language_model.lm_head.weight"]
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match="lacks 1 weights"):
            load(copy)

    def test_another_kind_of_model_is_refused(self, copy: Path) -> None:
        edit_json(copy / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
        with pytest.raises(InputError):
            load(copy)

    def test_code_in_a_model_directory_is_never_run(self, copy: Path, tmp_path: Path) -> None:
        witness = tmp_path / "ran"
        (copy / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()")
        for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
            classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
            edit_json(copy / name, auto_map={key: "evil.Evil" for key in classes})
        load(copy)
        assert not witness.exists()

    def test_a_sliding_window_in_every_layer(self, tmp_path: Path) -> None:
        """As in Mistral; the model is then proven, although its family is known."""
        directory = save_tiny_llava(tmp_path / "mistral")
        assert load(directory).layers.is_plain
        config = json.loads((directory / "config.json").read_text())
        mistral = config["text_config"] | {"model_type": "mistral", "sliding_window": 8}
        edit_json(directory / "config.json", text_config=mistral)
        vlm = load(directory)
        assert vlm.layers.reaches == {"sliding_attention": Reach(window=8)}
        assert not vlm.layers.is_plain
        assert vlm.shares_prefix and "on this model's own weights" in vlm.way.why
        unwindowed = mistral | {"sliding_window": None}
        edit_json(directory / "config.json", text_config=unwindowed)
        assert load(directory).layers.is_plain

    def test_one_layer_with_a_window_is_enough(self, tmp_path: Path) -> None:
        """Qwen's configs have a window that is off; if on, it starts at some layer."""
        directory = save_tiny_family("llava_onevision", tmp_path / "onevision")
        config = json.loads((directory / "config.json").read_text())
        text = config["text_config"] | {"sliding_window": 8}
        edit_json(directory / "config.json", text_config=text)
        assert load(directory).layers.is_plain
        layers = ["full_attention", "full_attention", "sliding_attention"]
        windowed = text | {"use_sliding_window": True, "layer_types": layers}
        edit_json(directory / "config.json", text_config=windowed)
        assert load(directory).layers.reaches == {
            "full_attention": Reach(),
            "sliding_attention": Reach(window=8),
        }

    def test_a_linear_layer_that_is_not_found_shares_nothing(self, copy: Path) -> None:
        """The config names one, and transformers builds a Llama of attention layers alone."""
        text = json.loads((copy / "config.json").read_text())["text_config"]
        for layer, full in (("full_attention", True), ("linear_attention", False)):
            layers = ["full_attention", layer]
            edit_json(copy / "config.json", text_config=text | {"layer_types": layers})
            vlm = load(copy)
            assert vlm.shares_prefix is full
            assert vlm.layers.recurrent == (() if full else ("linear_attention",))
        assert vlm.way.why.startswith(
            "1 layers of the text model have a recurrent state, but only 0"
        )

    def test_capped_scores_get_our_attention(self, copy: Path) -> None:
        """As in Gemma 2: a softcap on the scores, which transformers' SDPA leaves out."""
        text = json.loads((copy / "config.json").read_text())["text_config"]
        edit_json(copy / "config.json", text_config=text | {"attn_logit_softcapping": 50.0})
        vlm = load(copy)
        assert vlm.layers.changed_scores and not vlm.layers.is_plain
        assert vlm.model.config.text_config._attn_implementation == SPLIT

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_every_known_family_shares_its_prefix(self, model_type: str, tmp_path: Path) -> None:
        vlm = load(save_tiny_family(model_type, tmp_path / model_type))
        assert vlm.family is FAMILIES[model_type] and vlm.shares_prefix

    def test_a_family_that_was_never_tried_is_loaded_and_proven(
        self, model_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(families, "FAMILIES", without("llava"))
        vlm = load(model_dir)
        assert vlm.family.name == "llava" and not vlm.family.known
        assert vlm.shares_prefix and "on this model's own weights" in vlm.way.why

    def test_dropout_is_off_even_in_training_mode(self, tmp_path: Path) -> None:
        vlm = load(save_tiny_llava(tmp_path / "dropout", attention_dropout=0.5))
        vlm.model.train()
        prompt = encode_prompt(vlm, noise_image(0), "where?")
        batch = pack_lists(vlm, [CompletionList(prompt, [[5, 6, 2]])])
        with torch.no_grad():
            first, second = (packed_logps(vlm.model, batch) for _ in range(2))
        assert torch.equal(first, second)

    def test_dropped_paths_and_layers_are_off_too(self) -> None:
        module: Any = torch.nn.Linear(1, 1)
        module.drop_prob, module.layerdrop, module.dropping = 0.1, 0.2, "no rate"
        _disable_dropout(torch.nn.Sequential(module))
        assert (module.drop_prob, module.layerdrop, module.dropping) == (0.0, 0.0, "no rate")

    @pytest.mark.parametrize("setting", [{"dtype": "float16"}, {"device": "tpu"}])
    def test_unknown_settings_are_refused(self, model_dir: Path, setting: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="it must be auto"):
            load_vlm(resolve_model(str(model_dir)), **setting)

    def test_float32_on_a_card_is_float32_in_convolutions_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        compute_whole_float32(torch.bfloat16, torch.device("cuda"))
        compute_whole_float32(torch.float32, torch.device("cpu"))
        assert torch.backends.cudnn.allow_tf32
        compute_whole_float32(torch.float32, torch.device("cuda"))
        assert not torch.backends.cudnn.allow_tf32

    def test_kernels_for_a_card_are_not_run_on_the_cpu(
        self, tiny_qwen3_5: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
        with pytest.raises(ConfigError, match="flash-linear-attention, and that runs on a CUDA"):
            load_vlm(resolve_model(str(tiny_qwen3_5)), device="cpu")
        load_vlm(resolve_model(str(model_dir)), device="cpu")  # has no such layers
        merging._with_full_weights(resolve_model(str(tiny_qwen3_5)), None, "float32", None)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_without_a_device_is_refused(self, model_dir: Path) -> None:
        with pytest.raises(ConfigError, match="no CUDA device"):
            load_vlm(resolve_model(str(model_dir)), device="cuda")


class TestEncode:
    def test_the_image_comes_first_and_the_begin_token_once(self, vlm: Vlm) -> None:
        prompt = encode_prompt(vlm, noise_image(0), "where is it?")
        ids = prompt.input_ids.tolist()
        assert ids.count(IMAGE_ID) == IMAGE_TOKENS
        assert ids.count(1) == 1 and ids[0] == 1
        after = ids[max(i for i, token in enumerate(ids) if token == IMAGE_ID) + 1 :]
        assert vlm.tokenizer.decode(after) == "\nwhere is it? ASSISTANT:"
        assert prompt.positions.tolist() == [list(range(len(ids)))]
        assert prompt.next_position == len(ids)

    def test_a_template_that_writes_the_begin_token_does_not_get_a_second_one(
        self, copy: Path
    ) -> None:
        plain = encode_prompt(load(copy), noise_image(0), "where?")
        (copy / "chat_template.jinja").write_text("<s>" + CHAT_TEMPLATE)
        written = encode_prompt(load(copy), noise_image(0), "where?")
        assert written.text.startswith("<s>USER")
        assert torch.equal(written.input_ids, plain.input_ids)

    def test_pad_puts_bands_of_the_mean_colour_around_the_image(self, vlm: Vlm) -> None:
        image = noise_image(0, width=64, height=32)  # padded: bands above and below, a quarter each
        padded = encode_prompt(vlm, image, "where?", preprocess="pad")
        pixels = padded.tensors["pixel_values"][0]
        # The mean colour is 0 after normalisation, up to the rounding to 8 bits (1/255/0.26).
        assert pixels[:, :6].abs().max() < 0.02
        assert pixels[:, -6:].abs().max() < 0.02
        assert pixels[:, 10:22].abs().max() > 0.5
        assert (padded.image_size, padded.padded_size, padded.resized) == (
            (64, 32),
            (64, 64),
            (32, 32),
        )
        cropped = encode_prompt(vlm, image, "where?").tensors["pixel_values"][0]
        assert cropped[:, :6].abs().max() > 0.5

    def test_pad_leaves_a_square_alone(self, vlm: Vlm) -> None:
        image = noise_image(0, width=40, height=40)
        one, other = (
            encode_prompt(vlm, image, "where?", preprocess=way).tensors["pixel_values"]
            for way in ("pad", "processor")
        )
        assert torch.equal(one, other)

    def test_an_unknown_preprocess_is_refused(self, vlm: Vlm) -> None:
        with pytest.raises(ConfigError, match="preprocess"):
            encode_prompt(vlm, noise_image(0), "where?", preprocess="anyres")


class TestAdapter:
    @pytest.fixture
    def adapter(self, model_dir: Path, tmp_path: Path) -> Path:
        """A LoRA adapter that changes the model, recorded for its base."""
        vlm = load(model_dir)
        torch.manual_seed(1)
        model = get_peft_model(vlm.model, lora_config(vlm, rank=2, alpha=4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        directory = tmp_path / "adapter"
        model.save_pretrained(directory)
        record = {"base_identity": vlm.identity}
        (directory / "perpo_adapter.json").write_text(json.dumps(record))
        return directory

    def logps(self, vlm: Vlm) -> torch.Tensor:
        prompt = encode_prompt(vlm, noise_image(0), "where?")
        lists = [CompletionList(prompt, [[5, 6, 2], [9, 2]])]
        with torch.no_grad():
            return packed_logps(vlm.model, pack_lists(vlm, lists))

    def test_it_changes_the_model_and_merging_it_changes_nothing_more(
        self, model_dir: Path, adapter: Path
    ) -> None:
        adapted = load(model_dir, adapter)
        with_adapter = self.logps(adapted)
        assert (with_adapter - self.logps(load(model_dir))).abs().min() > 1e-3
        merged = self.logps(merge_in_memory(replace(adapted)))
        torch.testing.assert_close(merged, with_adapter, atol=1e-4, rtol=0)

    def test_another_base_is_refused(self, adapter: Path, tmp_path: Path) -> None:
        other = save_tiny_llava(tmp_path / "other", seed=1)
        with pytest.raises(ArtifactError, match="trained on another base model"):
            load(other, adapter)

    @pytest.mark.parametrize(
        "name", ["perpo_adapter.json", "adapter_model.safetensors", "adapter_config.json"]
    )
    def test_a_missing_file_is_named(self, model_dir: Path, adapter: Path, name: str) -> None:
        (adapter / name).unlink()
        with pytest.raises(ArtifactError, match=name):
            load(model_dir, adapter)

    def test_weights_of_another_shape_are_refused(self, model_dir: Path, adapter: Path) -> None:
        edit_json(adapter / "adapter_config.json", r=3)
        with pytest.raises(ArtifactError, match="does not fit"):
            load(model_dir, adapter)

    def test_missing_adapter_weights_are_not_left_at_random(
        self, model_dir: Path, adapter: Path
    ) -> None:
        weights = load_file(adapter / "adapter_model.safetensors")
        weights.pop(sorted(weights)[0])
        save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(ArtifactError, match="1 differ"):
            load(model_dir, adapter)
