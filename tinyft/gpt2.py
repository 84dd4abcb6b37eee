"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

Inside, a batch has no padding: its rows stand one after the other as N tokens, and only attention has to
know where each row starts. All else in a transformer works on single tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numba import get_num_threads, set_num_threads

from . import ops
from .kernels.attention import attention_decode
from .nn import Dropout, Embedding, LayerNorm, Linear, Module
from .ops import IGNORE
from .tensor import Tensor, no_grad


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, under the names that config.json uses. The defaults are the 124M model."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; 4 * n_embd if None
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.0  # dropout on the sum of both embeddings
    resid_pdrop: float = 0.0  # dropout on what each half of a block adds

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1 or name == "n_inner" and value is None):
                raise ValueError(f"GPT2Config: {name} is {value!r}, expected a positive integer")
        for name, low in (("layer_norm_epsilon", 1e-12), ("embd_pdrop", 0.0), ("resid_pdrop", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value < 1:
                raise ValueError(f"GPT2Config: {name} is {value!r}, expected a number from {low:g} to below 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPT2Config: n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")

    @classmethod
    def named(cls, name: str) -> "GPT2Config":
        """One of OpenAI's four: gpt2 (124M), gpt2-medium (355M), gpt2-large (774M), gpt2-xl (1558M)."""
        if name not in SIZES:
            raise ValueError(f"GPT2Config.named: {name!r} is unknown, expected one of {', '.join(SIZES)}")
        return cls(**SIZES[name])


SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
}


class Attention(Module):
    """Queries, keys and values are projected by c_attn, mixed by attention, and projected back by c_proj."""

    def __init__(self, config: GPT2Config, std: float, rng, dtype):
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, rng=rng, dtype=dtype)
        self.c_proj = Linear(config.n_embd, config.n_embd, std=std, rng=rng, dtype=dtype)


class MLP(Module):
    """Two layers on each token alone."""

    def __init__(self, config: GPT2Config, std: float, rng, dtype):
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, n_inner, rng=rng, dtype=dtype)
        self.c_proj = Linear(n_inner, config.n_embd, std=std, rng=rng, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)"""
        return self.c_proj(ops.gelu(self.c_fc(x)))


class Block(Module):
    """Tokens look at each other, then each thinks for itself; both add to the stream x."""

    def __init__(self, config: GPT2Config, rng, dtype):
        # The stream sums 2 * n_layer additions; their weights start smaller by its root (GPT-2, section 2.3).
        std = 0.02 / (2 * config.n_layer) ** 0.5
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.attn = Attention(config, std, rng, dtype)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.mlp = MLP(config, std, rng, dtype)
        self.drop = Dropout(config.resid_pdrop)

    def __call__(self, x: Tensor, attend: Callable[[Tensor], Tensor], rng=None, keep=None) -> Tensor:
        """(N, C) -> (N, C). attend: queries, keys and values (N, 3C) -> mixed (N, C).

        keep: indices of the only tokens whose result is wanted, (K,); the result is (K, C) then. The others
        are still looked at by these.
        """
        mixed = attend(self.attn.c_attn(self.ln_1(x)))
        if keep is not None:
            x, mixed = ops.embedding(x, keep), ops.embedding(mixed, keep)
        x = x + self.drop(self.attn.c_proj(mixed), rng)
        return x + self.drop(self.mlp(self.ln_2(x)), rng)


# One token of a model with fewer parameters than this is too little work to share: waking another thread costs as
# much as it helps, and far more where another program keeps that thread waiting.
SHARED_DECODING = 8_000_000


@contextmanager
def _with_threads(n: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


class KVCache:
    """Keys and values of the tokens so far, so that a new token costs one token's work."""

    def __init__(self, config: GPT2Config, dtype=np.float32):
        shape = (config.n_layer, config.n_head, config.n_positions, config.n_embd // config.n_head)
        self.keys, self.values = np.empty(shape, dtype), np.empty(shape, dtype)
        self.length = 0

    def store(self, layer: int, qkv: np.ndarray) -> np.ndarray:
        """Put away keys and values of new tokens (N, 3C), after the `length` that are there; returns queries.

        `length` itself counts up once all layers have stored: `self.length += N` is the model's part.
        """
        heads, _, size = self.keys.shape[1:]
        queries, keys, values = qkv.reshape(len(qkv), 3, heads, size).transpose(1, 2, 0, 3)
        self.keys[layer, :, self.length : self.length + len(qkv)] = keys
        self.values[layer, :, self.length : self.length + len(qkv)] = values
        return queries


def needed_lengths(targets: np.ndarray) -> np.ndarray:
    """How far each row has to be computed: to its last target that counts. (B, T) -> (B,)"""
    return np.where(targets != IGNORE, np.arange(1, targets.shape[1] + 1), 0).max(axis=1, initial=0)


class GPT2(Module):
    """Token and position embeddings, n_layer blocks, a last norm; the token table is the output layer too."""

    def __init__(self, config: GPT2Config, rng: np.random.Generator | None = None, dtype=np.float32):
        """rng: draws fresh weights; without it they are left for loading to fill."""
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd, rng=rng, dtype=dtype)
        self.wpe = Embedding(config.n_positions, config.n_embd, rng=rng, dtype=dtype)
        self.h = [Block(config, rng, dtype) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.drop = Dropout(config.embd_pdrop)
        self.decodes_alone = self.n_parameters() < SHARED_DECODING

    def set_dropout(self, p: float) -> None:
        """Use one dropout probability everywhere, whatever the config says; for training only."""
        self.drop.p = p
        for block in self.h:
            block.drop.p = p

    def hidden(self, ids: np.ndarray, row_starts: np.ndarray, rng: np.random.Generator | None = None,
               attend: Callable[[int, Tensor], Tensor] | None = None, keep: np.ndarray | None = None) -> Tensor:
        """What the model knows after each token: ids (N,), row_starts (B+1,) -> (N, C).

        rng: turns dropout on. attend(layer, qkv): replaces attention within the rows. keep (K,): indices of
        the only tokens that are asked for; the last block works for them alone, and the result is (K, C).
        """
        longest = int(np.diff(row_starts).max(initial=0))
        if longest > self.config.n_positions:
            raise ValueError(f"GPT2: a row has {longest} tokens, expected at most n_positions = "
                             f"{self.config.n_positions}; cut it or use a model with more")
        positions = np.arange(len(ids)) - np.repeat(row_starts[:-1], np.diff(row_starts))
        return self._run(ids, positions, attend or self._within_rows(row_starts), rng, keep)

    def _within_rows(self, row_starts):
        return lambda layer, qkv: ops.causal_attention(qkv, n_head=self.config.n_head, row_starts=row_starts)

    def _run(self, ids, positions, attend, rng=None, keep=None) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(positions), rng)
        for layer, block in enumerate(self.h):
            last = block is self.h[-1]
            x = block(x, lambda qkv, layer=layer: attend(layer, qkv), rng, keep if last else None)
        return self.ln_f(x)

    def __call__(self, ids: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Logits of the next token at every position: (B, T) -> (B, T, V)."""
        ids = np.atleast_2d(ids)
        row_starts = np.arange(0, ids.size + 1, max(1, ids.shape[1]))
        hidden = self.hidden(ids.reshape(-1), row_starts, rng)
        return ops.matmul(hidden, ops.transpose(self.wte.weight)).reshape(*ids.shape, self.config.vocab_size)

    def loss(self, inputs: np.ndarray, targets: np.ndarray, total: int | None = None,
             rng: np.random.Generator | None = None) -> Tensor:
        """Cross-entropy per target: inputs (B, T), targets (B, T) with -100 where nothing is learned -> ().

        What stands after a row's last target cannot touch the loss, since no token sees the future: it is
        dropped here, padding with it; and what has no target itself only feeds the others' attention, so that
        it ends in the last block. total: what to divide the sum by, if not this batch's live targets.
        """
        inputs, targets = np.atleast_2d(inputs), np.atleast_2d(targets)
        if inputs.shape != targets.shape:
            raise ValueError(f"GPT2.loss: inputs are {inputs.shape}, targets {targets.shape}, expected the same")
        live, lengths = targets != IGNORE, needed_lengths(targets)
        needed = np.arange(inputs.shape[1]) < lengths[:, None]
        row_starts = np.concatenate([[0], np.cumsum(lengths)])
        hidden = self.hidden(inputs[needed], row_starts, rng, keep=np.flatnonzero(live[needed]))
        return ops.linear_cross_entropy(hidden, self.wte.weight, targets[live], total=total)

    def prefill(self, ids: np.ndarray, cache: KVCache) -> np.ndarray:
        """Read a prompt (T,) into an empty cache -> logits (V,) of the token after it."""
        if len(ids) == 0 or cache.length:
            raise ValueError(f"prefill: {len(ids)} tokens into a cache of {cache.length}, expected at least one "
                             "token and an empty cache")
        row_starts = np.array([0, len(ids)])
        within_rows = self._within_rows(row_starts)

        def attend(layer, qkv):
            cache.store(layer, qkv.data)
            return within_rows(layer, qkv)

        with no_grad():
            last = self.hidden(np.asarray(ids), row_starts, attend=attend, keep=np.array([len(ids) - 1])).data
            cache.length = len(ids)
            return self._logits(last)

    def decode_one_token(self, token: int, cache: KVCache) -> np.ndarray:
        """Read one more token -> logits (V,) of the one after it."""
        position = cache.length
        if position >= self.config.n_positions:
            raise ValueError(f"decode_one_token: the context of {self.config.n_positions} tokens is full")

        def attend(layer, qkv):
            query = cache.store(layer, qkv.data)[:, 0]
            keys, values = cache.keys[layer], cache.values[layer]
            scale = query.shape[-1] ** -0.5
            mixed = attention_decode(np.ascontiguousarray(query), keys, values, position + 1, scale)
            return Tensor(mixed.reshape(1, -1))

        with no_grad(), _with_threads(1 if self.decodes_alone else get_num_threads()):
            last = self._run(np.array([token]), np.array([position]), attend).data
            cache.length += 1
            return self._logits(last)

    def _logits(self, hidden: np.ndarray) -> np.ndarray:
        return ops.matmul(Tensor(hidden), Tensor(self.wte.weight.data.T)).data[0]
