"""The settings of filtering."""

from typing import Literal, Self

from pydantic import Field, model_validator

from perpo_pipeline.config.section import Float, Int, Section, conflict


class FilterConfig(Section):
    """Which lists are worth learning from."""

    strategy: Literal["lists", "m3po"] = Field(
        "lists",
        description="keep whole lists, or one pair per list as M3PO chooses it (docs/rewards.md)",
    )
    min_margin: Float = Field(
        0.8, ge=0, le=1, description="smallest kept margin: highest minus lowest reward of a list"
    )
    max_margin: Float | None = Field(
        None, ge=0, le=1, description="largest kept margin; none: no limit"
    )
    list_size: Int | None = Field(
        None, ge=2, description="use only the first n samples of each list; none: all"
    )
    drop_unparsed: bool = Field(
        False, description="leave out completions that could not be read, before the margin"
    )
    equal_datasets: bool = Field(
        False, description="keep the same number of lists from each dataset"
    )
    max_lists: Int | None = Field(
        3000, gt=0, description="keep at most this many lists, chosen at random; null: all"
    )
    seed: Int = Field(
        0, ge=0, description="seed of the random choice when there are more than `max_lists`"
    )

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> Self:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise conflict(
                f"max_margin {self.max_margin} is below min_margin {self.min_margin}: no list fits",
                "max_margin",
                "min_margin",
            )
        return self
