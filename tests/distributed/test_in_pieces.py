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


def in_pieces(model: str, dtype: str = "float32", settings: str = "zero3") -> list[dict[str, Any]]:
    """What both processes found, by rank."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed's ninja
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(SCRIPT), model, dtype, settings],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": beside},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    # Two processes may write into one line.
    lines = ran.stdout.replace("}{", "}\n{").splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"rank"')]
    assert len(found) == 2, ran.stdout
    return sorted(found, key=lambda one: one["rank"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_gives_its_numbers_in_pieces(model_type: str, folder: Path) -> None:
    """In bf16, where rotary frequencies must stay in fp32 all the same."""
    for found in in_pieces(str(save_tiny_family(model_type, folder / model_type)), "bfloat16"):
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
    for found in in_pieces("testbed", "float32", settings):
        assert found["dtype"] == "{torch.float32}"
        assert found["pieces"] == found["whole"]
        assert found["own"] < 0.51 * found["all"] and found["after"] == 0


def test_a_missing_weight_is_named_by_every_process(folder: Path) -> None:
    model = save_tiny_family("llava", folder / "torn")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    del weights[name]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for found in in_pieces(str(model)):
        assert "lacks 1 weights" in found["refused"] and "down_proj" in found["refused"]
