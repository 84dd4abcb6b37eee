"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

Inside, a batch has no padding: its rows stand one after the other as N tokens, and what rows share at their beginning
stands there once (`segments.py`). Only attention has to know which token belongs to which row. All else in a
transformer works on single tokens.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import compile_ahead, losses, ops
from .losses import IGNORE
from .nn import Dropout, Embedding, LayerNorm, Linear, Module
from .recompute import recompute, when_passed
from .segments import Segments, lay_out, segments_of
from .tensor import Tensor, is_recording

_exact_gelu = partial(ops.gelu, exact=True)
# By the names that config.json uses. The GELUs with tanh differ in how they are computed, not in what.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": ops.gelu, "gelu_fast": ops.gelu, "gelu_pytorch_tanh": ops.gelu, "gelu_python_tanh": ops.gelu,
    "gelu_accurate": ops.gelu, "gelu": _exact_gelu, "gelu_python": _exact_gelu, "relu": ops.relu,
}


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, under the names that config.json uses. The defaults are the 124M model.

    ValueError where a value makes no sense.

    >>> GPT2Config().n_embd, GPT2Config.named("gpt2-xl").n_layer
    (768, 48)
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; 4 * n_embd if None
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.0  # dropout on the sum of both embeddings
    resid_pdrop: float = 0.0  # dropout on what each half of a block adds
    activation_function: str = "gelu_new"  # of the MLP; one of ACTIVATIONS
    scale_attn_weights: bool = True  # divide attention's scores by the root of a head's size
    scale_attn_by_inverse_layer_idx: bool = False  # divide them by the layer's number as well, which counts from 1
    reorder_and_upcast_attn: bool = False  # where others round to float16 or bfloat16; attention here is float32
    attn_pdrop: float = 0.0  # dropout on attention's weights: kept for others, not done here
    initializer_range: float = 0.02  # standard deviation of fresh weights
    tie_word_embeddings: bool = True  # the token table is the output layer, too

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if not (type(value) is int and value >= 1 or name == "n_inner" and value is None):
                raise ValueError(f"GPT2Config: {name} is {value!r}, expected a positive integer")
        for name, low in (("layer_norm_epsilon", 1e-12), ("embd_pdrop", 0.0), ("resid_pdrop", 0.0),
                          ("attn_pdrop", 0.0), ("initializer_range", 0.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value < 1:
                raise ValueError(f"GPT2Config: {name} is {value!r}, expected a number from {low:g} to below 1")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
                     "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"GPT2Config: {name} is {getattr(self, name)!r}, expected true or false")
        if not isinstance(self.activation_function, str) or self.activation_function not in ACTIVATIONS:
            raise ValueError(f"GPT2Config: activation_function is {self.activation_function!r}, "
                             f"expected one of {', '.join(ACTIVATIONS)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPT2Config: n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")

    def attention_scale(self, layer: int) -> float:
        """What attention's scores are multiplied by in a layer, which counts from 0."""
        scale = 1 / math.sqrt(self.n_embd // self.n_head) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def residual_std(self) -> float:
        """The standard deviation of fresh weights whose products are added to the stream.

        The stream sums 2 * n_layer additions; their weights start smaller by its root (GPT-2, section 2.3).
        """
        return self.initializer_range / (2 * self.n_layer) ** 0.5

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

    def __init__(self, config: GPT2Config, rng, dtype):
        std, residual_std = config.initializer_range, config.residual_std
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, std=std, rng=rng, dtype=dtype)
        self.c_proj = Linear(config.n_embd, config.n_embd, std=residual_std, rng=rng, dtype=dtype)

    def __call__(self, x: Tensor, attend: Callable[[Tensor], Tensor], keep: np.ndarray | None = None,
                 rng=None) -> Tensor:
        """(N, C) -> (N, C), or (K, C) for the tokens `keep` alone. attend: (N, 3C) -> (N, C), mixes tokens."""
        mixed = attend(self.c_attn(x, rng))
        return self.c_proj(mixed if keep is None else ops.embedding(mixed, keep), rng)


class MLP(Module):
    """Two layers, applied to each token independently."""

    def __init__(self, config: GPT2Config, rng, dtype):
        std, residual_std = config.initializer_range, config.residual_std
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, n_inner, std=std, rng=rng, dtype=dtype)
        self.c_proj = Linear(n_inner, config.n_embd, std=residual_std, rng=rng, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation_function]

    def __call__(self, x: Tensor, rng=None) -> Tensor:
        """(N, C) -> (N, C)"""
        return self.c_proj(self.activation(self.c_fc(x, rng)), rng)


class Block(Module):
    """Tokens look at each other, then each thinks for itself; both add to the stream x."""

    def __init__(self, config: GPT2Config, rng, dtype):
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.attn = Attention(config, rng, dtype)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.mlp = MLP(config, rng, dtype)
        self.drop = Dropout(config.resid_pdrop)

    def __call__(self, x: Tensor, attend: Callable[[Tensor], Tensor], rng=None, keep=None) -> Tensor:
        """(N, C) -> (N, C). attend: queries, keys and values (N, 3C) -> mixed (N, C).

        keep: indices of the only tokens whose result is wanted, (K,); the result is (K, C) then. The others
        are still looked at by these.
        """
        attended = self.attn(self.ln_1(x), attend, keep, rng)
        if keep is not None:
            x = ops.embedding(x, keep)
        x = x + self.drop(attended, rng)
        return x + self.drop(self.mlp(self.ln_2(x), rng), rng)


def needed_lengths(targets: np.ndarray) -> np.ndarray:
    """How far each row has to be computed: to its last target that counts. (B, T) -> (B,)"""
    return np.where(targets != IGNORE, np.arange(1, targets.shape[1] + 1), 0).max(axis=1, initial=0)


class GPT2(Module):
    """Token and position embeddings, n_layer blocks, a last norm, and an output layer.

    The token table `wte` is the output layer too, unless the config says tie_word_embeddings = False; then
    `lm_head` is, a table (V, C) of its own.

    >>> import numpy as np
    >>> from tinyft import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2), np.random.default_rng(0))
    >>> model(np.array([[3, 1, 4]])).shape
    (1, 3, 50)
    >>> loss = model.loss(np.array([[3, 1, 4]]), np.array([[1, -100, 9]]))
    >>> loss.backward()
    >>> model.wte.weight.grad.shape
    (50, 8)
    """

    def __init__(self, config: GPT2Config, rng: np.random.Generator | None = None, dtype=np.float32):
        """rng: draws fresh weights; without it they are left for loading to fill."""
        self.config = config
        std, eps = config.initializer_range, config.layer_norm_epsilon
        self.wte = Embedding(config.vocab_size, config.n_embd, std=std, rng=rng, dtype=dtype)
        self.wpe = Embedding(config.n_positions, config.n_embd, std=std, rng=rng, dtype=dtype)
        self.h = [Block(config, rng, dtype) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, eps=eps, dtype=dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd, std=std, rng=rng, dtype=dtype)
        self.drop = Dropout(config.embd_pdrop)
        self.recompute = False  # whether a block's inner results are computed again in the backward pass, not kept
        self.on_block_done: Callable[[int], None] | None = None  # see `run_blocks`

    def set_dropout(self, p: float) -> None:
        """Use one dropout probability everywhere, whatever the config says; for training only."""
        self.drop.p = p
        for block in self.h:
            block.drop.p = p

    def draws_dropout(self, rng: np.random.Generator | None) -> bool:
        """Whether a pass with this generator drops anything."""
        dropouts = (module for _, module in self.named_modules() if isinstance(module, Dropout))
        return rng is not None and any(dropout.p > 0 for dropout in dropouts)

    @property
    def output_weight(self) -> Tensor:
        """The output layer's table (V, C), which hidden states are multiplied by."""
        return self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden(self, ids: np.ndarray, segments: Segments, rng: np.random.Generator | None = None,
               keep: np.ndarray | None = None) -> Tensor:
        """What the model knows after each token: ids (N,), laid out as `segments` say -> (N, C).

        rng: turns dropout on. keep (K,): indices of the only tokens that are asked for; the last block works
        for them alone, and the result is (K, C).
        """
        if segments.longest > self.config.n_positions:
            raise ValueError(f"GPT2: a row has {segments.longest} tokens, expected at most n_positions = "
                             f"{self.config.n_positions}; cut it or use a model with more")
        return self.run_blocks(ids, segments.positions, partial(self.attend_within_rows, segments), rng, keep)

    def attend_within_rows(self, segments: Segments, layer: int, qkv: Tensor) -> Tensor:
        """Attention of a layer in which a token sees itself and those before it in its row: (N, 3C) -> (N, C)."""
        return ops.causal_attention(qkv, n_head=self.config.n_head, segments=segments,
                                    scale=self.config.attention_scale(layer))

    def run_blocks(self, ids: np.ndarray, positions: np.ndarray, attend: Callable[[int, Tensor], Tensor],
                   rng: np.random.Generator | None = None, keep: np.ndarray | None = None) -> Tensor:
        """All but the output layer: ids and positions (N,) -> (N, C), or (K, C) with `keep`, as for `hidden`.

        attend(layer, qkv) is called in every layer, with queries, keys and values (N, 3C), for what tokens take from
        others, (N, C). self.on_block_done(layer) is called in the backward pass, from the last layer to the first, as
        soon as the gradients of a block's parameters are complete.
        """
        x = self.drop(self.wte(ids) + self.wpe(positions), rng)
        for layer, block in enumerate(self.h):
            if self.on_block_done is not None:
                x = when_passed(x, partial(self.on_block_done, layer))
            x = self._run_block(block, x, partial(attend, layer), rng, keep if block is self.h[-1] else None)
        return self.ln_f(x)

    def _run_block(self, block: Block, x: Tensor, attend: Callable[[Tensor], Tensor], rng, keep) -> Tensor:
        """A block, whose inner results are kept for the backward pass or, with self.recompute, computed again there."""
        if not (self.recompute and (x.requires_grad or any(block.trainable_parameters()))):
            return block(x, attend, rng, keep)
        generators = iter((rng, copy.deepcopy(rng)))  # so that dropout draws the same again
        return recompute(lambda x: block(x, attend, next(generators), keep), x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The output layer: (N, C) -> (N, V)."""
        return ops.matmul(hidden, self.output_weight.T)

    def __call__(self, ids: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Logits of the next token at every position: (B, T) -> (B, T, V)."""
        ids = np.atleast_2d(ids)
        segments = segments_of([ids.shape[1]] * len(ids))
        return self.logits(self.hidden(ids.reshape(-1), segments, rng)).reshape(*ids.shape, self.config.vocab_size)

    def loss(self, inputs: np.ndarray, targets: np.ndarray, total: int | None = None,
             rng: np.random.Generator | None = None) -> Tensor:
        """Cross-entropy per target: inputs (B, T), targets (B, T) with -100 where nothing is learned -> ().

        Three things are not computed, and the loss is the same. What stands after a row's last target cannot touch the
        loss, since no token sees the future: it is dropped here, padding with it. What has no target itself only feeds
        the others' attention, so that it ends in the last block. And tokens in which rows begin alike are computed once
        for all of them, unless dropout makes the rows differ. total: what to divide the sum by, if not this batch's
        target tokens.
        """
        inputs, targets = np.atleast_2d(inputs), np.atleast_2d(targets)
        if inputs.shape != targets.shape:
            raise ValueError(f"GPT2.loss: inputs are {inputs.shape}, targets {targets.shape}, expected the same")
        for name, numbers in (("inputs", inputs), ("targets", targets)):
            if numbers.dtype.kind not in "iu":
                raise TypeError(f"GPT2.loss: {name} are {numbers.dtype}, expected integers")
        if is_recording():
            compile_ahead.begin(self.wte.weight.dtype)
        segments, tokens = lay_out(inputs, needed_lengths(targets), share=not self.draws_dropout(rng))
        ids = np.empty(segments.starts[-1], np.int64)
        ids[tokens[tokens >= 0]] = inputs[tokens >= 0]
        live = targets != IGNORE
        # A token that rows share has as many targets as they differ in, and each as often as it occurs.
        pairs = [tokens[live], targets[live].astype(np.int64)]
        (of_token, chosen), counts = np.unique(pairs, axis=1, return_counts=True)
        keep, place = np.unique(of_token, return_inverse=True)
        hidden = self.hidden(ids, segments, rng, keep)
        if len(keep) < len(place):
            hidden = ops.embedding(hidden, place)
        loss = losses.linear_cross_entropy(hidden, self.output_weight, chosen, counts=counts, total=total)
        if loss.requires_grad:
            compile_ahead.wait()
        return loss
