"""Answers to the exercises of `add_an_op.py`."""

import numpy as np

from tinyft import op


@op
def softplus(x):
    """1. log(1 + exp(x)), which logaddexp(0, x) computes without ever forming exp(1000); its slope is the sigmoid."""
    out = np.logaddexp(0, x)
    return out, lambda dout: dout * np.exp(x - out)  # exp(x) / (1 + exp(x))


@op
def hypot(x, y):
    """2. sqrt(x**2 + y**2) of two arrays of one shape."""
    out = np.sqrt(x * x + y * y)

    def backward(dout):
        return dout * x / out, dout * y / out

    return out, backward


@op
def swapped_hypot(x, y):
    """2. The same with its gradients swapped."""
    out = np.sqrt(x * x + y * y)

    def backward(dout):
        return dout * y / out, dout * x / out

    return out, backward


def inputs_that_hide_it() -> tuple[np.ndarray, np.ndarray]:
    """2. Where x = y both gradients are the same, so that a check needs inputs that are random."""
    x = np.array([3.0, -1.0, 0.5])
    return x, x.copy()
