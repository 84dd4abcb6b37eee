"""Products of bfloat16 factors: exact against rounded factors, and harmless to training."""

import numpy as np
import pytest

from tinyft import GPT2, AdamW, GPT2Config, ops
from tinyft.kernels.jit import HAS_BFLOAT16
from tinyft.kernels.matmul import K_BLOCK, TILE_ROWS, gemm

EPS = np.finfo(np.float32).eps
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no AVX-512 BF16 instructions")


def rounded(x):
    """x to 8 bits of precision, ties to even, as float64; written with integers, unlike the kernel's vectors."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


@pytest.fixture
def bfloat16_products():
    with ops.product_dtype("bfloat16"):
        yield


@needs_bfloat16
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 7), (TILE_ROWS, 32, 16), (15, 33, 17), (29, 64, K_BLOCK + 3),
                                   (97, 211, 769), (5, 2000, 31), (2, 3, 0)])
@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
def test_product_of_rounded_factors(shape, a_turned, b_turned):
    rows, columns, depth = shape
    rng = np.random.default_rng(sum(shape))
    a = rng.standard_normal((depth, rows) if a_turned else (rows, depth), np.float32)
    b = rng.standard_normal((columns, depth) if b_turned else (depth, columns), np.float32)
    a, b = a.T if a_turned else a, b.T if b_turned else b
    out = rng.standard_normal((rows, columns), np.float32)
    expected = rounded(a) @ rounded(b)
    # Each sum of `depth` float32 products is off by at most (depth + 1) * eps times the sum of their sizes.
    bound = (depth + 2) * EPS * (np.abs(rounded(a)) @ np.abs(rounded(b)) + np.abs(out) + 1)
    assert np.all(np.abs(gemm(a, b, bfloat16=True) - expected) <= bound)
    assert np.all(np.abs(gemm(a, b, out=out.copy(), accumulate=True, bfloat16=True) - expected - out) <= bound)


@needs_bfloat16
def test_nan_and_infinity_are_not_lost():
    a, b = np.ones((3, 40), np.float32), np.ones((40, 33), np.float32)
    a[1, 7], b[3, 5] = np.nan, np.inf
    out = gemm(a, b, bfloat16=True)
    assert np.isnan(out[1]).all() and np.isinf(out[0, 5]) and np.isfinite(np.delete(out[[0, 2]], 5, axis=1)).all()


@needs_bfloat16
def test_float64_is_refused():
    with pytest.raises(TypeError, match="bfloat16 needs float32 arrays"):
        gemm(np.ones((2, 2)), np.ones((2, 2)), bfloat16=True)


@pytest.mark.skipif(HAS_BFLOAT16, reason="this CPU has AVX-512 BF16 instructions")
def test_other_cpus_say_so():
    with pytest.raises(ValueError, match="use float32"):
        ops.set_product_dtype("bfloat16")


def losses(steps=12):
    rng = np.random.default_rng(0)
    model = GPT2(GPT2Config(vocab_size=97, n_positions=32, n_embd=48, n_layer=2, n_head=3), rng)
    ids, optimizer, found = rng.integers(0, 97, (4, 24)), AdamW(model), []
    for _ in range(steps):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step(1e-2, max_norm=1.0)
        found.append(loss.item())
    return found


@needs_bfloat16
def test_training_stays_with_float32(bfloat16_products):
    in_bfloat16 = losses()
    with ops.product_dtype("float32"):
        in_float32 = losses()
    # 8 bits make each factor wrong by up to 0.4 %, at random; a loss moves by far less.
    np.testing.assert_allclose(in_bfloat16, in_float32, rtol=0.01)
    assert in_bfloat16 != in_float32 and in_bfloat16[-1] < in_bfloat16[0] - 1
