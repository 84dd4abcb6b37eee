"""From a prompt to what follows it, token by token."""

from collections.abc import Iterable, Iterator
from numbers import Integral

import numpy as np

from ..gpt2 import GPT2
from .engine import Engine
from .sampling import Sampling
from .scheduler import Request, Scheduler, scheduler_of


def engine_for(model: Engine | GPT2, max_rows: int = 1) -> Engine:
    """An engine as it is, or one for a model as its weights are now; that copies them."""
    return model if isinstance(model, Engine) else Engine(model, max_rows=max_rows)


def generate(model: Engine | GPT2, prompt: Iterable[int], *, max_new_tokens: int = 200,
             stop: int | Iterable[int] | None = None, rng: np.random.Generator | None = None,
             **sampling) -> Iterator[int]:
    """The tokens that follow a prompt, each as soon as it is chosen.

    model: an Engine, or a GPT2, from which an engine is made every time. Ends before the token `stop` or any of
    several, after max_new_tokens, or where the context is full. rng and sampling: as for `Sampling`; greedy by default.
    ValueError if the prompt is empty, has unknown tokens, or leaves no room.
    """
    ends = () if stop is None else (stop,) if isinstance(stop, Integral) else stop
    request = Request(prompt, max_new_tokens=max_new_tokens, ends=ends, sampling=Sampling(**sampling), rng=rng)
    scheduler = scheduler_of(engine_for(model))
    scheduler.check(request)
    return stream(scheduler, request)


def stream(scheduler: Scheduler, request: Request) -> Iterator[int]:
    """Run a request -> its tokens, each as soon as it is chosen; it is cancelled if they are no longer asked for."""
    given = 0
    try:
        scheduler.submit(request)
        while request.finish_reason is None:
            scheduler.step()
            while given < len(request.tokens):
                given += 1
                yield request.tokens[given - 1]
        if request.finish_reason == "error":
            raise ValueError(request.error)
    finally:
        scheduler.cancel(request)
