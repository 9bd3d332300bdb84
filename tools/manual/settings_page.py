"""Hook of MkDocs: adds the page of settings, which is made from the pydantic models."""

from typing import Any

from perpo_pipeline.config.reference import render


def on_files(files: Any, config: Any) -> Any:
    """Add settings.md to the pages of the manual."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "settings.md", content=render()))
    return files
