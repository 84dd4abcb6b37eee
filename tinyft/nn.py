"""Modules: parameters with names, and the three layers that GPT-2 is made of."""

from collections.abc import Iterator

import numpy as np

from . import ops
from .tensor import Tensor


class Module:
    """Whatever holds parameters: Tensors with requires_grad, other Modules, or lists of these."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, parameter) in the order in which they were set; `h.0.attn.c_attn.weight`, for instance."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.requires_grad:
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")
            elif isinstance(value, list | tuple):
                for i, item in enumerate(value):
                    if isinstance(item, Tensor) and item.requires_grad:
                        yield f"{prefix}{name}.{i}", item
                    elif isinstance(item, Module):
                        yield from item.named_parameters(f"{prefix}{name}.{i}.")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for _, parameter in self.named_parameters():
            parameter.grad = None

    def n_parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(parameter.size for _, parameter in self.named_parameters())


def _normal(shape: tuple[int, ...], std: float, rng: np.random.Generator | None, dtype) -> Tensor:
    """A parameter drawn from a normal distribution; without rng, memory that is to be filled by loading."""
    if rng is None:
        return Tensor(np.empty(shape, dtype), requires_grad=True)
    return Tensor((std * rng.standard_normal(shape, np.float32)).astype(dtype), requires_grad=True)


class Linear(Module):
    """x @ weight + bias with weight (n_in, n_out), as GPT-2's checkpoints store it."""

    def __init__(self, n_in: int, n_out: int, *, std: float = 0.02, rng=None, dtype=np.float32):
        self.weight = _normal((n_in, n_out), std, rng, dtype)
        self.bias = Tensor(np.zeros(n_out, dtype), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)"""
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table of n rows, one for each id."""

    def __init__(self, n: int, n_embd: int, *, std: float = 0.02, rng=None, dtype=np.float32):
        self.weight = _normal((n, n_embd), std, rng, dtype)

    def __call__(self, ids: np.ndarray) -> Tensor:
        """Integers of any shape -> (*ids.shape, n_embd)"""
        return ops.embedding(self.weight, ids)


class LayerNorm(Module):
    """Normalises the last axis, then scales and shifts it."""

    def __init__(self, n_embd: int, *, eps: float = 1e-5, dtype=np.float32):
        self.weight = Tensor(np.ones(n_embd, dtype), requires_grad=True)
        self.bias = Tensor(np.zeros(n_embd, dtype), requires_grad=True)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n_embd) -> (..., n_embd)"""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Zeroes numbers with probability p, but only where it is handed a random generator: in training."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Any shape -> the same shape"""
        return x if rng is None or self.p == 0 else ops.dropout(x, p=self.p, rng=rng)
