"""Products of bfloat16 factors: exact against rounded factors, and harmless to training."""

import itertools
import threading

import numpy as np
import pytest

from tinyft import GPT2, AdamW, GPT2Config, Tensor, ops
from tinyft.kernels.jit import HAS_BFLOAT16, VECTOR_BYTES, jit
from tinyft.kernels.matmul import K_BLOCK, TILE_ROWS, gemm
from tinyft.kernels.packing import TILE_VECTORS, pack_columns
from tinyft.kernels.simd import as_factor, bfloat16_pair

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
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 70, 67), (1, 2000, 769), (2, 1, 1), (3, 5, 7),
                                   (TILE_ROWS, 32, 16), (15, 33, 17), (29, 64, K_BLOCK + 3),
                                   (97, 211, 769), (5, 2000, 31), (2, 3, 0)])
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_product_of_rounded_factors(shape, a_transposed, b_transposed):
    rows, columns, depth = shape
    rng = np.random.default_rng(sum(shape))
    a = rng.standard_normal((depth, rows) if a_transposed else (rows, depth), np.float32)
    b = rng.standard_normal((columns, depth) if b_transposed else (depth, columns), np.float32)
    a, b = a.T if a_transposed else a, b.T if b_transposed else b
    out = rng.standard_normal((rows, columns), np.float32)
    expected = rounded(a) @ rounded(b)
    # Each sum of `depth` float32 products is off by at most (depth + 1) * eps times the sum of their sizes.
    bound = (depth + 2) * EPS * (np.abs(rounded(a)) @ np.abs(rounded(b)) + np.abs(out) + 1)
    assert np.all(np.abs(gemm(a, b, bfloat16=True) - expected) <= bound)
    assert np.all(np.abs(gemm(a, b, out=out.copy(), accumulate=True, bfloat16=True) - expected - out) <= bound)
    # Between guards: tiles that stick out of the result must not be written beyond it.
    around = np.full((rows + 2, columns), 7, np.float32)
    bias = rng.standard_normal(columns, np.float32)
    with_bias = gemm(a, b, out=around[1:-1], bias=bias, bfloat16=True)
    assert np.all(np.abs(with_bias - expected - bias) <= bound + EPS * np.abs(bias))
    assert (around[[0, -1]] == 7).all()


@needs_bfloat16
def test_nan_and_infinity_are_not_lost():
    a, b = np.ones((3, 40), np.float32), np.ones((40, 33), np.float32)
    a[1, 7], b[3, 5] = np.nan, np.inf
    out = gemm(a, b, bfloat16=True)
    assert np.isnan(out[1]).all() and np.isinf(out[0, 5]) and np.isfinite(np.delete(out[[0, 2]], 5, axis=1)).all()


ODD = [0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000, 0x7F807FFF, 0xFFBFFFFF,  # NaNs
       0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F7FFF, 0x7F7F8000,  # infinities, and what rounds to them
       0, 0x80000000, 1, 0x00007FFF, 0x00008000, 0x007FFFFF, 0x00800000,  # zeros and subnormals
       0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x3F7F8000, 0x3FFF8000]  # ties, beside them, and carries


def rounded_bits(bits):
    """The upper 16 bits after rounding, written out with Python's integers."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if exponent == 0xFF and fraction:
        return bits >> 16 | 0x40
    kept, rest = bits >> 16, bits & 0xFFFF
    return kept + (rest > 0x8000 or rest == 0x8000 and kept & 1)


@jit
def pairs_of(x, out):
    for i in range(out.size):
        out[i] = bfloat16_pair(x[2 * i], x[2 * i + 1])


@jit
def factors_of(x, packed, out):
    for i in range(out.size):
        out[i] = as_factor(packed, x[i])


def test_rounding_of_all_kinds_of_bits(rng):
    bits = np.array(ODD + [int(n) for n in rng.integers(0, 2**32, 20_000)], np.uint32)
    bits = np.concatenate([bits, bits[::-1]])  # an even number of them
    expected = np.array([rounded_bits(int(n)) for n in bits], np.uint32)
    pairs, factors = np.empty(bits.size // 2, np.uint32), np.empty(bits.size, np.float32)
    pairs_of(bits.view(np.float32), pairs)
    np.testing.assert_array_equal(pairs & 0xFFFF, expected[::2])
    np.testing.assert_array_equal(pairs >> 16, expected[1::2])
    factors_of(bits.view(np.float32), pairs, factors)
    np.testing.assert_array_equal(factors.view(np.uint32), expected << 16)
    factors_of(bits.view(np.float32), factors, factors)
    np.testing.assert_array_equal(factors.view(np.uint32), bits)  # as they are


@pytest.mark.parametrize("transposed", [False, True])
def test_packing_rounds_whole_vectors_the_same(rng, transposed):
    """Panels of B, packed by whole vectors or by loops: each NaN of whatever bits stays one, and is quiet."""
    depth, columns = 64, 67
    bits = rng.integers(0, 2**32, (columns, depth) if transposed else (depth, columns), dtype=np.uint32)
    bits.reshape(-1)[rng.permutation(bits.size)[: 20 * len(ODD)]] = np.tile(np.array(ODD, np.uint32), 20)
    width = TILE_VECTORS * VECTOR_BYTES // 4
    panels = -(-columns // width)
    packed = np.zeros(panels * depth // 2 * width, np.uint32)
    source = bits.view(np.float32).reshape(-1)
    pack_columns(source, source, 0, bits.shape[1], transposed, columns, depth, packed, 0, depth // 2 * width)
    got = packed.reshape(panels, depth // 2, width)
    for k in range(depth):
        row = got[:, k // 2].reshape(-1)[:columns] >> 16 * (k % 2) & 0xFFFF
        source = bits[:, k] if transposed else bits[k]
        np.testing.assert_array_equal(row, [rounded_bits(int(n)) for n in source])


@needs_bfloat16
@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_nan_of_any_bits_reaches_the_product(bits, rows):
    a, b = np.ones((rows, 40), np.float32), np.ones((40, 33), np.float32)
    b.view(np.uint32)[7, 5] = bits
    out = gemm(a, b, bfloat16=True)
    assert np.isnan(out[:, 5]).all() and (np.delete(out, 5, axis=1) == 40).all()


@needs_bfloat16
def test_one_row_is_rounded_like_many(rng, bfloat16_products):
    """So that reading a prompt and decoding token by token see the same weights."""
    x, weight = rng.standard_normal((9, 64), np.float32), rng.standard_normal((64, 33), np.float32)
    many, exact = (Tensor(x) @ Tensor(weight)).data, rounded(x) @ rounded(weight)
    one_by_one = np.concatenate([(Tensor(x[i : i + 1]) @ Tensor(weight)).data for i in range(9)])
    bound = 66 * EPS * (np.abs(x) @ np.abs(weight))
    assert (np.abs(many - exact) <= bound).all() and (np.abs(one_by_one - exact) <= bound).all()
    assert (np.abs(exact - x.astype(np.float64) @ weight) > 2 * bound).any()


@needs_bfloat16
def test_backward_pass_rounds_as_its_forward_pass_did(rng):
    x, w = rng.standard_normal((9, 64), np.float32), rng.standard_normal((64, 33), np.float32)
    dout = rng.standard_normal((9, 33), np.float32)
    grads = {}
    for forward, backward in itertools.product(["float32", "bfloat16"], repeat=2):
        weight = Tensor(w, requires_grad=True)
        with ops.product_dtype(forward):
            out = ops.linear(Tensor(x), weight, np.zeros(33, np.float32))
        with ops.product_dtype(backward):
            out.backward(dout)
        grads[forward, backward] = weight.grad
    np.testing.assert_array_equal(grads["float32", "float32"], grads["float32", "bfloat16"])
    np.testing.assert_array_equal(grads["bfloat16", "float32"], grads["bfloat16", "bfloat16"])
    assert (grads["float32", "float32"] != grads["bfloat16", "bfloat16"]).any()


@needs_bfloat16
def test_dtype_of_products_belongs_to_a_thread(rng, bfloat16_products):
    x, found = Tensor(rng.standard_normal((5, 40), np.float32)), []
    thread = threading.Thread(target=lambda: found.append((x @ x.T).data))
    thread.start()
    thread.join()
    with ops.product_dtype("float32"):
        np.testing.assert_array_equal(found[0], (x @ x.T).data)
    assert (found[0] != (x @ x.T).data).any()


def test_unknown_dtype_of_products_is_refused():
    with pytest.raises(ValueError, match="product dtype is 'float16', expected float32 or bfloat16"):
        ops.set_product_dtype("float16")


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
