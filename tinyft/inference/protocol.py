"""OpenAI's protocol: bodies of requests, read and checked.

After OpenAI's reference of /v1/completions and /v1/chat/completions, with vLLM's names for what goes beyond it (top_k,
min_p, repetition_penalty, min_tokens). A field that would change the answer and isn't understood is refused.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..data.entries import Turn
from ..data.prompts import Style, encode_prompt, end_of_reply
from ..tokenizer import Tokenizer
from .sampling import Sampling

DEFAULT_MAX_TOKENS = 16  # of a completion, as OpenAI's; a chat's reply may fill the context
MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS = 128, 16, 20
# Fields that say who asks, or how OpenAI's own machines are to work.
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_retention", "parallel_tool_calls")
# Fields for what this server doesn't do, with the values that ask for nothing.
NEUTRAL = {"suffix": ("",), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
           "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],)}
NEUTRAL_IN_MESSAGES = {"tool_calls": ([],), "annotations": ([],), "refusal": ("",)}


class APIError(Exception):
    """An answer that is an error: OpenAI's error object under an HTTP status."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None,
                 headers: dict[str, str] | None = None):
        message, param = (text and text.encode(errors="backslashreplace").decode() for text in (message, param))
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.headers = message, param, status, code, headers

    def body(self) -> dict:
        """The error object."""
        kind = ("server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else
                "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Served:
    """The model that requests are for. most_replies: how many one request may ask for."""

    name: str
    tokenizer: Tokenizer
    style: Style
    context: int
    vocab_size: int
    most_replies: int
    fingerprint: str = "tinyft"
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def most_bytes(self) -> int:
        """No longer text can fit the context."""
        tokens = range(self.tokenizer.n_vocab)
        return self.context * max(len(self.tokenizer.decode_single_token_bytes(token)) for token in tokens)


@dataclass(frozen=True)
class Asked:
    """What a request asks for, checked. Each prompt gets `candidates` replies, of which the best `n` are sent.

    logprobs: None for none, else how many of the likeliest tokens beside the chosen one.
    """

    chat: bool
    prompts: list[list[int]]
    max_tokens: int
    ends: tuple[int, ...]
    sampling: Sampling
    n: int
    candidates: int
    stop: list[str]
    seed: int | None
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool


# ---- reading


class _Fields:
    """The fields of a JSON object, taken one after the other; `finish` refuses what is left. null is as if absent."""

    def __init__(self, values: dict, where: str = ""):
        self.values = {name: value for name, value in values.items() if value is not None}
        self.where = where

    def take(self, name: str, expected: str, fits: Callable[[object], bool], default=None):
        """A field's value; APIError saying what was expected where it doesn't fit."""
        if name not in self.values:
            return default
        value = self.values.pop(name)
        if not fits(value):
            raise APIError(f"{self.where}{name}: {_shown(value)}, expected {expected}", self.where + name)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int | None = None) -> int | None:
        """A whole number."""
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        return self.take(name, f"a whole number {span}", lambda value: type(value) is int and value >= low
                         and (high is None or value <= high), default)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number."""
        return self.take(name, f"a number from {low:g} to {high:g}",
                         lambda value: type(value) in (int, float) and low <= value <= high, default)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self.take(name, "true or false", lambda value: type(value) is bool, False)

    def finish(self, harmless: Sequence[str] = (), neutral: dict[str, tuple] | None = None) -> None:
        """APIError for any field that is left, except harmless ones and those whose value asks for nothing."""
        for name, value in self.values.items():
            if name in harmless or (neutral and value in neutral.get(name, ())):
                continue
            known = neutral and name in neutral
            raise APIError(f"{self.where}{name}: {'not supported by' if known else 'unknown to'} this server, and it "
                           "might change the answer; leave it out", self.where + name, code="unsupported_parameter")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can write: JSON may spell half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def read_object(body: bytes) -> dict:
    """A body's JSON object. APIError where it is none."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise APIError("the body is JSON that is nested too deeply") from None
    except ValueError as error:  # neither UTF-8, nor JSON, nor a number that anyone can count to
        raise APIError(f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise APIError(f"the body is {_shown(value)}, expected a JSON object")
    return value


def read_completion(body: bytes, served: Served) -> Asked:
    """A body of /v1/completions. APIError where there is something wrong with it."""
    fields = _Fields(read_object(body))
    _check_model(fields, served)
    prompts = _prompts(fields.values.pop("prompt", [served.tokenizer.eot_token]), served)
    logprobs, echo = fields.whole("logprobs", None, 0, MOST_LOGPROBS), fields.flag("echo")
    wanted = fields.whole("max_tokens", None, 0 if echo else 1)
    n = fields.whole("n", 1, 1, MOST_CHOICES)
    candidates = fields.whole("best_of", n, n, MOST_CHOICES)
    asked = _common(fields, served, prompts=prompts, wanted=wanted, n=n, candidates=candidates, logprobs=logprobs,
                    echo=echo, chat=False, ends=tuple(served.tokenizer.stop_tokens))
    if asked.stream and candidates > n:
        raise APIError(f"best_of: {candidates} of which n = {n} are sent can't be streamed, since the best are known "
                       "in the end; leave out stream or best_of", "best_of")
    return asked


def read_chat(body: bytes, served: Served) -> Asked:
    """A body of /v1/chat/completions. APIError where there is something wrong with it."""
    fields = _Fields(read_object(body))
    _check_model(fields, served)
    prompt = _chat_prompt(_turns(fields), served)
    logprobs = fields.whole("top_logprobs", 0, 0, MOST_LOGPROBS)
    if not fields.flag("logprobs"):
        if logprobs:
            raise APIError(f"top_logprobs: {logprobs} without logprobs; set logprobs to true", "top_logprobs")
        logprobs = None
    wanted = fields.whole("max_tokens", None, 1)
    wanted = fields.whole("max_completion_tokens", wanted, 1)
    n = fields.whole("n", 1, 1, MOST_CHOICES)
    ends = (*served.tokenizer.stop_tokens, end_of_reply(served.style, served.tokenizer)[1])
    return _common(fields, served, prompts=[prompt], wanted=wanted, n=n, candidates=n, logprobs=logprobs, echo=False,
                   chat=True, ends=ends)


def _check_model(fields: _Fields, served: Served) -> None:
    name = fields.take("model", "a text", lambda value: isinstance(value, str), served.name)
    if name != served.name:
        raise APIError(f"model: there is no {_shown(name)} here; this server has {_shown(served.name)}", "model",
                       status=404, code="model_not_found")


def _prompts(value: object, served: Served) -> list[list[int]]:
    """The ids of each prompt, given as text, texts, ids, or lists of ids."""

    def is_ids(value: object) -> bool:
        return _is_list(value, lambda token: type(token) is int)

    if _is_text(value) or (is_ids(value) and value):
        value = [value]
    if not (_is_list(value, _is_text) or _is_list(value, is_ids)) or not value:
        raise APIError("prompt: expected a text, a list of texts, token ids, or a list of lists of them", "prompt")
    if len(value) > served.most_replies:
        raise APIError(f"prompt: {len(value)} prompts, expected at most {served.most_replies}; send several requests",
                       "prompt")
    prompts = []
    for prompt in value:
        ids = _encode(prompt, served) if isinstance(prompt, str) else prompt
        wrong = next((token for token in ids if not 0 <= token < served.vocab_size), None)
        if wrong is not None:
            raise APIError(f"prompt: there is no token {_shown(wrong)}, expected ids from 0 to {served.vocab_size - 1}",
                           "prompt")
        if not ids:
            raise APIError("prompt: empty, expected at least one token; a new text begins with "
                           f"{served.tokenizer.decode([served.tokenizer.eot_token])}", "prompt")
        prompts.append(ids)
    return prompts


def _encode(text: str, served: Served) -> list[int]:
    if len(text.encode()) > served.most_bytes:  # before the tokenizer has its work with it
        raise _too_long(f"the prompt has {len(text)} characters", served, "prompt")
    try:
        return served.tokenizer.encode(text)
    except ValueError as error:
        raise APIError(f"prompt: {error}", "prompt") from None


def _turns(fields: _Fields) -> list[Turn]:
    messages = fields.take("messages", "a list of at least one message, each an object with role and content",
                           lambda value: _is_list(value, lambda item: isinstance(item, dict)) and value)
    if messages is None:
        raise APIError("messages: missing, expected a list of messages", "messages")
    turns = []
    for i, message in enumerate(messages):
        part = _Fields(message, f"messages[{i}].")
        role = part.take("role", "system, developer, user or assistant (tools are not supported)",
                         lambda value: value in ("system", "developer", "user", "assistant"))
        content = part.take("content", "a text, or a list of parts like {\"type\": \"text\", \"text\": ...}",
                            lambda value: _is_text(value) or _is_list(value, _is_text_part))
        if role is None or content is None:
            raise APIError(f"messages[{i}]: {'role' if role is None else 'content'} is missing", f"messages[{i}]")
        if isinstance(content, list):
            content = "".join(item["text"] for item in content)
        input = part.take("input", "a text", _is_text, "") if role == "user" else ""
        part.finish(("name",), NEUTRAL_IN_MESSAGES)
        turns.append(Turn("system" if role == "developer" else role, content, input))
    return turns


def _is_text_part(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text" and _is_text(value.get("text"))


def _chat_prompt(turns: list[Turn], served: Served) -> list[int]:
    length = sum(len(turn.content.encode()) + len(turn.input.encode()) for turn in turns)
    if length > served.most_bytes:
        raise _too_long(f"the messages have {length} bytes", served, "messages")
    try:
        return encode_prompt(turns, served.style, served.tokenizer)
    except ValueError as error:
        raise APIError(f"messages: {error}", "messages") from None


def _too_long(what: str, served: Served, param: str) -> APIError:
    return APIError(f"{what}, more than fits this model's context of {served.context} tokens; shorten it", param,
                    code="context_length_exceeded")


def _common(fields: _Fields, served: Served, *, prompts: list[list[int]], wanted: int | None, n: int, candidates: int,
            chat: bool, **known) -> Asked:
    """What both endpoints have; `known` is what they have read in their own ways."""
    if len(prompts) * candidates > served.most_replies:
        name = "best_of" if candidates > n else "n"
        raise APIError(f"{name}: {len(prompts) * candidates} replies in all, expected at most {served.most_replies}; "
                       "send several requests", name)
    longest = max(map(len, prompts))
    if longest > served.context - (wanted != 0):
        raise _too_long(f"the prompt has {longest} tokens", served, "messages" if chat else "prompt")
    stop = fields.take("stop", f"a text, or a list of at most {MOST_STOPS}, none of them empty", _is_stop, [])
    stream = fields.flag("stream")
    usage = _Fields(fields.take("stream_options", "an object", lambda value: isinstance(value, dict), {}),
                    "stream_options.")
    include_usage = usage.flag("include_usage")
    usage.finish(("include_obfuscation",))
    room = served.context - longest
    max_tokens = wanted if wanted is not None else room if chat else min(room, DEFAULT_MAX_TOKENS)
    if max_tokens > room:
        raise APIError(f"max_tokens: {max_tokens} after a prompt of {longest} tokens, and this model's context is "
                       f"{served.context}; ask for at most {room}", "max_tokens", code="context_length_exceeded")
    asked = Asked(chat=chat, prompts=prompts, max_tokens=max_tokens, n=n, candidates=candidates,
                  stop=[stop] if isinstance(stop, str) else stop, stream=stream, include_usage=include_usage,
                  seed=fields.whole("seed", None, -2**63, 2**63 - 1), sampling=_sampling(fields, served, max_tokens),
                  **known)
    fields.finish(HARMLESS, NEUTRAL)
    return asked


def _is_stop(value: object) -> bool:
    many = value if isinstance(value, list) else [value]
    return len(many) <= MOST_STOPS and all(_is_text(text) and text for text in many)


def _sampling(fields: _Fields, served: Served, max_tokens: int) -> Sampling:
    bias = fields.take("logit_bias", f"an object of token ids, from \"0\" to \"{served.vocab_size - 1}\", with numbers "
                       "from -100 to 100", lambda value: isinstance(value, dict) and all(
                           token.isascii() and token.isdecimal() and len(token) < 10
                           and int(token) < served.vocab_size and type(by) in (int, float) and -100 <= by <= 100
                           for token, by in value.items()), {})
    top_k, top_p = fields.whole("top_k", -1, -1), fields.number("top_p", 1.0, 0, 1)
    try:
        return Sampling(
            temperature=fields.number("temperature", 1.0, 0, 2),
            top_k=top_k if top_k > 0 else None,
            top_p=max(top_p, 1e-9) if top_p < 1 else None,  # OpenAI allows 0, which leaves the likeliest token
            min_p=fields.number("min_p", 0.0, 0, 1) or None,
            repetition_penalty=fields.take("repetition_penalty", "a number above 0 and at most 2",
                                           lambda value: type(value) in (int, float) and 0 < value <= 2, 1.0),
            presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
            frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
            logit_bias={int(token): float(by) for token, by in bias.items()},
            min_new_tokens=fields.whole("min_tokens", 0, 0, max_tokens),
        )
    except ValueError as error:
        raise APIError(str(error)) from None
