"""From a prompt to what follows it, token by token."""

from collections.abc import Iterable, Iterator
from numbers import Integral

import numpy as np

from ..gpt2 import GPT2
from .decoding import KVCache, decode_one_token, prefill
from .sampling import sample


def generate(model: GPT2, prompt: Iterable[int], *, max_new_tokens: int = 200, stop: int | Iterable[int] | None = None,
             **sampling) -> Iterator[int]:
    """The tokens that follow a prompt, each as soon as it is chosen.

    Ends before the token `stop` or any of several, after max_new_tokens, or where the context is full. sampling: as for
    `sample`. ValueError if the prompt is empty or leaves no room.
    """
    prompt = np.asarray(list(prompt), np.int64)
    room = model.config.n_positions - len(prompt)
    if len(prompt) == 0 or room <= 0:
        raise ValueError(f"generate: the prompt has {len(prompt)} tokens, expected 1 to "
                         f"{model.config.n_positions - 1} for this model's context of "
                         f"{model.config.n_positions}; shorten it")
    ends = set() if stop is None else {stop} if isinstance(stop, Integral) else set(stop)
    return _continue(model, prompt, max_new_tokens, ends, sampling)


def _continue(model: GPT2, prompt: np.ndarray, max_new_tokens: int, ends: set[int],
              sampling: dict) -> Iterator[int]:
    cache = KVCache(model.config, model.wte.weight.dtype)
    logits = prefill(model, prompt, cache)
    for count in range(1, max_new_tokens + 1):
        token = sample(logits, **sampling)
        if token in ends:
            return
        yield token
        if count == max_new_tokens or cache.length == model.config.n_positions:
            return
        logits = decode_one_token(model, token, cache)
