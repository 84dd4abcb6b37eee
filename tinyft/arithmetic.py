"""The ops that any program needs, arithmetic and shapes: the forward pass of each, with its backward pass inside.

`dx` is the gradient of x and has x's shape; `dout` is the gradient of the result. Above each backward pass stands how
it is derived: shapes, the forward pass, the chain rule, the result. Where elements depend on each other, these are
written in indices; sum_i takes in all that follows it, up to the end or to the bracket that closes around it. A test
reads these lines: it differentiates the forward pass numerically, and compares that with the result as it is written
and as it is computed.
"""

import math

import numpy as np

from .tensor import Tensor, op


def unbroadcast(dx: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo NumPy's broadcasting: sum over the axes along which one value was used many times.

    Broadcasting is a linear map, x -> D x with one 1 in each row of D; its gradient is D^T dout, this sum.
    """
    if dx.shape == shape:
        return dx
    added = dx.ndim - len(shape)
    stretched = [added + i for i, n in enumerate(shape) if n == 1 and dx.shape[added + i] != 1]
    return dx.sum(axis=(*range(added), *stretched), keepdims=True).reshape(shape)


@op
def add(x, y):
    """x + y, broadcast as in NumPy."""
    # The shapes alone are named in backward, so that x and y themselves can be freed.
    x_shape, y_shape = np.shape(x), np.shape(y)

    # shapes   x, y, out: any, broadcast; see unbroadcast
    # forward  out = x + y
    # chain    each occurs once, with the factor 1
    # result   dx = dout; dy = dout
    def backward(dout):
        return unbroadcast(dout, x_shape), unbroadcast(dout, y_shape)

    return x + y, backward


@op
def sub(x, y):
    """x - y, broadcast as in NumPy."""
    x_shape, y_shape = np.shape(x), np.shape(y)

    # shapes   x, y, out: any, broadcast
    # forward  out = x - y
    # chain    each occurs once, with the factors 1 and -1
    # result   dx = dout; dy = -dout
    def backward(dout):
        return unbroadcast(dout, x_shape), unbroadcast(-dout, y_shape)

    return x - y, backward


@op
def mul(x, y):
    """x * y, broadcast as in NumPy."""

    # shapes   x, y, out: any, broadcast
    # forward  out = x * y
    # chain    each is the factor that the other one is multiplied by
    # result   dx = dout * y; dy = dout * x
    def backward(dout):
        return unbroadcast(dout * y, np.shape(x)), unbroadcast(dout * x, np.shape(y))

    return x * y, backward


@op
def div(x, y):
    """x / y, broadcast as in NumPy."""

    # shapes   x, y, out: any, broadcast
    # forward  out = x / y
    # chain    d(1 / y) / dy = -1 / y**2
    # result   dx = dout / y; dy = -dout * x / y**2
    def backward(dout):
        dx = dout / y
        return unbroadcast(dx, np.shape(x)), unbroadcast(-dx * x / y, np.shape(y))

    return x / y, backward


@op
def neg(x):
    """-x"""
    # shapes   x, out: any
    # forward  out = -x
    # chain    one element makes one element, with the factor -1
    # result   dx = -dout
    return -x, lambda dout: -dout


@op
def pow(x, y):
    """x ** y where one of both is a plain number; a number as base has to be above 0."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        raise TypeError(f"pow: the exponent is an array {y.shape}, expected a number, as x is an array {x.shape} too")
    if isinstance(y, np.ndarray) and not x > 0:
        raise ValueError(f"pow: the base is {x}, expected a number above 0; others have no real power in general")
    out = x**y

    # shapes   x, out: any, y a number; or x a number and y, out: any
    # forward  out = x**y
    # chain    x**y = exp(y * log(x)) has the slope y * x**y / x in x, and x**y * log(x) in y
    # result   dx = dout * y * x**(y - 1); dy = dout * out * log(x)
    def backward(dout):
        if isinstance(y, np.ndarray):
            return None, dout * out * math.log(x)
        # x**0 is 1 everywhere; the rule would give 0 * inf at x = 0.
        return (np.zeros_like(x) if y == 0 else dout * y * x ** (y - 1)), None

    return out, backward


@op
def exp(x):
    """e ** x"""
    out = np.exp(x)
    # shapes   x, out: any
    # forward  out = exp(x)
    # chain    exp is its own slope
    # result   dx = dout * out
    return out, lambda dout: dout * out


@op
def log(x):
    """Natural logarithm."""
    # shapes   x, out: any
    # forward  out = log(x)
    # chain    x = exp(out), so that dx / dout = exp(out) = x
    # result   dx = dout / x
    return np.log(x), lambda dout: dout / x


@op
def tanh(x):
    """Hyperbolic tangent; its derivative is 1 - tanh(x)**2."""
    out = np.tanh(x)
    # shapes   x, out: any
    # forward  out = (exp(x) - exp(-x)) / (exp(x) + exp(-x))
    # chain    the rule for a fraction gives (p**2 - m**2) / p**2 with p, m = exp(x) + and - exp(-x)
    # result   dx = dout * (1 - out**2)
    return out, lambda dout: dout * (1 - out * out)


@op
def relu(x):
    """max(x, 0)"""
    # shapes   x, out: any
    # forward  out = x * (x > 0)
    # chain    the slope is 1 right of 0 and 0 left of it; at 0, where there is none, 0 is taken
    # result   dx = dout * (x > 0)
    return np.maximum(x, 0), lambda dout: dout * (x > 0)


# ---- shape


@op
def reshape(x, *, shape):
    """The same elements in another shape."""
    before = x.shape
    # shapes   x, out (R,), counted in memory order
    # forward  out[r] = x[r]
    # chain    every element goes to one place
    # result   dx[r] = dout[r]
    return x.reshape(shape), lambda dout: dout.reshape(before)


@op
def transpose(x, *, axes=None):
    """Permute the axes; without `axes`, reverse them."""
    inverse = None if axes is None else np.argsort([axis % x.ndim for axis in axes])
    # shapes   x (I, J), out (J, I); other permutations likewise
    # forward  out[j, i] = x[i, j]
    # chain    every element goes to one place, and its gradient comes back from there
    # result   dx[i, j] = dout[j, i]
    return x.transpose(axes), lambda dout: dout.transpose(inverse)


@op
def index(x, *, key):
    """x[key] with anything that NumPy takes as an index; an element picked twice gets both gradients."""
    shape = x.shape

    # shapes   x (M,), key (N,) of integers, out (N,); the other axes of x go along
    # forward  out[n] = x[key[n]]
    # chain    x[m] occurs once for each n with key[n] = m
    # result   dx[m] = sum_n (key[n] == m) * dout[n]
    def backward(dout):
        dx = np.zeros(shape, dout.dtype)
        np.add.at(dx, key, dout)
        return dx

    return x[key], backward


@op
def sum(x, *, axis=None, keepdims=False):
    """Sum over one axis, several, or all."""
    shape = x.shape

    # shapes   x (I, J), out (J,), for axis 0
    # forward  out[j] = sum_i x[i, j]
    # chain    x[i, j] occurs in out[j] alone, with the factor 1
    # result   dx[i, j] = dout[j]
    def backward(dout):
        if axis is not None and not keepdims:
            dout = np.expand_dims(dout, axis)
        return np.broadcast_to(dout, shape).copy()

    return x.sum(axis=axis, keepdims=keepdims), backward


def mean(x: Tensor, *, axis=None, keepdims=False) -> Tensor:
    """Mean over one axis, several, or all."""
    total = sum(x, axis=axis, keepdims=keepdims)
    return total * (total.size / x.size)
