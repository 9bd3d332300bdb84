"""Weights that two real processes shard from the start (ZeRO-3): the whole model's numbers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from distributed import forking
from forked_commands import ForkedCommand
from safetensors.torch import load_file, save_file
from tiny_families import MODEL_TYPES, save_tiny_family

pytestmark = pytest.mark.distributed

Found = dict[str, list[dict[str, Any]]]


def run_both(folder: Path, *cases: str) -> Found:
    """What both processes found, by case."""
    out, err = folder / "out", folder / "err"
    command = ForkedCommand(
        forking.compare_sharded,
        [cases],
        folder=folder,
        environment=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        out=out,
        err=err,
    )
    try:
        assert command.wait(300) == 0, err.read_text()
    finally:
        command.kill()
    # Two processes may write into one line.
    printed = out.read_text().replace("}{", "}\n{")
    found: Found = {case: [] for case in cases}
    for line in printed.splitlines():
        if line.startswith('{"rank"'):
            one = json.loads(line)
            found[one["case"]].append(one)
    assert all(sorted(one["rank"] for one in both) == [0, 1] for both in found.values()), printed
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All cases in one start; by the family, the settings, or `torn` for a missing weight.

    Families are compared in bf16, in which rotary frequencies must stay in fp32 all the same.
    """
    folder = tmp_path_factory.mktemp("families")
    models = {
        model_type: save_tiny_family(model_type, folder / model_type) for model_type in MODEL_TYPES
    }
    cases = {name: f"bfloat16:zero3:{model}" for name, model in models.items()}
    cases |= {settings: f"float32:{settings}:testbed" for settings in ("zero3", "zero3-offload")}
    cases["torn"] = f"float32:zero3:{remove_weight(folder / 'torn')}"
    by_case = run_both(folder, *cases.values())
    return {name: by_case[case] for name, case in cases.items()}


def remove_weight(folder: Path) -> Path:
    """A model without one of its weights."""
    model = save_tiny_family("llava", folder)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    del weights[name]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_gives_the_same_numbers_when_sharded(model_type: str, found: Found) -> None:
    for one in found[model_type]:
        assert one["dtype"] == "{torch.bfloat16}"
        assert one["is_sharded"] == [False, True]
        assert one["sharded"] == one["whole"]
        # Each process has half (shards are rounded up). Nothing is whole but what a module needs,
        # and only during its forward; twice that, if a module's parent has weights of its own.
        assert one["all"] / 2 <= one["own"] < 0.51 * one["all"]
        assert one["before"] == one["after"] == 0
        assert one["largest"] <= one["most"] < 2 * one["largest"] < one["all"]


@pytest.mark.parametrize("settings", ["zero3", "zero3-offload"])
def test_float32_and_offload(settings: str, found: Found) -> None:
    for one in found[settings]:
        assert one["dtype"] == "{torch.float32}"
        assert one["sharded"] == one["whole"]
        assert one["own"] < 0.51 * one["all"] and one["after"] == 0


def test_every_process_names_a_missing_weight(found: Found) -> None:
    for one in found["torn"]:
        assert "lacks 1 weights" in one["refused"] and "down_proj" in one["refused"]
