"""exp against the long double of the C library."""

import numpy as np
import pytest

from tinyft.kernels.jit import jit
from tinyft.kernels.simd import exp, maximum

LONG = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


@jit
def exp_of_all(x):
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = exp(x[i])
    return out


def ulps_off(x):
    """Distance from the exact value in units of the last place of the exact value's neighbour."""
    exact = np.exp(x.astype(np.longdouble))
    got = exp_of_all(x)
    return np.abs(got.astype(np.longdouble) - exact) / np.spacing(exact.astype(x.dtype)).astype(np.longdouble)


# The range in which the result is a normal number and less than half the largest.
RANGE = {np.float32: (-87.33, 88.02), np.float64: (-708.39, 709.08)}


def needs_long_double(dtype):
    if dtype == np.float64 and not LONG:
        pytest.skip("long double is no wider than double here")


def test_within_2_ulp_over_the_whole_range(dtype, rng):
    needs_long_double(dtype)
    low, high = RANGE[dtype]
    x = np.concatenate([
        np.linspace(low, high, 300_001),
        rng.uniform(low, high, 300_001),
        rng.uniform(-1, 1, 100_001),
        rng.standard_normal(100_001) * 1e-5,
    ]).astype(dtype)
    assert ulps_off(x).max() <= 2


def test_within_2_ulp_where_the_reduction_changes(dtype):
    """At odd multiples of ln(2)/2 the power of two steps up and the remainder is largest."""
    needs_long_double(dtype)
    low, high = RANGE[dtype]
    steps = np.arange(int(low / np.log(2)) + 1, int(high / np.log(2))) + 0.5
    edges = (steps * np.log(2)).astype(dtype)
    around = np.concatenate([edges, np.nextafter(edges, dtype(-np.inf)), np.nextafter(edges, dtype(np.inf))])
    assert ulps_off(around).max() <= 2


def test_one_at_zero(dtype):
    tiny = np.finfo(dtype).tiny
    np.testing.assert_array_equal(exp_of_all(np.array([0, -0.0, tiny, -tiny], dtype)), 1)


def test_ends(dtype):
    info = np.finfo(dtype)
    too_low, too_high = np.log(float(info.tiny)) - 0.4, np.log(float(info.max)) + 0.01
    x = np.array([-np.inf, -info.max, -1e4, too_low, too_high, 1e4, info.max, np.inf], dtype)
    np.testing.assert_array_equal(exp_of_all(x), [0, 0, 0, 0, np.inf, np.inf, np.inf, np.inf])


def test_between_the_range_and_the_ends(dtype):
    """There it may give up the number for 0 or inf, but never for anything else."""
    needs_long_double(dtype)
    info = np.finfo(dtype)
    low, high = RANGE[dtype]
    below = np.linspace(np.log(float(info.tiny)) - 1, low, 10_001).astype(dtype)
    above = np.linspace(high, np.log(float(info.max)), 10_001).astype(dtype)[:-1]
    got = exp_of_all(below)
    assert ((got == 0) | (ulps_off(below) <= 2)).all()
    got = exp_of_all(above)
    assert (np.isinf(got) | (ulps_off(above) <= 2)).all()
    assert (np.diff(got[np.isfinite(got)]) >= 0).all() and not np.isnan(got).any()


def test_nan_stays_nan(dtype):
    # Long enough for whole vectors, with the NaN in each place of one.
    for at in range(33):
        x = np.zeros(33, dtype)
        x[at] = np.nan
        np.testing.assert_array_equal(np.isnan(exp_of_all(x)), np.isnan(x))


def test_the_python_name_says_where_it_belongs():
    with pytest.raises(NotImplementedError, match="numpy.exp"):
        exp(1.0)


@jit
def maximum_of_all(x):
    top = x[0]
    for i in range(x.size):
        top = maximum(top, x[i])
    return top


def test_maximum(dtype, rng):
    for n in (1, 2, 17, 64, 131):
        x = rng.standard_normal(n).astype(dtype)
        assert maximum_of_all(x) == x.max()
        x[rng.integers(n)] = np.nan
        assert np.isnan(maximum_of_all(x))
