"""What every HTML page shares: its environment of Jinja and the colours of its style sheet."""

from functools import partial

import jinja2

from perpo_pipeline.report.page.colours import themed, variables

PLACE_OF_COLOURS = "@@colours@@"


def page_environment(package: str | None = None) -> jinja2.Environment:
    """The templates beside a package's modules (None: the report's alone) and the report's own."""
    own = [] if package is None else [jinja2.PackageLoader(package, "")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*own, jinja2.PackageLoader("perpo_pipeline.report", "page")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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
