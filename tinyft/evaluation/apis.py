"""What two protocols of chat servers send: OpenAI's, which most speak, and Ollama's own."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

Api = Literal["openai", "ollama"]
OLLAMA_PORT = 11434
FIELDS = ("max_tokens", "temperature", "seed")  # of ours that a server of OpenAI's protocol may not take
CHAT_PATHS = {"openai": "/chat/completions", "ollama": "/api/chat"}
MODELS_PATHS = {"openai": "/models", "ollama": "/api/tags"}
# Not "supports at most 4096", where the field is known and its value too large.
_NOT_TAKEN = re.compile(r"(?:not|n't) support|unsupported|unknown|unrecogni|not permitted|extra inputs", re.IGNORECASE)


class EndpointError(ValueError):
    """An endpoint can't be reached, refuses what it is asked, or doesn't answer with a reply.

    status: the HTTP status, or None where there was none.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status

    @property
    def refused(self) -> bool:
        """Whether only this request wasn't taken (too long, say), so that another may well be answered."""
        return self.status in (400, 413, 422)


class Garbled(EndpointError):
    """An answer that isn't what the protocol says; another may be."""


@dataclass(frozen=True)
class Completion:
    """A whole reply. finish_reason: "stop" where the model ended it, "length" where it was cut; None if not said."""

    text: str
    finish_reason: str | None = None


def read_url(url: str, api: str) -> tuple[str, str]:
    """(what the API's paths are appended to, the API or "auto"). ValueError if it is no URL."""
    if api not in ("auto", "openai", "ollama"):
        raise ValueError(f"the API {api!r}, expected auto, openai or ollama")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r}, expected a URL such as http://localhost:11434 or https://api.openai.com/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"the URL of {parts.hostname} has more than an address and a path; give an API key apart from "
                         "it, and leave out what comes after ? and #")
    root, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    for of, end in CHAT_PATHS.items():
        if path.endswith(end) and api in ("auto", of):
            return root + path[: -len(end)], of
    versioned = re.search(r"/v\d\w*$", path)
    if api == "ollama":
        return root + re.sub(r"/(v1|api)$", "", path), api
    if api == "openai" or versioned:
        return root + path + "/v1" * (not versioned), "openai"
    return root + path, "ollama" if port == OLLAMA_PORT and not path else "auto"


def chat_body(api: Api, model: str, messages: Sequence[dict[str, str]], *, stream: bool, temperature: float,
              seed: int | None, max_tokens: int, left_out: set[str]) -> dict[str, Any]:
    """What asks for a reply. left_out: FIELDS that this server doesn't take."""
    body = {"model": model, "messages": list(messages), "stream": stream}
    if api == "ollama":
        options = {"temperature": temperature, "seed": seed, "num_predict": max_tokens}
        return body | {"options": {name: value for name, value in options.items() if value is not None}}
    fields = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
    if "max_tokens" in left_out:  # some models of OpenAI's know it by another name only
        fields["max_completion_tokens"] = max_tokens
    return body | {name: value for name, value in fields.items() if value is not None and name not in left_out}


def read_completion(api: Api, content: bytes) -> Completion:
    """The reply in a body that isn't streamed. Garbled if there is none.

    A message without content is a reply without words: that of a model which thought until its tokens were used up.
    """
    found = read_object(content)
    try:
        choice = found["choices"][0] if api == "openai" else found
        text = choice["message"].get("content")
        reason = choice.get("finish_reason" if api == "openai" else "done_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Garbled(f"an answer without a message: {one_line_of(content)}") from None
    if not isinstance(text, str | None):
        raise Garbled(f"a message whose content is no text: {one_line_of(content)}")
    return Completion((text or "").encode("utf-8", "replace").decode(), reason)  # half a surrogate pair can't be kept


def read_models(api: Api, content: bytes) -> list[str]:
    """The names in a list of models. Garbled if it is none."""
    listed, key = read_object(content).get("data" if api == "openai" else "models"), "id" if api == "openai" else "name"
    names = [model.get(key) for model in listed if isinstance(model, dict)] if isinstance(listed, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise Garbled(f"no list of models: {one_line_of(content)}")
    return names


def read_refusal(content: bytes) -> tuple[str, str | None]:
    """(what an unsuccessful response says in words, the field that it names, if any)."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return one_line_of(content), None
    error = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return one_line_of(error), None
    return one_line_of(error.get("message", error)), error.get("param")


def unsupported_field(said: str, param: Any) -> str | None:
    """The one of FIELDS that a server says it doesn't take."""
    if not _NOT_TAKEN.search(said):
        return None
    return param if param in FIELDS else next((name for name in FIELDS if re.search(rf"\b{name}\b", said)), None)


def one_line_of(text: Any) -> str:
    """All of it in one line; who shows it cuts it, once there is no API key in it."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return " ".join(text.split()) or "nothing"


def read_object(content: bytes | str) -> dict:
    """A JSON object. Garbled if it is none, or only tells of an error."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Garbled(f"not a JSON object but {one_line_of(content)}")
    if (error := found.get("error")) and not found.get("choices"):
        raise Garbled(f"an error, {one_line_of(error.get('message', error) if isinstance(error, dict) else error)}")
    return found


def read_pieces(api: Api, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The text in a stream's lines, as it comes. Garbled where it is none, or ends too early."""
    return _openai_pieces(lines) if api == "openai" else _ollama_pieces(lines)


async def _openai_pieces(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events, each a JSON object after "data:", up to [DONE]."""
    finished = False
    async for line in lines:
        name, _, value = line.partition(":")
        if name != "data":  # an empty line, a comment that keeps the connection, a field that has no use here
            continue
        if value.strip() == "[DONE]":
            return
        found = read_object(value)
        try:
            choice = (found.get("choices") or [{}])[0]
            finished = finished or choice.get("finish_reason") is not None
            text = (choice.get("delta") or {}).get("content") or ""
        except (TypeError, AttributeError, KeyError):
            raise Garbled(f"an event without a message: {one_line_of(value)}") from None
        yield _checked(text, value)
    if not finished:
        raise Garbled("its end is missing")


async def _ollama_pieces(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """JSON lines, up to the one that says that it is done."""
    async for line in lines:
        if not line.strip():
            continue
        found = read_object(line)
        message = found.get("message") or {}
        yield _checked(message.get("content") or "" if isinstance(message, dict) else message, line)
        if found.get("done"):
            return
    raise Garbled("its end is missing")


def _checked(text: Any, event: str) -> str:
    if not isinstance(text, str):
        raise Garbled(f"an event whose content is no text: {one_line_of(event)}")
    return text
