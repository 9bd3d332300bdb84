"""The checks of the cards, with a faked nvidia-smi and faked versions; arithmetic on the CPU."""

import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from perpo_pipeline.doctor import card, packages
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.machine import GIB
from perpo_pipeline.vlm.cards import Card

CARD = (
    "NVIDIA {name}, {driver}, {total}, {used}, 9.0, 5, 16, 700.00, 31, Default, Disabled, Enabled"
)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(*cards: dict[str, str]) -> None:
        usual = {"name": "H200", "driver": "580.159.04", "total": "143771", "used": "12"}
        rows = "\n".join(CARD.format(**usual | one) for one in cards)
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<'E'\n{rows}\nE\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


def test_facts_of_each_card_are_shown(smi) -> None:
    smi({}, {"name": "H100", "total": "81559"})
    found = card.cards("cuda")
    assert found.state == "ok"
    assert found.text == (
        "0: NVIDIA H200, 140 GiB, sm_9.0, PCIe 5 x16, 700.00 W; "
        "1: NVIDIA H100, 80 GiB, sm_9.0, PCIe 5 x16, 700.00 W"
    )
    assert found.figures["cards"][1]["memory.total"] == "81559"


def test_memory_that_other_programs_use_is_a_failure(smi) -> None:
    smi({}, {"used": "61440"})
    found = card.cards("cuda")
    assert (found.state, found.text) == (
        "failed",
        "60 GiB of card 1 are used by other programs",
    )
    assert "nvidia-smi" in str(found.fix)


def test_a_card_that_gives_no_number_for_its_memory_is_no_failure(smi) -> None:
    """As those that share the host's memory: nvidia-smi writes [N/A]."""
    smi({"name": "GB10", "total": "[N/A]", "used": "[N/A]"})
    found = card.cards("cuda")
    assert (found.state, found.text[:20]) == ("ok", "0: NVIDIA GB10, [N/A")


@pytest.mark.parametrize(
    ("driver", "cuda", "state"),
    [
        ("580.159.04", "13.0", "ok"),
        ("580.65.05", "13.0", "failed"),
        ("575.51.03", "12.8", "ok"),
        ("470.57.02", "12.8", "failed"),
        ("470.57.02", "14.0", "ok"),  # a CUDA whose oldest driver is not known
    ],
)
def test_a_driver_that_is_too_old_for_torchs_cuda_is_a_failure(
    smi, monkeypatch: pytest.MonkeyPatch, driver: str, cuda: str, state: str
) -> None:
    smi({"driver": driver})
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(card, "misfit_of_vllm", lambda: None)
    found = card.driver("cuda")
    assert found.state == state
    assert found.figures["driver"] == driver and found.figures["cuda"] == cuda
    if state == "failed":
        needed = card.OLDEST_DRIVER[int(cuda.split(".")[0])]
        assert f"needs the driver {needed}" in found.text and needed in str(found.fix)


def test_a_vllm_for_another_torch_is_a_failure_and_the_pinned_one_is_named(
    smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi({})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(card, "installed_version", lambda name: None)
    monkeypatch.setattr(card, "misfit_of_vllm", lambda: None)
    assert "vllm not installed (pinned: ==" in card.driver("cuda").text
    monkeypatch.setattr(card, "misfit_of_vllm", lambda: ("vllm 9 wants torch 8", "pip install 8"))
    found = card.driver("cuda")
    assert found.state == "failed" and found.fix == "pip install 8"
    assert found.text.endswith("vllm 9 wants torch 8")
    assert packages.pinned("vllm") and packages.pinned("nosuch") is None


def test_a_product_in_bfloat16_is_measured_and_compared() -> None:
    found = card.arithmetic("cpu")
    assert found.state == "ok", found.text
    assert found.figures["tflops"] > 0 and 1e-4 < found.figures["relative_error"] < card.ROUNDING


def test_a_wrong_product_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "ROUNDING", 1e-6)
    assert card.arithmetic("cpu").state == "failed"


def test_a_card_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "visible_cards", lambda: [Card("Tesla T4", (7, 5), 16 * GIB)])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    with pytest.raises(ConfigError, match=r"card 0, Tesla T4 .* does not compute in bfloat16"):
        card.arithmetic("cuda")


def test_copies_are_timed_and_cards_of_unlike_size_are_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert card.memory("cpu").figures["to_device_bytes_per_s"] > 0
    monkeypatch.setattr(card, "SLOWEST_COPY", 1e15)
    assert card.memory("cpu").state == "failed"
    monkeypatch.setattr(card, "unlike_cards", lambda cards: "the 2 cards are unlike")
    assert card.memory("cpu").text == "the 2 cards are unlike"


def test_shared_memory_of_a_container_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(card.shutil, "disk_usage", lambda path: usage(0, 0, 64 * 2**20))
    found = card.shared_memory("cuda")
    assert found.state == "failed" and found.text.startswith("64 MiB free, image workers need 256")
    assert "--shm-size" in str(found.fix) and "train.num_workers: 0" in str(found.fix)
    monkeypatch.setattr(card.shutil, "disk_usage", lambda path: usage(0, 0, 2**31))
    assert card.shared_memory("cuda").state == "ok"
