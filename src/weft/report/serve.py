"""`weft status --serve`: the same as a page in the browser, read-only."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from starlette.middleware.trustedhost import TrustedHostMiddleware

from weft.core.errors import SettingError
from weft.report.live import Live

LOOPBACK = ["127.0.0.1", "localhost"]


def serve(read: Callable[[], Sequence[Live]], title: str, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; port 0 takes a free one. `say` is told the address.

    Raises:
        SettingError: the port cannot be had.
    """
    made = app(read, title, host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
            door.listen()  # whoever asks before the server is up waits
        except (OSError, OverflowError) as error:
            cause = getattr(error, "strerror", None) or error
            raise SettingError(
                f"port = {port} at {host} cannot be served ({cause}): use another --port, or 0 for any free one"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        say(f"status page: http://{shown}:{door.getsockname()[1]}/ (Ctrl-C ends the page, not the run)")
        settings = uvicorn.Config(made, log_level="warning", access_log=False, server_header=False, ws="none")
        uvicorn.Server(settings).run([door])


def app(read: Callable[[], Sequence[Live]], title: str, host: str = LOOPBACK[0]) -> FastAPI:
    """The page at /, and what it shows at /status.json; there is nothing to be changed.

    A page that is meant for this machine answers to names of this machine only, so that no site that a browser visits
    can read it under a name of its own.
    """
    html, policy = page(title)
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in LOOPBACK:
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)

    @made.middleware("http")
    async def guarded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await go_on(request)
        answer.headers.update(
            {
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            }
        )
        return answer

    @made.get("/", response_class=HTMLResponse)
    def shown() -> str:
        return html

    @made.get("/status.json")
    def status() -> JSONResponse:
        try:
            return JSONResponse({"title": title, "runs": [run.plain() for run in read()]})
        except SettingError as error:
            return JSONResponse({"title": title, "runs": [], "error": str(error)}, status_code=503)

    return made


def page(title: str) -> tuple[str, str]:
    """The page, and the policy under which a browser runs nothing but its own script and asks nobody else."""
    folder = resources.files(__package__)
    style, script = (
        "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
        for names in (("style.css", "live.css"), ("live.js",))
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "live.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return template.render(title=title, style=Markup(style), script=Markup(script)), policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
