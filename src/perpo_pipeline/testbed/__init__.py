"""The embedded default: a renderer of referring scenes and a tiny real LLaVA that ships with it."""

from importlib.resources import files
from pathlib import Path

SHIPPED_PRESET: str = "small"


def shipped_model_dir() -> Path:
    """Directory of the shipped base model, in the layout of a model hub's checkpoint."""
    return Path(str(files("perpo_pipeline.testbed") / "weights"))
