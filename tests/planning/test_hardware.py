"""Hardware by its name: what is known of it, and what is said of names that are not."""

import pytest

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.planning.hardware import (
    GIB,
    describe_hardware,
    find_card,
    published,
    this_machine,
)


def test_a_name_with_a_count_describes_that_many_cards() -> None:
    found = describe_hardware("H100x8")
    assert (found.count, found.memory / GIB, found.flops) == (8, 80, 989e12)
    assert not found.here and "datasheet" in found.source
    assert describe_hardware("rtx4090").count == 1
    assert describe_hardware("h100-pcie").flops == 756e12


@pytest.mark.parametrize("name", ["h1000", "h100x0", "h100x", "", "8xh100"])
def test_a_bad_name_is_answered_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match="no such hardware") as raised:
        describe_hardware(name)
    assert "rtx4090" in str(raised.value)


def test_every_published_figure_has_a_source() -> None:
    figures = published()
    for table in ("hardware", "models"):
        assert all(record["source"] for record in figures[table].values())
    for record in figures["hardware"].values():
        assert record["flops"] if "flops" in record else record["tflops"] > 0


def test_this_machine_has_its_own_memory_and_no_published_peak_on_the_cpu() -> None:
    found = this_machine("cpu")
    assert found.here and not found.is_gpu and found.flops is None
    assert found.memory > GIB / 2


@pytest.mark.parametrize(
    ("driver_name", "label"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80 GB SXM"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40 GB SXM"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_found_by_the_whole_word_of_its_name(driver_name: str, label: str | None) -> None:
    found = find_card(driver_name)
    assert (found and found["label"]) == label
