"""The embedded default: a renderer of referring scenes, and the weights of a tiny real LLaVA.

How the weights were made: tools/testbed in the repository, which is not part of the package.
"""

from importlib.resources import files
from pathlib import Path

SHIPPED_PRESET: str = "small"


def shipped_model_dir() -> Path:
    """Directory of the shipped base model, in the layout of a model hub's checkpoint."""
    return Path(str(files("perpo_pipeline.testbed") / "weights"))
