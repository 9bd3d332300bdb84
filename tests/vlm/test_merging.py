"""A merged model on disk: the results of base and adapter, the base's names and files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_adapters import save_adapter
from tiny_families import save_tiny_family
from tiny_models import noise_image, save_tiny_llava
from with_vllm.hub_models import FAMILIES, save_hub_model

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import merging
from perpo_pipeline.vlm.adapters import write_record
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.merging import merge_to_disk
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

ALL = ["language_model", "projector", "vision_tower"]


def load(directory: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu", adapter=adapter)


def merged(model: Path, adapter: Path, directory: Path, dtype: str = "float32") -> Path:
    cache = directory / "identity.json"
    return merge_to_disk(resolve_model(str(model)), adapter, dtype, directory, cache)


def logps(vlm: Vlm) -> torch.Tensor:
    prompt = encode_prompt(vlm, noise_image(1, 50, 30), "Where?")
    with torch.inference_mode():
        batch = pack_lists(vlm, [CompletionList(prompt, [[20, 21, 22], [30, 31]])])
        return packed_logps(vlm.model, batch)


def weights(directory: Path) -> dict[str, torch.Size]:
    with safe_open(directory / "model.safetensors", framework="pt") as stored:
        return {name: stored.get_tensor(name).shape for name in stored.keys()}  # noqa: SIM118


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return save_tiny_llava(tmp_path / "llava")


@pytest.fixture
def adapter(llava: Path, tmp_path: Path) -> Path:
    return save_adapter(llava, tmp_path / "adapter", ALL)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_the_results_of_base_and_adapter_and_the_bases_names(
    family: str, full: bool, tmp_path: Path
) -> None:
    model = save_hub_model(family, tmp_path / "model")
    adapter = save_adapter(model, tmp_path / "adapter", ALL, full=full)
    found = merged(model, adapter, tmp_path / "merged")
    assert weights(found) == weights(model)
    expected = logps(load(model, adapter))
    assert torch.allclose(logps(load(found)), expected, atol=1e-4)
    assert not torch.allclose(logps(load(model)), expected, atol=1e-2)


def test_weight_names_of_newly_saved_models_are_kept_too(tmp_path: Path) -> None:
    model = save_tiny_family("llava_next", tmp_path / "model")
    found = merged(model, save_adapter(model, tmp_path / "adapter", ALL), tmp_path / "merged")
    assert weights(found) == weights(model)


def test_all_other_files_are_copies_of_the_bases(
    llava: Path, adapter: Path, tmp_path: Path
) -> None:
    """Also a generation config that the library reads but refuses to write."""
    file = llava / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.1, "top_k": 1}))
    write_record(adapter, {"base_identity": load(llava).identity})
    (llava / "modeling_own.py").write_text("raise SystemExit")
    found = merged(llava, adapter, tmp_path / "merged")
    names = {file.name for file in llava.iterdir()} - {"modeling_own.py"}
    assert {file.name for file in found.iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (found / name).read_bytes() == (llava / name).read_bytes(), name


def test_it_is_written_once_per_adapter_and_dtype(
    llava: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merged(llava, adapter, tmp_path / "merged")
    half = merged(llava, adapter, tmp_path / "merged", "bfloat16")
    other = merged(llava, save_adapter(llava, tmp_path / "b", ALL, full=True), tmp_path / "merged")
    assert len({first, half, other}) == 3
    assert load(first).model.lm_head.weight.dtype == torch.float32
    with safe_open(half / "model.safetensors", framework="pt") as stored:
        assert stored.get_tensor("language_model.lm_head.weight").dtype == torch.bfloat16

    def refuse(*args: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(merging, "write_merged", refuse)
    assert merged(llava, adapter, tmp_path / "merged") == first


def test_the_remains_of_a_killed_run_are_not_used_as_a_model(
    llava: Path, adapter: Path, tmp_path: Path
) -> None:
    found = merged(llava, adapter, tmp_path / "merged")
    part = found.rename(found.with_name(f".{found.name}.part"))
    (part / "model.safetensors").write_bytes(b"half")
    (part / "model-00002-of-00002.safetensors").write_bytes(b"half")
    assert merged(llava, adapter, tmp_path / "merged") == found
    assert weights(found) == weights(llava)
    assert not part.exists()
    assert not (found / "model-00002-of-00002.safetensors").exists()


def test_an_adapter_of_another_base_is_refused(llava: Path, adapter: Path, tmp_path: Path) -> None:
    write_record(adapter, {"base_identity": "sha256:other"})
    with pytest.raises(ArtifactError, match="another base model"):
        merged(llava, adapter, tmp_path / "merged")


def test_weight_names_that_the_base_lacks_are_refused(
    llava: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = merging._weight_names
    monkeypatch.setattr(
        merging, "_weight_names", lambda folder: names(folder) if folder == llava else {"x"}
    )
    with pytest.raises(ArtifactError, match="first: x"):
        merged(llava, adapter, tmp_path / "merged")
    assert [path for path in (tmp_path / "merged").iterdir() if path.is_dir()] == []
