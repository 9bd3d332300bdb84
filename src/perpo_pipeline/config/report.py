"""The settings of the report."""

from pydantic import Field

from perpo_pipeline.config.section import Int, Section


class ReportConfig(Section):
    """The page that shows what changed."""

    title: str = Field("PerPO", description="title of the page")
    pictures: Int = Field(
        12, ge=0, description="number of example images with the boxes before and after"
    )
    num_resamples: Int = Field(10_000, ge=100, description="resamples of the paired bootstrap")
