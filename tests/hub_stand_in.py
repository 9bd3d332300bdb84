"""A hub from which nothing is downloaded."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest


def stand_in_hub(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[list[str]]:
    """Every model that is downloaded is the folder `model`; returns the patterns of each download.

    No model was downloaded before.
    """
    asked: list[list[str]] = []

    def snapshot_download(model_id: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        asked.append(options["allow_patterns"])
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked
