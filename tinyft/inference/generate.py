"""From prompts to what follows them, token by token."""

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral

import numpy as np

from ..gpt2 import GPT2
from ..progress import ProgressMeter
from .engine import Engine
from .sampling import Sampling
from .scheduler import Request, Scheduler, scheduler_of

MANY = 64  # requests that are computed at once


def scheduler_for(model: Engine | GPT2, requests: int = 1) -> Scheduler:
    """An engine's scheduler, or one for so many requests to a model as its weights are now; that copies them.

    Nothing refers back to the second one, so that the copy is gone as soon as it is.
    """
    if isinstance(model, Engine):
        return scheduler_of(model)
    kept_as = getattr(model.wte.weight, "kept_as", "float32")  # a base in fewer bits is not to be copied in 32
    return Scheduler(Engine(model, weights=kept_as, max_rows=max(1, min(MANY, requests))))


def generate(model: Engine | GPT2, prompt: Iterable[int], *, max_new_tokens: int = 200,
             stop: int | Iterable[int] | None = None, rng: np.random.Generator | None = None,
             **sampling) -> Iterator[int]:
    """The tokens that follow a prompt, each as soon as it is chosen.

    model: an Engine, or a GPT2, from which an engine is made every time. Ends before the token `stop` or any of
    several, after max_new_tokens, or where the context is full. rng and sampling: as for `Sampling`; greedy by default.
    ValueError if the prompt is empty, has unknown tokens, or leaves no room.

    >>> from tinyft import generate, load_model_and_tokenizer
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> prompt = tokenizer.encode("The capital of France is")
    >>> tokenizer.decode(list(generate(model, prompt, max_new_tokens=4)))
    ' Paris.'
    """
    ends = () if stop is None else (stop,) if isinstance(stop, Integral) else stop
    request = Request(prompt, max_new_tokens=max_new_tokens, ends=ends, sampling=Sampling(**sampling), rng=rng)
    scheduler = scheduler_for(model)
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


def carry_out(scheduler: Scheduler, requests: Sequence[Request], *, what: str = "",
              unit: str = "reply") -> Iterator[int]:
    """Run requests together -> the number of one, each time that it has got tokens or has ended.

    what: progress is shown under this name, in so many `unit`s, if there is one. ValueError names the prompt
    that can't be carried out; none is, then. Those that are left when nobody asks on are cancelled.
    """
    for number, request in enumerate(requests):
        try:
            scheduler.check(request)
        except ValueError as error:
            raise ValueError(str(error) if len(requests) == 1 else f"prompt {number + 1}: {error}") from None
    left, seen = set(range(len(requests))), [0] * len(requests)
    try:
        # In the order of a dictionary, so that prompts with a common beginning come one after the other.
        for request in sorted(requests, key=lambda request: request.prompt.tolist()):
            scheduler.submit(request)
        with ProgressMeter(len(requests), what, unit, leave=False, quiet=not what) as meter:
            while left:
                scheduler.step()
                for number in [number for number in left if requests[number].finish_reason
                               or len(requests[number].tokens) > seen[number]]:
                    request = requests[number]
                    seen[number] = len(request.tokens)
                    if request.finish_reason == "error":
                        raise ValueError(request.error)
                    yield number
                    if request.finish_reason:
                        left.remove(number)
                        meter.update()
    finally:
        for number in left:
            scheduler.cancel(requests[number])
