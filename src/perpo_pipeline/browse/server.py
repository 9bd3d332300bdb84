"""Serves the pages, read-only: GET and HEAD, from this machine unless asked otherwise.

No path of the file system is ever taken from an address: images are found by the key of a prompts
artifact and of a prompt, and are encoded anew. What a model wrote is escaped text, and the
Content-Security-Policy lets no script run but browse.js.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import anyio

from perpo_pipeline import advice
from perpo_pipeline.browse.images import SIZES, Encoded, encode, read_image
from perpo_pipeline.browse.pages import Pages
from perpo_pipeline.browse.state import read_state
from perpo_pipeline.browse.versions import Artifacts
from perpo_pipeline.browse.views import View
from perpo_pipeline.browse.visible import visible
from perpo_pipeline.errors import ConfigError, InputError, PerpoError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::")
IMAGES_AT_ONCE = 2
"""So that decoding images does not keep a page waiting."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect x="2" y="3" width="12" '
    'height="10" rx="2" fill="none" stroke="#1d5fd1" stroke-width="2"/></svg>'
)


class Site:
    """The answers to requests, as functions of starlette's request."""

    def __init__(self, artifacts: Artifacts, views: dict[str, View]) -> None:
        self.views, self.pages = views, Pages(artifacts, views)
        self.prompts = artifacts.prompts()
        self.limiter = anyio.CapacityLimiter(IMAGES_AT_ONCE)
        self.files = {
            "/browse.css": (self.pages.style_sheet(), "text/css"),
            "/browse.js": (_script(), "text/javascript"),
            "/icon.svg": (ICON, "image/svg+xml"),
        }

    def home(self, request: "Request") -> "Response":
        """The first view that the run has."""
        from starlette.responses import RedirectResponse

        return RedirectResponse(f"/{next(iter(self.views))}")

    def file(self, request: "Request") -> "Response":
        """The style sheet, the script or the icon."""
        from starlette.responses import Response

        text, media_type = self.files[request.scope["path"]]
        return Response(text, media_type=media_type)

    def view(self, request: "Request") -> "Response":
        """A view in the state of the address, or what is wrong with it: 400, 404 or 500."""
        view = self.views.get(request.scope["path"].strip("/"))
        if view is None:
            return self.fault("This run has no such view.", 404)
        try:
            state = read_state(view.name, request.query_params, [c.name for c in view.columns])
            return self.html(self.pages.view(state))
        except InputError as error:
            return self.fault(error, 400)
        except PerpoError as error:
            return self.fault(error, 500)

    async def image(self, request: "Request") -> "Response":
        """An image of a prompt as PNG or JPEG; 404 and the reason if it cannot be read."""
        from starlette.responses import PlainTextResponse, Response

        size = SIZES.get(request.query_params.get("size", "page"))
        if size is None:
            return PlainTextResponse(f"size is one of {', '.join(SIZES)}", 400)
        keys = request.path_params
        try:
            found = await anyio.to_thread.run_sync(
                self._encoded,
                keys["prompts"],
                keys["prompt_id"],
                _which(keys["which"]),
                size,
                limiter=self.limiter,
            )
        except PerpoError as error:
            return PlainTextResponse(visible(str(error)), 404)
        if found is None:
            return PlainTextResponse("there is no such image", 404)
        kept = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(found.data, media_type=found.media_type, headers=kept)

    def _encoded(
        self, prompts: str, prompt_id: str, which: int | None, size: int
    ) -> Encoded | None:
        if which is None:
            return None
        version = self.prompts.get(prompts)
        views = (view for view in self.views.values() if prompts in view.prompts)
        rows = (view.rows.filter(prompts=prompts, prompt_id=prompt_id) for view in views)
        at = next((int(one["prompt_at"][0]) for one in rows if one.height), None)
        image = None if version is None or at is None else read_image(version, at, which)
        return None if image is None else encode(image, size)

    def html(self, text: str, status: int = 200) -> "Response":
        """A page."""
        from starlette.responses import HTMLResponse

        return HTMLResponse(text, status)

    def fault(self, what: PerpoError | str, status: int) -> "Response":
        """A page that says what is wrong."""
        parts = what.parts() if isinstance(what, PerpoError) else (what, None, None)
        return self.html(self.pages.fault(*parts), status)


def _which(text: str) -> int | None:
    """The number of an image in an address; None for what is no number of an image."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def make_app(artifacts: Artifacts, views: dict[str, View], host: str = DEFAULT_HOST) -> "Starlette":
    """The application; it answers requests whose Host names this machine as `host` says."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    site = Site(artifacts, views)

    async def not_found(request: "Request", error: Exception) -> "Response":
        return site.fault("This page does not exist.", 404)

    return Starlette(
        routes=[
            Route("/", site.home, methods=["GET"]),
            *(Route(path, site.file, methods=["GET"]) for path in site.files),
            Route("/image/{prompts}/{prompt_id}/{which}", site.image, methods=["GET"]),
            Route("/{view:path}", site.view, methods=["GET"]),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(
                TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False
            ),
        ],
        exception_handlers={404: not_found},
    )


class _Headers:
    """Adds HEADERS to every answer that has none of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import MutableHeaders

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sending)


def allowed_hosts(host: str) -> list[str]:
    """The names in a Host header that mean this server.

    A page elsewhere can make its own name point to this machine (DNS rebinding); it cannot change
    the Host that the browser sends.
    """
    found = [*LOOPBACK, _bracketed(host)]
    if is_loopback(host):
        return list(dict.fromkeys(found))
    import psutil

    found += [socket.gethostname(), socket.getfqdn()]
    if host in EVERYWHERE:
        addresses = [one.address for every in psutil.net_if_addrs().values() for one in every]
        with_scope = (address.partition("%")[0] for address in addresses)
        found += [_bracketed(one) for one in with_scope if _is_address(one)]
    return list(dict.fromkeys(name.lower() for name in found))


def is_loopback(host: str) -> bool:
    """Whether this machine alone reaches the address."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(text))
    return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises `ConfigError` if it cannot. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        is_everywhere = ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified
        if is_everywhere and host not in EVERYWHERE:  # "", 0 and 0x0 are, too
            raise ValueError("it means every address, which is written 0.0.0.0 or ::")
        sock.listen(128)
    except (OSError, OverflowError, ValueError) as error:
        sock.close()
        raise _cannot_listen(host, port, error) from error
    return sock


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    import errno

    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use, perhaps by another perpo browse",
            fix=f"choose another, or 0 for any free one: {advice.command('browse', '--port', '0')}",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        what = f"this user may not listen on port {port}"
        return ConfigError(
            what, fix=f"run: {advice.command('browse', '--port', str(DEFAULT_PORT))}"
        )
    return ConfigError(
        f"--host {host} --port {port}: nothing can listen there: {error}",
        fix=f"use --host {DEFAULT_HOST} for this machine alone, --host 0.0.0.0 for its network",
    )


def address_of(sock: socket.socket, host: str) -> str:
    """The URL under which the server is reached."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, _bracketed(host))
    return f"http://{name}:{sock.getsockname()[1]}/"


def serve(app: "Starlette", sock: socket.socket, when_ready: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which it passes on."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    when_ready()
    uvicorn.Server(config).run(sockets=[sock])


def _script() -> str:
    return resources.files("perpo_pipeline.browse").joinpath("browse.js").read_text("utf-8")
