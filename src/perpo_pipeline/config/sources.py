"""Where prompts come from: one pydantic model per dataset layout (the `prepare` section).

The docstring of each reader's module says what its files look like, and the unit of their boxes.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from perpo_pipeline.config.section import WORD_PATTERN, Int, Section

Dataset = Literal["refcoco", "refcoco+", "refcocog"]
Split = Literal["train", "val", "testA", "testB", "test"]
SplitBy = Literal["unc", "google", "umd"]
DATASETS = get_args(Dataset)
SPLITS = get_args(Split)
# The split files that published results use.
SPLIT_BY: dict[Dataset, SplitBy] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}

PerDataset = Annotated[
    Int | None,
    Field(
        gt=0,
        description="take exactly this many rows of each `dataset`, chosen at random by the run's "
        "seed, in whatever order the rows are; a dataset with fewer rows is an error. None: all",
    ),
]
SourceFile = Annotated[
    Path, Field(description="the file to read; its content counts, not its name")
]
ImageRoot = Annotated[
    Path | None, Field(description="folder that image paths start from; none: the file's folder")
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
GtUnit = Annotated[
    Literal["pixels", "thousandths", "fraction"] | None,
    Field(
        description="unit of the true boxes, polygons and points: pixels of the image, thousandths "
        "of its width and height, or fractions (0 to 1) of them; none: pixels, unless all of them "
        "look like another unit, which is an error that asks"
    ),
]


class TestbedSource(Section):
    """Prompts rendered by the embedded testbed."""

    source: Literal["testbed"] = Field(description="the layout to read")
    num_prompts: Int = Field(gt=0, description="number of prompts to render")


class JsonlSource(Section):
    """Prompts from JSON lines in perpo's own layout (docs/data.md)."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["jsonl"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    task: Literal["grounding", "ocr", "vqa"] | None = Field(
        None, description="the task of rows that do not name one"
    )
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    gt_unit: GtUnit = None
    leave_out_bad_rows: LeaveOutBadRows = False


class ReferSource(Section):
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


class LmmsLabSource(Section):
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

    def parquet_files(self) -> list[Path]:
        """The files that `path` names, in order of their names."""
        if self.path.is_dir():
            return sorted(self.path.rglob("*.parquet"))
        if "*" not in str(self.path):
            return [self.path]
        fixed = next(parent for parent in self.path.parents if "*" not in str(parent))
        return sorted(fixed.glob(str(self.path.relative_to(fixed))))


class RecSource(Section):
    """Expressions and boxes in the layouts of Qwen-VL and InternVL, Shikra, or MiniGPT-4."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["rec-jsonl", "shikra", "minigpt4"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    per_dataset: PerDataset = None
    gt_unit: GtUnit = None
    leave_out_bad_rows: LeaveOutBadRows = False


class FoxSource(Section):
    """Pages with their text, in Fox's layout."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["fox"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    leave_out_bad_rows: LeaveOutBadRows = False


class PerpoJsonSource(Section):
    """The released PerPO lists; makes three artifacts: prompts, samples and scores."""

    operational: ClassVar[frozenset[str]] = frozenset({"path"})  # its files are hashed instead

    source: Literal["perpo-json"] = Field(description="the layout to read")
    path: SourceFile
    image_root: ImageRoot = None
    embed_images: EmbedImages = False
    leave_out_bad_rows: LeaveOutBadRows = False


Source = (
    TestbedSource
    | JsonlSource
    | ReferSource
    | LmmsLabSource
    | RecSource
    | FoxSource
    | PerpoJsonSource
)
PrepareConfig = Annotated[Source, Field(discriminator="source")]
SOURCE_MODELS = get_args(Source)
SOURCE_NAMES: tuple[str, ...] = tuple(
    name for model in SOURCE_MODELS for name in get_args(model.model_fields["source"].annotation)
)


def source_files(source: Any) -> list[Path]:
    """The files that a source is read from, as far as they are known without reading any."""
    match source:
        case TestbedSource():
            return []
        case ReferSource():
            return [f(name) for name in DATASETS for f in (source.refs_file, source.instances_file)]
        case LmmsLabSource():
            return source.parquet_files() or [source.path]
    return [source.path]
