"""The embedded default: a renderer of referring scenes, and the weights of a tiny real LLaVA.

How the weights were made: tools/testbed in the repository, which is not part of the package.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

SHIPPED_PRESET: str = "small"
# Raised when a preset draws other pictures: it counts in the prompts of the testbed alone.
TESTBED_VERSION = 2


def shipped_model_dir() -> Path:
    """Directory of the shipped base model, in the layout of a model hub's checkpoint."""
    return Path(str(files("perpo_pipeline.testbed") / "weights"))


def testbed_settings(
    seed: int, split: str, num_prompts: int, task: str = "grounding"
) -> dict[str, Any]:
    """Everything that decides the prompts; each split and run seed has its own scene seed.

    `task`: `grounding` draws scenes, `ocr` pages.
    """
    digest = hashlib.sha256(f"perpo testbed {seed} {split}".encode()).digest()
    return {
        "source": "testbed",
        "testbed_version": TESTBED_VERSION,
        "task": task,
        "preset": SHIPPED_PRESET,
        "scene_seed": int.from_bytes(digest[:4], "big"),
        "num_prompts": num_prompts,
    }
