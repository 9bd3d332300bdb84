"""Hook of MkDocs: adds the page of settings, which is made from the pydantic models."""

import re
from typing import Any

from perpo_pipeline.config.reference import render


def settings_page() -> str:
    """The page, with links where a description names a page of the manual."""
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", render())


def on_files(files: Any, config: Any) -> Any:
    """Add settings.md to the pages of the manual."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "settings.md", content=settings_page()))
    return files
