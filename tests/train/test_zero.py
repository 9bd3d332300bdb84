"""DeepSpeed settings by name, and the errors for missing settings or packages."""

import json
import shutil
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import Qwen3_5Config

from perpo_pipeline.errors import ArtifactError, ConfigError, MissingDependencyError
from perpo_pipeline.train.checkpoints import WHOLE, Saver, last_complete, remove_incomplete
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.sharded_weights import sharded_loading
from perpo_pipeline.train.zero import (
    check_installed,
    complete_zero_config,
    offloads,
    read_zero_config,
    zero_stage,
)


@pytest.mark.parametrize(
    ("name", "stage", "away"),
    [("zero2", 2, False), ("zero3", 3, False), ("zero3-offload", 3, True)],
)
def test_settings_are_found_by_name(name: str, stage: int, away: bool) -> None:
    config = read_zero_config(name)
    assert (zero_stage(config), offloads(config)) == (stage, away)
    beside = Path(__file__).parents[2] / "configs" / "deepspeed" / f"{name}.json"
    assert read_zero_config(str(beside)) == config
    assert zero_stage(None) == 0


def test_recurrent_layers_are_refused_under_zero_3_before_weights_are_read(tmp_path: Path) -> None:
    Qwen3_5Config().save_pretrained(tmp_path)  # a config alone
    resolved = cast(Any, SimpleNamespace(path=tmp_path, own_code=False))
    with (
        pytest.raises(ConfigError, match=r"'qwen3_5' model: .* \(linear_attention\)") as caught,
        sharded_loading(read_zero_config("zero3"), resolved, "float32"),
    ):
        pass
    assert "train.deepspeed: zero2" in str(caught.value.fix)
    with sharded_loading(read_zero_config("zero2"), resolved, "float32"):
        pass


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not valid JSON"),
        ("[]", "zero_optimization.stage"),
        ("{}", "zero_optimization.stage"),
        ('{"zero_optimization": {"stage": 0}}', "zero_optimization.stage"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {}, "fp16": {}}', "fp16"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}', "gradient_clipping"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_zero_config(str(path))
    assert fault in str(caught.value) and str(path) in str(caught.value)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="zero9") as caught:
        read_zero_config("zero9")
    assert "zero3-offload" in str(caught.value)


def test_precision_and_automatic_sizes_are_filled_in() -> None:
    given: dict[str, Any] = {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_param_persistence_threshold": 5,
        },
        "bf16": {"enabled": "auto"},
    }
    before = json.dumps(given)
    found = complete_zero_config(given, dtype=torch.bfloat16, hidden_size=64)
    assert found["bf16"] == {"enabled": True}
    assert found["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 4096,
        "stage3_param_persistence_threshold": 5,
    }
    assert found["gradient_clipping"] == found["train_batch_size"] == "auto", "not DeepSpeed's own"
    assert json.dumps(given) == before
    assert not complete_zero_config(given, dtype=torch.float32, hidden_size=64)["bf16"]["enabled"]


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    zero3 = read_zero_config("zero3")
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        check_installed(zero3)
    assert "pip install -c constraints.txt -e '.[deepspeed]'" in str(caught.value)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "ninja" else "/bin/" + tool)
    check_installed(zero3)
    with pytest.raises(MissingDependencyError, match="ninja is missing") as caught:
        check_installed(read_zero_config("zero3-offload"))
    assert "apt-get install g++ ninja-build" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "asked", "fits"),
    [
        (Saver(1, 0), Saver(1, 0), True),
        (Saver(2, 3), Saver(2, 3), True),
        (Saver(2, 3), Saver(4, 3), False),
        (Saver(2, 3), Saver(2, 2), False),
        (Saver(2, 3), Saver(1, 0), False),
        (Saver(1, 0), Saver(2, 3), False),
    ],
)
def test_zeros_checkpoints_fit_the_processes_that_wrote_them(
    written: Saver, asked: Saver, fits: bool
) -> None:
    assert asked.can_resume_from(written) is fits


def test_a_checkpoint_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    marker = tmp_path / "checkpoint-3" / WHOLE
    marker.write_text('{"processes": 1, "zero_stage": 0, "version": "aaaa"}')
    assert last_complete(tmp_path, Saver(version="aaaa"), World()) == str(marker.parent)
    with pytest.raises(ArtifactError, match=r"belongs to another training \(aaaa, not bbbb\)"):
        last_complete(tmp_path, Saver(version="bbbb"), World())
    marker.write_text('{"processes": 1, "zero_stage": 0}')  # as an earlier version wrote it
    assert last_complete(tmp_path, Saver(version="bbbb"), World()) == str(marker.parent)


def test_only_complete_checkpoints_count_and_old_markers_mean_one_process(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-3" / WHOLE).write_text("whole\n")
    (tmp_path / "checkpoint-6" / WHOLE).write_text('{"processes": 1, "zero_stage": 0}\n')
    remove_incomplete(tmp_path)
    newest = last_complete(tmp_path, Saver(), World())
    assert newest == str(tmp_path / "checkpoint-6") and not (tmp_path / "checkpoint-9").exists()
    shutil.rmtree(tmp_path / "checkpoint-6")
    assert last_complete(tmp_path, Saver(), World()) == str(tmp_path / "checkpoint-3")
    assert last_complete(tmp_path / "none", Saver(), World()) is None
