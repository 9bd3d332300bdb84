"""Cards that cannot compute what the settings ask for, with a faked torch.cuda: one message each,
before any download or load."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from perpo_pipeline.cli import main
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.hardware import this_machine
from perpo_pipeline.vlm.cards import (
    Card,
    check_card,
    check_cards,
    unlike_cards,
    visible_cards,
    why_no_cuda,
)

H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB)
RTX4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB)
T4 = Card("Tesla T4", (7, 5), 15 * GIB)
V100 = Card("Tesla V100-SXM2-16GB", (7, 0), 16 * GIB)
ARCHS = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com"
)
CONFIG = """
run: r
model: {id: someone/never-downloaded, %s}
prepare:
  train: {source: testbed, num_prompts: 2}
  test: {source: testbed, num_prompts: 2}
sample: {num_samples: 2, max_new_tokens: 4, backend: transformers}
"""
Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Let torch see these cards; none of them: let it fail to use one, for the reason `why`."""

    def see(*cards: Card, why: str = "", cuda: str | None = "13.0", archs: Any = ARCHS) -> None:
        def refuse() -> None:
            raise RuntimeError(why)

        def is_available() -> bool:
            if why:
                warnings.warn(f"CUDA initialization: {why}", stacklevel=2)
            return bool(cards)

        found = [
            SimpleNamespace(
                name=c.name, major=c.capability[0], minor=c.capability[1], total_memory=c.memory
            )
            for c in cards
        ]
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: found[i])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
        monkeypatch.setattr(torch.cuda, "init", refuse)

    return see


def model(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(settings)


@pytest.mark.parametrize(("dtype", "why"), [("auto", "auto means"), ("bfloat16", "bfloat16\n")])
def test_a_card_without_bfloat16_is_refused(fake: Fake, dtype: str, why: str) -> None:
    fake(H100, T4)
    check_cards(model(dtype=dtype))
    with pytest.raises(ConfigError, match=r"card 1, Tesla T4 \(compute capability 7.5\)") as caught:
        check_cards(model(dtype=dtype), 2)
    assert why in str(caught.value) and "set model.dtype: float32" in str(caught.value.fix)
    check_cards(model(dtype="float32"), 2)
    check_cards(model(dtype=dtype, device="cpu"), 2)


@pytest.mark.parametrize(
    ("card", "quantization", "fix"),
    [
        (RTX4090, "int8", None),
        (T4, "int8", None),
        (V100, "nf4", None),
        (V100, "int8", "set model.quantization: nf4"),
        (Card("GTX 960", (5, 2), 4 * GIB), "nf4", "remove model.quantization"),
    ],
)
def test_a_quantisation_needs_a_card_that_has_it(
    fake: Fake, card: Card, quantization: str, fix: str | None
) -> None:
    fake(card, archs=[])
    if fix is None:
        check_card(card, "float32", quantization)
        return
    with pytest.raises(
        ConfigError, match=f"cannot compute with model.quantization: {quantization}"
    ):
        check_card(card, "float32", quantization)
    with pytest.raises(ConfigError) as caught:
        check_card(card, "float32", quantization)
    assert str(caught.value.fix).startswith(fix)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((8, 0), True), ((8, 9), True), ((12, 0), True), ((6, 1), False), ((7, 2), True)],
)
def test_a_card_needs_code_in_the_build_of_torch(
    fake: Fake, capability: tuple[int, int], runs: bool
) -> None:
    """sm_86 binaries run on 8.9, compute_90 is compiled for 12.0, nothing runs on 6.1."""
    card = Card("some", capability, GIB)
    fake(card)
    if runs:
        check_card(card, "float32", None)
        return
    with pytest.raises(ConfigError, match=r"not among those that torch .* was built for: sm_70"):
        check_card(card, "float32", None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_driver_that_is_too_old_is_no_reason_to_use_the_cpu_silently(
    fake: Fake, device: str
) -> None:
    fake(why=OLD_DRIVER)
    with pytest.raises(ConfigError) as caught:
        check_cards(model(device=device))
    said = str(caught.value)
    assert "too old: it supports CUDA 12.4, and torch" in said and "for CUDA 13.0" in said
    assert "update the NVIDIA driver" in said and "model.device: cpu computes without" in said
    check_cards(model(device="cpu"))


@pytest.mark.parametrize(
    ("why", "cuda", "found"),
    [
        ("Found no NVIDIA driver on your system. Please check that", "13.0", "Found no NVIDIA"),
        ("No CUDA GPUs are available", "13.0", "No CUDA GPUs are available"),
        ("not asked", None, f"torch {torch.__version__} is a build without CUDA"),
    ],
)
def test_without_a_card_auto_is_the_cpu_and_cuda_an_error_with_the_reason(
    fake: Fake, why: str, cuda: str | None, found: str
) -> None:
    fake(why=why, cuda=cuda)
    check_cards(model(device="auto"))
    assert str(why_no_cuda()).startswith(found)
    with pytest.raises(ConfigError, match="torch sees no CUDA device") as caught:
        check_cards(model(device="cuda"))
    assert found in caught.value.what and "install a CUDA build" in str(caught.value.fix)


def test_unlike_cards_are_named_and_the_smallest_counts(fake: Fake) -> None:
    fake(H100, RTX4090)
    assert visible_cards() == [H100, RTX4090]
    said = str(unlike_cards(visible_cards()))
    assert "0: NVIDIA H100 80GB HBM3 (80 GiB), 1: NVIDIA GeForce RTX 4090 (24 GiB)" in said
    assert this_machine("auto").memory == 24 * GIB
    assert unlike_cards([H100]) is unlike_cards([]) is unlike_cards([H100, H100]) is None
    a_bit_less = Card(H100.name, H100.capability, round(79.2 * GIB))  # another display, ECC
    assert unlike_cards([H100, a_bit_less]) is None
    assert unlike_cards([H100, Card(H100.name, H100.capability, 94 * GIB)])


@pytest.mark.parametrize(
    ("settings", "cards", "said"),
    [
        ("dtype: auto", [T4], "does not compute in bfloat16, which model.dtype: auto means"),
        ("device: auto", [], "the NVIDIA driver is too old"),
    ],
)
@pytest.mark.parametrize("stage", ["sample", "ask"])
def test_nothing_is_downloaded_for_a_card_that_cannot_use_it(
    fake: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: str,
    cards: list[Card],
    said: str,
    stage: str,
) -> None:
    """A request to the hub would be a second error, of the network."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(CONFIG % settings)
    with pytest.raises(SystemExit):
        main(["prepare", "--config", "r.yaml", "--quiet"])
    Image.new("RGB", (8, 8)).save("a.png")
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: pytest.fail("asked"))
    fake(*cards, why="" if cards else OLD_DRIVER)
    arguments = ["sample"] if stage == "sample" else ["ask", "a.png", "where?"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "r.yaml"])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err
    assert err.count("fix:") == 1
