"""The models of an arena: folders that are computed here, and endpoints that are asked over HTTP."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..data.entries import Turn
from ..data.prompts import Style, encode_prompt, end_of_reply, find_style
from ..hub import find_model, name_of
from ..inference.engine import load_engine
from ..inference.generate import generate
from ..inference.sampling import Sampling
from ..inference.scheduler import Request, scheduler_of
from ..inference.service import Service
from .apis import EndpointError
from .endpoints import Endpoint
from .votes import storable

TOO_LONG = "The prompt is too long for this model."
FEWEST_TOKENS = 16  # that an endpoint is asked for, if it refuses more


class NoReply(Exception):
    """A model has failed. What it says is for the person who compares, and tells nothing of which model it is."""


class Contestant(Protocol):
    """A model of the arena."""

    name: str

    def start(self) -> None:
        """The event loop runs."""

    async def close(self) -> None:
        """Nothing more will be asked."""

    def stream(self, turns: Sequence[Turn], *, temperature: float, seed: int, max_new_tokens: int
               ) -> AsyncIterator[str]:
        """The reply in pieces, as they are made. Whatever it raises means that there is none."""


class LocalModel:
    """A model that is computed in this process, asked in its own prompt style."""

    def __init__(self, name: str, service: Service, style: Style, context: int):
        self.name, self.service, self.style, self.context = name, service, style, context

    def start(self) -> None:
        """Start the engine's thread."""
        self.service.start()

    async def close(self) -> None:
        """End it."""
        self.service.close()

    async def stream(self, turns: Sequence[Turn], *, temperature: float, seed: int, max_new_tokens: int
                     ) -> AsyncIterator[str]:
        """The reply in pieces; it ends early where the context is full. NoReply where the prompt fills it."""
        tokenizer = self.service.tokenizer
        ids = await asyncio.to_thread(encode_prompt, turns, self.style, tokenizer)  # others' replies go on meanwhile
        if len(ids) >= self.context:
            raise NoReply(TOO_LONG)
        request = Request(ids, max_new_tokens=min(max_new_tokens, self.context - len(ids)),
                          ends=(*tokenizer.stop_tokens, end_of_reply(self.style, tokenizer)[1]),
                          sampling=Sampling(temperature=temperature),
                          rng=np.random.default_rng(seed) if temperature else None)
        answer = self.service.ask([request])
        try:
            async for pieces in answer:
                for piece in pieces:
                    yield piece.text
        finally:
            answer.end(NoReply("given up"))


class RemoteModel:
    """A model behind a URL, of OpenAI's protocol or Ollama's."""

    def __init__(self, name: str, endpoint: Endpoint):
        self.name, self.endpoint = name, endpoint

    def start(self) -> None:
        """Nothing to do: it is asked when it is needed."""

    async def close(self) -> None:
        """Close its connections."""
        await self.endpoint.close()

    async def stream(self, turns: Sequence[Turn], *, temperature: float, seed: int, max_new_tokens: int
                     ) -> AsyncIterator[str]:
        """The reply in pieces.

        Some servers refuse more tokens than the context has room for, instead of ending early: they are asked for half.
        """
        messages = [{"role": turn.role, "content": "\n".join(filter(None, (turn.content, turn.input)))}
                    for turn in turns]
        begun = False
        while True:
            try:
                async for piece in self.endpoint.stream(messages, temperature=temperature, seed=seed,
                                                        max_tokens=max_new_tokens):
                    begun = True
                    yield piece
                return
            except EndpointError as error:
                max_new_tokens //= 2
                if begun or max_new_tokens < FEWEST_TOKENS or not re.search(r"max_(completion_)?tokens", str(error)):
                    raise


def read_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """(name, where) of the models that a command line names.

    ValueError for fewer than two, two of one name, or a name that votes can't hold.
    """
    named = [split_spec(spec) for spec in specs]
    for name, where in named:
        if storable(name) != name:
            raise ValueError(f"{name!r}: a name that UTF-8 can't write; give it another one, NAME={where!r}")
    if len(named) < 2:
        raise ValueError(f"an arena compares models, and {len(named) or 'none'} is named; expected at least 2")
    names = [name for name, _ in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two models are called {twice}; give them names: one={specs[names.index(twice)]}")
    return named


def load_contestants(named: Sequence[tuple[str, str]], *, weights: str = "float32", max_rows: int = 8,
                     api_key: str | None = None, on_loaded: Callable[[str], None] = lambda line: None
                     ) -> list[Contestant]:
    """The models of `read_specs`; `on_loaded` gets a line for each.

    api_key: for all endpoints, which aren't asked yet. ValueError for a model that can't be loaded.
    """
    return [_load(name, where, weights, max_rows, api_key, on_loaded) for name, where in named]


def split_spec(spec: str) -> tuple[str, str]:
    """(name, where) of "NAME=WHERE", or of "WHERE" alone, which is called by the folder's name, that of the run whose
    model it is, or what stands after # in an endpoint's address."""
    name, equals, where = spec.partition("=")
    if not equals or not name.strip() or "/" in name or "#" in name or Path(spec).exists():
        name, where = "", spec
    if _is_url(where):
        url, _, model = where.partition("#")
        if not (name or model):
            raise ValueError(f"{where}: which of its models? Write {url}#MODEL, or NAME={url} if it has just one")
        return name or model, where
    return name or name_of(where), where


def _is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def _load(name: str, where: str, weights: str, max_rows: int, api_key: str | None,
          on_loaded: Callable[[str], None]) -> Contestant:
    if _is_url(where):
        url, _, model = where.partition("#")
        endpoint = Endpoint(url, model or None, api_key=api_key, retries=1)  # a person waits for it
        on_loaded(f"{name}: {url}")
        return RemoteModel(name, endpoint)
    engine, tokenizer = load_engine(find_model(where), weights=weights, max_rows=max_rows)
    style = find_style(tokenizer)
    list(generate(engine, [tokenizer.eot_token], max_new_tokens=2))  # so that nobody waits for kernels to be compiled
    on_loaded(f"{name}: {where}, context {engine.config.n_positions}, weights in {weights}")
    return LocalModel(name, Service(scheduler_of(engine), tokenizer), style, engine.config.n_positions)


def log_failure(name: str, error: BaseException) -> None:
    """Say on stderr, where those who compare don't look, which model has failed and why."""
    log(f"{name} gave no reply: {type(error).__name__}: {error}")


def log(line: str) -> None:
    """Say something on stderr."""
    print(f"arena: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
