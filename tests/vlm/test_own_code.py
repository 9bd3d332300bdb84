"""Code that comes with a model runs where `model.trust_remote_code` says so, and nowhere else."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import save_adapter_artifact
from tiny_models import noise_image, save_tiny_llava
from transformers import LlavaForConditionalGeneration, dynamic_module_utils
from transformers.integrations import deepspeed

from perpo_pipeline.cli import main
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.doctor.model import examine_model
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.inference import ray_actors
from perpo_pipeline.status.model import model_difference
from perpo_pipeline.train import task
from perpo_pipeline.train.sharded_weights import sharded_loading
from perpo_pipeline.train.zero import read_zero_config
from perpo_pipeline.vlm import own_code
from perpo_pipeline.vlm.files import find_on_this_machine, resolve_model
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, find_model, open_model
from perpo_pipeline.vlm.loading import load_without_weights, without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.ways import plain_logprob

MODELING = """
from torch.nn import Linear
from transformers import LlavaConfig, LlavaForConditionalGeneration
from .scale import SCALE

class HomebrewConfig(LlavaConfig):
    model_type = "MODEL_TYPE"

class Head(Linear):
    def forward(self, hidden):
        return SCALE * super().forward(hidden)

class Homebrew(LlavaForConditionalGeneration):
    config_class = HomebrewConfig

    def __init__(self, config):
        super().__init__(config)
        text = config.text_config
        self.lm_head = Head(text.hidden_size, text.vocab_size, bias=False)
"""
# Depends on the place in the row, so answers behind each other differ from answers alone.
FAULT = """
        self.model.language_model.register_forward_pre_hook(self.shift, with_kwargs=True)

    @staticmethod
    def shift(module, args, kwargs):
        embeds = kwargs["inputs_embeds"]
        place = 1 + 0.01 * __import__("torch").arange(embeds.shape[1])[:, None]
        return args, kwargs | {"inputs_embeds": embeds * place}
"""
CODE = {"AutoConfig": "brew.HomebrewConfig", "AutoModelForImageTextToText": "brew.Homebrew"}
FILES = {"brew.py", "scale.py"}


@pytest.fixture(autouse=True)
def _modules_in_a_folder_of_the_tests(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """transformers copies code into a cache, which would be the user's."""
    folder = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own_code._announce.cache_clear()
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def save_homebrew(folder: Path, *, model_type: str = "homebrew", fault: str = "") -> Path:
    """A LLaVA whose code is in its folder; its logits are half of LLaVA's."""
    save_tiny_llava(folder)
    (folder / "brew.py").write_text(MODELING.replace("MODEL_TYPE", model_type) + fault)
    (folder / "scale.py").write_text("SCALE = 0.5\n")
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    # With the names of the class: transformers renames the weights of its own LLaVA.
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    changed = {"model_type": model_type, "architectures": ["Homebrew"], "auto_map": CODE}
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


@pytest.fixture
def homebrew(tmp_path: Path) -> Path:
    return save_homebrew(tmp_path / "homebrew")


def configured(folder: Path, *, trusts: bool = True) -> ModelConfig:
    return ModelConfig(id=str(folder), dtype="float32", device="cpu", trust_remote_code=trusts)


def opened(config: ModelConfig, cache: Path, adapter: Path | None = None) -> Vlm:
    resolved, settings = find_model(config, cache)
    return open_model(config, resolved, settings, cache, adapter)


def logprob(vlm: Vlm) -> float:
    prompt = encode_prompt(vlm, noise_image(0), "where?")
    return plain_logprob(vlm, prompt, [20, 21, 22, vlm.eos_token_ids[0]])


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [one for one in capsys.readouterr().err.splitlines() if one.startswith("warning:")]


def test_it_runs_where_it_is_trusted_under_one_warning(
    homebrew: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"Python code of its own \(brew.py\), which perpo never"):
        opened(configured(homebrew, trusts=False), tmp_path)
    assert warnings(capsys) == []
    vlm = opened(configured(homebrew), tmp_path)
    (warning,) = warnings(capsys)
    assert warning == (
        "warning: model.trust_remote_code: Python code of the model's author runs in this program "
        f"(brew.py of {homebrew})"
    )
    assert type(vlm.model).__name__ == "Homebrew"
    halved = vlm.model.get_output_embeddings()
    torch.testing.assert_close(halved(torch.ones(64)), 0.5 * halved.weight.sum(1))
    opened(configured(homebrew), tmp_path)
    assert warnings(capsys) == []  # it was said


@pytest.mark.parametrize("model_type", ["homebrew", "llava"])
def test_it_is_proven_like_any_other_whatever_it_calls_its_type(
    model_type: str, tmp_path: Path
) -> None:
    """LLaVA's own code needs no proof; no test has seen this code."""
    healthy = save_homebrew(tmp_path / "healthy", model_type=model_type)
    vlm = opened(configured(healthy), tmp_path)
    assert not vlm.is_tested and vlm.family.box_format is None
    assert vlm.way.why.startswith("it is exact on this model's own weights: shared prefix against")
    faulty = save_homebrew(tmp_path / "faulty", model_type=model_type, fault=FAULT)
    vlm = opened(configured(faulty), tmp_path)
    assert vlm.way.why.startswith("it is not exact on this model: shared prefix against")


def test_trust_counts_and_so_does_the_code(homebrew: Path, tmp_path: Path) -> None:
    _, settings = find_model(configured(homebrew), tmp_path)
    assert settings["trust_remote_code"] is True
    manifest = {"settings": settings, "notes": {"model_id": str(homebrew)}}
    cache = tmp_path / IDENTITY_CACHE
    assert model_difference(manifest, configured(homebrew), cache) is None
    (homebrew / "scale.py").write_text("SCALE = 0.25\n")
    _, changed = find_model(configured(homebrew), tmp_path)
    assert changed["model"] != settings["model"]
    difference = model_difference(manifest, configured(homebrew), cache)
    assert str(difference) == f"other files of the model {homebrew}"
    _, untrusted = find_model(configured(homebrew, trusts=False), tmp_path)
    assert "trust_remote_code" not in untrusted


def test_a_model_without_code_is_the_same_model(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path / "llava")
    (folder / "unused.py").write_text("1 / 0")
    (trusted, counts), (plain, settings) = (
        find_model(configured(folder, trusts=trusts), tmp_path) for trusts in (True, False)
    )
    assert counts == settings | {"trust_remote_code": True}
    assert trusted == plain


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_a_model_of_the_hub_needs_a_commit(revision: str | None) -> None:
    given = f"the revision '{revision}' does not fix which: a branch or a tag can move"
    if revision is None:
        given = "without a revision nothing fixes which"
    for find in (resolve_model, find_on_this_machine):
        with pytest.raises(ConfigError) as caught:
            find("someone/homebrew", revision, trust_remote_code=True)
        assert caught.value.what.endswith(f"someone/homebrew, but {given}")
        assert "set model.revision to the commit" in str(caught.value.fix)


def test_a_commit_of_the_hub_is_taken_with_its_code(
    homebrew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that an earlier run left without the code is not enough."""
    import huggingface_hub

    commit = "c" * 40
    snapshot = tmp_path / commit
    code = {name: (homebrew / name).read_text() for name in FILES}
    (homebrew / "brew.py").unlink()
    homebrew.rename(snapshot)
    asked: list[tuple[bool, bool]] = []

    def download(model_id: str, *, revision: str, **options: Any) -> str:
        here = bool(options.get("local_files_only"))
        asked.append((here, "*.py" in options["allow_patterns"]))
        if not here:
            for name, text in code.items():
                (snapshot / name).write_text(text)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find = {"revision": commit, "trust_remote_code": True}
    assert find_on_this_machine("someone/homebrew", **find) is None
    asked.clear()
    found = resolve_model("someone/homebrew", **find)
    assert (found.commit, found.own_code) == (commit, True)
    assert asked == [(True, True), (False, True)]
    assert find_on_this_machine("someone/homebrew", **find) == found


def test_code_of_another_repository_is_refused(homebrew: Path, tmp_path: Path) -> None:
    config = json.loads((homebrew / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "someone/else--brew.HomebrewConfig"
    (homebrew / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"from another repository \(someone/else\)") as caught:
        find_model(configured(homebrew), tmp_path)
    assert "remove someone/else-- from config.json" in str(caught.value.fix)


def test_code_of_another_repository_is_refused_in_a_tokenizers_older_settings(
    homebrew: Path, tmp_path: Path
) -> None:
    """`auto_map` is a list there, which transformers still reads."""
    file = homebrew / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"auto_map": ["someone/else--tok.Tok", None]}))
    with pytest.raises(InputError, match=r"from another repository \(someone/else\)") as caught:
        find_model(configured(homebrew), tmp_path)
    assert "remove someone/else-- from tokenizer_config.json" in str(caught.value.fix)


@pytest.mark.parametrize("absolute", [True, False])
def test_code_in_another_folder_is_refused(homebrew: Path, tmp_path: Path, absolute: bool) -> None:
    """It would run and not count: a local model is known by the files in its folder."""
    (homebrew / "code").mkdir()
    for name in FILES:
        (homebrew / name).rename(homebrew / "code" / name)
    at = homebrew / "code" if absolute else Path("code")
    config = json.loads((homebrew / "config.json").read_text())
    config["auto_map"] = {name: f"{at}/{one}" for name, one in CODE.items()}
    (homebrew / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"takes its code from another folder \(.*code/brew.py"):
        opened(configured(homebrew), tmp_path)


def test_a_generate_of_its_own_is_refused(homebrew: Path, tmp_path: Path) -> None:
    (homebrew / "custom_generate").mkdir()
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\ndef generate(model, **_): return 'mine'\n"
    (homebrew / own_code.GENERATE).write_text(code)
    with pytest.raises(InputError, match="own code replaces how answers are sampled"):
        opened(configured(homebrew), tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("trusts", [True, False])
def test_code_of_a_part_is_never_asked_about_on_the_terminal(
    tmp_path: Path, trusts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks, where its own class passes no word on, and runs the code after a `y`."""
    folder, ran = save_tiny_llava(tmp_path / "llava"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    named = {"auto_map": {"AutoModel": "part.Part"}, "_name_or_path": str(folder)}
    config["text_config"] = {"model_type": "aimv2_text_model", "tie_word_embeddings": False} | named
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "part.py").write_text(f"open({str(ran)!r}, 'w')\n")
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    resolved, _ = find_model(configured(folder, trusts=trusts), tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_without_weights(resolved)
    assert not asked and not ran.exists()


def test_the_warning_comes_before_the_code_that_checks_limits(
    homebrew: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (homebrew / "brew.py").read_text()
    (homebrew / "brew.py").write_text(f"import sys\nprint('it runs', file=sys.stderr)\n{code}")
    limited = configured(homebrew).model_copy(update={"max_tiles": 2})
    with pytest.raises(ConfigError):
        find_model(limited, tmp_path)
    said = capsys.readouterr().err
    assert 0 <= said.find("warning: model.trust_remote_code") < said.find("it runs")


def test_limits_of_a_model_that_is_not_trusted_are_one_error(
    homebrew: Path, tmp_path: Path
) -> None:
    untrusted = configured(homebrew, trusts=False).model_copy(update={"max_tiles": 2})
    with pytest.raises(InputError, match=r"Python code of its own \(brew.py\), which perpo never"):
        find_model(untrusted, tmp_path)


def test_a_folder_that_does_not_exist_is_no_model_of_the_hub(tmp_path: Path) -> None:
    missing = configured(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"The model directory .* does not exist"):
        find_model(missing, tmp_path)


def test_a_reference_model_is_pinned_by_its_own_setting(tmp_path: Path) -> None:
    trusted = ModelConfig(id="testbed", trust_remote_code=True)
    settings = TrainSettings(reference_model="someone/homebrew", reference_revision="main")
    run = SimpleNamespace(config=SimpleNamespace(model=trusted), scratch=tmp_path)
    with pytest.raises(ConfigError) as caught:
        task._reference_model(cast(Any, run), settings, "sha256:0", computes_here=False)
    assert "train.reference_model: model.trust_remote_code runs code of" in caught.value.what
    assert "then set train.reference_revision to the commit" in str(caught.value.fix)
    assert "give its folder as train.reference_model" in str(caught.value.fix)


def test_code_without_the_class_that_is_needed_is_named(homebrew: Path, tmp_path: Path) -> None:
    config = json.loads((homebrew / "config.json").read_text())
    del config["auto_map"]["AutoModelForImageTextToText"]
    (homebrew / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        opened(configured(homebrew), tmp_path)
    assert (
        "its own code has no class for AutoModelForImageTextToText, only brew.HomebrewConfig"
        in str(caught.value)
    )


def test_code_that_fails_is_one_error(homebrew: Path, tmp_path: Path) -> None:
    (homebrew / "scale.py").write_text("SCALE = undefined\n")
    with pytest.raises(InputError, match="NameError: name 'undefined' is not defined"):
        opened(configured(homebrew), tmp_path)


def test_other_processes_and_programs_get_the_same_code(
    homebrew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that prepare images, actors on other machines, ZeRO-3, `perpo doctor --model`."""
    resolved, _ = find_model(configured(homebrew), tmp_path)
    light = without_weights(opened(configured(homebrew), tmp_path)).model
    assert type(light).__name__ == "Homebrew" and light.device == torch.device("meta")
    assert load_without_weights(resolved).model.config.model_type == "homebrew"
    there = replace(resolved, chat=replace(resolved.chat, system_prompt="Be kind."))
    assert ray_actors._model_here(there) == there
    # What needs DeepSpeed is in tests/distributed; here only the config is read.
    monkeypatch.setattr(deepspeed, "HfDeepSpeedConfig", dict)
    with sharded_loading(read_zero_config("zero3"), resolved, "float32"):
        pass
    found = examine_model(configured(homebrew))
    assert found["code"] == "of its own, which runs (model.trust_remote_code): brew.py"
    assert found["family"] == "homebrew, not among the tested"


def test_a_merged_model_has_the_code_and_says_so(
    homebrew: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(homebrew)
    expected = opened(config, tmp_path)
    made = save_adapter_artifact(homebrew, tmp_path / "run/adapter/perpo", trust_remote_code=True)
    with_adapter = logprob(opened(config, tmp_path, made))
    assert abs(with_adapter - logprob(expected)) > 1e-2
    file, out = tmp_path / "run.yaml", tmp_path / "merged"
    file.write_text(
        f"run: r\nmodel: {{id: {homebrew}, trust_remote_code: true}}\n"
        "prepare: {train: &one {source: testbed, num_prompts: 2}, test: *one}\n"
    )
    words = ("merge", "--adapter", str(made), "--out", str(out))
    assert perpo(*words) == 2
    said = capsys.readouterr().err
    assert "with the model's own Python code (brew.py), which does not run without" in said
    assert "name the run's file with --config" in said and not out.exists()
    assert perpo(*words, "--config", str(file)) == 0, capsys.readouterr().err
    assert {file.name for file in out.glob("*.py")} == FILES
    assert logprob(opened(configured(out), tmp_path)) == pytest.approx(with_adapter, abs=1e-4)
    card = (out / "README.md").read_text()
    assert 'from_pretrained(name, dtype="auto", trust_remote_code=True)' in card
    assert "--trust-remote-code" in card and "read it first" in card


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)
