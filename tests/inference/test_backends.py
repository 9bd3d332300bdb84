"""The backends by name: one entry opens each, and the configuration knows exactly those."""

from pathlib import Path
from typing import Any, get_args

import pytest

from perpo_pipeline.config.backends import BACKENDS, BackendEntry
from perpo_pipeline.config.fingerprints import counted_settings
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.inference import backends
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.backends import choose_backend, open_backend
from perpo_pipeline.vlm.files import ResolvedModel


def test_the_configuration_accepts_exactly_the_backends_that_exist() -> None:
    accepted = get_args(SampleConfig.model_fields["backend"].annotation)
    assert sorted(accepted) == sorted(["auto", *BACKENDS])


@pytest.mark.parametrize("name", BACKENDS)
def test_every_entry_names_a_backend_class_and_settings_that_exist(name: str) -> None:
    factory = backends.pkgutil.resolve_name(BACKENDS[name].factory)
    assert callable(factory.sample) and callable(factory.notes) and callable(factory.close)
    assert set(BACKENDS[name].ignores) <= set(SampleConfig().result_settings())


class Recorded:
    """Stands for a new backend."""

    def __init__(self, setup: BackendSetup) -> None:
        self.setup = setup


def test_a_new_entry_is_opened_and_its_ignored_settings_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends.pkgutil, "resolve_name", {"mine:Backend": Recorded}.__getitem__)
    monkeypatch.setitem(BACKENDS, "mine", BackendEntry("mine:Backend", ignores=("served_model",)))
    setup = BackendSetup(
        ModelConfig(),
        ResolvedModel("testbed", tmp_path),
        {},
        SampleConfig().model_copy(update={"backend": "mine"}),
        tmp_path,
    )
    opened: Any = open_backend(setup)
    assert isinstance(opened, Recorded) and opened.setup is setup
    found = {"backend": "mine", "seed": 0, "model": "m", "dtype": "float32", "preprocess": "pad"}
    counted = counted_settings("samples", setup.settings, found)
    assert set(SampleConfig().result_settings()) - set(counted) == {"served_model"}


@pytest.mark.parametrize(
    ("device", "has_vllm", "has_cuda", "chosen"),
    [
        ("auto", True, True, "vllm"),
        ("cuda", True, True, "vllm"),
        ("auto", False, True, "transformers"),
        ("auto", True, False, "transformers"),
        ("cpu", True, True, "transformers"),
    ],
)
def test_auto_is_vllm_only_on_cuda_and_if_it_is_installed(
    device: str, has_vllm: bool, has_cuda: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_vllm else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    assert choose_backend(SampleConfig(), device) == chosen
    assert choose_backend(SampleConfig(), device, "nf4") == "transformers"
    assert choose_backend(SampleConfig(backend="openai", base_url="http://x/v1"), device) == (
        "openai"
    )
