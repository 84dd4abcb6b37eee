"""Modules: parameters with names, and the three layers that GPT-2 is made of."""

from collections.abc import Iterator

import numpy as np

from . import ops
from .tensor import Tensor


class Module:
    """Whatever holds parameters: Tensors, other Modules, or lists of these.

    Every Tensor that a module holds is one of its parameters, whether it wants a gradient or not: a frozen one
    is saved and loaded like all others. Arrays that are no parameters stay NumPy arrays.
    """

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, parameter) in the order in which they were set; `h.0.attn.c_attn.weight`, for instance."""
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):
                members = [(f"{prefix}{name}.{i}", item) for i, item in enumerate(value)]
            else:
                members = [(prefix + name, value)]
            for path, member in members:
                if isinstance(member, Tensor) and member.node is None:
                    yield path, member
                elif isinstance(member, Module):
                    yield from member.named_parameters(path + ".")

    def named_modules(self, name: str = "") -> Iterator[tuple[str, "Module"]]:
        """(name, module) for this module and all within it, each before its own; named like parameters."""
        yield name, self
        for key, value in vars(self).items():
            several = isinstance(value, list | tuple)
            for i, member in enumerate(value if several else [value]):
                if isinstance(member, Module):
                    path = f"{key}.{i}" if several else key
                    yield from member.named_modules(f"{name}.{path}" if name else path)

    def trainable_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Those of `named_parameters` that want a gradient."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def freeze(self, *names: str) -> None:
        """No gradients for these parameters from now on, and no updates by an AdamW that is made afterwards.

        names: of parameters or modules (`wte.weight`, `h.0`); without any, all. ValueError for a name that fits none.
        """
        self._set_requires_grad(names, False)

    def unfreeze(self, *names: str) -> None:
        """Undo `freeze`, for the same kinds of names."""
        self._set_requires_grad(names, True)

    def _set_requires_grad(self, names: tuple[str, ...], wanted: bool) -> None:
        parameters = dict(self.named_parameters())
        for name in names:
            if not any(f"{path}.".startswith(f"{name}.") for path in parameters):
                raise ValueError(f"{type(self).__name__}: no parameter or module is called {name!r}, "
                                 f"expected names like {next(iter(parameters), None)!r}")
        for path, parameter in parameters.items():
            if not names or any(f"{path}.".startswith(f"{name}.") for name in names):
                parameter.requires_grad, parameter.grad = wanted, None

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for _, parameter in self.named_parameters():
            parameter.grad = None

    def n_parameters(self, *, trainable: bool = False) -> int:
        """How many elements all parameters have together, or only those that are learned."""
        parameters = self.trainable_parameters() if trainable else self.named_parameters()
        return sum(parameter.size for _, parameter in parameters)


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

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """(..., n_in) -> (..., n_out). rng: in training, for layers that draw; this one doesn't."""
        return ops.linear(x, self.weight, self.bias)

    def effective_weight(self) -> np.ndarray:
        """What inference multiplies by, (n_in, n_out)."""
        return self.weight.data


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
    """Zeroes elements with probability p, but only where it is handed a random generator: in training."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Any shape -> the same shape"""
        return x if rng is None or self.p == 0 else ops.dropout(x, p=self.p, rng=rng)
