"""Reading a prompt once and then one token at a time: the KV cache (Pope et al., "Efficiently Scaling Transformer
Inference", 2022, section 2.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numba import get_num_threads, set_num_threads

from ..gpt2 import GPT2, GPT2Config
from ..kernels.attention import attention_decode
from ..segments import segments_of
from ..tensor import Tensor, no_grad

# A token that meets fewer weights than this is too little work to share: waking another thread costs as much as it
# helps, and far more where another program keeps that thread waiting.
SHARED_DECODING = 8_000_000


def _weights_met(config: GPT2Config) -> int:
    """How many weights one token is multiplied by: the matrices of all blocks, and the output layer."""
    block = 4 * config.n_embd + 2 * (config.n_inner or 4 * config.n_embd)
    return config.n_embd * (config.n_layer * block + config.vocab_size)


class KVCache:
    """Keys and values of the tokens so far, so that a new token costs one token's work.

    length: how many tokens are in. single_threaded_decode: whether `decode_one_token` works with one thread, which
    small models are faster with.
    """

    def __init__(self, config: GPT2Config, dtype=np.float32):
        shape = (config.n_layer, config.n_head, config.n_positions, config.n_embd // config.n_head)
        self.keys, self.values = np.empty(shape, dtype), np.empty(shape, dtype)
        self.length = 0
        self.single_threaded_decode = _weights_met(config) < SHARED_DECODING

    def store(self, layer: int, qkv: np.ndarray) -> np.ndarray:
        """Put away keys and values of new tokens (N, 3C), after the `length` that are there; returns queries.

        `length` itself counts up once all layers have stored: `self.length += N` is the caller's part.
        """
        heads, _, size = self.keys.shape[1:]
        queries, keys, values = qkv.reshape(len(qkv), 3, heads, size).transpose(1, 2, 0, 3)
        self.keys[layer, :, self.length : self.length + len(qkv)] = keys
        self.values[layer, :, self.length : self.length + len(qkv)] = values
        return queries


def prefill(model: GPT2, ids: np.ndarray, cache: KVCache) -> np.ndarray:
    """Read a prompt (T,) into an empty cache -> logits (V,) of the token after it."""
    if len(ids) == 0 or cache.length:
        raise ValueError(f"prefill: {len(ids)} tokens into a cache of {cache.length}, expected at least one "
                         "token and an empty cache")
    if len(ids) > model.config.n_positions:
        raise ValueError(f"prefill: {len(ids)} tokens, expected at most n_positions = {model.config.n_positions}; "
                         "cut the prompt or use a model with more")
    segments = segments_of([len(ids)])

    def attend(layer, qkv):
        cache.store(layer, qkv.data)
        return model.attend_within_rows(segments, layer, qkv)

    with no_grad():
        last = np.array([len(ids) - 1])
        hidden = model.run_blocks(np.asarray(ids), segments.positions, attend, keep=last)
        cache.length = len(ids)
        return model.logits(hidden).data[0]


def decode_one_token(model: GPT2, token: int, cache: KVCache) -> np.ndarray:
    """Read one more token -> logits (V,) of the one after it."""
    config, position = model.config, cache.length
    if position >= config.n_positions:
        raise ValueError(f"decode_one_token: the context of {config.n_positions} tokens is full")

    def attend(layer, qkv):
        query = np.ascontiguousarray(cache.store(layer, qkv.data)[:, 0])
        mixed = attention_decode(query, cache.keys[layer], cache.values[layer], position + 1,
                                 config.attention_scale(layer))
        return Tensor(mixed.reshape(1, -1))

    with no_grad(), _with_threads(1 if cache.single_threaded_decode else get_num_threads()):
        hidden = model.run_blocks(np.array([token]), np.array([position]), attend)
        cache.length += 1
        return model.logits(hidden).data[0]


@contextmanager
def _with_threads(n: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)
