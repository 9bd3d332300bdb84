"""How vLLM is imported and started, tested with stand-ins: vLLM itself is not needed."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError, MissingDependencyError
from perpo_pipeline.inference import vllm_backend, vllm_engine
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.layers import LayerKinds, Reach


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide an installed vLLM, and restore the environment variables afterwards."""
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(vllm_engine, "ENVIRONMENT", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def open_backend(path: Path) -> vllm_backend.VllmBackend:
    resolved = ResolvedModel(str(path), path)
    settings = {"dtype": "float32", "preprocess": "processor"}
    return vllm_backend.VllmBackend(
        BackendSetup(ModelConfig(), resolved, settings, SampleConfig(), path)
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "raise ImportError('libcudart.so.13: cannot open shared object file\\nand more')",
            "libcudart.so.13: cannot open shared object file",
        ),
        ("raise OSError('libtorch_cuda.so: undefined symbol')", "libtorch_cuda.so: undefined"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
        ("import no_such_package_of_vllm", "No module named 'no_such_package_of_vllm'"),
    ],
)
def test_a_broken_vllm_is_reported_in_one_line(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_backend(tmp_path)
    assert said in caught.value.what and "\n" not in caught.value.what
    assert caught.value.fix == "repair the installation, or choose the backend transformers"


def test_a_missing_vllm_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        open_backend(tmp_path)
    assert "pip install" in str(caught.value.fix)


def test_the_engine_is_in_this_process_whatever_the_environment_says() -> None:
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    with pytest.raises((MissingDependencyError, ConfigError)):
        vllm_engine.import_vllm("vllm.no_such_module")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


class TestStart:
    def start(
        self, monkeypatch: pytest.MonkeyPatch, engine: Any, *, is_cpu: bool, **model: bool
    ) -> Any:
        monkeypatch.setattr(vllm_engine, "is_cpu_build", lambda: is_cpu)
        settings = SampleConfig(gpu_memory_utilization=0.4)
        return vllm_engine.start_engine(
            SimpleNamespace(LLM=engine),
            Path("model"),
            "float32",
            None,
            settings,
            **model,
        )

    def test_the_share_of_memory_is_set_only_on_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = self.start(monkeypatch, lambda path, **settings: settings, is_cpu=False)
        assert given["gpu_memory_utilization"] == 0.4
        given = self.start(monkeypatch, lambda path, **settings: settings, is_cpu=True)
        assert "gpu_memory_utilization" not in given

    @pytest.mark.parametrize("own_code", [False, True])
    def test_code_of_the_model_runs_only_where_it_is_trusted(
        self, monkeypatch: pytest.MonkeyPatch, own_code: bool
    ) -> None:
        start = lambda path, **settings: settings  # noqa: E731
        given = self.start(monkeypatch, start, is_cpu=True, own_code=own_code)
        assert given["trust_remote_code"] is own_code

    @pytest.mark.parametrize(
        ("is_cpu", "has_states", "cached"),
        [(True, False, True), (True, True, False), (False, True, True)],
    )
    def test_prefixes_are_cached_unless_the_cpu_build_cannot_keep_states(
        self, monkeypatch: pytest.MonkeyPatch, is_cpu: bool, has_states: bool, cached: bool
    ) -> None:
        start = lambda path, **settings: settings  # noqa: E731
        given = self.start(monkeypatch, start, is_cpu=is_cpu, has_states=has_states)
        assert given["enable_prefix_caching"] is cached

    def test_images_that_see_both_ways_are_refused_on_the_cpu(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Gemma 3's: vLLM's CPU build computes them as text, without a word."""
        layers = LayerKinds({"full_attention": Reach(ahead=True)})
        for is_cpu in (True, False):
            monkeypatch.setattr(vllm_engine, "is_cpu_build", lambda is_cpu=is_cpu: is_cpu)
            vllm_engine.check_layers(LayerKinds({"full_attention": Reach(window=8)}), "llava")
            if not is_cpu:
                vllm_engine.check_layers(layers, "gemma3")
                continue
            with pytest.raises(ConfigError, match="in gemma3 models the tokens of an image see"):
                vllm_engine.check_layers(layers, "gemma3")

    def test_an_engine_that_cannot_start_says_what_to_change(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: str, **settings: Any) -> None:
            raise ValueError("Free memory on device is less than desired")

        with pytest.raises(ConfigError, match="Free memory on device") as caught:
            self.start(monkeypatch, fail, is_cpu=False)
        fix = str(caught.value.fix)
        for word in ("gpu_memory_utilization", "--tensor-parallel-size", "openai", "transformers"):
            assert word in fix
