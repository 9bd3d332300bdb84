"""`source: messages`: the settings of files of chats."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from perpo_pipeline import advice
from perpo_pipeline.answers.formats import frame_fault, get_box_format
from perpo_pipeline.config.by_task import Task
from perpo_pipeline.config.parquet_files import fixed_folder, parquet_files
from perpo_pipeline.config.source_fields import (
    EmbedImages,
    ImageRoot,
    ImagesPerPrompt,
    LeaveOutBadRows,
    PerDataset,
    SourceSection,
)
from perpo_pipeline.errors import PerpoError

LINES = (".json", ".jsonl", ".ndjson")
ColumnOfChat = Literal["task", "id", "dataset"]


class MessagesSource(SourceSection):
    """Chats: OpenAI's and TRL's `messages`, ShareGPT's `conversations`, ms-swift's grounding."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["messages"] = Field(description="the layout to read")
    path: Path = Field(
        description="JSON lines, a JSON list, or Parquet (a file, a folder of them, a pattern with "
        "*), or the folder of one split that `save_to_disk` wrote; the content counts, not the name"
    )
    image_root: ImageRoot = None
    task: Task | None = Field(
        None,
        description="the task of rows that do not name one; of rows with `<bbox>` and `objects` it "
        "is grounding",
    )
    columns: dict[ColumnOfChat, str] = Field(
        default={},
        description="the columns that hold the task, the id and the dataset of a row under other "
        "names (ours: theirs)",
    )
    box_format: Annotated[
        str | None,
        Field(
            description="how true boxes are written in the last turn of the assistant "
            f"({advice.page('boxes')}); none: grounding needs `objects` or `gt_box`"
        ),
    ] = None
    box_frame: Annotated[
        Literal["full", "crop", "pad"] | None,
        Field(
            description="which picture the numbers of these boxes refer to; none: `full`, unless "
            "the format is in pixels of a resized image, whose size no file of chats has: then "
            "say `full` if they are pixels of the image as it is"
        ),
    ] = None
    embed_images: EmbedImages = False
    images_per_prompt: ImagesPerPrompt = None
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False

    @field_validator("box_format")
    @classmethod
    def _exists(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                get_box_format(name)
        except PerpoError as error:
            raise ValueError(str(error)) from error
        return name

    @model_validator(mode="after")
    def _frame_is_known(self) -> "MessagesSource":
        if self.box_format is None and self.box_frame is not None:
            raise ValueError("box_frame says nothing without box_format")
        if self.box_format is None or self.box_frame is not None:
            return self
        if frame_fault(self.box_format, "full"):
            raise ValueError(
                f"boxes of {self.box_format} are in pixels of a resized image, whose size a file "
                "of chats does not have; set box_frame: full if they are pixels of the image as it "
                "is (ms-swift's `objects` are), else convert them"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder that `path` is in, or is."""
        if "*" in str(self.path):
            return fixed_folder(self.path)
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def frame(self) -> str:
        """The frame of the boxes."""
        return self.box_frame or "full"

    @property
    def is_table(self) -> bool:
        """Whether the files are Parquet or Arrow."""
        return self.path.suffix.lower() not in LINES

    @property
    def is_saved(self) -> bool:
        """Whether `datasets` saved the folder."""
        names = ("state.json", "dataset_dict.json")
        return any((self.path / name).is_file() for name in names)

    def files(self) -> list[Path]:
        """The files that `path` names, in order; those of a folder by their names."""
        if not self.is_table:
            return [self.path]
        return sorted(self.path.glob("*.arrow")) or parquet_files(self.path)
