"""Answers to the exercises of `training_step.py`."""

from collections.abc import Sequence

import numpy as np

from tinyft import GPT2


def in_halves(model: GPT2, inputs: np.ndarray, targets: np.ndarray) -> None:
    """1. `backward` adds to `.grad`, and `total` divides both parts by the live targets of the whole batch."""
    total, half = np.count_nonzero(targets != -100), len(inputs) // 2
    for rows in (slice(half), slice(half, None)):
        model.loss(inputs[rows], targets[rows], total=total).backward()


def adamw(w: np.ndarray, gradients: Sequence[np.ndarray], lr: float) -> np.ndarray:
    """2. A mean that began at 0 lacks the share beta**steps, the weight that its start still has."""
    beta1, beta2, eps, decay = 0.9, 0.999, 1e-8, 0.1
    m, v = np.zeros_like(w), np.zeros_like(w)
    for steps, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**steps), v / (1 - beta2**steps)
        w = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w
