"""`perpo browse`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    RunName,
    Set,
    read_config,
)
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.browse.versions import Artifacts
    from perpo_pipeline.browse.views import View

FEW = 24


def browse(
    config: Config = DEFAULT_CONFIG,
    sets: Set = None,
    run: RunName = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="address to serve on; default: 127.0.0.1, which this machine alone reaches"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="port to serve on; 0: any free one; default: 8765"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="write some lists into one file, and serve nothing"),
    ] = None,
    lists: Annotated[
        int | None,
        typer.Option(min=1, help=f"with --out: how many prompts, from the first; default: {FEW}"),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(
            metavar="VIEW?FILTERS",
            help="with --out: what to write, as the end of a page's address has it; default: "
            "the first view, unfiltered",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show lists, samples and predictions on a local page.

    The page is read-only and on this machine alone. Prints its address; Ctrl-C ends it. With --out
    it writes one HTML file instead, to send away.

    Example: perpo browse --config configs/demo.yaml

    Example: perpo browse --config configs/demo.yaml --out lists.html --lists 50
    --show "dropped?sort=-margin"
    """
    from perpo_pipeline.browse.versions import open_artifacts

    _check_options(out, {"--host": host, "--port": port}, {"--lists": lists, "--show": show})
    settings = read_config(config, sets, run=run)
    if out is not None:
        _write(out, open_artifacts(settings), show, FEW if lists is None else lists)
        return
    _require_server()
    from perpo_pipeline.browse.server import DEFAULT_HOST, DEFAULT_PORT, listen

    host = DEFAULT_HOST if host is None else host
    sock = listen(host, DEFAULT_PORT if port is None else port)
    with sock:
        artifacts = open_artifacts(settings)
        _say_notes(artifacts)
        _serve(artifacts, sock, host)


def _check_options(
    out: Path | None, of_server: dict[str, object], of_file: dict[str, object]
) -> None:
    unused = of_file if out is None else of_server
    given = [name for name, value in unused.items() if value is not None]
    if given:
        what = "needs --out FILE.html" if out is None else "is not for --out, which serves nothing"
        raise ConfigError(f"{given[0]} {what}", fix=f"remove {given[0]}, or change --out")


def _require_server() -> None:
    """Raise MissingDependencyError unless the packages of the extra are installed."""
    from importlib.util import find_spec

    from perpo_pipeline import advice
    from perpo_pipeline.errors import MissingDependencyError

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{' and '.join(missing)}, which serve the page, "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            fix=f"{advice.install('browse')}, or write a file: "
            + advice.command("browse", "--out", "lists.html"),
        )


def _views(artifacts: "Artifacts") -> "dict[str, View]":
    from perpo_pipeline.browse.views import open_views
    from perpo_pipeline.report.methods import main_method, reported_methods

    main = main_method(reported_methods(artifacts.config))
    return open_views(artifacts, main.variants[0] if main else "")


def _say_notes(artifacts: "Artifacts") -> None:
    for note in artifacts.notes:
        print(f"browse: {note}", file=sys.stderr)


def _serve(artifacts: "Artifacts", sock: object, host: str) -> None:
    import socket

    from perpo_pipeline.browse.server import address_of, is_loopback, make_app, serve
    from perpo_pipeline.errors import Stopped
    from perpo_pipeline.interrupts import signal_of

    assert isinstance(sock, socket.socket)
    app = make_app(artifacts, _views(artifacts), host)
    if not is_loopback(host):
        print(
            f"browse: --host {host}: whoever reaches this port can read the run's prompts, images "
            "and answers",
            file=sys.stderr,
        )

    def ready() -> None:
        print(address_of(sock, host), flush=True)
        print("browse: Ctrl-C ends it", file=sys.stderr)

    try:
        serve(app, sock, ready)
    except KeyboardInterrupt as interrupt:
        raise Stopped("browse ended", signal_of(interrupt)) from None


def _write(file: Path, artifacts: "Artifacts", show: str | None, most: int) -> None:
    from urllib.parse import parse_qsl

    from perpo_pipeline.browse.file import check_file, write_file
    from perpo_pipeline.browse.state import read_state
    from perpo_pipeline.suggestions import did_you_mean

    check_file(file)
    _say_notes(artifacts)
    views = _views(artifacts)
    name, _, query = (show or next(iter(views))).partition("?")
    name = name.strip("/")
    if name not in views:
        raise ConfigError(
            f"--show {show}: this run has no view {name}{did_you_mean(name, list(views))}",
            fix=f"choose one of {', '.join(views)}",
        )
    columns = [column.name for column in views[name].columns]
    state = read_state(name, dict(parse_qsl(query)), columns)

    def say(note: str) -> None:
        print(f"browse: {note}", file=sys.stderr)

    written = write_file(file, artifacts, views[name], state, most, say)
    print(f"browse: {written} of {views[name].rows.height} prompts", file=sys.stderr)
    print(file)
