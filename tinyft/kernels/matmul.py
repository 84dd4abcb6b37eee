"""Matrix product C = A B at the speed of the machine, and why it takes more than three loops.

A core can start one or two fused multiply-adds on whole vector registers every cycle, but can load only a
few values from the nearest cache in that time, and far fewer from memory. Three plain loops need two loads
for every multiply-add and so reach a tenth of the peak. The remedy is to use what has been loaded many
times before letting it go, at every level of the memory (Goto and van de Geijn, "Anatomy of high-performance
matrix multiplication", 2008; the scheme of BLIS):

  registers  a TILE of C, TILE_ROWS x 2 vectors, stays in registers while k runs; each step loads 2 vectors of
             B and TILE_ROWS elements of A and does TILE_ROWS x 2 vector multiply-adds with them (`tile`)
  L2         a PANEL of B (K_BLOCK rows, one tile wide) meets all tiles of a BLOCK of A, both in L2
  L3         the panels of B, COLUMN_BLOCK columns at a time, are shared by all threads
  packing    panels and blocks are first copied into the very order in which `tile` reads them, so that all
             its loads are consecutive; a transposed operand only means another way of copying

Storage order is the caller's business: `gemm` takes NumPy views, and `x.T` costs nothing.
"""

import threading

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange, types
from numba.extending import intrinsic

from .jit import HAS_BFLOAT16, VECTOR_BYTES, jit
from .packing import TILE_ROWS, TILE_VECTORS, pack_columns, pack_rows
from .simd import Vectors, as_factor, elements_per_item, fetch_and_increment, lanes_of, new_counter, pointer_to

K_BLOCK = 1024  # A panel of B is at most K_BLOCK x 128 bytes = 128 KB with AVX-512.
ROW_BLOCK_BYTES = 600 * 1024  # A block of A: with a panel of B it fits a 1 MB L2.
COLUMN_BLOCK_BYTES = 8 * 1024 * 1024  # The packed panels of B: a part of L3.


@intrinsic
def tile(typingctx, a, a_start, b, b_start, depth, c, c_start, c_stride, add):
    """C[TILE_ROWS, 2 vectors] = A B, or C + A B if `add`, for one packed panel each of A and B.

    a: depth x TILE_ROWS elements from a_start; b: depth x 2 vectors from b_start; all arrays flat.
    """

    def codegen(context, builder, signature, args):
        a, a_start, b, b_start, depth, c, c_start, c_stride, add = args
        kinds = signature.args
        pointer_a = pointer_to(context, builder, kinds[0], a, a_start)
        pointer_b = pointer_to(context, builder, kinds[2], b, b_start)
        pointer_c = pointer_to(context, builder, kinds[5], c, c_start)
        vectors, operands = Vectors(builder, kinds[5].dtype), Vectors(builder, kinds[0].dtype)
        index = ir.IntType(64)
        grid = [(row, column) for row in range(TILE_ROWS) for column in range(TILE_VECTORS)]

        # The phi nodes below are the tile: values that live in registers from one k to the next.
        before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed(">", depth, ir.Constant(index, 0)), loop, after)
        builder.position_at_end(loop)
        k = builder.phi(index)
        k.add_incoming(ir.Constant(index, 0), before)
        sums = [builder.phi(vectors.type) for _ in grid]
        row_of_a = builder.gep(pointer_a, [builder.mul(k, ir.Constant(index, TILE_ROWS))])
        row_of_b = builder.gep(pointer_b, [builder.mul(k, ir.Constant(index, TILE_VECTORS * vectors.lanes))])
        loaded_b = [operands.load(vectors.at(row_of_b, v * vectors.lanes)) for v in range(TILE_VECTORS)]
        updated = []
        for row in range(TILE_ROWS):
            number = operands.splat(vectors.at(row_of_a, row))
            for column in range(TILE_VECTORS):
                total = sums[row * TILE_VECTORS + column]
                updated.append(operands.multiply_add(number, loaded_b[column], total))
        following = builder.add(k, ir.Constant(index, 1))
        k.add_incoming(following, loop)
        for total, new in zip(sums, updated, strict=True):
            total.add_incoming(vectors.zero, before)
            total.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        builder.position_at_end(after)
        finals = []
        for new in updated:
            final = builder.phi(vectors.type)
            final.add_incoming(vectors.zero, before)
            final.add_incoming(new, loop)
            finals.append(final)

        def place(row, column):
            row_of_c = builder.gep(pointer_c, [builder.mul(c_stride, ir.Constant(index, row))])
            return vectors.at(row_of_c, column * vectors.lanes)

        with builder.if_else(add) as (more, fresh):
            with more:
                for (row, column), final in zip(grid, finals, strict=True):
                    vectors.store(builder.fadd(vectors.load(place(row, column)), final), place(row, column))
            with fresh:
                for (row, column), final in zip(grid, finals, strict=True):
                    vectors.store(final, place(row, column))
        return context.get_dummy_value()

    return types.void(a, types.intp, b, types.intp, types.intp, c, types.intp, types.intp, types.boolean), codegen


@jit(inline=True)
def round_up(n, step):
    """The next multiple of step."""
    return (n + step - 1) // step * step


@jit
def _even_step(n, most, unit):
    """The step, a multiple of `unit` and at most `most`, that divides n as evenly as can be."""
    parts = round_up(n, most) // most
    return round_up((n + parts - 1) // parts, unit)


@jit
def multiply_panels(packed_a, a_stride, packed_b, b_start, b_stride, depth,
                    c, c_start, c_stride, rows, columns, partial_tile, add):
    """C[rows, columns] (+)= A B for packed A and B; tiles that stick out of C go through `partial_tile`.

    c: flat, C[i, j] = c[c_start + i * c_stride + j]. partial_tile: scratch for one tile. add: keep what stands in C.
    """
    tile_columns = TILE_VECTORS * lanes_of(c)
    for j in range(round_up(columns, tile_columns) // tile_columns):
        panel_b = b_start + j * b_stride
        n_columns = min(tile_columns, columns - j * tile_columns)
        for i in range(round_up(rows, TILE_ROWS) // TILE_ROWS):
            n_rows = min(TILE_ROWS, rows - i * TILE_ROWS)
            corner = c_start + i * TILE_ROWS * c_stride + j * tile_columns
            whole = n_rows == TILE_ROWS and n_columns == tile_columns
            target = c if whole else partial_tile
            tile(packed_a, i * a_stride, packed_b, panel_b, depth, target, corner if whole else 0,
                 c_stride if whole else tile_columns, whole and add)
            if whole:
                continue
            for row in range(n_rows):
                source = partial_tile[row * tile_columns : row * tile_columns + n_columns]
                into = c[corner + row * c_stride : corner + row * c_stride + n_columns]
                for column in range(n_columns):
                    into[column] = into[column] + source[column] if add else source[column]


@jit
def _pack_share(share, shares, b, b_transposed, first_k, n_k, first_column, n_columns, packed_b):
    """Pack one of `shares` parts of the panels of B[first_k :, first_column :], n_k rows and n_columns columns."""
    depth, columns = (b.shape[1], b.shape[0]) if b_transposed else b.shape
    tile_columns = TILE_VECTORS * lanes_of(b)
    panels = round_up(n_columns, tile_columns) // tile_columns
    panel_size = round_up(n_k, elements_per_item(packed_b)) // elements_per_item(packed_b) * tile_columns
    left, right = panels * share // shares, panels * (share + 1) // shares
    column = first_column + left * tile_columns
    start, stride = (column * depth + first_k, depth) if b_transposed else (first_k * columns + column, columns)
    own_columns = min((right - left) * tile_columns, first_column + n_columns - column)
    pack_columns(b.reshape(-1), start, stride, b_transposed, own_columns, n_k, packed_b, left * panel_size, panel_size)


@jit
def _multiply_blocks(counter, a, a_transposed, packed_b, c, bias, first_k, n_k, first_column, n_columns,
                     row_blocks, groups, add, packed_a, partial_tile):
    """What one thread does: take pairs of a block of A's rows and a group of B's panels until none is left."""
    rows, columns = c.shape
    flat_a, flat_c = a.reshape(-1), c.reshape(-1)
    tile_columns = TILE_VECTORS * lanes_of(flat_c)
    row_panels, panels = round_up(rows, TILE_ROWS) // TILE_ROWS, round_up(n_columns, tile_columns) // tile_columns
    packed_k = round_up(n_k, elements_per_item(packed_b)) // elements_per_item(packed_b)
    a_panel, b_panel = packed_k * TILE_ROWS, packed_k * tile_columns
    packed_block = -1
    while True:
        task = fetch_and_increment(counter)
        if task >= row_blocks * groups:
            break
        block, group = task // groups, task % groups
        row = row_panels * block // row_blocks * TILE_ROWS
        n_rows = min(rows, row_panels * (block + 1) // row_blocks * TILE_ROWS) - row
        if packed_block != block:
            start, stride = (first_k * rows + row, rows) if a_transposed else (row * a.shape[1] + first_k, a.shape[1])
            pack_rows(flat_a, start, stride, a_transposed, n_rows, n_k, packed_a, a_panel)
            packed_block = block
        left, right = panels * group // groups, panels * (group + 1) // groups
        column = first_column + left * tile_columns
        own_columns = min(n_columns - left * tile_columns, (right - left) * tile_columns)
        if first_k == 0 and bias.size > 0:
            for i in range(row, row + n_rows):
                flat_c[i * columns + column : i * columns + column + own_columns] = bias[column : column + own_columns]
        multiply_panels(packed_a, a_panel, packed_b, left * b_panel, b_panel, packed_k,
                        flat_c, row * columns + column, columns, n_rows, own_columns, partial_tile, add)


@jit(parallel=True)
def _multiply(a, a_transposed, b, b_transposed, c, add, bias, packed_a, packed_b, partial_tiles, threads):
    """The blocked product; a, b, c are C-contiguous, `packed_a` and `partial_tiles` have one row for each thread."""
    rows, columns = c.shape
    depth = a.shape[0] if a_transposed else a.shape[1]
    tile_columns = TILE_VECTORS * lanes_of(c)
    items = elements_per_item(packed_b)
    k_step = _even_step(depth, K_BLOCK * items, items)
    column_block = _even_step(columns, packed_b.size // (k_step // items * tile_columns) * tile_columns, tile_columns)
    # Rows are shared out in blocks that fit L2. Where there are too few rows for all threads, the
    # columns are divided as well.
    row_panels = round_up(rows, TILE_ROWS) // TILE_ROWS
    row_blocks = min(row_panels, row_panels // (packed_a.shape[1] // (k_step // items * TILE_ROWS)) + 1)
    if row_panels >= threads:
        row_blocks = round_up(row_blocks, threads)
    counter = new_counter()

    for first_column in range(0, columns, column_block):
        n_columns = min(column_block, columns - first_column)
        panels = round_up(n_columns, tile_columns) // tile_columns
        groups = max(1, min(panels, (4 * threads + row_blocks - 1) // row_blocks))
        shares = threads * max(1, panels // (8 * threads))
        for first_k in range(0, depth, k_step):
            n_k = min(depth - first_k, k_step)
            for share in prange(shares):
                _pack_share(share, shares, b, b_transposed, first_k, n_k, first_column, n_columns, packed_b)
            counter[0] = 0
            for worker in prange(threads):
                _multiply_blocks(counter, a, a_transposed, packed_b, c, bias, first_k, n_k, first_column, n_columns,
                                 row_blocks, groups, add or first_k > 0 or bias.size > 0,
                                 packed_a[worker], partial_tiles[worker])


@jit(reorder=True)
def _add_weighted_rows(weights, b, columns, left, out, packed):
    """out += weights @ b[:, left : left + out.size], four rows of b at a time to save passes over out."""
    k = 0
    while k + 4 <= weights.size:
        at = k * columns + left
        row0, row1 = b[at : at + out.size], b[at + columns : at + columns + out.size]
        row2 = b[at + 2 * columns : at + 2 * columns + out.size]
        row3 = b[at + 3 * columns : at + 3 * columns + out.size]
        w0, w1 = as_factor(packed, weights[k]), as_factor(packed, weights[k + 1])
        w2, w3 = as_factor(packed, weights[k + 2]), as_factor(packed, weights[k + 3])
        for j in range(out.size):
            out[j] += (w0 * as_factor(packed, row0[j]) + w1 * as_factor(packed, row1[j])
                       + w2 * as_factor(packed, row2[j]) + w3 * as_factor(packed, row3[j]))
        k += 4
    while k < weights.size:
        row0, w0 = b[k * columns + left : k * columns + left + out.size], as_factor(packed, weights[k])
        for j in range(out.size):
            out[j] += w0 * as_factor(packed, row0[j])
        k += 1


@jit(reorder=True)
def _dot(x, y, packed):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += as_factor(packed, x[i]) * as_factor(packed, y[i])
    return total


@jit(parallel=True)
def _multiply_vector(a, b, b_transposed, out, width, packed):
    """out += a @ B for one row a (K,), without packing: each element of B is used only once.

    packed: of the type that factors would be packed in, so that one row is rounded like many.
    """
    flat_b = b.reshape(-1)
    for block in prange((out.size + width - 1) // width):
        left, right = block * width, min(out.size, (block + 1) * width)
        if b_transposed:
            for j in range(left, right):
                out[j] += _dot(a, b[j], packed)
        else:
            _add_weighted_rows(a, flat_b, b.shape[1], left, out[left:right], packed)


_scratch = threading.local()


def _workspace(dtype: np.dtype, threads: int, packed: np.dtype):
    """Buffers for packing, kept for this thread's next product: fresh memory costs page faults."""
    key = f"{packed} {threads}"
    kept = getattr(_scratch, key, None)
    if kept is None:
        lanes = VECTOR_BYTES // dtype.itemsize
        row_panels = max(1, ROW_BLOCK_BYTES // (K_BLOCK * TILE_ROWS * dtype.itemsize))
        kept = (
            np.empty((threads, row_panels * K_BLOCK * TILE_ROWS + lanes), packed),
            np.empty(COLUMN_BLOCK_BYTES // dtype.itemsize, packed),
            np.empty((threads, TILE_ROWS * TILE_VECTORS * lanes), dtype),
        )
        setattr(_scratch, key, kept)
    return kept


def _as_stored(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """A 2-D array as (C-contiguous array, whether the values are its transpose), copying only if it must."""
    if x.flags.c_contiguous:
        stored, transposed = x, False
    elif x.flags.f_contiguous:
        stored, transposed = x.T, True
    else:
        stored, transposed = np.ascontiguousarray(x), False
    return (stored if stored.flags.writeable and stored.flags.aligned else stored.copy()), transposed


def gemm(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, *,
         accumulate: bool = False, bias: np.ndarray | None = None, bfloat16: bool = False) -> np.ndarray:
    """a @ b for 2-D arrays of one float type: (M, K) @ (K, N) -> (M, N). Transposed views cost nothing.

    out: C-contiguous (M, N), written in place and returned. accumulate: add to `out` instead of replacing it.
    bias: (N,), added to every row; not together with accumulate. bfloat16: round the factors to bfloat16, sum
    in float32; needs float32 arrays and a CPU that can (`jit.HAS_BFLOAT16`). ValueError or TypeError says what
    doesn't fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"gemm: shapes {a.shape} and {b.shape} do not fit, expected (M, K) and (K, N)")
    if a.dtype != b.dtype or a.dtype not in (np.float32, np.float64):
        raise TypeError(f"gemm: dtypes {a.dtype} and {b.dtype}, expected both float32 or both float64")
    if bfloat16 and (a.dtype != np.float32 or not HAS_BFLOAT16):
        raise TypeError(f"gemm: bfloat16 needs float32 arrays, got {a.dtype}, and a CPU with AVX-512 BF16, which "
                        f"this one {'is' if HAS_BFLOAT16 else 'is not'}")
    rows, columns = a.shape[0], b.shape[1]
    if out is None:
        out = np.empty((rows, columns), a.dtype)
        if accumulate:
            raise ValueError("gemm: accumulate=True needs out, the array to add to")
    elif out.shape != (rows, columns) or out.dtype != a.dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"gemm: out is {out.shape} {out.dtype}, expected C-contiguous, writable "
                         f"({rows}, {columns}) {a.dtype}")
    if bias is not None:
        if accumulate:
            raise ValueError("gemm: bias and accumulate=True exclude each other; add the bias to out first")
        if bias.shape != (columns,) or bias.dtype != a.dtype:
            raise ValueError(f"gemm: bias is {bias.shape} {bias.dtype}, expected ({columns},) {a.dtype}")
        bias = np.require(bias, requirements=["C", "W", "A"])
    if a.shape[1] == 0 and not accumulate:
        out[...] = 0 if bias is None else bias
    if out.size == 0 or a.shape[1] == 0:
        return out
    stored_a, a_transposed = _as_stored(a)
    stored_b, b_transposed = _as_stored(b)
    threads, packed = get_num_threads(), np.dtype(np.uint32) if bfloat16 else a.dtype
    if rows == 1:
        if not accumulate:
            out[...] = 0 if bias is None else bias
        width = max(64, -(-columns // threads))
        _multiply_vector(stored_a.reshape(-1), stored_b, b_transposed, out.reshape(-1), width, np.empty(0, packed))
        return out
    if bias is None:
        bias = np.empty(0, a.dtype)
    _multiply(stored_a, a_transposed, stored_b, b_transposed, out, accumulate, bias,
              *_workspace(a.dtype, threads, packed), threads)
    return out
