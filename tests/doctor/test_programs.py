"""What works beside torch, rehearsed on the CPU."""

from pathlib import Path

import pytest
import torch

from perpo_pipeline.doctor import programs


def test_one_card_has_nothing_to_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = programs.collectives("cuda")
    assert found.state == "skipped" and "one card" in found.text


def test_a_process_of_one_sums_and_times(tmp_path: Path) -> None:
    result = tmp_path / "seconds"
    programs._reduce(0, 1, "cpu", str(tmp_path / "meeting"), str(result))
    is_right, seconds = result.read_text().split()
    assert is_right == "True" and float(seconds) > 0


@pytest.mark.slow
def test_two_processes_reduce() -> None:
    found = programs.collectives("cpu")
    assert found.state == "ok" and found.figures["processes"] == 2, found.text
    assert found.figures["bytes_per_s"] > 0


def test_packages_that_are_not_installed_are_skipped_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    for work, extra in ((programs.vllm, "vllm"), (programs.bitsandbytes, "quantization")):
        found = work("cuda")
        assert found.state == "skipped"
        assert found.fix == f"pip install -c constraints.txt -e '.[{extra}]'"


def test_a_product_with_weights_of_four_bits_agrees() -> None:
    found = programs.bitsandbytes("cpu")
    assert found.state == "ok", found.text
    assert 0 < found.figures["relative_error"] < programs.NF4_ROUNDING
