"""Answers to the exercises of `what_tuning_changed.py`."""

import numpy as np

from tinyft import GPT2


def between(before: GPT2, after: GPT2, share: float) -> GPT2:
    """1. The model whose weights lie on the line through two others: `before` at 0, `after` at 1."""
    model = GPT2(before.config)
    start, end = dict(before.named_parameters()), dict(after.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data[...] = (1 - share) * start[name].data + share * end[name].data
    return model


def rank_for(change: np.ndarray, share: float) -> int:
    """2. The squares of the singular values sum to the square of the matrix' length, so that each has its share."""
    squares = np.linalg.svd(change, compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares), share * squares.sum())) + 1
