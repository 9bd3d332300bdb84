"""Levers that the machine or the settings rule out are one error before anything is loaded."""

import pytest

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.levers.checks import check_levers


@pytest.mark.parametrize("name", ["lora-addmm", "joined-lora"])
def test_zero_3_shards_the_weights_that_a_lever_reads(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}, which reads weights that ZeRO-3") as caught:
        check_levers([name], zero_stage=3)
    assert caught.value.fix == f"remove {name}, or use train.deepspeed: zero2"
    check_levers([name], zero_stage=2)
