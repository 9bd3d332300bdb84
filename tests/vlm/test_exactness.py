"""What counts as rounding: hand-computed for both dtypes."""

import pytest
import torch

from perpo_pipeline.vlm.exactness import allowed_rounding


@pytest.mark.parametrize(
    ("dtype", "magnitude", "longest", "nats"),
    [
        # 1e-4 + 1e-5 x 200; fp32's own walk is shorter (22 x 1.2e-7 x 3 = 8e-6).
        (torch.float32, 200.0, 9, 0.0021),
        # bf16 has 8 bits: 2^-7 = 0.0078125. Two roundings a token, over sqrt(9) tokens.
        (torch.bfloat16, 9.0, 9, 2 * 0.0078125 * 3),
        # 6 nats a token: 6 x 0.0078125 x 3; twice the nats allow twice as much.
        (torch.bfloat16, 54.0, 9, 0.140625),
        (torch.bfloat16, 108.0, 9, 0.28125),
        # A 7B model: 290 nats in 26 tokens, where plain runs differed by 0.7.
        (torch.bfloat16, 290.0, 26, 0.44432),
    ],
)
def test_the_allowed_rounding(
    dtype: torch.dtype, magnitude: float, longest: int, nats: float
) -> None:
    assert allowed_rounding(dtype, magnitude, longest) == pytest.approx(nats, rel=1e-4)
