"""An HTTP server that speaks OpenAI's protocol, on Starlette and uvicorn (pip install 'tinyft[serve]')."""

import asyncio
import errno
import hmac
import ipaddress
import math
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import Writer, make_requests
from .protocol import APIError, Asked, Served, read_chat, read_completion
from .service import Answer, Limits, Metrics, Piece, Service

PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
OPEN_PATHS = ("/", "/health")  # without a key
KEEP_ALIVE_SECONDS, DRAIN_INTERVAL = 60, 0.05
SENDING_SECONDS = 10  # for clients to take what is left when the server ends
BODY_SECONDS = 30  # for a client to send its body
MOST_DISCARDED = 16  # times the limit: so much of a body is read to its end before it is refused
LARGE_BODY = 32_768  # is read in a thread, so that the event loop doesn't wait for the tokenizer


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Guard:
    """In front of every request: who may ask, and a count of how it ended."""

    def __init__(self, app: ASGIApp, server: "Server"):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 499  # nginx's for a client that went away before it was answered

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            request = Request(scope)
            error = self.server.refusal(request)
            app = self.app if error is None else error_response(request, error)
            await app(scope, receive, counting)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self.server.paths else "other"
            self.server.metrics.statuses[path, status] += 1


class ReplyEndpoint:
    """An endpoint that makes replies: reads what is asked, has it done, and sends it."""

    def __init__(self, server: "Server", read: Callable[[bytes, Served], Asked]):
        self.server, self.read = server, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        try:
            await self._reply(scope, receive, send)
        except (ClientGone, ClientDisconnect):
            pass

    async def _reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, request = time.perf_counter(), Request(scope, receive)
        asked = await self._read(request)
        answer, writer = self.server.ask(asked)
        watch = asyncio.create_task(_end_when_gone(answer, receive))
        limit = self.server.limits.seconds
        late = APIError(f"not finished within this server's limit of {limit:g} s; ask for fewer tokens or later",
                        status=503, code="timeout")
        timer = asyncio.get_running_loop().call_later(limit, answer.end, late)
        try:
            pieces = self._timed(answer, began)
            if asked.stream:
                await _send_stream(pieces, writer, send)
            else:
                whole = writer.whole([piece async for pieces_of_step in pieces for piece in pieces_of_step])
                await JSONResponse(whole)(scope, receive, send)
            self.server.metrics.request_seconds.add(time.perf_counter() - began)
        finally:
            timer.cancel()
            watch.cancel()
            answer.end(ClientGone())  # where sending has failed

    async def _read(self, request: Request) -> Asked:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            # A browser lets any page send other types to this machine without asking.
            raise APIError("the Content-Type is not application/json; send that header with the body", status=415)
        try:
            body = await asyncio.wait_for(_read_body(request, self.server.limits.body_bytes), BODY_SECONDS)
        except asyncio.TimeoutError:  # noqa: UP041 - another than TimeoutError before Python 3.11
            raise APIError(f"the body did not come within {BODY_SECONDS} s", status=408,
                           headers={"Connection": "close"}) from None
        if len(body) < LARGE_BODY:
            return self.read(body, self.server.served)
        return await asyncio.to_thread(self.read, body, self.server.served)

    async def _timed(self, answer: Answer, began: float) -> AsyncIterator[list[Piece]]:
        first = True
        try:
            async for pieces in answer:
                if first:
                    self.server.metrics.first_token_seconds.add(time.perf_counter() - began)
                    first = False
                yield pieces
        except ValueError as error:  # the scheduler has refused the request
            raise APIError(str(error)) from None
        except RuntimeError as error:
            raise APIError(str(error), status=500) from None


async def _end_when_gone(answer: Answer, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.end(ClientGone())


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


async def _send_stream(pieces: AsyncIterator[list[Piece]], writer: Writer, send: Send) -> None:
    """Server-sent events. An error before the first token is raised; later it is an event and the last."""
    begun = False
    try:
        async for new in pieces:
            if not begun:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                begun = True
            if text := writer.events(new):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        last = writer.last_events()
    except APIError as error:
        if not begun:
            raise
        last = writer.error_event(error)
    await send({"type": "http.response.body", "body": last.encode()})


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


class Server:
    """A model behind HTTP. api_key: what clients must show; None is for this machine's own users only.

    draining: whether it finishes what runs and takes nothing new.
    """

    def __init__(self, service: Service, served: Served, *, api_key: str | None = None, limits: Limits | None = None):
        self.service, self.served, self.api_key, self.limits = service, served, api_key, limits or Limits()
        self.draining, self.on_ready, self.on_drained = False, lambda: None, lambda: None
        service.on_failure = self.drain
        self.metrics = Metrics()
        routes = [
            Route("/", self._page), Route("/health", self._health), Route("/metrics", self._metrics),
            Route("/v1/models", self._models), Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", ReplyEndpoint(self, read_completion), methods=["POST"]),
            Route("/v1/chat/completions", ReplyEndpoint(self, read_chat), methods=["POST"]),
        ]
        self.paths = {route.path for route in routes}
        handlers = dict.fromkeys((APIError, HTTPException, Exception), _answer_error)
        self.app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan,
                             middleware=[Middleware(Guard, server=self)])

    def drain(self) -> None:
        """Take nothing new; `on_drained` is called when all is finished."""
        self.draining = True

    def refusal(self, request: Request) -> APIError | None:
        """Why a request is not let in, if so."""
        if self.api_key is None:
            # A page of another site may have its name point here, but can't change what the browser says it asks.
            host = re.sub(r":\d*\Z", "", request.headers.get("host", "localhost")).strip("[]").lower().rstrip(".")
            if not is_loopback(host):
                return APIError("without an API key this server answers to this machine's own name only, not to "
                                f"{host}; start it with an API key", status=403)
        elif request.scope["path"] not in OPEN_PATHS:
            scheme, _, shown = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), self.api_key.encode()):
                return APIError("the API key is missing or wrong; send it as Authorization: Bearer KEY", status=401,
                                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def ask(self, asked: Asked) -> tuple[Answer, Writer]:
        """Queue what is asked. APIError where that can't be now."""
        if self.draining or self.service.failure:
            raise APIError(self.service.failure or "this server is shutting down; ask another, or later", status=503,
                           code="unavailable", headers={"Connection": "close", "Retry-After": "5"})
        requests = make_requests(asked)
        if self.service.n_open + len(requests) > self.served.most_replies:
            raise APIError(f"{self.service.n_open} replies are in the making or wait, and at most "
                           f"{self.served.most_replies} may; try again later", status=429, code="rate_limit_exceeded",
                           headers={"Retry-After": str(min(60, math.ceil(self.metrics.request_seconds.mean + 0.5)))})
        answer = self.service.ask(requests, asked.stop, logprobs=asked.logprobs is not None)
        return answer, Writer(asked, self.served, requests)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.service.start()
        waiting = asyncio.create_task(self._wait_until_drained())
        self.on_ready()
        yield
        waiting.cancel()
        self.service.close()

    async def _wait_until_drained(self) -> None:
        while not self.draining or self.service.n_open:
            await asyncio.sleep(DRAIN_INTERVAL)
        self.on_drained()

    # ---- endpoints

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={
            "Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})

    async def _health(self, request: Request) -> Response:
        status = "failed" if self.service.failure else "shutting down" if self.draining else "ok"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.served.name:
            raise APIError(f"there is no model {name} here; this server has {self.served.name}", "model", status=404,
                           code="model_not_found")
        return JSONResponse(self._card())

    def _card(self) -> dict:
        return {"id": self.served.name, "object": "model", "created": self.served.created, "owned_by": "tinyft",
                "max_model_len": self.served.context}

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(self.service), media_type="text/plain; version=0.0.4")


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request, error)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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

    def __init__(self, server: Server):
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


def serve(server: Server, listener: socket.socket, on_ready: Callable[[], None] = lambda: None) -> None:
    """Answer until SIGTERM or Ctrl-C; then finish what runs, and return, or raise KeyboardInterrupt.

    on_ready: called when signals are listened to. RuntimeError if the engine has failed.
    """
    server.on_ready = on_ready
    runner = _Uvicorn(server)
    runner.run(sockets=[listener])
    if server.service.failure:
        raise RuntimeError(server.service.failure)
    if runner.signal == signal.SIGINT:
        raise KeyboardInterrupt
