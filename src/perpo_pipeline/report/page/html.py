"""What every HTML page shares: its environment of Jinja and the colours of its style sheet."""

from functools import partial
from pathlib import Path

import jinja2

from perpo_pipeline.report.page.colours import themed, variables
from perpo_pipeline.templates import html_environment

PLACE_OF_COLOURS = "@@colours@@"


def page_environment(*folders: Path) -> jinja2.Environment:
    """The templates in the folders of other packages, and the report's own."""
    environment = html_environment(*folders, Path(__file__).parent)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["themed"] = themed
    environment.filters["themed_text"] = partial(themed, is_text=True)
    return environment


def with_colours(text: str) -> str:
    """A rendered page with the colours of methods and plots that occur in it, light and dark."""
    light, dark = (variables(text, dark=is_dark) for is_dark in (False, True))
    screen = "@media screen and (prefers-color-scheme: dark)"
    colours = f":root {{ {light} }}\n{screen} {{ :root {{ {dark} }} }}"
    return text.replace(PLACE_OF_COLOURS, colours)
