"""LoRA: a frozen matrix W learns as W + scale (B A)^T, with A and B far smaller (Hu et al., "LoRA: Low-Rank Adaptation
of Large Language Models", 2021).

A (R, n_in) starts at random and B (n_out, R) at zero, as peft stores them, so that at first nothing has changed. All
else is frozen: no gradient of W is ever formed, and AdamW keeps moments for A and B alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .gpt2 import GPT2
from .kernels.matmul import gemm
from .kernels.sums import sum_rows
from .nn import Dropout, Linear, Module
from .ops import as_rows, gemm_of_context
from .tensor import Donated, Tensor, op


@dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how. ValueError where a value makes no sense.

    >>> LoraConfig(rank=8, alpha=16).scale
    2.0
    """

    rank: int = 8  # R; the larger, the more an adapter can learn
    alpha: float = 16  # how much an adapter counts, see `scale`
    dropout: float = 0.0  # probability, on what goes into A
    layers: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")  # ends of names: c_proj, mlp.c_proj, h.0.mlp.c_proj
    rank_stabilised: bool = False  # scale with the root of the rank (Kalajdzievski, 2023)

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"LoraConfig: rank is {self.rank!r}, expected a whole number of at least 1")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha <= 1e6:
            raise ValueError(f"LoraConfig: alpha is {self.alpha!r}, expected a number above 0, at most 1e6")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"LoraConfig: dropout is {self.dropout!r}, expected a number from 0 to below 1")
        if not (isinstance(self.layers, tuple) and self.layers
                and all(isinstance(name, str) and name for name in self.layers)):
            raise ValueError(f"LoraConfig: layers are {self.layers!r}, expected a tuple of names such as 'c_attn'")
        if not isinstance(self.rank_stabilised, bool):
            raise ValueError(f"LoraConfig: rank_stabilised is {self.rank_stabilised!r}, expected true or false")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def adapts(self, name: str) -> bool:
        """Whether the layer of that name is one of `layers`."""
        return any(name_ends_in(name, layer) for layer in self.layers)


def name_ends_in(name: str, end: str) -> bool:
    """Whether a layer's name ends in these parts: h.0.mlp.c_proj does in c_proj and mlp.c_proj, not in proj."""
    return f".{name}".endswith(f".{end}")


@op
def lora_linear(x, weight, bias, lora_A, lora_B, *, scale, p=0.0, rng=None, wanted):
    """x @ weight + bias + scale * dropout(x) @ lora_A^T @ lora_B^T.

    Shapes: (..., C), (C, D), (D,), (R, C), (D, R) -> (..., D). Both terms are summed in one array. p, rng: of dropout.
    """
    rank = len(lora_A)
    if x.shape[-1:] != weight.shape[:1] or (bias.shape, lora_A.shape[1:], lora_B.shape) != (
            weight.shape[1:], weight.shape[:1], (*weight.shape[1:], rank)):
        raise ValueError(f"lora_linear: x {x.shape}, weight {weight.shape}, bias {bias.shape}, lora_A {lora_A.shape}, "
                         f"lora_B {lora_B.shape} do not fit, expected (..., C), (C, D), (D,), (R, C), (D, R)")
    wants_x, wants_weight, wants_bias, wants_A, wants_B = wanted
    x_shape, rows = x.shape, as_rows(x)
    kept = rng.random(rows.shape, dtype=np.float32) >= p if p > 0 else None
    scale = scale / (1 - p)  # as dropout scales what it keeps
    out = gemm_of_context(rows, weight, bias=bias)
    low = gemm_of_context(rows if kept is None else rows * kept, lora_A.T)
    low *= scale
    gemm_of_context(low, lora_B.T, out=out, accumulate=True)
    rows = rows if wants_weight or wants_A else None

    # shapes   x, kept (N, C), weight (C, D), bias (D,), A (R, C), B (D, R), low (N, R), out (N, D); scale above
    # forward  low[n, r] = scale * sum_c x[n, c] * kept[n, c] * A[r, c]
    #          out[n, d] = bias[d] + (sum_c x[n, c] * weight[c, d]) + sum_r low[n, r] * B[d, r]
    # chain    products, as for matmul; x goes two ways, so that its gradient is a sum of two
    # result   dlow[n, r] = scale * sum_d dout[n, d] * B[d, r]
    #          dx[n, c] = (sum_d dout[n, d] * weight[c, d]) + kept[n, c] * sum_r dlow[n, r] * A[r, c]
    #          dweight[c, d] = sum_n x[n, c] * dout[n, d]; dbias[d] = sum_n dout[n, d]
    #          dA[r, c] = sum_n dlow[n, r] * x[n, c] * kept[n, c]; dB[d, r] = sum_n dout[n, d] * low[n, r]
    def backward(dout):
        dout = as_rows(dout)
        dlow = gemm_of_context(dout, lora_B)
        dlow *= scale
        dx = None
        if wants_x:
            dx = gemm_of_context(dout, weight.T)
            if kept is None:
                gemm_of_context(dlow, lora_A, out=dx, accumulate=True)
            else:
                dx += gemm_of_context(dlow, lora_A) * kept
            dx = Donated(dx.reshape(x_shape))

        # These three are called only where they are wanted.
        def dweight(into, accumulate):
            gemm_of_context(rows.T, dout, out=into, accumulate=accumulate)

        def dA(into, accumulate):
            gemm_of_context(dlow.T, rows if kept is None else rows * kept, out=into, accumulate=accumulate)

        def dB(into, accumulate):
            gemm_of_context(dout.T, low, out=into, accumulate=accumulate)

        return dx, dweight, (sum_rows(dout) if wants_bias else None), dA, dB

    return out.reshape(*x_shape[:-1], weight.shape[1]), backward


class LoraLinear(Linear):
    """A Linear whose weight and bias are frozen, with an adapter beside."""

    def __init__(self, layer: Linear, config: LoraConfig, lora_A: np.ndarray, lora_B: np.ndarray):
        """lora_A (R, n_in), lora_B (n_out, R), R = config.rank."""
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_A = Tensor(lora_A, requires_grad=True)
        self.lora_B = Tensor(lora_B, requires_grad=True)
        self.config = config
        self.drop = Dropout(config.dropout)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """(..., n_in) -> (..., n_out). rng: turns dropout on."""
        return lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, scale=self.config.scale,
                           p=0.0 if rng is None else self.drop.p, rng=rng)

    def effective_weight(self) -> np.ndarray:
        """The weight and its adapter merged, (n_in, n_out); a new array."""
        merged = np.array(self.weight.data, order="C")
        return gemm(self.lora_A.data.T, self.config.scale * self.lora_B.data.T, out=merged, accumulate=True)


def linear_layers(model: GPT2) -> Iterator[tuple[str, Module, str]]:
    """(name, the module that holds it, its attribute there) of every Linear; names like `h.0.attn.c_attn`."""
    for number, block in enumerate(model.h):
        for half in ("attn", "mlp"):
            holder = getattr(block, half)
            for attribute, member in list(vars(holder).items()):
                if isinstance(member, Linear):
                    yield f"h.{number}.{half}.{attribute}", holder, attribute


def add_lora(model: GPT2, config: LoraConfig, rng: np.random.Generator) -> None:
    """Freeze a model and put fresh adapters beside the layers that config names.

    A is drawn as peft does, uniformly within 1 / sqrt(n_in). ValueError for a name that fits no layer, or if there are
    adapters already.

    >>> import numpy as np
    >>> from tinyft import LoraConfig, add_lora, load_model
    >>> model = load_model("weights/tiny-world")
    >>> add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    >>> model.n_parameters(trainable=True)
    43008
    """
    if has_lora(model):
        raise ValueError("add_lora: the model has adapters already; merge_lora(model) first")
    layers = list(linear_layers(model))
    for name in config.layers:
        if not any(name_ends_in(path, name) for path, *_ in layers):
            raise ValueError(f"add_lora: no layer's name ends in {name!r}, expected c_attn, c_proj, c_fc, attn.c_proj, "
                             "mlp.c_proj, or one of a single block like h.0.attn.c_attn")
    model.freeze()
    for name, holder, attribute in layers:
        if config.adapts(name):
            layer = getattr(holder, attribute)
            (n_in, n_out), dtype = layer.weight.shape, layer.bias.dtype
            drawn = rng.uniform(-1, 1, (config.rank, n_in)) / math.sqrt(n_in)
            setattr(holder, attribute,
                    LoraLinear(layer, config, drawn.astype(dtype), np.zeros((n_out, config.rank), dtype)))


def lora_layers(model: GPT2) -> dict[str, LoraLinear]:
    """The layers with adapters, by name."""
    found = ((name, getattr(holder, attribute)) for name, holder, attribute in linear_layers(model))
    return {name: layer for name, layer in found if isinstance(layer, LoraLinear)}


def lora_config(model: GPT2) -> LoraConfig | None:
    """How a model is adapted; None if it isn't."""
    return next((layer.config for layer in lora_layers(model).values()), None)


def has_lora(model: GPT2) -> bool:
    """Whether there are adapters on a model."""
    return lora_config(model) is not None


def lora_parameters(model: GPT2) -> dict[str, Tensor]:
    """A and B of all adapters by name, `h.0.attn.c_attn.lora_A` for instance."""
    return {f"{name}.{letter}": getattr(layer, letter)
            for name, layer in lora_layers(model).items() for letter in ("lora_A", "lora_B")}


def merge_lora(model: GPT2, done_with: Callable[[np.ndarray], None] | None = None) -> None:
    """Make each layer and its adapter one plain Linear with the same result, to rounding. What is frozen stays so.

    done_with: called with each matrix of the base as soon as it isn't needed any more.

    >>> import numpy as np
    >>> from tinyft import LoraConfig, add_lora, load_model, merge_lora
    >>> model = load_model("weights/tiny-world")
    >>> add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    >>> merge_lora(model)
    >>> any("lora" in name for name, _ in model.named_parameters())
    False
    """
    for _, holder, attribute in linear_layers(model):
        layer = getattr(holder, attribute)
        if isinstance(layer, LoraLinear):
            plain = Linear(*layer.weight.shape, dtype=layer.bias.dtype)
            plain.weight, plain.bias = Tensor(layer.effective_weight(), layer.weight.requires_grad), layer.bias
            setattr(holder, attribute, plain)
            if done_with is not None:
                done_with(layer.weight.data)
