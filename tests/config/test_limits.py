"""The smallest and the largest value of a setting, as the model of its section has them."""

from pathlib import Path

import pytest

from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.limits import Limits, limits_of

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.gamma", (0, None)),
        ("train.learning_rate", (None, None)),  # above 0: there is no smallest one
        ("train.lora.rank", (1, None)),  # a whole number above 0
        ("train.label_smoothing", (0, None)),  # below 0.5: there is no largest one
        ("filter.min_margin", (0, 1)),  # one value or one by task
        ("filter.max_margin", (0, 1)),
        ("filter.list_size", (2, None)),
        ("filter.max_lists", (1, None)),
        ("sample.top_p", (None, 1)),
        ("prepare.train.num_prompts", (1, None)),
        ("model.id", (None, None)),
        ("seed", (None, None)),
        ("train.none.such", (None, None)),
    ],
)
def test_limits_are_read_from_the_sections(key: str, expected: Limits) -> None:
    assert limits_of(key, load_config(DEMO)) == expected
