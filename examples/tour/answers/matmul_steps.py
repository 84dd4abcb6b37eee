"""Answers to the exercises of `matmul_steps.py`."""

import numpy as np


def memory_per_multiply_add(r: int, v: int, K: int) -> float:
    """1. Each k loads r numbers and v vectors for r v multiply-adds; the tile itself comes and goes once.

    For large K, 14 x 2 needs 0.57, 4 x 2 0.75, 6 x 4 0.42 and 30 x 1 1.03. In bytes, (4 r + 64 v) / (r v): 6.6, 18,
    11.7 and 6.1. All but 30 x 1 need less than one load, so that loads aren't the limit.
    """
    return (K * (r + v) + 2 * r * v) / (K * r * v)


def any_shape(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """2. (M, K) @ (K, N) by whole tiles of 14 x 32; what sticks out is computed from zeros and cut off."""
    (M, K), N = A.shape, B.shape[1]
    C = np.empty((M, N), A.dtype)
    for i in range(0, M, 14):
        for j in range(0, N, 32):
            rows, columns = np.zeros((14, K), A.dtype), np.zeros((K, 32), B.dtype)
            n_rows, n_columns = min(14, M - i), min(32, N - j)
            rows[:n_rows], columns[:, :n_columns] = A[i : i + 14], B[:, j : j + 32]
            C[i : i + 14, j : j + 32] = (rows @ columns)[:n_rows, :n_columns]
    return C
