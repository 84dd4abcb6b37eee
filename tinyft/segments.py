"""Where the tokens of a batch stand, and what rows that begin alike have in common.

In a causal model, what a token becomes depends on itself and on the tokens before it, and on nothing else. Rows
that begin with the same tokens therefore agree there in every layer, and a token that they share is computed once:

    row 0   Below is an instruction that describes a task. Name a fruit. An apple.
    row 1   Below is an instruction that describes a task. Add 2 and 3. 5
            `---------------- once for both ------------'

So a batch is laid out as N tokens, each computed once, in as many segments as it has rows. A segment is what a row
has of its own; before it come tokens that an earlier segment has already, as the branches of a tree continue each
other. Only attention has to know: all else in a transformer works on single tokens. The gradient of a shared token
is the sum over the rows that see it, since each of them used it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Segments(NamedTuple):
    """S segments of N tokens in all; tokens are numbered in the order in which they are laid out.

    starts (S+1,): segment s has the tokens starts[s] to starts[s+1] - 1 of its own.
    seen, seen_starts (S+1,): seen[seen_starts[s] : seen_starts[s+1]] are the numbers of all tokens of the row that ends
    in segment s, in the order of the row: those that it shares, and then its own.
    """

    starts: np.ndarray
    seen: np.ndarray
    seen_starts: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """The place of each token in its row, (N,)."""
        own, rows = np.diff(self.starts), np.diff(self.seen_starts)
        return np.arange(self.starts[-1]) + np.repeat(rows - own - self.starts[:-1], own)

    @property
    def longest(self) -> int:
        """The length of the longest row, shared tokens counted."""
        return int(np.diff(self.seen_starts).max(initial=0))

    def row(self, segment: int) -> np.ndarray:
        """The numbers of the tokens of a row, the shared ones first."""
        return self.seen[self.seen_starts[segment] : self.seen_starts[segment + 1]]


def segments_of(own: Sequence[int], parents: Sequence[int] | None = None,
                shared: Sequence[int] | None = None) -> Segments:
    """Segments with own[s] tokens each. Segment s continues the row of an earlier one, parents[s], after the first
    shared[s] tokens of that row; without parents each begins a row.

    ValueError where a parent doesn't come earlier, or has fewer tokens than are to be shared.
    """
    starts = np.concatenate([[0], np.cumsum(own, dtype=np.int64)]).astype(np.int64)
    if parents is None:
        return Segments(starts, np.arange(starts[-1]), starts)
    rows: list[np.ndarray] = []
    for segment, (parent, count) in enumerate(zip(parents, shared, strict=True)):
        before = np.empty(0, np.int64)
        if count:
            if not (0 <= parent < segment and 0 < count <= len(rows[parent])):
                raise ValueError(f"segments_of: segment {segment} shares {count} tokens with segment {parent}, "
                                 "expected an earlier one whose row has as many")
            before = rows[parent][:count]
        rows.append(np.concatenate([before, np.arange(starts[segment], starts[segment + 1])]))
    seen_starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    return Segments(starts, np.concatenate([*rows, np.empty(0, np.int64)]), seen_starts)


def lay_out(ids: np.ndarray, lengths: np.ndarray, share: bool = True) -> tuple[Segments, np.ndarray]:
    """Rows of a batch, the first lengths[b] of ids (B, T) each, as segments; and which token stands where, (B, T).

    The second array has for every place in a row the number of the token computed for it, -1 beyond the row's length.
    share: whether tokens in which rows begin alike are computed once. Sorted like words in a dictionary, each row
    shares more with the one before it than with any earlier one, so that it continues that.
    """
    order = list(range(len(ids)))
    shared = np.zeros(len(ids), np.int64)
    if share and len(ids) > 1:
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        order.sort(key=rows.__getitem__)
        for segment, (before, row) in enumerate(pairwise(order), start=1):
            shared[segment] = common_prefix(rows[before], rows[row])
    segments = segments_of(np.asarray(lengths)[order] - shared, np.arange(len(ids)) - 1, shared)
    tokens = np.full(ids.shape, -1, np.int64)
    for segment, row in enumerate(order):
        tokens[row, : lengths[row]] = segments.row(segment)
    return segments, tokens


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """In how many elements two lists begin alike."""
    count = min(len(a), len(b))
    return next((i for i in range(count) if a[i] != b[i]), count)
