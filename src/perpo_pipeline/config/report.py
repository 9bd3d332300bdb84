"""The settings of the report."""

from pydantic import Field

from perpo_pipeline.config.section import Float, Int, Section


class ReportConfig(Section):
    """The page that shows what changed."""

    title: str = Field("PerPO", description="title of the page")
    pictures: Int = Field(
        12, ge=0, description="number of examples with the answers before and after training"
    )
    lists: Int = Field(
        3, ge=0, description="number of training lists shown with all their answers, ranked"
    )
    benchmark_margin: Float = Field(
        0.02,
        ge=0,
        lt=1,
        description="share of the base's value that a model may lose on a general benchmark and "
        "still count as not worse",
    )
    num_resamples: Int = Field(10_000, ge=100, description="resamples of the paired bootstrap")
