"""Hardware by its name: what is known of it, and what is said of names that are not."""

import pytest

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.planning.hardware import GIB, describe_hardware, published, this_machine


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
