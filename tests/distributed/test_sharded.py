"""Weights cut over two real processes from the start (ZeRO-3): the whole model's numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_families import MODEL_TYPES, save_tiny_family

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("in_pieces.py")


def in_pieces(dtype: str, settings: str, *models: Path | str) -> dict[str, list[dict[str, Any]]]:
    """By the model, what both processes found."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed's ninja
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(SCRIPT),
            dtype,
            settings,
            *map(str, models),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": beside},
    )
    assert ran.returncode == 0, ran.stderr
    # Two processes may write into one line.
    lines = ran.stdout.replace("}{", "}\n{").splitlines()
    found: dict[str, list[dict[str, Any]]] = {str(model): [] for model in models}
    for line in lines:
        if line.startswith('{"rank"'):
            one = json.loads(line)
            found[one["model"]].append(one)
    assert all(sorted(one["rank"] for one in both) == [0, 1] for both in found.values()), ran.stdout
    return found


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every family in bf16, where rotary frequencies must stay in fp32 all the same."""
    folder = tmp_path_factory.mktemp("families")
    models = [save_tiny_family(model_type, folder / model_type) for model_type in MODEL_TYPES]
    found = in_pieces("bfloat16", "zero3", *models)
    return {Path(model).name: both for model, both in found.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_gives_its_numbers_in_pieces(
    model_type: str, families: dict[str, list[dict[str, Any]]]
) -> None:
    for found in families[model_type]:
        assert found["dtype"] == "{torch.bfloat16}"
        assert found["is_cut"] == [False, True]
        assert found["pieces"] == found["whole"]
        # Half of it each (pieces are rounded up), nothing whole but what a module needs, and that
        # only during its forward; twice, where a module's parent has weights of its own.
        assert found["all"] / 2 <= found["own"] < 0.51 * found["all"]
        assert found["before"] == found["after"] == 0
        assert found["largest"] <= found["most"] < 2 * found["largest"] < found["all"]


@pytest.mark.parametrize("settings", ["zero3", "zero3-offload"])
def test_float32_and_offload(settings: str) -> None:
    for found in in_pieces("float32", settings, "testbed")["testbed"]:
        assert found["dtype"] == "{torch.float32}"
        assert found["pieces"] == found["whole"]
        assert found["own"] < 0.51 * found["all"] and found["after"] == 0


def test_a_missing_weight_is_named_by_every_process(tmp_path: Path) -> None:
    model = save_tiny_family("llava", tmp_path / "torn")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    del weights[name]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for found in in_pieces("float32", "zero3", model)[str(model)]:
        assert "lacks 1 weights" in found["refused"] and "down_proj" in found["refused"]
