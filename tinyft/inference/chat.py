"""A conversation that goes on: each reply is asked for with all turns before it."""

from collections.abc import Iterator

import numpy as np

from ..data.entries import Turn
from ..data.prompts import Style, encode_prompt, end_of_reply
from ..tokenizer import Tokenizer
from .engine import Engine
from .generate import stream
from .sampling import GREEDY, Sampling
from .scheduler import Request, scheduler_of
from .text import TextStream


class ContextFull(ValueError):
    """The conversation has become too long for the model."""


class Chat:
    """A conversation with a model.

    What was said is in the engine's cache, so that only what is new is computed. on_overflow: what happens when the
    context is full: "error" raises ContextFull, "slide" forgets the oldest question with its reply, as often as it
    takes to have room for a whole reply, or for one of half the context if max_new_tokens is more.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, style: Style, *, system: str = "",
                 max_new_tokens: int = 200, on_overflow: str = "error", stop_strings: tuple[str, ...] = (),
                 sampling: Sampling = GREEDY, rng: np.random.Generator | None = None):
        if on_overflow not in ("error", "slide"):
            raise ValueError(f"Chat: on_overflow is {on_overflow!r}, expected 'error' or 'slide'")
        self._scheduler, self._tokenizer, self._style = scheduler_of(engine), tokenizer, style
        self._context = engine.config.n_positions
        self._system = (Turn("system", system),) if system else ()
        self._max_new_tokens, self._on_overflow, self._stop_strings = max_new_tokens, on_overflow, stop_strings
        self._sampling, self._rng = sampling, rng
        self.turns: list[Turn] = []
        self.forgotten = 0  # turns that the last question pushed out of the context
        self.request: Request | None = None  # of the last reply

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def say(self, text: str) -> Iterator[str]:
        """The reply to a user's turn, piece by piece. Both are in `turns` afterwards, also if the caller stops early.

        ContextFull if there is no room for a reply; `turns` are as before, then.
        """
        turns, prompt = self._fit([*self.turns, Turn("user", text)])
        self.forgotten = len(self.turns) + 1 - len(turns)
        ends = (*self._tokenizer.stop_tokens, end_of_reply(self._style, self._tokenizer)[1])
        self.request = Request(prompt, max_new_tokens=self._max_new_tokens, ends=ends, sampling=self._sampling,
                               rng=self._rng)
        self._scheduler.check(self.request)
        return self._reply(turns)

    def _reply(self, turns: list[Turn]) -> Iterator[str]:
        text = TextStream(self._tokenizer, self._stop_strings)
        try:
            for token in stream(self._scheduler, self.request):
                if piece := text.add(token):
                    yield piece
                if text.stopped:
                    return
            if piece := text.finish():
                yield piece
        finally:
            self.turns = [*turns, Turn("assistant", text.text.strip())]

    def _fit(self, turns: list[Turn]) -> tuple[list[Turn], list[int]]:
        """The turns that the model will see, and their ids."""
        room = min(self._max_new_tokens, self._context // 2) if self._on_overflow == "slide" else 1
        while True:
            prompt = encode_prompt((*self._system, *turns), self._style, self._tokenizer)
            if len(prompt) + room <= self._context:
                return turns, prompt
            if self._on_overflow == "error" or len(turns) < 3:
                if len(turns) > 1:
                    what, remedy = "the conversation", "begin a new one, or have the oldest turns forgotten"
                else:
                    what = "the message, with what stands around it," if self._system else "the message"
                    remedy = "shorten it"
                raise ContextFull(f"{what} has {len(prompt)} tokens, and this model sees at most {self._context}, "
                                  f"its reply included; {remedy}")
            turns = turns[2:]
