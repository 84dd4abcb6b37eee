"""Answers to the exercises of `matmul_steps.py`."""

import numpy as np


def memory_per_multiply_add(r: int, v: int, K: int) -> float:
    """1. Each k loads r numbers and v vectors for r v multiply-adds; the tile itself comes and goes once.

    For large K, 14 x 2 needs 0.57, 6 x 4 0.42 and 30 x 1 1.03.
    """
    return (K * (r + v) + 2 * r * v) / (K * r * v)


def best_tile(registers: int) -> tuple[int, int]:
    """1. (r, v) that moves the fewest bytes and needs at most one load for a multiply-add: 14 x 2 for 32 registers.

    In bytes 14 x 2 moves 6.6 for a multiply-add, 6 x 4 11.7; 30 x 1 moves fewer, 6.1, but is limited by its loads. With
    16 registers it is 6 x 2; both are what tinyft has.
    """
    fitting = [(r, v) for r in range(1, registers) for v in range(1, registers) if r * v + v + 1 <= registers]
    light = [(r, v) for r, v in fitting if (r + v) / (r * v) <= 1]
    return min(light, key=lambda tile: (4 * tile[0] + 64 * tile[1]) / (tile[0] * tile[1]))


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
