"""Frozen matrices that are kept in 16 or 8 bits. A product expands them while it packs them, and nothing else does.

  bfloat16  the upper half of a float32, rounded
  int8      a whole number from -127 to 127 for each element, times a float32 scale for each GROUP of rows in a column

So a product is that of the rounded matrix in float32. In memory the matrix takes a half or a quarter, and no copy of it
in full is ever made.
"""

from dataclasses import dataclass, replace

import numpy as np

KEPT_AS = ("bfloat16", "int8")
GROUP = 64  # elements that share a scale in int8; a multiple of a tile's columns, see `packing.py`
PART = 1 << 18  # elements that are rounded at a time, so that what lies between fits the cache


@dataclass(frozen=True, eq=False)
class Kept:
    """A float32 matrix in fewer bits, or the transpose of one; to ops that multiply by it, it is like an array."""

    stored: np.ndarray  # (rows, columns) as it lies in memory, C-contiguous: bfloat16 as uint16, or int8
    scales: np.ndarray  # (groups of rows, columns) of int8, else (0,)
    transposed: bool = False  # what is meant is the transpose of `stored`

    dtype, itemsize, ndim = np.dtype(np.float32), 4, 2
    __array_ufunc__ = None  # arithmetic with it is an error, not an array of objects

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what is meant."""
        return self.stored.shape[::-1] if self.transposed else self.stored.shape

    @property
    def T(self) -> "Kept":
        """The transpose, without a copy."""
        return replace(self, transposed=not self.transposed)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """Rows of a table (integers of any shape) or all of it ([...]) in float32."""
        if self.transposed:
            return self.T[...].T[rows]
        if self.stored.dtype == np.int8:
            group = np.arange(len(self))[rows] // GROUP
            floats = self.scales[group] if np.ndim(group) else self.scales[group].copy()  # one row is a view of it
            floats *= self.stored[rows]
            return floats
        bits = self.stored[rows].astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)


def _bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """The upper half of float32 numbers, rounded to nearest, ties to even; NaNs stay NaNs."""
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded)


def keep(matrix: np.ndarray, kept_as: str) -> Kept:
    """Round a float32 matrix to "bfloat16" or "int8".

    ValueError for another form or dtype, or numbers that int8 has no scale for: infinities and NaNs.
    """
    if kept_as not in KEPT_AS:
        raise ValueError(f"a matrix is to be kept as {kept_as!r}, expected one of {', '.join(KEPT_AS)}")
    if matrix.dtype != np.float32 or matrix.ndim != 2:
        raise ValueError(f"a matrix to be kept as {kept_as} is {matrix.shape} {matrix.dtype}, expected (rows, columns) "
                         "float32")
    if kept_as == "bfloat16":
        stored, step = np.empty(matrix.shape, np.uint16), max(1, PART // max(1, matrix.shape[1]))
        for first in range(0, len(matrix), step):
            stored[first : first + step] = _bfloat16_bits(np.ascontiguousarray(matrix[first : first + step]))
        return Kept(stored, np.empty(0, np.float32))
    stored = np.empty(matrix.shape, np.int8)
    scales = np.empty((-(-len(matrix) // GROUP), matrix.shape[1]), np.float32)
    for scale, first in zip(scales, range(0, len(matrix), GROUP), strict=True):
        group = matrix[first : first + GROUP]
        scale[...] = np.abs(group).max(axis=0) / 127
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        with np.errstate(invalid="ignore"):  # what isn't finite is found below
            stored[first : first + GROUP] = np.rint(group * inverse)
    if not np.isfinite(scales).all():
        raise ValueError("a matrix to be kept as int8 has infinities or NaNs; use bfloat16, or better weights")
    return Kept(stored, scales)
