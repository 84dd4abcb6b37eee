"""Answers to the exercises of `attention.py`."""

import numpy as np


def windowed(Q: np.ndarray, K: np.ndarray, V: np.ndarray, w: int) -> np.ndarray:
    """1. Attention (T, D) -> (T, D) in which a token sees itself and the w - 1 before it.

    With w = 1 the softmax has a single element, which is 1 whatever the score, so that out[i] = V[i].
    """
    T, D = Q.shape
    S = Q @ K.T / np.sqrt(D)
    seen = np.tri(T, dtype=bool) & ~np.tri(T, k=-w, dtype=bool)
    S = np.where(seen, S, -np.inf)
    P = np.exp(S - S.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True) @ V


def one_more(q: np.ndarray, K: np.ndarray, V: np.ndarray) -> np.ndarray:
    """2. The last token's attention, (D,): no token comes after it, so that there is nothing to hide."""
    scores = K @ q / np.sqrt(len(q))
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ V
