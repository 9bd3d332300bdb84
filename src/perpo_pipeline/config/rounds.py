"""The settings of further rounds: `perpo iterate`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from perpo_pipeline.config.section import Float, Int, Name, Section, conflict


class RoundsConfig(Section):
    """Rounds of sampling and training; each begins with the merged model of the round before."""

    # Count only where they are set: rounds that were made before they existed kept no lists, and
    # had the model that each of them began with as the reference.
    counted_where_set: ClassVar[frozenset[str]] = frozenset({"keep_lists", "reference"})

    num: Int = Field(3, ge=1, le=100, description="rounds to make, unless one no longer gains")
    method: Name | None = Field(
        None, description="the training of every round, by its name; none: the only one of the run"
    )
    prompts: Literal["fresh", "same"] = Field(
        "fresh",
        description="`fresh`: each round has prompts of sample.split that no other round has; "
        "`same`: each round has all of them",
    )
    num_prompts: Int | None = Field(
        None, gt=0, description="prompts of a round; none: an equal part for each round"
    )
    keep_lists: Float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the lists that the round before was trained on, of each task those "
        "with the widest margin, on which the next one is trained, too; none: new lists alone",
    )
    reference: Literal["base"] | None = Field(
        None,
        description="`base`: the reference of every round is the run's own model, so that no round "
        "moves away from it for free; none: it is the model that the round begins with",
    )
    select_on: Name = Field(
        "validation", description="the split on which a round must gain for the next one to follow"
    )
    report_on: Name | None = Field(
        "test", description="the split that is evaluated once all rounds are made; none: no split"
    )
    metric: str | None = Field(
        None, description="the metric in which a round must gain; none: the main one of the task"
    )
    alpha: Float | None = Field(
        0.05,
        gt=0,
        lt=1,
        description="a round gains if it is better than the round before by a paired test with a "
        "p-value below this; none: all rounds are made, and the best one on select_on is chosen",
    )
    beside: Literal["one-round"] | None = Field(
        None,
        description="`one-round`: also one round from the base on the prompts of all rounds, with "
        "as many lists in all",
    )

    @model_validator(mode="after")
    def _number_has_a_use(self) -> Self:
        if self.prompts == "same" and self.num_prompts is not None:
            raise conflict(
                "num_prompts has no use with prompts same, which gives each round all of them",
                "num_prompts",
                "prompts",
            )
        return self
