"""A kernel that a model's config.json names is refused, and no function named there is used."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_llava
from transformers import modeling_utils

from perpo_pipeline.cli import main
from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.attention import SPLIT, attention_to_load
from perpo_pipeline.vlm.files import find_on_this_machine, resolve_model
from perpo_pipeline.vlm.hub_kernels import named_kernels
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights

KERNEL = "kernels-community/flash-attn3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def with_setting(model: Path, folder: Path, name: str, value: Any, part: str = "") -> Path:
    """A copy of the model whose config.json, or a part of it, has the setting."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    (config[part] if part else config)[name] = value
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes kernels from a hub with this function, and flash attention, too."""

    def refuse(name: str, **_: Any) -> None:
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", refuse)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("attn_implementation", KERNEL, ""),
        ("_attn_implementation", "paged|someone/kernel@main:function", ""),
        ("attn_implementation", {"": "sdpa", "vision_config": KERNEL}, ""),
        ("_attn_implementation", KERNEL, "vision_config"),
        ("experts_implementation", "sonicmoe", "text_config"),
    ],
)
def test_a_kernel_is_refused_wherever_the_model_is_looked_up(
    model: Path, tmp_path: Path, name: str, value: Any, part: str
) -> None:
    folder = with_setting(model, tmp_path / "m", name, value, part)
    kernel = value["vision_config"] if isinstance(value, dict) else value
    for look_up in (resolve_model, find_on_this_machine):
        for trusts in (False, True):  # it is not the model's own code
            with pytest.raises(InputError) as found:
                look_up(str(folder), trust_remote_code=trusts)
            assert f"names a kernel ({name}: {kernel})" in str(found.value)


def test_no_other_file_is_read_in_place_of_config_json(model: Path, tmp_path: Path) -> None:
    """transformers would read it, and it is not in the model's identity."""
    folder = with_setting(model, tmp_path / "m", "configuration_files", ["config.4.0.0.json"])
    with pytest.raises(InputError, match=r"names other files \(configuration_files\)"):
        resolve_model(str(folder))


def test_a_stage_says_so_in_one_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_setting(model, tmp_path / "m", "attn_implementation", KERNEL)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", str(folder)])
    assert ended.value.code == 2
    assert "remove attn_implementation from its config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "flash_attention_3"),
        ("_attn_implementation", "flash_attention_2"),
        ("_attn_implementation", "eager"),
    ],
)
def test_attention_is_perpo_s_whatever_config_json_says(
    model: Path, tmp_path: Path, name: str, value: str
) -> None:
    """flash_attention_2 is a kernel of a hub, too, where the package is not installed."""
    folder = with_setting(model, tmp_path / "m", name, value)
    resolved = resolve_model(str(folder))
    for vlm in (load_vlm(resolved, dtype="float32", device="cpu"), load_without_weights(resolved)):
        config: Any = vlm.model.config
        parts = (config, config.text_config, config.vision_config)
        assert [part._attn_implementation for part in parts] == ["sdpa"] * 3


def test_parts_beside_the_text_do_not_keep_a_function_of_config_json(model: Path) -> None:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model)
    config._attn_implementation = "flash_attention_2"
    config.text_config.attn_logit_softcapping = 30.0
    asked = attention_to_load(config)
    config._attn_implementation = asked
    assert config.text_config._attn_implementation == SPLIT
    assert config.vision_config._attn_implementation is None


def test_functions_of_transformers_are_no_kernels(model: Path, tmp_path: Path) -> None:
    for number, value in enumerate(("sdpa", "flash_attention_2", None, {"": "eager"})):
        folder = with_setting(model, tmp_path / str(number), "attn_implementation", value)
        assert named_kernels(folder) == {}
    folder = with_setting(model, tmp_path / "m", "experts_implementation", "grouped_mm")
    assert named_kernels(folder) == {}
    (folder / "config.json").write_text("{")
    assert named_kernels(folder) == {}
