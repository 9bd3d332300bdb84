"""`perpo browse --out`: the first lists of a run as one HTML file, to send away."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perpo_pipeline.browse.detail import Details
from perpo_pipeline.browse.images import Lost, read_image
from perpo_pipeline.browse.pages import environment, style_sheet
from perpo_pipeline.browse.state import State
from perpo_pipeline.browse.versions import Artifacts
from perpo_pipeline.browse.views import ROWS_PER_PAGE, View
from perpo_pipeline.browse.visible import visible
from perpo_pipeline.errors import ConfigError, InputError, PerpoError
from perpo_pipeline.report.pictures import embedded
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.own_files import check_page, page_mark

COMMAND = "browse"


def check_file(file: Path) -> None:
    """Raise ConfigError if the page cannot be written to `file`."""
    check_page(file, "--out", COMMAND)
    if not file.parent.is_dir():
        raise ConfigError(
            f"--out {file}: the folder {file.parent} does not exist", fix="make it, or name another"
        )


def write_file(
    file: Path,
    artifacts: Artifacts,
    view: View,
    state: State,
    most: int,
    say: Callable[[str], None] = lambda note: None,
) -> int:
    """Write the first `most` prompts of a state, in its order; returns how many there are.

    They begin with the state's page; of a state with a prompt, it is that prompt alone. The file
    holds the images, smaller if they are large, and no script. It names no path of this machine.
    An image that cannot be read is its reason; the page and `say` get how many these are. Raises
    `InputError` if there is no such prompt.
    """
    lost: list[Lost] = []

    def source(prompts: Version, row: Any, which: int) -> str | Lost:
        found = _embedded(prompts, row, which)
        if isinstance(found, Lost):
            lost.append(found)
        return found

    details = Details(artifacts, source)
    places = _places(view, state)[:most]
    shown = [_shown(details, view, place) for place in places]
    notes = [note.partition("; run: ")[0] for note in artifacts.notes]
    if lost:
        notes.append(f"{len(lost)} images cannot be read; the reason is in the place of each")
        say(notes[-1])
    page = (
        environment()
        .get_template("lists_file.html")
        .render(
            generator=Markup(page_mark(COMMAND)),
            run=artifacts.config.run,
            view=view,
            every=view.rows.height,
            total=len(view.order(state)),
            notes=notes,
            shown=shown,
            large=None,
            style=Markup(style_sheet(details)),  # no text of the run is in it
        )
    )
    write_atomically(file, lambda sink: sink.write(visible(page).encode()))
    return len(shown)


def _places(view: View, state: State) -> Sequence[int]:
    if not state.prompt:
        first = ((state.page or 1) - 1) * ROWS_PER_PAGE
        return [int(place) for place in view.order(state)[first:]]
    at = view.place_of(state.prompt)
    if at is None:
        raise InputError(f"there is no prompt {state.prompt} in the view {view.name}")
    return [at]


def _shown(details: Details, view: View, place: int) -> Any:
    row = view.rows.row(place, named=True)
    if view.test_set is None:
        return details.of_list(row)
    return details.of_predictions(view.test_set, row)


def _embedded(prompts: Version, row: Any, which: int) -> str | Lost:
    try:
        image = read_image(prompts, row["prompt_at"], which)
    except PerpoError as error:
        return Lost(error.what)
    assert image is not None
    return embedded(image)
