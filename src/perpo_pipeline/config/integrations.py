"""The programs that `train.log_to` may name: transformers' integrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perpo_pipeline import advice


@dataclass(frozen=True)
class Integration:
    """The module it needs, the command that installs it, and the variables for where it writes.

    `{}` in a value stands for the integration's own folder.
    """

    module: str | None
    install: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


def _package(module: str, package: str, **variables: str) -> Integration:
    return Integration(module, advice.install_package(package), variables)


# transformers' names. An integration without variables writes no files, or always to one place:
# `keep_loose_files` moves codecarbon's file; dvclive's folder stays where it is.
INTEGRATIONS: dict[str, Integration] = {
    "azure_ml": _package("azureml", "azureml-sdk"),
    "clearml": _package("clearml", "clearml"),
    "codecarbon": _package("codecarbon", "codecarbon"),
    "comet_ml": _package("comet_ml", "comet-ml", COMET_OFFLINE_DIRECTORY="{}"),
    "dagshub": _package("dagshub", "dagshub mlflow"),
    "dvclive": _package("dvclive", "dvclive"),
    "flyte": _package("flytekit", "flytekit"),
    "kubeflow": Integration(None),  # set up by its own variables
    # Its default, a database, would keep other files in the working folder. Its file store must be
    # allowed by a variable, and creates its folder itself.
    "mlflow": _package(
        "mlflow", "mlflow", MLFLOW_TRACKING_URI="file://{}/runs", MLFLOW_ALLOW_FILE_STORE="true"
    ),
    "neptune": _package("neptune", "neptune", NEPTUNE_DATA_DIRECTORY="{}"),
    "swanlab": _package("swanlab", "swanlab", SWANLAB_LOG_DIR="{}"),
    "tensorboard": Integration(
        "tensorboard",
        advice.install("tensorboard"),
        {"TENSORBOARD_LOGGING_DIR": "{}"},
    ),
    "trackio": _package("trackio", "trackio", TRACKIO_DIR="{}"),
    "wandb": _package(
        "wandb", "wandb", WANDB_DIR="{}", WANDB_CACHE_DIR="{}/cache", WANDB_DATA_DIR="{}/data"
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is not an integration."""
    if unknown := [name for name in names if name not in INTEGRATIONS]:
        raise ValueError(
            f"there is no integration {', '.join(map(repr, unknown))}; one of "
            f"{', '.join(INTEGRATIONS)}"
        )
