"""A scheduler without a model, which writes the alphabet, and a server around it, for tests of what serves replies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from tiny import CONTEXT, TOKENIZER

from tinyft.data.prompts import find_style
from tinyft.inference.protocol import Served
from tinyft.inference.scheduler import Counts, Request, TokenLogprob
from tinyft.inference.service import Service

LETTERS = [TOKENIZER.encode(chr(ord("a") + i))[0] for i in range(26)]
BREAKS, FAILS = TOKENIZER.encode("!")[0], TOKENIZER.encode("?")[0]  # in a prompt: the scheduler, or this reply


def first_letter(prompt: Sequence[int]) -> int:
    """The letter that a greedy reply begins with, by its place in the alphabet."""
    return sum(prompt) % 26


def expected_text(prompt: Sequence[int], count: int = 26) -> str:
    """A greedy reply: the alphabet from that letter on."""
    return "abcdefghijklmnopqrstuvwxyz"[first_letter(prompt) :][:count]


def prompt_for(letter: str) -> list[int]:
    """A prompt whose greedy reply begins with this letter."""
    return [next(token for token in LETTERS if token % 26 == ord(letter) - ord("a"))]


class FakeScheduler:
    """The scheduler's interface. Greedy replies go on to z and end there, or at min_new_tokens; others are random.

    seconds: how long a step takes.
    """

    def __init__(self, max_rows: int = 8, seconds: float = 0.0):
        self.max_rows, self.seconds = max_rows, seconds
        self.counts = Counts()
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    @property
    def n_running(self) -> int:
        return len(self.running)

    @property
    def n_waiting(self) -> int:
        return len(self.waiting)

    def submit(self, request: Request) -> None:
        if len(request.prompt) + request.max_new_tokens > CONTEXT:
            raise ValueError("the fake's context is full")
        if request.max_new_tokens == 0 and request.n_scored == 0:
            request.finish_reason = "length"
            return
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        for requests in (self.waiting, self.running):
            if request in requests:
                requests.remove(request)
        request.finish_reason = "cancelled"

    def step(self) -> list[Request]:
        while self.waiting and len(self.running) < self.max_rows:
            request = self.waiting.pop(0)
            self.counts.prompt_tokens += len(request.prompt)
            if request.scored_from is not None:
                request.prompt_logprobs += [TokenLogprob(int(token), -0.25, LETTERS[0]) for token in request.prompt[1:]]
            self.running.append(request)
        time.sleep(self.seconds)
        self.counts.steps += 1
        stepped = list(self.running)
        for request in stepped:
            self._advance(request)
            if request.finish_reason:
                self.running.remove(request)
        return stepped

    def _advance(self, request: Request) -> None:
        if BREAKS in request.prompt:
            raise RuntimeError("planted")
        if FAILS in request.prompt:
            request.finish_reason, request.error = "error", "no finite numbers"
            return
        if len(request.tokens) < request.max_new_tokens:
            written = len(request.tokens)
            number = first_letter(request.prompt.tolist()) + written
            if request.sampling.temperature:
                number = int(request.rng.integers(26))
            elif number >= 26 and written >= request.sampling.min_new_tokens:
                request.finish_reason = "stop"
                return
            token = LETTERS[number % 26]
            request.tokens.append(token)
            self.counts.new_tokens += 1
            if request.top_logprobs is not None:
                top = ((token, -number / 10), (LETTERS[0], -3.0))[: request.top_logprobs]
                request.logprobs.append(TokenLogprob(token, -number / 10, LETTERS[0], top))
        if len(request.tokens) == request.max_new_tokens:
            request.finish_reason = "length"


def make_served(**changes) -> Served:
    """What the tests' server says that it has."""
    known = dict(name="fake", tokenizer=TOKENIZER, style=find_style(TOKENIZER, "phi3"), context=CONTEXT,
                 vocab_size=TOKENIZER.n_vocab, most_replies=24)
    return Served(**known | changes)


@contextlib.contextmanager
def fake_server(*, max_rows: int = 8, seconds: float = 0.0, served: dict | None = None, **options) -> Iterator:
    """A server in a thread of this process -> (its address, the server). It is drained in the end.

    `server.ended_with` is what `serve` raises, if it does.
    """
    from tinyft.inference.server import Server, listen, serve

    scheduler = FakeScheduler(max_rows, seconds)
    server = Server(Service(scheduler, TOKENIZER), make_served(**served or {}), **options)
    listener = listen("127.0.0.1", 0)
    server.ended_with = None

    def run() -> None:
        try:
            serve(server, listener)
        except RuntimeError as error:
            server.ended_with = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.drain()
        thread.join(60)
        assert not thread.is_alive(), "the server doesn't end"


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The generator that reply `index` of a request with a seed draws from."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(index + 1)[index])
