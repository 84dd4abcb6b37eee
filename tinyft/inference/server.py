"""An HTTP server that speaks OpenAI's protocol, on Starlette and uvicorn (pip install 'tinyft[serve]')."""

import asyncio
import hmac
import math
import socket
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .answers import Writer, make_requests
from .protocol import APIError, Asked, Served, read_chat, read_completion
from .service import Answer, Limits, Metrics, Piece, Service
from .web import (
    BODY_SECONDS,
    PAGES,
    WebServer,
    is_loopback,
    listen,
    page_response,
    read_json_body,
    refuse_other_hosts,
    serve_until_signal,
)

__all__ = ["Server", "is_loopback", "listen", "serve"]
OPEN_PATHS = ("/", "/health")  # without a key
LARGE_BODY = 32_768  # is read in a thread, so that the event loop doesn't wait for the tokenizer


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


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
        body = await read_json_body(request, self.server.limits.body_bytes, BODY_SECONDS)
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


class Server(WebServer):
    """A model behind HTTP. api_key: what clients must show; None is for this machine's own users only."""

    def __init__(self, service: Service, served: Served, *, api_key: str | None = None, limits: Limits | None = None):
        self.service, self.served, self.api_key, self.limits = service, served, api_key, limits or Limits()
        service.on_failure = self.drain
        self.metrics = Metrics()
        super().__init__([
            Route("/", self._page), Route("/health", self._health), Route("/metrics", self._metrics),
            Route("/v1/models", self._models), Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", ReplyEndpoint(self, read_completion), methods=["POST"]),
            Route("/v1/chat/completions", ReplyEndpoint(self, read_chat), methods=["POST"]),
        ])

    @property
    def busy(self) -> bool:
        """Whether replies are in the making."""
        return self.service.n_open > 0

    def start(self) -> None:
        """Start the thread of the engine."""
        self.service.start()

    def close(self) -> None:
        """End it."""
        self.service.close()

    def ended(self, path: str, status: int) -> None:
        """Count how requests end."""
        self.metrics.statuses[path, status] += 1

    def refusal(self, request: Request) -> APIError | None:
        """Why a request is not let in, if so."""
        if self.api_key is None:
            return refuse_other_hosts(request, "without an API key this server answers to this machine's own name "
                                      "only, not to {host}; start it with an API key")
        if request.scope["path"] not in OPEN_PATHS:
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

    # ---- endpoints

    async def _page(self, request: Request) -> Response:
        return page_response(PAGES / "chat.html")

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


def serve(server: Server, listener: socket.socket, on_ready: Callable[[], None] = lambda: None) -> None:
    """Answer until SIGTERM or Ctrl-C; then finish what runs, and return, or raise KeyboardInterrupt.

    on_ready: called when signals are listened to. RuntimeError if the engine has failed.
    """
    interrupted = serve_until_signal(server, listener, on_ready)
    if server.service.failure:
        raise RuntimeError(server.service.failure)
    if interrupted:
        raise KeyboardInterrupt
