"""Settings that most sources of prompts share."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from perpo_pipeline.config.section import Int, Section

ImageRoot = Annotated[
    Path | None, Field(description="folder that image paths start from; none: the file's folder")
]
PerDataset = Annotated[
    Int | None,
    Field(
        gt=0,
        description="take exactly this many rows of each `dataset`, chosen at random by the run's "
        "seed, in whatever order the rows are; a dataset with fewer rows is an error. None: all",
    ),
]
EmbedImages = Annotated[
    bool, Field(description="store the bytes of the images in the artifact, not only their paths")
]
LeaveOutBadRows = Annotated[
    bool,
    Field(
        description="leave out bad rows and bad images, which the output counts by reason and the "
        "table `left_out` of the artifact lists; false: each is an error"
    ),
]
ImagesPerPrompt = Annotated[
    Int | None,
    Field(
        ge=2,
        le=4,
        description="put so many images into each prompt: its own, and those of other prompts of "
        "the source, which distract; the question names the picture that is meant, and the truth "
        "stays. The run's seed draws them. None: as the data has them",
    ),
]


class SourceSection(Section):
    """A source whose prompts may get the images of others (prepare/pictures.py)."""

    counted_where_set: ClassVar[frozenset[str]] = frozenset({"images_per_prompt"})
