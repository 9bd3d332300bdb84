"""Levers that the machine or the settings rule out are one error before anything is loaded."""

import pytest

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.levers.checks import check_levers


@pytest.mark.parametrize("name", ["lora-addmm", "joined-lora", "compiled-tower"])
def test_zero_3_shards_the_weights_that_a_lever_reads(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}, which reads weights that ZeRO-3") as caught:
        check_levers([name], zero_stage=3, on_cuda=True, compiled=False)
    assert caught.value.fix == f"remove {name}, or use train.deepspeed: zero2"
    check_levers([name], zero_stage=2, on_cuda=False, compiled=False)


def test_autotuned_kernels_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match="flex-autotune, which changes what is compiled"):
        check_levers(["flex-autotune"], zero_stage=0, on_cuda=False, compiled=True)
    check_levers(["flex-autotune"], zero_stage=0, on_cuda=True, compiled=True)
    with pytest.raises(ConfigError, match="flex-autotune, which needs compiled layers"):
        check_levers(["flex-autotune"], zero_stage=3, on_cuda=True, compiled=False)
    with pytest.raises(ConfigError, match="flex-autotune, which needs compiled layers") as caught:
        check_levers(["flex-autotune"], zero_stage=0, on_cuda=True, compiled=False)
    assert caught.value.fix == "remove flex-autotune, or set train.compile: true"
