"""Where prompts come from: one pydantic model per dataset layout (the `prepare` section).

The docstring of each reader's module says what its files look like, and the unit of their boxes.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from perpo_pipeline import advice
from perpo_pipeline.config.by_task import Task
from perpo_pipeline.config.folders import files_below
from perpo_pipeline.config.messages import MessagesSource
from perpo_pipeline.config.pages import PagesSource
from perpo_pipeline.config.parquet_files import fixed_folder, parquet_files
from perpo_pipeline.config.section import WORD_PATTERN, Int, Json, Section
from perpo_pipeline.config.source_fields import (
    EmbedImages,
    ImageRoot,
    ImagesPerPrompt,
    LeaveOutBadRows,
    PerDataset,
    SourceSection,
)

Dataset = Literal["refcoco", "refcoco+", "refcocog"]
Split = Literal["train", "val", "testA", "testB", "test"]
SplitBy = Literal["unc", "google", "umd"]
DATASETS = get_args(Dataset)
SPLITS = get_args(Split)
# The split files that published results use.
SPLIT_BY: dict[Dataset, SplitBy] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}

SourceFile = Annotated[
    Path, Field(description="the file to read; its content counts, not its name")
]
BoxOrder = Annotated[
    Literal["xyxy", "xywh", "cxcywh"],
    Field(
        description="what the four numbers of a true box are: two corners; the upper left corner, "
        "width and height; or the centre, width and height"
    ),
]
BoxUnit = Annotated[
    Literal["px", "norm", "thousandths"] | None,
    Field(
        description="unit of the true boxes, polygons and points: pixels of the image, fractions "
        "(0 to 1) of its width and height, or thousandths of them; none: pixels, unless all of "
        "them look like another unit, which is an error that asks"
    ),
]
Truth = Literal["gt_box", "gt_boxes", "gt_polygon", "gt_point"]
Shown = Literal["image", "images", "box_image", "prompt", "expression", "history"]
ColumnOf = Literal[Shown, "task", "gt_text", "id", "dataset", Truth]
Per = Annotated[
    Literal["label", "box"],
    Field(
        description="one prompt for each label of an image, with all its boxes (`gt_boxes`), or "
        "one for each box (`gt_box`); the label is the expression"
    ),
]
# How many columns may hold one field.
_IN_SEVERAL_COLUMNS = {"gt_box": 4, "gt_point": 2}


class TestbedSource(SourceSection):
    """Prompts rendered by the embedded testbed."""

    source: Literal["testbed"] = Field(description="the layout to read")
    task: Literal["grounding", "ocr"] = Field(
        "grounding", description="what to render: scenes with boxes, or pages with their text"
    )
    num_prompts: Int = Field(gt=0, description="number of prompts to render")
    images_per_prompt: ImagesPerPrompt = None


class TableSource(SourceSection):
    """Prompts in the rows of a table: JSON lines, a JSON list, CSV, TSV, Parquet or `datasets`."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["jsonl", "json", "csv", "tsv", "parquet", "datasets"] = Field(
        description="the layout to read"
    )
    path: Path = Field(
        description="the file to read; for parquet also a folder or a pattern with *, for datasets "
        "the folder of one split that `save_to_disk` wrote, or a folder of Parquet files; the "
        "content counts, not the name"
    )
    image_root: ImageRoot = None
    columns: dict[ColumnOf, str | list[str] | None] = Field(
        default={},
        description=f"perpo's fields ({advice.page('data')}) and the columns that hold them, such "
        "as {image: file, gt_box: [x1, y1, x2, y2]}; a field that is not named is read from the "
        "column of its name, `null` from none",
    )
    box: BoxOrder = "xyxy"
    unit: BoxUnit = None
    task: Task | None = Field(None, description="the task of rows that do not name one")
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None

    @field_validator("columns")
    @classmethod
    def _lists_have_their_length(cls, columns: dict[str, Any]) -> dict[str, Any]:
        for field, column in columns.items():
            if not isinstance(column, list) or field == "images":
                continue
            wanted = _IN_SEVERAL_COLUMNS.get(field)
            if wanted is None or len(set(column)) != wanted or len(column) != wanted:
                several = " or ".join(f"{n} for {f}" for f, n in _IN_SEVERAL_COLUMNS.items())
                raise ValueError(f"{field}: give one column; only {several} different ones")
        return columns

    def files(self) -> list[Path]:
        """The files that `path` names, in order; those of a folder by their names."""
        if self.source not in ("parquet", "datasets"):
            return [self.path]
        if self.source == "datasets" and (arrow := sorted(self.path.glob("*.arrow"))):
            return arrow
        return parquet_files(self.path)

    @property
    def folder(self) -> Path:
        """The folder that `path` is in, or is."""
        if "*" in str(self.path):
            return fixed_folder(self.path)
        return self.path if self.path.is_dir() else self.path.parent


class ReferSource(SourceSection):
    """RefCOCO, RefCOCO+ and RefCOCOg in REFER's own layout."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["refer"] = Field(description="the layout to read")
    path: Path = Field(description="the folder with refcoco/, refcoco+/ and refcocog/")
    image_root: Path = Field(description="the folder of COCO's train2014 images")
    datasets: list[Dataset] = Field(
        default=list(DATASETS),
        min_length=1,
        description="datasets to read; a row's `dataset` becomes e.g. `refcoco_testA`",
    )
    split_by: dict[Dataset, SplitBy] = Field(
        default={},
        description="which refs(...).p file is read; unc for refcoco and refcoco+, umd for "
        "refcocog, unless named here",
    )
    splits: list[Split] | None = Field(
        None,
        min_length=1,
        description="splits to read; none: the name of the prepared split, if it is one of these",
    )
    leave_out_evaluated: bool | list[Dataset] = Field(
        True,
        description="leave out of train every image that val, testA, testB or test of these "
        "datasets contains (`true`: of all three); counted as `image_is_evaluated`",
    )
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None

    @field_validator("datasets", "splits")
    @classmethod
    def _names_are_different(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        return names

    def refs_file(self, dataset: Dataset) -> Path:
        """The pickle with the dataset's expressions and splits."""
        split_by = self.split_by.get(dataset, SPLIT_BY[dataset])
        return self.path / dataset / f"refs({split_by}).p"

    def instances_file(self, dataset: Dataset) -> Path:
        """The JSON with the dataset's boxes and image names."""
        return self.path / dataset / "instances.json"


class LmmsLabSource(SourceSection):
    """The Parquet files of lmms-lab/RefCOCO and its siblings, images inside."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["lmms-lab"] = Field(description="the layout to read")
    path: Path = Field(description="a Parquet file, a folder of them, or a pattern with *")
    dataset: str = Field(
        "lmms-lab",
        pattern=WORD_PATTERN,
        description="a row's `dataset` becomes this name, `_` and the split in the file's name",
    )
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None

    def files(self) -> list[Path]:
        """The files that `path` names, in order of their names."""
        return parquet_files(self.path)


class RecSource(SourceSection):
    """Expressions and boxes in the layouts of Qwen-VL and InternVL, Shikra, or MiniGPT-4."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["rec-jsonl", "shikra", "minigpt4"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    unit: BoxUnit = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None


class CocoSource(SourceSection):
    """Labelled boxes in COCO's detection JSON (instances_*.json)."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead
    box: ClassVar[str] = "xywh"

    source: Literal["coco"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    per: Per = "label"
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None


class LabelStudioSource(SourceSection):
    """Labelled rectangles in the JSON that Label Studio exports."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead
    box: ClassVar[str] = "xywh"

    source: Literal["label-studio"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    image_key: str = Field("image", description="the key of a task's `data` that holds the image")
    per: Per = "label"
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None


class YoloSource(SourceSection):
    """Labelled boxes in the folders of YOLO: data.yaml, images/ and labels/."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead
    box: ClassVar[str] = "cxcywh"
    unit: ClassVar[str] = "norm"

    source: Literal["yolo"] = Field(description="the layout to read")
    path: Path = Field(description="the file data.yaml; its content counts, not its name")
    image_root: Path | None = Field(
        None, description="folder that the paths in data.yaml start from; none: its own `path`"
    )
    splits: list[str] | None = Field(
        None,
        min_length=1,
        description="keys of data.yaml to read, such as train or val; none: the name of the "
        "prepared split",
    )
    per: Per = "label"
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None

    def files(self) -> list[Path]:
        """data.yaml and the label files beside it."""
        folder = self.path.parent
        places = [*folder.glob("labels"), *folder.glob("*/labels")]
        labels = (file for place in places for file in files_below(place))
        return [self.path, *sorted(file for file in labels if file.name.endswith(".txt"))]


class FoxSource(SourceSection):
    """Pages with their text, in Fox's layout."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["fox"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    leave_out_bad_rows: LeaveOutBadRows = False
    images_per_prompt: ImagesPerPrompt = None


class PerpoJsonSource(Section):
    """The released PerPO lists; makes three artifacts: prompts, samples and scores."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["perpo-json"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    leave_out_bad_rows: LeaveOutBadRows = False


class PromptsSource(SourceSection):
    """Prompts that another run has prepared, or a part of them."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its content counts instead

    source: Literal["prompts"] = Field(description="the layout to read")
    path: Path = Field(
        description="a prompts artifact: data/RUN/prompts/SPLIT, or one version of it; the content "
        "counts, not the name"
    )
    start: Int = Field(
        0,
        ge=0,
        description="prompts to pass over, in an order that the run's seed draws: parts with other "
        "places in this order have no prompt in common",
    )
    num_prompts: Int | None = Field(
        None, gt=0, description="number of prompts to take from `start` on; none: all"
    )
    images_per_prompt: ImagesPerPrompt = None

    def files(self) -> list[Path]:
        """The manifest of the version that `path` names, which is written last."""
        pointer = self.path / "current"
        inside = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else "."
        return [self.path / inside / "manifest.json"]


Source = (
    TestbedSource
    | TableSource
    | ReferSource
    | LmmsLabSource
    | RecSource
    | CocoSource
    | LabelStudioSource
    | YoloSource
    | FoxSource
    | PagesSource
    | MessagesSource
    | PerpoJsonSource
    | PromptsSource
)
SOURCE_MODELS = get_args(Source)
SOURCE_NAMES: tuple[str, ...] = tuple(
    name for model in SOURCE_MODELS for name in get_args(model.model_fields["source"].annotation)
)
SEVERAL: Literal["several"] = "several"
"""What a list of sources is called where one source has its name."""


class SeveralSources(Section):
    """Prompts of several sources, one source after the other; a list of them in the run's file."""

    source: Literal["several"] = SEVERAL
    of: list[Annotated[Source, Field(discriminator="source")]] = Field(min_length=2)

    @field_validator("of")
    @classmethod
    def _have_prompts_alone(cls, sources: list[Source]) -> list[Source]:
        if any(isinstance(one, PerpoJsonSource) for one in sources):
            raise ValueError(
                "perpo-json also has answers, so it cannot be one of several sources: prepare it "
                "as a split of its own"
            )
        return sources

    def result_settings(self) -> Json:
        """The settings of each source that change the result."""
        return {"source": self.source, "of": [one.result_settings() for one in self.of]}


PrepareConfig = Annotated[Source | SeveralSources, Field(discriminator="source")]


def list_sources(source: Any) -> list[Any]:
    """The sources of a split: those of a list, or the only one."""
    return list(source.of) if isinstance(source, SeveralSources) else [source]


def task_of_source(source: Any) -> Task | None:
    """The task of every prompt that a source makes; None where the rows say it."""
    match source:
        case TestbedSource():
            return source.task
        case FoxSource() | PagesSource():
            return "ocr"
        case TableSource() | MessagesSource() | PerpoJsonSource() | PromptsSource():
            return None
    return "grounding"


def image_folders(source: Any) -> list[Path]:
    """The folders that a source names for its images; none where paths start from its files."""
    if isinstance(source, SeveralSources):
        return [folder for one in source.of for folder in image_folders(one)]
    root = getattr(source, "image_root", None)
    return [] if root is None else [root]


def source_files(source: Any) -> list[Path]:
    """The files that a source is read from, as far as they are known without reading any."""
    match source:
        case SeveralSources():
            return [file for one in source.of for file in source_files(one)]
        case TestbedSource():
            return []
        case ReferSource():
            return [f(name) for name in DATASETS for f in (source.refs_file, source.instances_file)]
        case LmmsLabSource() | TableSource() | MessagesSource() | YoloSource():
            return source.files() or [source.path]
        case PagesSource() | PromptsSource():
            return source.files() or [source.path]
    return [source.path]
