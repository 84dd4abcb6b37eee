"""From a prompt to a reply, token by token."""

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from ..data.entries import Entry
from ..data.prompts import PROMPT_STYLES
from ..gpt2 import GPT2, KVCache
from ..tokenizer import Tokenizer
from .sampling import sample


def generate(model: GPT2, prompt: Iterable[int], *, max_new_tokens: int = 200, stop: int | None = None,
             **sampling) -> Iterator[int]:
    """The tokens that follow a prompt, each as soon as it is chosen.

    Ends before the token `stop`, after max_new_tokens, or where the context is full. sampling: as for
    `sample`. ValueError if the prompt is empty or leaves no room.
    """
    prompt = np.asarray(list(prompt), np.int64)
    room = model.config.n_positions - len(prompt)
    if len(prompt) == 0 or room <= 0:
        raise ValueError(f"generate: the prompt has {len(prompt)} tokens, expected 1 to "
                         f"{model.config.n_positions - 1} for this model's context of "
                         f"{model.config.n_positions}; shorten it")
    return _continue(model, prompt, max_new_tokens, stop, sampling)


def _continue(model: GPT2, prompt: np.ndarray, max_new_tokens: int, stop: int | None, sampling: dict) -> Iterator[int]:
    cache = KVCache(model.config, model.wte.weight.dtype)
    logits = model.prefill(prompt, cache)
    for count in range(1, max_new_tokens + 1):
        token = sample(logits, **sampling)
        if token == stop:
            return
        yield token
        if count == max_new_tokens or cache.length == model.config.n_positions:
            return
        logits = model.decode_one_token(token, cache)


def stream_text(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens as they come. A character whose bytes are spread over tokens waits until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token < tokenizer.n_vocab:  # a model may have more rows than its tokenizer has tokens
            text = decoder.decode(tokenizer.decode_single_token_bytes(token))
            if text:
                yield text
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def reply(model: GPT2, tokenizer: Tokenizer, prompt: str, **options) -> str:
    """The whole reply to a prompt as text, without surrounding space; options as for `generate`."""
    tokens = generate(model, tokenizer.encode_ordinary(prompt), stop=tokenizer.eot_token, **options)
    return "".join(stream_text(tokens, tokenizer)).strip()


def ask(model: GPT2, tokenizer: Tokenizer, instruction: str, input: str = "", *,
        prompt_style: str = "alpaca", **options) -> str:
    """The reply to an instruction, in the form that the model was tuned on; options as for `generate`."""
    return reply(model, tokenizer, PROMPT_STYLES[prompt_style](Entry(instruction, input, "")), **options)
