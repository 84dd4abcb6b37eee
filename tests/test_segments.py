"""How rows are laid out, and that what they have in common stands there once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft.segments import lay_out, segments_of


def padded(rows):
    """Rows of different lengths as an array of ids, filled up with a token that none of them has, and the lengths."""
    ids = np.full((len(rows), max(map(len, rows), default=0)), 99)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.array([len(row) for row in rows], np.int64)


def prefixes(rows):
    """All beginnings of all rows, each once: as many as their tree has nodes."""
    return {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}


def assert_laid_out(rows, share=True):
    """Every row can be read back, and what a token is told of its row is true; returns the segments and tokens."""
    ids, lengths = padded(rows)
    segments, tokens = lay_out(ids, lengths, share)
    count = segments.starts[-1]
    assert tokens.shape == ids.shape and len(segments.starts) == len(segments.seen_starts) == len(rows) + 1
    np.testing.assert_array_equal(tokens >= 0, np.arange(ids.shape[1]) < lengths[:, None])
    laid_out = np.full(count, -1)
    for row, of_row in zip(rows, tokens, strict=True):
        of_row = of_row[: len(row)]
        assert np.isin(laid_out[of_row], [-1, *row]).all()
        laid_out[of_row] = row
        np.testing.assert_array_equal(segments.positions[of_row], np.arange(len(row)))
    assert (laid_out >= 0).all(), "every token belongs to a row"
    for row, of_row in zip(rows, tokens, strict=True):
        np.testing.assert_array_equal(laid_out[of_row[: len(row)]], row)
    # What the segments see are the rows, in some order.
    assert (sorted(segments.row(s).tolist() for s in range(len(rows)))
            == sorted(of_row[: len(row)].tolist() for row, of_row in zip(rows, tokens, strict=True)))
    assert segments.longest == max(map(len, rows), default=0)
    return segments, tokens


# ---- segments_of


def test_segments_that_share_nothing():
    segments = segments_of([3, 0, 2])
    assert segments.starts.tolist() == segments.seen_starts.tolist() == [0, 3, 3, 5]
    assert segments.seen.tolist() == [0, 1, 2, 3, 4] and segments.positions.tolist() == [0, 1, 2, 0, 1]
    assert [segments.row(s).tolist() for s in range(3)] == [[0, 1, 2], [], [3, 4]] and segments.longest == 3


def test_segments_that_continue_others():
    segments = segments_of([3, 2, 0, 1, 2], [-1, 0, 1, 1, -1], [0, 2, 3, 4, 0])
    assert segments.starts.tolist() == [0, 3, 5, 5, 6, 8]
    assert [segments.row(s).tolist() for s in range(5)] == [
        [0, 1, 2], [0, 1, 3, 4], [0, 1, 3], [0, 1, 3, 4, 5], [6, 7]]
    assert segments.positions.tolist() == [0, 1, 2, 2, 3, 4, 0, 1] and segments.longest == 5
    assert segments.seen_starts.tolist() == [0, 3, 7, 10, 15, 17] and len(segments.seen) == 17


@pytest.mark.parametrize("own", [[], [0], [0, 0]])
@pytest.mark.parametrize("tree", [False, True])
def test_no_tokens(own, tree):
    segments = segments_of(own, [-1] * len(own), [0] * len(own)) if tree else segments_of(own)
    assert segments.starts.tolist() == segments.seen_starts.tolist() == [0] * (len(own) + 1)
    assert len(segments.seen) == len(segments.positions) == segments.longest == 0
    assert all(array.dtype == np.int64 for array in segments)


@pytest.mark.parametrize(("own", "parents", "shared", "says"), [
    ([3, 2], [1, -1], [1, 0], "segment 0 shares 1 tokens with segment 1"),  # a later one
    ([3, 2], [-1, 1], [0, 1], "segment 1 shares 1 tokens with segment 1"),  # itself
    ([3, 2], [-1, -1], [0, 1], "segment 1 shares 1 tokens with segment -1"),
    ([3, 2], [-1, 0], [0, 4], "segment 1 shares 4 tokens with segment 0"),
    ([3, 2, 1], [-1, 0, 1], [0, 1, 4], "segment 2 shares 4 tokens with segment 1"),
    ([3, 2], [-1, 0], [0, -1], "segment 1 shares -1 tokens with segment 0"),
])
def test_segments_that_cannot_be(own, parents, shared, says):
    with pytest.raises(ValueError, match=f"^segments_of: {says}, expected an earlier one whose row has as many$"):
        segments_of(own, parents, shared)


# ---- lay_out

ROWS = {
    "empty batch": [],
    "no tokens": [[], []],
    "one row": [[4, 2, 4, 2]],
    "equal rows": [[4, 2, 4]] * 3,
    "a row that another one begins with": [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5]],
    "no common token": [[1, 2, 3], [2, 2, 3], [3, 2, 3]],
    "the same after a difference": [[1, 5, 5, 5], [2, 5, 5, 5]],
    "rows without tokens": [[], [1, 2], [], [1, 3]],
    "branches at all depths": [[1, 2, 3, 4], [2, 9], [1, 2, 8], [1, 7, 3, 4], [1, 2, 3, 0], [2, 9, 9]],
    "one token each": [[3], [1], [3], [2], [1]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_common_beginning_stands_there_once(rows):
    segments, _ = assert_laid_out(rows)
    assert segments.starts[-1] == len(prefixes(rows))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=7))
def test_no_beginning_stands_there_twice(rows):
    segments, tokens = assert_laid_out(rows)
    assert segments.starts[-1] == len(prefixes(rows))
    # Beginnings and tokens are one to one.
    of_prefix = {(tuple(row[: i + 1]), tokens[b, i]) for b, row in enumerate(rows) for i in range(len(row))}
    assert len(of_prefix) == len(prefixes(rows))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=7))
def test_without_sharing_rows_stand_one_after_the_other(rows):
    segments, tokens = assert_laid_out(rows, share=False)
    assert segments.starts[-1] == sum(map(len, rows))
    np.testing.assert_array_equal(tokens[tokens >= 0], np.arange(segments.starts[-1]))
    assert segments.starts.tolist() == segments.seen_starts.tolist()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_arrays_without_tokens(shape, share):
    segments, tokens = lay_out(np.zeros(shape, np.int64), np.zeros(shape[0], np.int64), share)
    assert tokens.shape == shape and segments.starts.tolist() == [0] * (shape[0] + 1)


def test_what_stands_behind_a_row_does_not_count():
    """Neither makes it two rows alike nor different."""
    segments, tokens = lay_out(np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]]), np.array([2, 2, 4]))
    assert segments.starts[-1] == 4
    np.testing.assert_array_equal(tokens, [[0, 1, -1, -1], [0, 1, -1, -1], [0, 1, 2, 3]])
