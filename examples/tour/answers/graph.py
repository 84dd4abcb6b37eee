"""Answers to the exercises of `graph.py`."""

import numpy as np

from tinyft import Tensor
from tinyft.tensor import Node


def gradients(last: Tensor) -> dict[Tensor, np.ndarray]:
    """1. The gradient of every leaf below `last`, without `last.backward()`."""
    sums: dict[Node | Tensor, np.ndarray] = {last.node: np.ones_like(last.data)}
    leaves: dict[Tensor, np.ndarray] = {}
    while sums:
        latest = max((one for one in sums if isinstance(one, Node)), key=lambda node: node.order, default=None)
        if latest is None:
            leaves.update(sums)
            break
        gradients = latest.backward(sums.pop(latest))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        for parent, gradient in zip(latest.parents, gradients, strict=True):
            if parent is not None:
                sums[parent] = sums.get(parent, 0) + gradient
    return leaves


def hasty(a: float) -> tuple[float, float]:
    """2. d loss / d a of d = a * a, loss = d * d + d: when d goes on too early, and when it waits for both users.

    The walk begins at the sum and hands 1 to the product d * d and 1 to d itself. If d went on with that 1 alone, a
    would get 2 a, and the 2 d that the product hands to d afterwards would be lost.
    """
    d = a * a
    too_early = 1 * 2 * a
    complete = (2 * d + 1) * 2 * a
    return too_early, complete
