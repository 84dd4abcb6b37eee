"""The matrix unit: how its panels are packed, and that vectors give the same without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft.kernels import cpu
from tinyft.kernels.jit import HAS_BFLOAT16, HAS_MATRIX_UNIT
from tinyft.kernels.matmul import gemm
from tinyft.kernels.matrix_unit import BLOCK_K, MATRIX_ROWS, REGISTER_ITEMS, pack_rows_in_blocks
from tinyft.kernels.packing import layout_of

PRODUCTS = """
import numpy as np
from tinyft.kernels.jit import HAS_MATRIX_UNIT
from tinyft.kernels.matmul import gemm
rng = np.random.default_rng(0)
a, b = rng.standard_normal((70, 2100), np.float32), rng.standard_normal((2100, 100), np.float32)
out = gemm(a, b, bfloat16=True)
print(int(HAS_MATRIX_UNIT), *(float(out[i, j]).hex() for i, j in ((0, 0), (31, 31), (32, 32), (69, 99))))
"""


def rounded_bits(x):
    """The upper half of float32s, rounded to nearest, ties to even; x holds no NaN."""
    bits = x.view(np.uint32)
    return (bits + (0x7FFF + (bits >> 16 & 1))) >> 16


def packed_by_hand(a):
    """(panel, block of 32 k, row, item): pairs of k of each row, zeros around."""
    rows, depth = a.shape
    panels, blocks = -(-rows // MATRIX_ROWS), -(-depth // BLOCK_K)
    padded = np.zeros((panels * MATRIX_ROWS, blocks * BLOCK_K), np.float32)
    padded[:rows, :depth] = a
    bits = rounded_bits(padded)
    pairs = (bits[:, ::2] | bits[:, 1::2] << 16).reshape(panels, MATRIX_ROWS, blocks, REGISTER_ITEMS)
    return pairs.transpose(0, 2, 1, 3)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="packing for the matrix unit needs vectors of 512 bits")
@given(rows=st.integers(1, 70), depth=st.integers(1, 70), transposed=st.booleans(), around=st.integers(0, 3),
       slack=st.integers(0, 20), seed=st.integers(0, 99))
def test_panels(rows, depth, transposed, around, slack, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows + around, depth + around), np.float32)
    stored = np.ascontiguousarray(a.T if transposed else a)
    expected = packed_by_hand(a[:rows, :depth])
    panel = expected[0].size + slack
    packed = np.full(len(expected) * panel, 7, np.uint32)
    pack_rows_in_blocks(stored.reshape(-1), 0, stored.shape[1], transposed, rows, depth, packed, panel)
    got = packed.reshape(len(expected), panel)
    np.testing.assert_array_equal(got[:, : panel - slack].reshape(expected.shape), expected)
    assert (got[:, panel - slack :] == 7).all()


@pytest.mark.heavy
@pytest.mark.skipif(not HAS_MATRIX_UNIT, reason="this CPU has no matrix unit")
def test_vectors_do_the_same_without_it(run_python):
    found = []
    for wanted in "10":
        done = run_python(PRODUCTS, TINYFT_MATRIX_UNIT=wanted)
        assert done.returncode == 0, done.stderr
        used, *numbers = done.stdout.split()
        assert used == wanted
        found.append([float.fromhex(number) for number in numbers])
    np.testing.assert_allclose(*found, atol=2100 * np.finfo(np.float32).eps)
    assert found[0] != found[1]  # they add in another order: a switch that does nothing would show


@pytest.mark.parametrize("value", ["yes", "", "2"])
def test_bad_switch_is_named(run_python, value):
    done = run_python("import tinyft.kernels.jit", TINYFT_MATRIX_UNIT=value)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"ValueError: TINYFT_MATRIX_UNIT is {value!r}, expected 0")


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no AVX-512 BF16 instructions")
@pytest.mark.parametrize("depth", [1, 31, 33, 64, 2049])
def test_what_stands_beyond_the_depth_does_not_matter(rng, depth):
    """Buffers are used again: an infinity of the last product, times a zero that pads, would be NaN."""
    ones = np.ones((40, 4096), np.float32)
    gemm(ones * np.inf, np.ascontiguousarray(ones.T) * np.inf, bfloat16=True)
    out = gemm(ones[:, :depth], np.ascontiguousarray(ones.T)[:depth], bfloat16=True)
    assert (out == depth).all()


@pytest.mark.parametrize(("dtype", "items"), [(np.float32, 1), (np.float64, 1), (np.uint32, 2)])
def test_layouts(dtype, items):
    layout = layout_of(np.dtype(dtype))
    assert layout.items == items and layout.unit % items == 0
    assert (layout.unit == BLOCK_K and layout.tile_rows == MATRIX_ROWS) == (HAS_MATRIX_UNIT and items == 2)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_not_asked(monkeypatch, platform):
    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(cpu.ctypes, "CDLL", None)
    assert cpu.may_use_matrix_unit() is False


@pytest.mark.parametrize("answer", [-1, 0])
def test_permission_is_the_systems(monkeypatch, answer):
    class Library:
        def syscall(self, *arguments):
            assert arguments == (158, 0x1023, 18)
            return answer

    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: Library())
    assert cpu.may_use_matrix_unit() is (answer == 0)
