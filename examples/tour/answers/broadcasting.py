"""Answers to the exercises of `broadcasting.py`."""

import numpy as np


def sum_matrix(rows: int, columns: int) -> np.ndarray:
    """1. S with S @ x.reshape(-1) = x.sum(axis=0): the transpose of D, so that S^T copies a gradient to every row."""
    return np.tile(np.eye(columns), (1, rows))


def gradients(A: np.ndarray, B: np.ndarray, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2. Of out[b, m, n] = sum over k of A[b, m, k] B[k, n]: an index that the result lacks is summed over.

    dA[b, m, k] = sum over n of dout[b, m, n] B[k, n]; B[k, n] is used for every b and m, so that both are summed over:
    dB[k, n] = sum over b and m of A[b, m, k] dout[b, m, n].
    """
    return np.einsum("bmn,kn->bmk", dout, B), np.einsum("bmk,bmn->kn", A, dout)
