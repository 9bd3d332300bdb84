"""Tests with the real vLLM on the CPU: `make test-vllm`, which sets PERPO_TEST_VLLM."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_commands import PRELOADED

IS_ASKED_FOR = "PERPO_TEST_VLLM" in os.environ
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
if IS_ASKED_FOR:
    # With `enforce_eager` vLLM still has a function compiled, by each process: that which finds the
    # ranks of drawn tokens, which nobody reads.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    PRELOADED.append("with_vllm.preloaded")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # from vLLM itself


@pytest.fixture(scope="session", autouse=True)
def _only_where_vllm_is() -> None:
    if not IS_ASKED_FOR:
        pytest.skip("needs the real vLLM: make test-vllm")
    importlib.import_module("with_vllm.preloaded")


@pytest.fixture(scope="session")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the directory of a tiny model of a family; each is written once per session."""
    written: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        from with_vllm.hub_models import save_hub_model

        if model_type not in written:
            directory = tmp_path_factory.mktemp(model_type)
            written[model_type] = save_hub_model(model_type, directory)
        return written[model_type]

    return get
