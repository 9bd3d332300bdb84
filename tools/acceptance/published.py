"""The published figures of base models, and the range that is accepted around each."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.statistics import wilson_interval
from perpo_pipeline.suggestions import did_you_mean

FILE = Path(__file__).parent / "published.toml"


@dataclass(frozen=True)
class Published:
    """A model's published AP@50 (0 to 1), its source, and what may differ here.

    `below` and `above` widen the range; `why` says what for. An image of the size `image` (width,
    height) becomes `image_tokens` tokens.
    """

    ap50: float
    of: str
    source: str
    below: float
    above: float
    why: str
    image: tuple[int, int]
    image_tokens: int

    def limits(self, n: int) -> tuple[float, float]:
        """The lowest and highest AP@50 that is accepted on n prompts."""
        _, low, high = wilson_interval(round(self.ap50 * n), n)
        return max(low - self.below, 0.0), min(high + self.above, 1.0)


def find_published(model: str) -> Published:
    """The figure of a model, by its hub id; raises ConfigError for one that has none."""
    models: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text())["models"]
    if model not in models:
        raise ConfigError(
            f"there is no published figure for the model {model}{did_you_mean(model, models)}",
            where=str(FILE),
            fix=f"choose one of {', '.join(models)}, or add the figure of yours with its source",
        )
    entry = models[model]
    return Published(**{**entry, "image": tuple(entry["image"])})
