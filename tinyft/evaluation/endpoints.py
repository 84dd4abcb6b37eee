"""A client of servers that answer chat messages, which doesn't give up at the first failure."""

import asyncio
import email.utils
import ipaddress
import itertools
import json
import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from ..files import one_line
from .apis import (
    CHAT_PATHS,
    MODELS_PATHS,
    Api,
    Completion,
    EndpointError,
    Garbled,
    chat_body,
    read_completion,
    read_models,
    read_pieces,
    read_refusal,
    read_url,
    unsupported_field,
)

# Too many requests, or a failure that may be gone at the next try; 529 is how some say that they are overloaded.
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
RETRIES = 7
RETRIES_BEFORE_ANY_ANSWER = 2  # a server that isn't running is said soon
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries, which double
LONGEST_RETRY_AFTER = 300.0  # a server that wants a longer pause has run out of something that waiting won't mend
CONNECT_SECONDS = 10.0
MOST_NAMES = 10  # of models in an error
MOST_LETTERS = 200  # of what a server says, in an error
KEY_VARIABLE = "OPENAI_API_KEY"
REMEDIES = {401: "; give the right API key", 403: "; give an API key that may do this",
            404: "; check the URL and the model's name"}
FAILURES = {"ConnectError": "no connection", "ConnectTimeout": "no connection in time",
            "ReadTimeout": "no answer in time", "RemoteProtocolError": "the connection was closed too early",
            "DecodingError": "an answer that can't be decompressed"}


class Endpoint:
    """A model behind a URL.

        async with Endpoint("http://127.0.0.1:8000") as endpoint:
            print(await endpoint.chat([{"role": "user", "content": "What is the capital of France?"}]))

    url: http://localhost:11434 (Ollama), http://127.0.0.1:8000, https://api.openai.com/v1; also with the path that is
    asked in the end. model: its name there; may be None where just one is served. api: "openai", "ollama", or "auto":
    a URL that ends in /v1 is OpenAI's, plain port 11434 Ollama's, and any other is tried for both. api_key: sent as
    bearer token, and shown nowhere. timeout: seconds that the server may be silent. retries: of what may be gone at the
    next try, with waits that double, or as long as the server asks for.

    ValueError for a URL or a key that can't be one, RuntimeError without httpx. One event loop may use it at a time;
    within that, as many tasks as you like.
    """

    def __init__(self, url: str, model: str | None = None, api: Api | Literal["auto"] = "auto",
                 api_key: str | None = None, timeout: float = 120.0, *, retries: int = RETRIES):
        self._httpx = _import_httpx()
        self.url = url.strip().rstrip("/")
        self.root, self.api = read_url(self.url, api)
        try:
            self._httpx.URL(self.root)
        except (self._httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"{url!r} is no URL: {one_line(error)}") from None
        self.model, self.retries, self._key = model or None, retries, api_key or None
        check_key(self._key or "")
        self.left_out: set[str] = set()  # fields of ours that this server doesn't take
        self._reached, self._lock = False, asyncio.Lock()
        self._client = self._httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=20),
            verify=self.root.startswith("https:"),  # reading all certificates takes a while
            trust_env=not is_loopback(self.root))  # a proxy can't reach this machine's own servers

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *exception) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self.root!r}, {self.model!r}, api={self.api!r})"

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def find(self) -> tuple[Api, str]:
        """The API and the model's name; found out now where they weren't given. EndpointError if they can't be."""
        async with self._lock:
            if self.api == "auto":
                await self._find_api()
            if self.model is None:
                names = await self._models()
                if len(names) != 1:
                    raise EndpointError(f"{self.root} serves {_listed(names)}; say which model to ask")
                self.model = names[0]
        return self.api, self.model

    async def models(self) -> list[str]:
        """The names of the models that are served. EndpointError if it doesn't say."""
        async with self._lock:
            if self.api == "auto":
                await self._find_api()
            return await self._models()

    async def chat(self, messages: Sequence[dict[str, str]], *, temperature: float = 0.0, seed: int | None = None,
                   max_tokens: int = 512) -> str:
        """The reply to messages with `role` and `content`. EndpointError if there is none after all tries."""
        completion = await self.complete(messages, temperature=temperature, seed=seed, max_tokens=max_tokens)
        return completion.text

    async def complete(self, messages: Sequence[dict[str, str]], *, temperature: float = 0.0, seed: int | None = None,
                       max_tokens: int = 512) -> Completion:
        """Like `chat`, with the reason why the reply ends where it does."""
        await self.find()
        return await self._ask(messages, False, temperature, seed, max_tokens,
                               lambda response: read_completion(self.api, response.content))

    async def stream(self, messages: Sequence[dict[str, str]], *, temperature: float = 0.0, seed: int | None = None,
                     max_tokens: int = 512) -> AsyncIterator[str]:
        """The reply, piece by piece as it comes; none of them is empty. EndpointError, also in the middle of it.

        It is asked for again only as long as nothing of it has come.
        """
        await self.find()
        response = await self._ask(messages, True, temperature, seed, max_tokens, lambda response: response)
        try:
            if "application/json" in response.headers.get("content-type", ""):  # a server that doesn't stream
                if text := read_completion(self.api, await response.aread()).text:
                    yield text
                return
            async for piece in read_pieces(self.api, _lines(response)):
                if piece:
                    yield piece
        except self._httpx.RequestError as error:
            raise EndpointError(f"{self.root}: the reply broke off: {_reason(error)}; ask again") from None
        except Garbled as error:
            raise EndpointError(f"{self.root}: the reply broke off: {self._shown(str(error))}; ask again") from None
        finally:
            await response.aclose()

    async def _ask(self, messages, stream: bool, temperature, seed, max_tokens, read) -> Any:
        """Send messages in the server's way, without the fields that it has refused before."""
        while True:
            body = chat_body(self.api, self.model, messages, stream=stream, temperature=temperature, seed=seed,
                             max_tokens=max_tokens, left_out=self.left_out)
            try:
                return await self._send("POST", CHAT_PATHS[self.api], read, body, stream=stream)
            except _Unsupported as error:
                if error.name not in body:
                    raise
                self.left_out.add(error.name)

    async def _send(self, method: str, path: str, read: Callable[[Any], Any], body: dict | None = None, *,
                    stream: bool = False) -> Any:
        """What `read` makes of the response, after as many tries as it takes and are allowed."""
        for tried in itertools.count():
            wait, most = 0.0, self.retries
            try:
                request = self._client.build_request(method, self.root + path, json=body)
                response = await self._client.send(request, stream=stream)
                self._reached = True
                if response.is_success:
                    return read(response)
                await response.aread()
                failure = self._refusal(response)
                if response.status_code not in TRANSIENT:
                    raise failure
                wait = _retry_after(response.headers.get("retry-after"))
            except self._httpx.RequestError as error:
                remedy = "look at the server's log" if self._reached else "is it running, and is that its URL?"
                failure = EndpointError(f"{self.root}: {_reason(error)}; {remedy}")
                most = most if self._reached else min(most, RETRIES_BEFORE_ANY_ANSWER)
            except Garbled as error:
                failure = Garbled(f"{self.root}{path} answers with {self._shown(str(error))}; check the URL")
            if tried >= most:
                raise type(failure)(f"{failure} (tried {tried + 1} times)", failure.status)
            if wait > LONGEST_RETRY_AFTER:
                raise EndpointError(f"{failure} (it asks to wait for {wait:.0f} s; ask again then)", failure.status)
            # Not seeded: clients that were turned away together must not come back together.
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(wait, backoff))

    async def _find_api(self) -> None:
        """Try where each of the two lists its models."""
        found, said = self.root, []
        for api, prefix in (("openai", "/v1"), ("ollama", ""), ("openai", "")):
            path = prefix + MODELS_PATHS[api]
            try:
                response = await self._send("GET", path, lambda response: response)
                read_models(api, response.content)
            except Garbled:
                said.append(f"{path}: something else")
                continue
            except EndpointError as error:
                if error.status is None or error.status in TRANSIENT:
                    raise
                if error.status not in (401, 403) or api == "ollama":  # it is there, but not for everybody
                    said.append(f"{path}: {error.status}")
                    continue
            self.api, self.root = api, found + prefix
            return
        raise EndpointError(f"{found}: neither OpenAI's API nor Ollama's ({', '.join(said)}); check the URL, or say "
                            "which of the two it is")

    async def _models(self) -> list[str]:
        return await self._send("GET", MODELS_PATHS[self.api], lambda response: read_models(self.api, response.content))

    def _refusal(self, response) -> EndpointError:
        """An unsuccessful response as an error with what the server says of it."""
        status = response.status_code
        said, param = read_refusal(response.content)
        said = self._shown(said)
        message = f"{self.root} answers {status}: {said}"
        if status == 400 and self.api == "openai" and (name := unsupported_field(said, param)):
            return _Unsupported(message, name)
        remedy = REMEDIES.get(status, "")
        if 300 <= status < 400:
            remedy = f"; give the URL that it redirects to, {self._shown(response.headers.get('location', ''))}"
        return EndpointError(message + remedy, status)

    def _shown(self, text: str) -> str:
        """The beginning of a text for a line of ours, without the API key: cut afterwards, or a part of it may stay."""
        if self._key:
            escaped = json.dumps(self._key)[1:-1]
            for key in (self._key, quote(self._key, safe=""), quote(self._key), escaped, escaped.replace("/", r"\/")):
                text = text.replace(key, "[the API key]")
        return text[:MOST_LETTERS].rstrip(". ")


class _Unsupported(EndpointError):
    """A server that doesn't take one of the fields; `name` says which."""

    def __init__(self, message: str, name: str):
        super().__init__(message, 400)
        self.name = name


def _import_httpx():
    try:
        import httpx
    except ImportError:
        raise RuntimeError("asking a server needs httpx: pip install -e '.[judge]'") from None
    return httpx


def check_key(key: str) -> None:
    """ValueError for an API key that can't be sent, which it doesn't show."""
    if not all("!" <= letter <= "~" for letter in key):
        raise ValueError("the API key has signs that can't be sent; expected letters, digits and signs of ASCII, "
                         "without spaces")


def key_from_environment(url: str) -> tuple[str | None, str]:
    """(the API key in OPENAI_API_KEY where it may be sent to `url`, why it isn't or "").

    Over plain http everybody on the way could read it, so that it goes to no other machine.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None or url.strip().lower().startswith("https://") or is_loopback(url):
        return key, ""
    return None, f"{KEY_VARIABLE} isn't sent over plain http to another machine; --api-key does it anyway"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself."""
    try:
        host = urlsplit(url.strip()).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{len(names)} models ({', '.join(names[:MOST_NAMES])}{more})" if names else "no model"


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, which has them or a date (RFC 9110, 10.2.3)."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _reason(error: Exception) -> str:
    """What went wrong with a connection."""
    said = FAILURES.get(type(error).__name__, type(error).__name__)
    return f"{said} ({one_line(error)})" if str(error) else said


async def _lines(response) -> AsyncIterator[str]:
    """Lines of a body, as they are complete; httpx's own would also cut at what only text calls a line end."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
