# %% [markdown]
# # 8. From three loops to the speed of the machine
#
# You will know afterwards: why the order of three loops makes a factor of ten; what a *tile* is and how it saves
# loads; what packing is for; and what is left to gain at each step. At the end `tinyft/kernels/matmul.py` can be
# read: it is these steps, for any shape.

# %%
import sys
import time

import numba
import numpy as np
from matplotlib.figure import Figure
from numba import njit
from pictures import ROOT, show

from tinyft.kernels.cpu import cache_sizes
from tinyft.kernels.jit import VECTOR_BYTES
from tinyft.kernels.matmul import gemm
from tinyft.kernels.packing import TILE_ROWS, TILE_VECTORS

sys.path.insert(0, str(ROOT / "examples"))
from benchmarks.machine import multiply_adds  # noqa: E402

N = 768  # GPT-2's width; C = A B with N x N matrices takes 2 N**3 operations
FAST = {"contract", "reassoc", "nsz"}  # a * b + c as one instruction, and sums in any order
rng = np.random.default_rng(0)
A, B = (rng.standard_normal((N, N)).astype(np.float32) for _ in range(2))
expected = A @ B

# %% [markdown]
# ## 1. Three loops, as on paper
#
# C[i, j] = sum over k of A[i, k] B[k, j]. The innermost loop runs down a column of B. Memory comes in lines of 64
# bytes, 16 numbers of a row, and this loop uses one of them before it goes on to the next line. Nor can it use vector
# instructions, which load neighbours.


# %%
@njit(fastmath=FAST)
def three_loops(A, B, C):
    for i in range(N):
        for j in range(N):
            total = np.float32(0)
            for k in range(N):
                total += A[i, k] * B[k, j]
            C[i, j] = total


# %% [markdown]
# ## 2. Another order
#
# The same operations, with j innermost: now the loop runs along rows of B and C. It is a vector loop (16 numbers at a
# time with 512 bits), and every byte that is loaded is used. But each multiply-add takes a load of B, a load of C and
# a store of C, and a core can do two multiply-adds in a cycle, but no more than two or three loads and stores.


# %%
@njit(fastmath=FAST)
def another_order(A, B, C):
    C[:] = 0
    for i in range(N):
        for k in range(N):
            for j in range(N):
                C[i, j] += A[i, k] * B[k, j]


# %% [markdown]
# ## 3. A tile
#
# What has been loaded is to be used several times before it is let go. Take 4 rows of A and 4 of B at once: the loop
# over j then loads 4 numbers of B and 4 of C, stores 4, and does 16 multiply-adds. That is 3 loads or stores for 4
# multiply-adds, instead of 3 for 1.


# %%
@njit(fastmath=FAST)
def four_by_four(a, b, c):
    """c (4, n) += a (4, 4) @ b (4, n), with all 16 numbers of a in registers."""
    for j in range(c.shape[1]):
        b0, b1, b2, b3 = b[0, j], b[1, j], b[2, j], b[3, j]
        c[0, j] += a[0, 0] * b0 + a[0, 1] * b1 + a[0, 2] * b2 + a[0, 3] * b3
        c[1, j] += a[1, 0] * b0 + a[1, 1] * b1 + a[1, 2] * b2 + a[1, 3] * b3
        c[2, j] += a[2, 0] * b0 + a[2, 1] * b1 + a[2, 2] * b2 + a[2, 3] * b3
        c[3, j] += a[3, 0] * b0 + a[3, 1] * b1 + a[3, 2] * b2 + a[3, 3] * b3


@njit(fastmath=FAST)
def a_tile(A, B, C):
    C[:] = 0
    for i in range(0, N, 4):
        for k in range(0, N, 4):
            four_by_four(A[i : i + 4, k : k + 4], B[k : k + 4], C[i : i + 4])


# %% [markdown]
# ## 4. Blocks
#
# Step 3 reads all of B, 2.4 MB, for every 4 rows of A, and that comes from beyond L2. The same loops in another
# order: 128 rows of B, which fit into L2, meet their 128 columns of A before the next 128 are touched.


# %%
@njit(fastmath=FAST)
def blocks(A, B, C):
    C[:] = 0
    for k0 in range(0, N, 128):
        for i in range(0, N, 4):
            for k in range(k0, k0 + 128, 4):
                four_by_four(A[i : i + 4, k : k + 4], B[k : k + 4], C[i : i + 4])


# %% [markdown]
# ## 5. Packing, and a tile in registers
#
# The best place for C is a register. A tile of TILE_ROWS x 2 vectors of C stays in registers while k runs over its
# whole range: each k loads 2 vectors of B and TILE_ROWS numbers of A, does 2 TILE_ROWS vector multiply-adds, and
# stores nothing. With 512 bits there are 32 registers: 14 x 2 = 28 hold the tile, 2 the vectors of B, and one a
# number of A; 15 x 2 would be one too many. For this tile, 32 columns of B are read row by row, and lie N numbers
# apart; so they are first copied (*packed*) into the very order in which the tile reads them, and 14 rows of A
# likewise. That is N² work beside N³. Numba's compiler spills such a tile to memory, so that `matmul.py` writes this
# one loop in LLVM's own language: its phi nodes are the 28 registers.
#
# In NumPy, one tile is this; the function `tile` in `matmul.py` is the same loop, with the tile in registers:

# %%
tile = np.zeros((14, 32), np.float32)
for k in range(N):
    tile += np.outer(A[:14, k], B[k, :32])  # loads 2 vectors and 14 numbers for 28 multiply-adds of vectors
assert np.allclose(tile, expected[:14, :32], atol=1e-3)

# %% [markdown]
# ## 6. Threads
#
# Pieces of the larger matrix are shared out among all threads. A piece fits into the L2 of the thread that packs and
# multiplies it.

# %%
STEPS = {
    "1 three loops": (three_loops, 1), "2 another order": (another_order, 1), "3 a tile": (a_tile, 1),
    "4 blocks": (blocks, 1), "5 tile in registers": (lambda A, B, C: gemm(A, B, C), 1),
    "6 all threads": (lambda A, B, C: gemm(A, B, C), numba.config.NUMBA_NUM_THREADS),
    "NumPy": (lambda A, B, C: np.matmul(A, B, out=C), numba.config.NUMBA_NUM_THREADS),
}
for name, (multiply, _) in STEPS.items():
    C = np.full((N, N), np.nan, np.float32)
    multiply(A, B, C)
    assert np.allclose(C, expected, atol=1e-3), name
print("all of them give the same matrix")

# %% tags=["varies"]
speeds, peaks = {}, dict.fromkeys((1, numba.config.NUMBA_NUM_THREADS), 0.0)
for name, (multiply, threads) in STEPS.items():
    for n in peaks:  # before each step anew, since a machine is not always as fast
        begin = time.perf_counter()
        peaks[n] = max(peaks[n], multiply_adds(n) / (time.perf_counter() - begin) / 1e9)
    numba.set_num_threads(threads)
    seconds = []
    while len(seconds) < 3 or (sum(seconds) < 0.3 and len(seconds) < 30):
        begin = time.perf_counter()
        multiply(A, B, C)
        seconds.append(time.perf_counter() - begin)
    speeds[name] = 2 * N**3 / np.median(seconds) / 1e9
print(f"tile of {TILE_ROWS} x {TILE_VECTORS} vectors of {8 * VECTOR_BYTES} bits, L2 of {cache_sizes().l2 >> 10} KB")
for name, (_, threads) in STEPS.items():
    print(f"{name:<20} {speeds[name]:6.1f} GFLOP/s, {speeds[name] / peaks[threads]:4.0%} of the peak of {threads}")
figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
axes.barh(list(speeds)[::-1], list(speeds.values())[::-1])
axes.set(xlabel="GFLOP/s; dotted: the peaks of one thread and of all")
for peak in peaks.values():
    axes.axvline(peak, color="black", linestyle=":")
show(figure, "matmul_steps")

# %% [markdown]
# ## Exercises
#
# 1. How many loads and stores does a multiply-add cost? For a tile of r rows and v vectors that stays in registers
#    while k runs over K steps, write `memory_per_multiply_add(r, v, K)`: loads and stores of vectors and single
#    numbers, divided by vector multiply-adds. The tile is loaded and stored once. Compare 14 x 2 with 4 x 2, 6 x 4
#    and 30 x 1. Then count bytes instead, 64 for a vector and 4 for a number: which tile is the best now? (A core
#    does two multiply-adds and two loads in a cycle, so that below 1 load a multiply-add loads aren't the limit;
#    among such tiles only measuring decides.)
# 2. `blocks` needs N to be a multiple of 128. Write `any_shape(A, B)` in NumPy for A (M, K) and B (K, N) of any
#    shape: cut C into tiles of 14 x 32 and compute each with `@` from padded pieces of A and B, as a kernel does that
#    knows whole tiles only. It returns C, for 1 x 1 as well.
#
# Answers: `answers/matmul_steps.py`. Next: `what_tuning_changed.py`.
