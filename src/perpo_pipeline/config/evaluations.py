"""Names of evaluations: a model, the image that it is shown where that is not its own, a split.

    <model>[-other-image | -blank-image]@<split>      e.g. perpo-blank-image@refcoco_val

An evaluation's name is the variant of its predictions and metrics. This module alone makes these
names and takes them apart.
"""

from collections.abc import Collection
from dataclasses import dataclass

from perpo_pipeline.errors import InputError

BASE = "base"
OTHER_IMAGE, BLANK_IMAGE = "-other-image", "-blank-image"
AT = "@"
ALL = "all"
"""The `dataset` of metrics over a whole split."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; `image` is "", OTHER_IMAGE or BLANK_IMAGE."""

    model: str
    split: str
    image: str = ""

    @property
    def shown(self) -> str:
        """The model and its image: the name without the split."""
        return self.model + self.image

    @property
    def name(self) -> str:
        """The whole name."""
        return f"{self.shown}{AT}{self.split}"


def refuse_dataset_called_all(datasets: Collection[str], split: str, where: str = "") -> None:
    """Raise InputError if one of a split's several datasets has the name for all together."""
    if ALL in datasets and len(set(datasets)) > 1:
        raise InputError(
            f"a dataset of the split '{split}' is called '{ALL}', the name for all together",
            where=where,
            fix="give it another name: that of the file or folder that its rows come from, or "
            "`dataset` in the rows; then prepare the split again",
        )


def read_evaluation(name: str) -> Evaluation:
    """Take a name apart; the split is "" if the name has none, as in results of a file."""
    shown, _, split = name.partition(AT)
    model = model_of(shown)
    return Evaluation(model, split, shown.removeprefix(model))


def model_of(shown: str) -> str:
    """The model of a name without a split: the name without the suffix for another image."""
    return shown.removesuffix(OTHER_IMAGE).removesuffix(BLANK_IMAGE)
