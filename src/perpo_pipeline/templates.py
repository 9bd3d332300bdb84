"""Jinja's environment for every page and card: a value that is missing is an error."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def html_environment(*folders: Path) -> "jinja2.Environment":
    """Renders HTML from templates in these folders, the first before others; escapes texts."""
    return _environment(folders, is_html=True)


def markdown_environment(folder: Path) -> "jinja2.Environment":
    """Renders Markdown from the templates in a folder; nothing is escaped."""
    return _environment((folder,), is_html=False)


def _environment(folders: tuple[Path, ...], *, is_html: bool) -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_html,
    )
