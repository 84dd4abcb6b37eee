"""Matrix product C = A B at the speed of the machine, and why it takes more than three loops.

A core can start one or two fused multiply-adds on whole vector registers every cycle, but can load only a
few values from the nearest cache in that time, and far fewer from memory. Three plain loops need two loads
for every multiply-add, one of them from another line, and so reach a hundredth of the peak. The remedy is to use
what has been loaded many times before letting it go, at every level of the memory (Goto and van de Geijn, "Anatomy
of high-performance matrix multiplication", 2008; the scheme of BLIS):

  registers  a TILE of C, TILE_ROWS x 2 vectors, stays in registers while k runs; each step loads 2 vectors of
             B and TILE_ROWS elements of A and does TILE_ROWS x 2 vector multiply-adds with them (`tile`)
  L2         a PIECE of the larger operand: a few panels of B's columns (or of A's rows), K_BLOCK deep, that one
             thread packs for itself and multiplies at once with all of the other operand
  L3         the smaller operand, packed once, is shared by all threads
  packing    panels are first copied into the very order in which `tile` reads them, so that all its loads are
             consecutive; a transposed operand only means another way of copying

A batch has few tokens beside a layer's many weights, so that each weight is used some hundred times only and a good
part of the work is to fetch it. So it comes from memory straight into the L2 of the thread that needs it, once, and no
thread waits for another between packing and multiplying. The sizes are this CPU's (`cpu.py`).

Where a CPU multiplies small matrices of bfloat16 by itself (`matrix_unit.py`), only the tile and the order of A's
panels are different.

`examples/tour/matmul_steps.py` leads here from three loops, and `derivations.md` beside it derives the sizes.

Storage order is the caller's business: `gemm` takes NumPy views, and `x.T` costs nothing. Where B is kept in fewer bits
(`kept.py`), only its packing is different.
"""

import math
import threading
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange, types
from numba.extending import intrinsic

from .cpu import CacheSizes, cache_sizes
from .jit import HAS_BFLOAT16, NO_BFLOAT16, VECTOR_BYTES, jit
from .kept import Kept
from .matrix_unit import configure_registers, emit_tile, release_registers, uses_matrix_unit
from .one_row import multiply_row
from .packing import (
    TILE_ROWS,
    TILE_VECTORS,
    Layout,
    elements_per_item,
    layout_of,
    pack_columns,
    pack_rows,
    tile_rows_of,
    unit_of,
)
from .pieces import finish, new_counters, pieces, wait_for
from .simd import Vectors, lanes_of, pointer_to

K_BLOCK = 1024  # A panel of B is at most K_BLOCK x 128 bytes = 128 KB with AVX-512.
PIECES = 4  # for each thread at least, so that none waits for long
AHEAD = 8  # how many k before they are needed elements are prefetched


def _sizes(caches: CacheSizes) -> tuple[int, int]:
    """Bytes of a piece and of what is shared. The panels that a piece meets need room in L2 as well."""
    piece = max(2 * K_BLOCK * TILE_VECTORS * VECTOR_BYTES, caches.l2 // 4)
    return piece, min(max(2 << 20, caches.l3 // 4), 8 << 20)


PIECE_BYTES, SHARED_BYTES = _sizes(cache_sizes())


def _emit_stores(builder, vectors, results, c, c_stride, base, base_stride, add):
    """Emit what follows the loop over k: `results`, by their place in the tile, go to c, plus base if `add`."""

    def place(pointer, stride, row, column):
        start_of_row = builder.gep(pointer, [builder.mul(stride, ir.Constant(ir.IntType(64), row))])
        return vectors.at(start_of_row, column * vectors.lanes)

    with builder.if_else(add) as (more, fresh):
        with more:
            for at, result in results.items():
                before = vectors.load(place(base, base_stride, *at))
                vectors.store(builder.fadd(before, result), place(c, c_stride, *at))
        with fresh:
            for at, result in results.items():
                vectors.store(result, place(c, c_stride, *at))


@intrinsic
def tile(typingctx, a, a_start, b, b_start, depth, c, c_start, c_stride, base, base_start, base_stride, add):
    """C[TILE_ROWS, 2 vectors] = A B, or `base` + A B if `add`, for one packed panel each of A and B.

    a: depth x TILE_ROWS items from a_start; b: depth x 2 vectors from b_start; all arrays flat. base: laid out like
    c; c itself, to add to what stands there, or a bias with stride 0. Where the matrix unit does the work, C[32, 32].
    """

    def codegen(context, builder, signature, args):
        a, a_start, b, b_start, depth, c, c_start, c_stride, base, base_start, base_stride, add = args
        kinds = signature.args
        pointer_a = pointer_to(context, builder, kinds[0], a, a_start)
        pointer_b = pointer_to(context, builder, kinds[2], b, b_start)
        pointer_c = pointer_to(context, builder, kinds[5], c, c_start)
        pointer_base = pointer_to(context, builder, kinds[8], base, base_start)
        if uses_matrix_unit(kinds[0].dtype):
            emit_tile(builder, pointer_a, pointer_b, depth, pointer_c, c_stride, pointer_base, base_stride, add)
            return context.get_dummy_value()
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
        for v in range(TILE_VECTORS):
            vectors.prefetch(vectors.at(row_of_b, (AHEAD * TILE_VECTORS + v) * vectors.lanes))
        vectors.prefetch(vectors.at(row_of_a, AHEAD * TILE_ROWS))
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

        results = dict(zip(grid, finals, strict=True))
        _emit_stores(builder, vectors, results, pointer_c, c_stride, pointer_base, base_stride, add)
        return context.get_dummy_value()

    at = types.intp
    return types.void(a, at, b, at, at, c, at, at, base, at, at, types.boolean), codegen


@jit(inline=True)
def round_up(n, step):
    """The next multiple of step."""
    return (n + step - 1) // step * step


def _even_step(n: int, most: int, unit: int) -> int:
    """The step, a multiple of `unit` and at most `most`, that divides n as evenly as can be."""
    parts = -(-n // most)
    return -(-n // (parts * unit)) * unit


@jit
def _copy_partial(partial_tile, tile_columns, c, corner, c_stride, n_rows, n_columns, bias, add):
    """C (+)= the part of a tile that lies within C, plus the bias if there is one."""
    for row in range(n_rows):
        source = partial_tile[row * tile_columns : row * tile_columns + n_columns]
        into = c[corner + row * c_stride : corner + row * c_stride + n_columns]
        for column in range(n_columns):
            value = source[column]
            if bias.size > 0:
                value += bias[column]
            into[column] = into[column] + value if add else value


@jit
def multiply_panels(packed_a, a_stride, packed_b, b_start, b_stride, depth,
                    c, c_start, c_stride, rows, columns, bias, partial_tile, add, row_by_row):
    """C[rows, columns] (+)= A B for packed A and B; tiles that stick out of C go through `partial_tile`.

    c: flat, C[i, j] = c[c_start + i * c_stride + j]. bias: (columns,), added to each row, or empty. partial_tile:
    scratch for one tile. add: keep what stands in C; not together with a bias. row_by_row: each panel of A meets all
    of B before the next one does, instead of each panel of B all of A.
    """
    tile_columns = TILE_VECTORS * lanes_of(c)
    tile_rows = tile_rows_of(packed_a)
    tiles_down, tiles_across = round_up(rows, tile_rows) // tile_rows, round_up(columns, tile_columns) // tile_columns
    configure_registers(packed_a)
    for outer in range(tiles_down if row_by_row else tiles_across):
        for inner in range(tiles_across if row_by_row else tiles_down):
            i, j = (outer, inner) if row_by_row else (inner, outer)
            n_rows, n_columns = min(tile_rows, rows - i * tile_rows), min(tile_columns, columns - j * tile_columns)
            corner, left = c_start + i * tile_rows * c_stride + j * tile_columns, j * tile_columns
            # One call for all cases: each would be compiled into a tile of its own.
            whole, biased = n_rows == tile_rows and n_columns == tile_columns, bias.size > 0
            tile(packed_a, i * a_stride, packed_b, b_start + j * b_stride, depth,
                 c if whole else partial_tile, corner if whole else 0, c_stride if whole else tile_columns,
                 bias if biased else c, left if biased else corner, 0 if biased else c_stride,
                 whole and (add or biased))
            if not whole:
                _copy_partial(partial_tile, tile_columns, c, corner, c_stride, n_rows, n_columns, bias[left:], add)
    release_registers(packed_a)


class Plan(NamedTuple):
    """How a product is cut up. A piece is work for one thread at a time; panels are counted, and sizes are in items."""

    share_a: bool  # the operand that all threads share is A, the smaller one; else B
    k_step: int  # of the depth at a time
    a_panel: int  # size of a packed panel
    b_panel: int
    shared_panels: int  # of the shared operand in all
    shared_step: int  # at a time
    packing_step: int  # that one piece packs
    own_panels: int  # of the other operand in all
    own_pieces: int
    stages: int


def _plan(rows: int, depth: int, columns: int, threads: int, layout: Layout, own_room: int, shared_room: int) -> Plan:
    """The plan for a product (rows, depth) @ (depth, columns). The rooms: items that fit a thread's own buffer and the
    shared one.
    """
    k_step = _even_step(depth, K_BLOCK * layout.items, layout.unit)
    # Packing spills up to a vector over the end of a panel of A, which must not hit another thread's.
    spilled = layout.tile_columns // TILE_VECTORS
    a_panel = k_step // layout.items * layout.tile_rows + spilled
    b_panel = k_step // layout.items * layout.tile_columns
    down, across = -(-rows // layout.tile_rows), -(-columns // layout.tile_columns)
    share_a = rows <= columns
    shared, own = (down, across) if share_a else (across, down)
    shared_size, own_size = (a_panel, b_panel) if share_a else (b_panel, a_panel)
    shared_step = _even_step(shared, shared_room // shared_size, 1)
    own_step = max(1, min(own_room // own_size, own // (PIECES * threads)))
    return Plan(share_a, k_step, a_panel, b_panel, shared, shared_step, max(1, shared_step // (PIECES * threads)),
                own, -(-own // own_step), -(-shared // shared_step) * -(-depth // k_step))


@jit
def _pack_a(plan, a, transposed, first_k, n_k, first, n_panels, packed):
    """Pack panels first to first + n_panels - 1 of A's rows, n_k columns from first_k on; returns the rows."""
    rows, depth = (a.shape[1], a.shape[0]) if transposed else a.shape
    row = first * tile_rows_of(packed)
    n_rows = min(n_panels * tile_rows_of(packed), rows - row)
    start, stride = (first_k * rows + row, rows) if transposed else (row * depth + first_k, depth)
    pack_rows(a.reshape(-1), start, stride, transposed, n_rows, n_k, packed, plan.a_panel)
    return n_rows


@jit
def _pack_b(plan, b, scales, transposed, first_k, n_k, first, n_panels, packed):
    """Pack panels first to first + n_panels - 1 of B's columns, n_k rows from first_k on; returns the columns."""
    depth, columns = (b.shape[1], b.shape[0]) if transposed else b.shape
    width = TILE_VECTORS * lanes_of(b)
    column = first * width
    n_columns = min(n_panels * width, columns - column)
    start, stride = (column * depth + first_k, depth) if transposed else (first_k * columns + column, columns)
    pack_columns(b.reshape(-1), scales, start, stride, transposed, n_columns, n_k, packed, 0, plan.b_panel)
    return n_columns


@jit(merge=True)
def _multiply_piece(plan, piece, a, a_transposed, b, scales, b_transposed, c, add, bias, first_k, n_k, first_shared,
                    n_shared, shared, packed, partial_tile):
    """Pack one piece of the operand that is not shared, and multiply it with all that is."""
    rows, columns = c.shape
    flat_c = c.reshape(-1)
    tile_rows, tile_columns = tile_rows_of(packed), TILE_VECTORS * lanes_of(flat_c)
    packed_k = round_up(n_k, unit_of(packed)) // elements_per_item(packed)
    first, after = plan.own_panels * piece // plan.own_pieces, plan.own_panels * (piece + 1) // plan.own_pieces
    if plan.share_a:
        row, column = first_shared * tile_rows, first * tile_columns
        n_rows = min(rows - row, n_shared * tile_rows)
        n_columns = _pack_b(plan, b, scales, b_transposed, first_k, n_k, first, after - first, packed)
    else:
        row, column = first * tile_rows, first_shared * tile_columns
        n_columns = min(columns - column, n_shared * tile_columns)
        n_rows = _pack_a(plan, a, a_transposed, first_k, n_k, first, after - first, packed)
    own_bias = bias[column : column + n_columns] if first_k == 0 else bias[:0]
    packed_a, packed_b = (shared, packed) if plan.share_a else (packed, shared)
    # C is best written row by row, so that whole pages are; but then B is read again for each panel of A, from L2 if
    # it is small enough.
    row_by_row = plan.share_a or n_shared * plan.b_panel <= packed.size
    multiply_panels(packed_a, plan.a_panel, packed_b, 0, plan.b_panel, packed_k, flat_c, row * columns + column,
                    columns, n_rows, n_columns, own_bias, partial_tile, add or first_k > 0, row_by_row)


@jit(merge=True)
def _multiply_stages(plan, counters, a, a_transposed, b, scales, b_transposed, c, add, bias, shared, packed,
                     partial_tile):
    """What one thread does. A stage packs a block of the shared operand, then multiplies the other one with it."""
    depth, stage = a.shape[0] if a_transposed else a.shape[1], 0
    for first_shared in range(0, plan.shared_panels, plan.shared_step):
        n_shared = min(plan.shared_step, plan.shared_panels - first_shared)
        packings = (n_shared + plan.packing_step - 1) // plan.packing_step
        for first_k in range(0, depth, plan.k_step):
            n_k = min(depth - first_k, plan.k_step)
            packing, packed_now, multiplying, multiplied = 4 * stage, 4 * stage + 1, 4 * stage + 2, 4 * stage + 3
            for piece in pieces(counters, packings, packing):
                done = piece * plan.packing_step
                first, some = first_shared + done, min(plan.packing_step, n_shared - done)
                if plan.share_a:
                    _pack_a(plan, a, a_transposed, first_k, n_k, first, some, shared[done * plan.a_panel :])
                else:
                    _pack_b(plan, b, scales, b_transposed, first_k, n_k, first, some, shared[done * plan.b_panel :])
                finish(counters, packed_now)
            wait_for(counters, packed_now, packings)
            for piece in pieces(counters, plan.own_pieces, multiplying):
                _multiply_piece(plan, piece, a, a_transposed, b, scales, b_transposed, c, add, bias, first_k, n_k,
                                first_shared, n_shared, shared, packed, partial_tile)
                finish(counters, multiplied)
            stage += 1
            if stage < plan.stages:
                wait_for(counters, multiplied, plan.own_pieces)


@jit(parallel=True)
def _multiply(plan, a, a_transposed, b, scales, b_transposed, c, add, bias, shared, packed, partial_tiles, threads):
    """The blocked product; a, b, c are C-contiguous, `packed` and `partial_tiles` have one row for each thread."""
    counters = new_counters(4 * plan.stages)
    for worker in prange(threads):
        _multiply_stages(plan, counters, a, a_transposed, b, scales, b_transposed, c, add, bias, shared,
                         packed[worker], partial_tiles[worker])


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array whose rows begin where cache lines do: a load that straddles two of them counts twice."""
    line = 64 // dtype.itemsize
    rows, length = math.prod(shape[:-1]), -(-shape[-1] // line) * line
    flat = np.empty(rows * length + line, dtype)
    first = -flat.ctypes.data % 64 // dtype.itemsize
    return flat[first : first + rows * length].reshape(*shape[:-1], length)


class _Workspace(NamedTuple):
    """Buffers for packing, and how panels are laid out in them."""

    layout: Layout
    shared: np.ndarray  # (items,)
    own: np.ndarray  # (threads, items)
    partial_tiles: np.ndarray  # (threads, elements)


_kept = threading.local()


def _workspace(dtype: np.dtype, bfloat16: bool, threads: int) -> _Workspace:
    """Kept for this thread's next product: fresh memory costs page faults."""
    workspaces = _kept.__dict__
    key = dtype.char, bfloat16, threads
    if key not in workspaces:
        packed = np.dtype(np.uint32) if bfloat16 else dtype
        layout = layout_of(packed)
        workspaces[key] = _Workspace(
            layout,
            aligned((SHARED_BYTES // dtype.itemsize,), packed),
            aligned((threads, PIECE_BYTES // dtype.itemsize), packed),
            aligned((threads, layout.tile_rows * layout.tile_columns), dtype),
        )
    return workspaces[key]


def _as_stored(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """A 2-D array as (C-contiguous array, whether the values are its transpose), copying only if it must."""
    if x.flags.carray:
        return x, False
    if x.flags.c_contiguous:
        stored, transposed = x, False
    elif x.flags.f_contiguous:
        stored, transposed = x.T, True
    else:
        stored, transposed = np.ascontiguousarray(x), False
    return (stored if stored.flags.writeable and stored.flags.aligned else stored.copy()), transposed


def gemm(a: np.ndarray, b: np.ndarray | Kept, out: np.ndarray | None = None, *,
         accumulate: bool = False, bias: np.ndarray | None = None, bfloat16: bool = False) -> np.ndarray:
    """a @ b for 2-D arrays of one float type: (M, K) @ (K, N) -> (M, N). Transposed views cost nothing.

    b: counts as float32 if it is `Kept`. out: C-contiguous (M, N), written in place and returned. accumulate: add to
    `out` instead of replacing it. bias: (N,), added to every row; not together with accumulate. bfloat16: round the
    factors to bfloat16, sum in float32; needs float32 arrays and a CPU that can (`jit.HAS_BFLOAT16`). ValueError or
    TypeError says what doesn't fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"gemm: shapes {a.shape} and {b.shape} do not fit, expected (M, K) and (K, N)")
    if isinstance(a, Kept):
        raise TypeError("gemm: a is kept in fewer bits, expected an array; only b may be")
    if a.dtype != b.dtype or a.dtype not in (np.float32, np.float64):
        raise TypeError(f"gemm: dtypes {a.dtype} and {b.dtype}, expected both float32 or both float64")
    if bfloat16 and (a.dtype != np.float32 or not HAS_BFLOAT16):
        raise TypeError(f"gemm: bfloat16 needs float32 arrays, got {a.dtype}" if HAS_BFLOAT16
                        else f"gemm: there are no bfloat16 products here: {NO_BFLOAT16}")
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
        bias = bias if bias.flags.carray else bias.copy()
    if a.shape[1] == 0 and not accumulate:
        out[...] = 0 if bias is None else bias
    if out.size == 0 or a.shape[1] == 0:
        return out
    stored_a, a_transposed = _as_stored(a)
    threads = get_num_threads()
    workspace = _workspace(a.dtype, bfloat16, threads)
    nothing = workspace.partial_tiles[0, :0]
    if isinstance(b, Kept):
        stored_b, scales, b_transposed = b.stored, b.scales.reshape(-1), b.transposed
    else:
        (stored_b, b_transposed), scales = _as_stored(b), nothing
    if rows == 1 and not isinstance(b, Kept):
        if not accumulate:
            out[...] = 0 if bias is None else bias
        width = max(64, -(-columns // threads))
        multiply_row(stored_a.reshape(-1), stored_b, b_transposed, out.reshape(-1), width, workspace.shared[:0])
        return out
    plan = _plan(rows, a.shape[1], columns, threads, workspace.layout, workspace.own.shape[1], workspace.shared.size)
    _multiply(plan, stored_a, a_transposed, stored_b, scales, b_transposed, out, accumulate,
              nothing if bias is None else bias, *workspace[1:], threads)
    return out
