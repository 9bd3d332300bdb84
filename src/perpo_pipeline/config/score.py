"""The settings of scoring."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from perpo_pipeline import advice
from perpo_pipeline.config.section import NormalForms, Section
from perpo_pipeline.suggestions import did_you_mean


class ScoreConfig(Section):
    """How a completion is measured against the ground truth."""

    reward: str | dict[str, float] = Field(
        "auto",
        description=f"a reward ({advice.page('rewards')}), your own as pkg.module:function, or "
        "several with weights: `{iou: 0.7, token_f1: 0.3}`",
    )

    normalise: NormalForms = Field(
        default=[],
        description="normal forms of the true and the answered text before they are compared: "
        f"`none`, one, or several in a list ({advice.page('rewards')})",
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _are_rewards(cls, reward: Any) -> Any:
        from perpo_pipeline.rewards.builtin import AUTO, REWARDS

        known = [AUTO, *REWARDS]
        if not isinstance(reward, str) and not _are_weights(reward):
            raise ValueError("give the name of a reward, or names with positive weights")
        names = [reward] if isinstance(reward, str) else list(reward)
        unknown = [name for name in names if ":" not in name and name not in known]
        if unknown or not names:
            raise ValueError(
                f"{_missing_reward(unknown, known)} one of {', '.join(known)}, or your own as "
                "package.module:function"
            )
        return reward

    def weights(self) -> dict[str, float]:
        """The rewards that are added up, by name."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else dict(self.reward)


def _are_weights(value: Any) -> bool:
    """Whether the value maps names to positive numbers."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(weight, int | float)
        and not isinstance(weight, bool)
        and 0 < weight < math.inf
        for name, weight in value.items()
    )


def _missing_reward(unknown: list[str], known: list[str]) -> str:
    if not unknown:
        return "no reward is given;"
    near = did_you_mean(unknown[0], known) or ";"
    return f"there is no reward {', '.join(unknown)}{near}"
