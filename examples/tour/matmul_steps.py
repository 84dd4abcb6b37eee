# %% [markdown]
# # 8. From three loops to the speed of the machine
#
# You will know afterwards: why the order of three loops makes a factor of ten; what a *tile* is and how it saves
# loads; what packing is for; and what is left to gain at each step. At the end `tinyft/kernels/matmul.py` can be
# read: it is these steps, for any shape.
#
# ## What a core has
#
# A core computes with *registers*, places for a vector of numbers each: 32 of 512 bits (16 float32) on CPUs with
# AVX-512, 16 of 256 bits on other x86 CPUs, 32 of 128 bits on 64-bit ARM. A *multiply-add*, a * b + c, is one
# instruction that does the same with all 16 numbers of whole registers, and a core starts two of them in a *cycle*
# (some start one), of which there are some billions in a second. All else comes from memory, by way of three *caches*
# that keep what was used last, and in *lines* of 64 bytes, whether all of a line is wanted or not. Roughly:
#
# | | size | until a number is there |
# |---|---|---|
# | registers | 2 KB | at once |
# | L1 | 32 to 48 KB | 5 cycles |
# | L2 | 0.5 to 2 MB | 15 cycles |
# | L3, for all cores | tens of MB | 50 to 70 cycles |
# | memory | GB | hundreds of cycles |
#
# A core can load or store two or three registers in a cycle from or to L1, and fewer from each place below. So a
# product is fast if most operands are in registers already, and the rest is near. The *peak* is what a core does if
# it never loads anything: `multiply_adds` does just that, with a clock around it. Speeds are in GFLOP/s, billions of
# operations a second, where a multiply-add counts as two.
#
# `@njit` is Numba: it compiles a Python function on NumPy arrays to machine code when it is called first.

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
from tinyft.kernels.matmul import gemm, tile
from tinyft.kernels.packing import TILE_ROWS, TILE_VECTORS

sys.path.insert(0, str(ROOT / "examples"))
from benchmarks.machine import multiply_adds  # noqa: E402

N = 768  # GPT-2's width; C = A B with N x N matrices takes 2 N**3 operations
FAST = {"contract", "reassoc", "nsz"}  # permits multiply-adds, sums in any order, as vectors need it, and 0 for -0
rng = np.random.default_rng(0)
A, B = (rng.standard_normal((N, N)).astype(np.float32) for _ in range(2))
expected = A @ B

# %% [markdown]
# ## 1. Three loops, as on paper
#
# C[i, j] = sum over k of A[i, k] B[k, j]. The innermost loop runs down a column of B. It uses one number of each line
# that comes from memory, before it goes on to the next line; a column touches 768 lines, 48 KB, so that few of them
# are still in L1 when the next column wants them. Nor can it use vector instructions, which load neighbours.


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
# The same operations, with j innermost: now the loop runs along rows of B and C. The compiler makes a vector loop of
# it, and every byte that is loaded is used. But each multiply-add takes a load of B, a load of C and a store of C,
# and a core can do two multiply-adds in a cycle, but no more than two or three loads and stores. That is the bound if
# all is in L1. Here B comes from further away, so that the loop also waits; and the compiler takes vectors of 256
# bits for such loops (told to take 512 it makes them no faster).


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
# What has been loaded is to be used several times before it is let go. Take 4 rows of A and 4 of B at once, a *tile*
# of 4 x 4 numbers of A: the loop over j (the code has one j, of which the compiler makes a vector of neighbours) then
# loads 4 vectors of B and 4 of C, stores 4, and does 16 multiply-adds. That is 3 loads or stores for 4 multiply-adds,
# instead of 3 for 1, and a quarter as many bytes of B for each.


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
def by_fours(A, B, C, depth):
    C[:] = 0
    for k0 in range(0, N, depth):
        for i in range(0, N, 4):
            for k in range(k0, k0 + depth, 4):
                four_by_four(A[i : i + 4, k : k + 4], B[k : k + 4], C[i : i + 4])


# %% [markdown]
# ## 4. Blocks
#
# `depth` is how many rows of B meet all of A's rows before the next are touched. With N, which is step 3, all of B is
# read for every 4 rows of A: 2.4 MB, and that comes from beyond L2. With 128 the same operations take place in
# another order: 128 rows of B, 0.4 MB, stay in L2 while their 128 columns of A go by, and only then come the next
# 128.
#
# ## 5. A tile of C in registers, and packing
#
# Step 3 still loads and stores C again and again. The best place for C is a register: a tile of 14 rows x 2 vectors
# (14 x 32 numbers) of C stays in registers while k runs over its whole range. Each k loads 2 vectors of B and 14
# numbers of A, does 28 multiply-adds of vectors, and stores nothing. The tile takes 28 of the 32 registers, the
# vectors of B 2, and the number of A that is in use, copied to all places of a vector, one more: 15 x 2 would be too
# many. Of all tiles that fit and need at most one load for a multiply-add, 14 x 2 moves the fewest bytes (exercise
# 1); one load is the limit, since a core loads two registers a cycle and does two multiply-adds. And at least 2 x 4 =
# 8 sums are needed anyway: two multiply-adds begin in a cycle, each takes four until its result can be used, and a
# sum can't take the next number before. In NumPy:

# %%
by_hand = np.zeros((14, 32), np.float32)
for k in range(N):
    by_hand += np.outer(A[:14, k], B[k, :32])
assert np.allclose(by_hand, expected[:14, :32], atol=1e-3)

# %% [markdown]
# `tile` in `matmul.py` is this loop. Numba's compiler, LLVM, would keep 28 sums in memory if it were written in
# Python, so that this one loop is written in LLVM's own language; what it calls phi nodes are variables of a loop,
# here the tile.
#
# The two vectors of B for the next k lie N numbers further on, in another line, and the 14 numbers of A are in 14
# lines. So both matrices are first copied (*packed*) into the very order in which tiles read them: B in panels of 32
# columns, A in panels of 14 rows, each k by k. That is N² work beside N³, though NumPy's copies take a good part of
# the time here; `gemm` packs with vectors. The rest is a tile for each pair of panels.

# %%
ROWS, COLUMNS = TILE_ROWS, TILE_VECTORS * VECTOR_BYTES // 4  # 14 and 32 with AVX-512
DOWN, ACROSS = -(-N // ROWS), N // COLUMNS  # panels of A, the last filled up with zeros, and of B


def pack(A, B):
    """Copies of A as (DOWN, N, ROWS) and of B as (ACROSS, N, COLUMNS), both flat."""
    padded = np.zeros((DOWN * ROWS, N), np.float32)
    padded[:N] = A
    a, b = padded.reshape(DOWN, ROWS, N), B.reshape(N, ACROSS, COLUMNS)
    return a.transpose(0, 2, 1).ravel(), b.transpose(1, 0, 2).ravel()


@njit
def all_tiles(a, b, c):
    """c, flat and DOWN * ROWS rows high, = the product."""
    for j in range(ACROSS):
        for i in range(DOWN):  # panels and where they begin, how many k, c with its corner and width, nothing to add
            tile(a, i * N * ROWS, b, j * N * COLUMNS, N, c, i * ROWS * N + j * COLUMNS, N, c, 0, 0, False)


def packed_tiles(A, B, C):
    c = np.empty((DOWN * ROWS, N), np.float32)
    all_tiles(*pack(A, B), c.ravel())
    C[:] = c[:N]


# %% [markdown]
# The picture shows in which order the first three programs and this one read a matrix B of 8 x 8, for one row (or
# tile) of C: dark is early, and a row of the picture is a row in memory (4 is as 3). The tile reads in the order of
# memory too, but only after packing.

# %%
k, j = np.mgrid[:8, :8]
figure = Figure(figsize=(8, 2.4), layout="constrained")
for axes, order, title in zip(figure.subplots(1, 4), (8 * j + k, 8 * k + j, 32 * (k // 4) + 4 * j + k % 4,
                                                      32 * (j // 4) + 4 * k + j % 4),
                              ("1 three loops", "2 another order", "3 a tile of A", "5 a tile of C"), strict=True):
    axes.imshow(order, cmap="Blues_r", vmax=80)
    axes.set(title=title, xlabel="j", ylabel="k", xticks=[], yticks=[])
show(figure, "matmul_steps_order")

# %% [markdown]
# ## 6. Any shape, and threads
#
# `gemm` does this for any shape, with packing of its own and pieces that fit into caches. With more than one thread,
# pieces of the larger matrix are shared out, and a piece fits into the L2 of the thread that packs and multiplies it.

# %%
ALL = numba.config.NUMBA_NUM_THREADS
STEPS = {
    "1 three loops": (three_loops, 1), "2 another order": (another_order, 1),
    "3 a tile of A": (lambda A, B, C: by_fours(A, B, C, N), 1), "4 blocks": (lambda A, B, C: by_fours(A, B, C, 128), 1),
    "5 a tile of C, packed": (packed_tiles, 1), "6 gemm": (gemm, 1), "  gemm, all threads": (gemm, ALL),
    "NumPy": (lambda A, B, C: np.matmul(A, B, out=C), ALL),
}
for name, (multiply, _) in STEPS.items():
    C = np.full((N, N), np.nan, np.float32)
    multiply(A, B, C)
    assert np.allclose(C, expected, atol=1e-3), name
print("all of them give the same matrix")

# %% tags=["varies"]
def gflops(multiply, *arrays):
    """The median of some calls."""
    seconds = []
    while len(seconds) < 3 or (sum(seconds) < 0.3 and len(seconds) < 30):
        begin = time.perf_counter()
        multiply(*arrays)
        seconds.append(time.perf_counter() - begin)
    return 2 * N**3 / np.median(seconds) / 1e9


speeds, peaks = {}, dict.fromkeys((1, ALL), 0.0)
for name, (multiply, threads) in STEPS.items():
    for n in peaks:  # before each step anew, since a machine isn't always equally fast
        begin = time.perf_counter()
        peaks[n] = max(peaks[n], multiply_adds(n) / (time.perf_counter() - begin) / 1e9)
    numba.set_num_threads(threads)
    speeds[name] = gflops(multiply, A, B, C)
print(f"tile of {ROWS} x {COLUMNS} numbers, L2 of {cache_sizes().l2 >> 10} KB, peak of a thread {peaks[1]:.0f} GFLOP/s")
for name, (_, threads) in STEPS.items():
    print(f"{name:<22} {speeds[name]:6.1f} GFLOP/s, {speeds[name] / peaks[threads]:4.0%} of peak (threads: {threads})")
a, b, c = *pack(A, B), np.empty(DOWN * ROWS * N, np.float32)
print(f"step 5 without the time for packing: {gflops(all_tiles, a, b, c):.1f} GFLOP/s")
if peaks[ALL] < 0.7 * ALL * peaks[1]:
    print("this machine is busy: what is said of more than one thread, and of NumPy, means little")
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
#    numbers, divided by vector multiply-adds. The tile is loaded and stored once. A core does two multiply-adds and
#    two loads in a cycle, so that one load for each is the limit. Among the tiles that keep to it for large K, and
#    fit into the registers (r v for the tile, v for B and 1 for A), which moves the fewest bytes, 64 for a vector and
#    4 for a number? Write `best_tile(registers)`, which tries them all and returns (r, v), and look at 32 and 16
#    registers.
# 2. `packed_tiles` fills up the rows of A, but N must be a multiple of 32. Write `any_shape(A, B)` in NumPy for A (M,
#    K) and B (K, N) of any shape: cut C into tiles of 14 x 32 and compute each with `@` from padded pieces of A and
#    B, as a kernel does that knows whole tiles only. It returns C, for 1 x 1 as well.
#
# Answers: `answers/matmul_steps.py`. Next: `what_tuning_changed.py`.
