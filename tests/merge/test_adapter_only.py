"""`perpo merge --adapter-only`: an adapter that others load with PEFT on the base of a hub."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from tiny_adapters import save_adapter_artifact
from tiny_models import noise_image, save_tiny_llava
from transformers import AutoModelForImageTextToText

from perpo_pipeline.cli import main
from perpo_pipeline.merge import merge_adapter as stage
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import adapters
from perpo_pipeline.vlm.files import ResolvedModel, resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

HUB, COMMIT = "lab/tiny-llava", "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "perpo_adapter.json",
    "perpo_merge.json",
}


def merge(adapter: Path, out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["merge", "--adapter", str(adapter), "--out", str(out), "--adapter-only", *arguments])
    return int(ended.value.code or 0)


def load(model: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(model)), dtype="float32", device="cpu", adapter=adapter)


def logps(vlm: Vlm) -> torch.Tensor:
    prompt = encode_prompt(vlm, noise_image(1, 50, 30), "Where?")
    with torch.inference_mode():
        batch = pack_lists(vlm, [CompletionList(prompt, [[20, 21, 22], [30, 31]])])
        return packed_logps(vlm.model, batch)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("secret-place") / "my-llava")


@pytest.fixture(scope="module")
def adapter(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter_artifact(llava, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def from_hub(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base as if it had come from a hub."""
    found = ResolvedModel(llava, HUB, commit=COMMIT)
    monkeypatch.setattr(stage, "find_base", lambda *_, **__: found)


def test_peft_loads_it_onto_the_base_of_the_hub(
    llava: Path, adapter: Path, from_hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    assert merge(adapter, out) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n" and "the adapter alone, not merged" in printed.err
    assert {file.name for file in out.iterdir()} == FILES
    config = PeftConfig.from_pretrained(str(out))
    assert (config.base_model_name_or_path, config.revision) == (HUB, COMMIT)
    for file in out.glob("*.*"):
        assert b"secret-place" not in file.read_bytes(), file

    expected = logps(load(llava, adapter))
    plain = load(llava)
    assert (logps(plain) - expected).abs().max() > 1e-2
    loader: Any = AutoModelForImageTextToText
    base = loader.from_pretrained(llava, dtype=torch.float32)
    plain.model = PeftModel.from_pretrained(base, str(out)).eval()
    assert (logps(plain) - expected).abs().max() < 1e-5

    card = (out / "README.md").read_text()
    assert ModelCard(card).data.to_dict() == {
        "base_model": HUB,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["perpo", "lora"],
    }
    assert f'from_pretrained(base, dtype="float32", revision="{COMMIT}")' in card
    assert f"vllm serve {HUB} --revision {COMMIT} --dtype float32" in card
    assert "--enable-lora --max-lora-rank 8 --lora-modules perpo=FOLDER" in card
    assert '`"add_special_tokens": true`' in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code and compile(code[1], "card", "exec") and "merged" not in card.split("##")[0]

    assert merge(adapter, out) == 0 and "up to date" in capsys.readouterr().err
    assert json.loads((out / "perpo_merge.json").read_text())["form"] == "adapter"


def test_a_base_folder_is_named_by_no_path(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    assert merge(adapter, out) == 0
    assert PeftConfig.from_pretrained(str(out)).base_model_name_or_path is None
    card = (out / "README.md").read_text()
    assert "base_model" not in ModelCard(card).data.to_dict() and "`my-llava`" in card
    assert 'base = "FOLDER of the base model"' in card and "vllm serve BASE --dtype" in card
    for file in out.glob("*.*"):
        assert b"secret-place" not in file.read_bytes(), file


def test_where_vllm_is_not_exact_the_card_says_so(llava: Path, tmp_path: Path) -> None:
    own = save_adapter_artifact(llava, tmp_path / "a", ("language_model", "projector"))
    assert merge(own, tmp_path / "adapter") == 0
    card = (tmp_path / "adapter/README.md").read_text()
    assert "vLLM would not apply this adapter exactly" in card and "lora-modules" not in card


def test_the_licence_of_the_base_is_named_with_its_text(llava: Path) -> None:
    card = "---\nlicense: other\nlicense_name: lab-licence\nlicense_link: {}\n---\n"
    (llava / "README.md").write_text(card.format("https://lab.example/LICENSE"))
    named = {"license": "other", "license_name": "lab-licence"}
    assert stage._license(llava) == {**named, "license_link": "https://lab.example/LICENSE"}
    (llava / "README.md").write_text(card.format("LICENSE"))  # of the base's repository
    assert stage._license(llava) == named
    (llava / "README.md").unlink()
    assert stage._license(llava) == {}


def test_what_cannot_travel_is_one_error(
    llava: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = save_adapter_artifact(llava, tmp_path / "full", full=True)
    assert merge(full, tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "trained in full (train.tuning: full)" in said and "perpo merge --adapter" in said
    assert merge(adapter, tmp_path / "out", "--dtype", "bfloat16") == 2
    assert "--adapter-only merges nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge", "--adapter", str(adapter), "--out", str(tmp_path / "merged")])
    capsys.readouterr()
    assert merge(adapter, tmp_path / "merged") == 2
    said = capsys.readouterr().err
    assert "already holds another merge: a merged model, not an adapter alone\n" in said


def test_a_base_of_a_hub_is_named_by_its_id_and_no_hub_is_asked(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.utils import save_and_load

    def refuse(*_: object, **__: object) -> bool:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", refuse)
    version = save_adapter_artifact(llava, tmp_path / "a")
    before = json.loads((version / "adapter_config.json").read_text())
    adapters.name_base(version, ResolvedModel(llava, HUB, commit=COMMIT))
    found = PeftConfig.from_pretrained(str(version))
    assert (found.base_model_name_or_path, found.revision) == (HUB, COMMIT)
    adapters.name_base(version, ResolvedModel(llava, str(llava)))
    after = json.loads((version / "adapter_config.json").read_text())
    assert before.pop("base_model_name_or_path") == str(llava)
    assert after.pop("base_model_name_or_path") is None and after == before
    adapters.name_base(
        tmp_path, ResolvedModel(llava, HUB)
    )  # weights trained in full have no configuration
    assert not (tmp_path / "adapter_config.json").exists()


def test_it_is_pushed_whole(hub: FakeHub, adapter: Path, from_hub: None, tmp_path: Path) -> None:
    assert merge(adapter, tmp_path / "out", "--push-to-hub", "lab/adapter", "--private") == 0
    assert set(hub.files["lab/adapter"]) == FILES and hub.private == {"lab/adapter": True}
