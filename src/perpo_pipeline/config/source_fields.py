"""Settings that most sources of prompts share."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from perpo_pipeline.config.section import Int

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
