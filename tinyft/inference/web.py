"""What all servers here share, on Starlette and uvicorn: who may ask, bodies, pages, errors, a graceful end."""

import asyncio
import errno
import ipaddress
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .prompt_files import check_text
from .protocol import APIError, read_object

PAGES = Path(__file__).with_name("pages")
PAGE_POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
KEEP_ALIVE_SECONDS, DRAIN_INTERVAL = 60, 0.05
SENDING_SECONDS = 10  # for clients to take what is left when the server ends
BODY_SECONDS = 30  # for a client to send its body
MOST_DISCARDED = 16  # times the limit: so much of a body is read to its end before it is refused


class WebServer:
    """Routes behind a guard. Without anything else they are for this machine's own users.

    paths: of the routes. draining: whether it finishes what runs and takes nothing new.
    """

    def __init__(self, routes: Sequence[Route]):
        self.draining, self.on_ready, self.on_drained = False, lambda: None, lambda: None
        self.paths = {route.path for route in routes}
        handlers = dict.fromkeys((APIError, HTTPException, Exception), _answer_error)
        self.app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan,
                             middleware=[Middleware(Guard, server=self)])

    @property
    def busy(self) -> bool:
        """Whether something runs that is to be finished before the server ends."""
        return False

    def start(self) -> None:
        """The event loop runs, and nothing has been asked yet."""

    def close(self) -> None:
        """Nothing will be asked any more."""

    def ended(self, path: str, status: int) -> None:
        """A request has been answered. path: "other" where there is none such."""

    def drain(self) -> None:
        """Take nothing new; `on_drained` is called when all is finished."""
        self.draining = True

    def refusal(self, request: Request) -> APIError | None:
        """Why a request is not let in, if so."""
        return refuse_other_hosts(request, "this server answers to this machine's own name only, not to {host}")

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.start()
        waiting = asyncio.create_task(self._wait_until_drained())
        self.on_ready()
        yield
        waiting.cancel()
        self.close()

    async def _wait_until_drained(self) -> None:
        while not self.draining or self.busy:
            await asyncio.sleep(DRAIN_INTERVAL)
        self.on_drained()


class Guard:
    """In front of every request: who may ask, and how it ended."""

    def __init__(self, app: ASGIApp, server: WebServer):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 499  # nginx's for a client that went away before it was answered

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            request = Request(scope)
            error = self.server.refusal(request)
            app = self.app if error is None else error_response(request, error)
            await app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            self.server.ended(scope["path"] if scope["path"] in self.server.paths else "other", status)


def refuse_other_hosts(request: Request, message: str) -> APIError | None:
    """The error if the client asks for another machine's name; `message` says so of {host}.

    A page of another site may have its name point here, but can't change what the browser says it asks.
    """
    host = re.sub(r":\d*\Z", "", request.headers.get("host", "localhost")).strip("[]").lower().rstrip(".")
    return None if is_loopback(host) else APIError(message.replace("{host}", host), status=403)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- what is asked, and what is answered


async def read_json_body(request: Request, most: int, seconds: float = BODY_SECONDS) -> bytes:
    """The body of a request that says it is JSON. APIError for another type, more bytes than `most`, or a late end."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # A browser lets any page send other types to this machine without asking.
        raise APIError("the Content-Type is not application/json; send that header with the body", status=415)
    try:
        return await asyncio.wait_for(_read_body(request, most), seconds)
    except asyncio.TimeoutError:  # noqa: UP041 - another than TimeoutError before Python 3.11
        raise APIError(f"the body did not come within {seconds} s", status=408,
                       headers={"Connection": "close"}) from None


async def _read_body(request: Request, most: int) -> bytes:
    body, length = bytearray(), int(request.headers.get("content-length", "0"))
    if length <= most or "expect" not in request.headers:
        length = 0
        async for chunk in request.stream():
            length += len(chunk)
            if length <= most:
                body += chunk
            elif length > MOST_DISCARDED * most:  # a client that still sends when it is hung up on sees no answer
                break
    if length > most:
        raise APIError(f"the body has more than {most:,} bytes, which is this server's limit", status=413,
                       headers={"Connection": "close"})
    return bytes(body)


async def read_fields(request: Request, most: int, known: tuple[str, ...]) -> dict[str, Any]:
    """The object in a body. APIError for any other field than those."""
    asked = read_object(await read_json_body(request, most))
    if unknown := next((name for name in asked if name not in known), None):
        raise APIError(f"{unknown[:40]!r}: not known here, expected {', '.join(known) or 'no fields'}")
    return asked


def text_of(asked: dict[str, Any], name: str) -> str:
    """A text that UTF-8 can write, "" where it is left out. APIError otherwise."""
    text = asked.get(name, "")
    if not isinstance(text, str):
        raise APIError(f"{name}: expected a text", name)
    try:
        return check_text(text, name)
    except ValueError as error:
        raise APIError(str(error), name) from None


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def json_response(value: Any, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII, so that halves of surrogate pairs pass; nobody is to keep it."""
    sent = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | (headers or {})
    return Response(json.dumps(value), media_type="application/json", headers=sent)


def download(value: Any, name: str) -> Response:
    """JSON that a browser saves as a file of this name."""
    return json_response(value, {"Content-Disposition": f'attachment; filename="{name}"'})


def page_response(path: Path) -> Response:
    """A page with the style sheet and the script that all pages share put in: one answer, nothing to fetch."""
    page = path.read_text(encoding="utf-8")
    for name in ("look.css", "shared.js"):
        page = page.replace(f"/* {name} */\n", (PAGES / name).read_text(encoding="utf-8"))
    return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache",
                                       "X-Content-Type-Options": "nosniff"})


def error_response(request: Request, error: Exception) -> Response:
    """OpenAI's error object for whatever has gone wrong."""
    if isinstance(error, HTTPException):
        path = request.scope["path"]
        said = {404: f"there is no {path} here", 405: f"{path} doesn't take {request.method}"}
        error = APIError(said.get(error.status_code, error.detail), status=error.status_code,
                         headers=dict(error.headers or {}))
    elif not isinstance(error, APIError):
        error = APIError("a fault of the server's; its log has more", status=500)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request, error)


# ---- begin and end


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. ValueError in one line where that isn't possible."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: no address of this machine ({error.strerror})") from None
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        remedy = ("something listens there; stop it or choose another --port" if error.errno == errno.EADDRINUSE else
                  "choose another --host or --port")
        raise ValueError(f"--port {port}: can't listen on {host} ({os.strerror(error.errno)}): {remedy}") from None
    return listener


class _Uvicorn(uvicorn.Server):
    """Ends when a signal has come and all that ran is finished; at once at the second."""

    def __init__(self, server: WebServer):
        super().__init__(uvicorn.Config(server.app, log_level="warning", access_log=False, ws="none", lifespan="on",
                                        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
                                        timeout_graceful_shutdown=SENDING_SECONDS))
        self.server, self.signal = server, 0
        server.on_drained = lambda: setattr(self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self.server.draining:
            self.should_exit = self.force_exit = True
        self.server.draining, self.signal = True, sig


def serve_until_signal(server: WebServer, listener: socket.socket, on_ready: Callable[[], None]) -> bool:
    """Answer until SIGTERM or Ctrl-C, then finish what runs -> whether it was Ctrl-C.

    on_ready: called when signals are listened to.
    """
    server.on_ready = on_ready
    runner = _Uvicorn(server)
    runner.run(sockets=[listener])
    return runner.signal == signal.SIGINT
