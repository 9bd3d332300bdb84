"""What counts as rounding: computed by hand for both dtypes."""

import pytest
import torch

from perpo_pipeline.vlm.exactness import allowed_rounding, rounding_of_kernels

BF16 = 0.0078125  # 2^-7: 8 bits


@pytest.mark.parametrize(
    ("dtype", "magnitude", "longest", "same", "others"),
    [
        # 1e-4 + 1e-5 x 200; fp32's own walk is shorter (22 x 1.2e-7 x 3 = 8e-6).
        (torch.float32, 200.0, 9, 0.0021, 0.0021),
        # Two roundings of one nat for each token, over sqrt(9) tokens.
        (torch.bfloat16, 9.0, 9, 2 * BF16 * 3, 2 * BF16 * 3),
        # 6 nats a token: 6 roundings over sqrt(9) tokens; twice the nats allow twice as much.
        (torch.bfloat16, 54.0, 9, 2 * BF16 * 3, 6 * BF16 * 3),
        (torch.bfloat16, 108.0, 9, 2 * BF16 * 3, 12 * BF16 * 3),
    ],
)
def test_the_allowed_rounding_of_the_same_kernels_and_of_others(
    dtype: torch.dtype, magnitude: float, longest: int, same: float, others: float
) -> None:
    assert allowed_rounding(dtype, magnitude, longest) == pytest.approx(same)
    assert rounding_of_kernels(dtype, magnitude, longest) == pytest.approx(others)
