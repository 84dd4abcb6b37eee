"""The matrix unit of newer Intel server CPUs (AMX): products of bfloat16 at several times the speed of vectors.

It has eight registers, each a small matrix of 16 rows of 64 bytes, and one instruction that multiplies two of them:

    C[16, 16] += A[16, 32] B[32, 16]        float32 += bfloat16 x bfloat16

that is 8,192 multiply-adds, where one instruction on vectors does 32. A holds 32 k of a row side by side; B's rows hold
pairs of k, which is how panels of B are packed for vectors as well. So only A's panels differ: in blocks of 32 k, row
after row, one register's matrix below the other.

Four registers hold a tile of C of 32 x 32, and four the operands. A thread says first how many rows and bytes of each
register it uses, and releases them afterwards, or the system would keep 8 KB more for it at every change of threads.
(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; volume 2, TDPBF16PS.)
"""

import struct

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import HAS_MATRIX_UNIT, jit
from .simd import Vectors, bfloat16_pair, emit_bfloat16_pair, pointer_to

REGISTER_ROWS, REGISTER_ITEMS = 16, 16  # an item is a float32 or a pair of bfloat16
MATRIX_ROWS = 2 * REGISTER_ROWS  # of C's tile; it has as many columns
BLOCK_K = 2 * REGISTER_ITEMS  # how many k one multiplication takes
_BYTE, _SIZE = ir.IntType(8), ir.IntType(64)


def uses_matrix_unit(packed_dtype: types.Type) -> bool:
    """Whether products of panels of this type are the matrix unit's: those of bfloat16 pairs, where there is one."""
    return HAS_MATRIX_UNIT and packed_dtype == types.uint32


class _Registers:
    """Emits the instructions. Registers have numbers; pointers are to bytes, and so are strides."""

    def __init__(self, builder):
        self.builder = builder

    def _call(self, name, *arguments):
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}"), arguments)

    def configure(self):
        """Eight registers of 16 rows of 64 bytes."""
        layout = struct.pack("<BB14x8H16x8B8x", 1, 0, *[4 * REGISTER_ITEMS] * 8, *[REGISTER_ROWS] * 8)
        constant = ir.Constant(ir.ArrayType(_BYTE, len(layout)), bytearray(layout))
        place = cgutils.global_constant(self.builder, "matrix_registers", constant)
        self._call("ldtilecfg", self.builder.bitcast(place, _BYTE.as_pointer()))

    def release(self):
        self._call("tilerelease")

    def zero(self, register):
        self._call("tilezero", ir.Constant(_BYTE, register))

    def load(self, register, pointer, stride):
        self._call("tileloadd64", ir.Constant(_BYTE, register), pointer, stride)

    def store(self, register, pointer, stride):
        self._call("tilestored64", ir.Constant(_BYTE, register), pointer, stride)

    def multiply_add(self, total, a, b):
        self._call("tdpbf16ps", *(ir.Constant(_BYTE, register) for register in (total, a, b)))


def _for_panels_like(emit):
    """Make an intrinsic f(packed) that emits something where panels like `packed` are the matrix unit's work."""

    @intrinsic
    def intrinsic_of(typingctx, packed):
        def codegen(context, builder, signature, args):
            if uses_matrix_unit(packed.dtype):
                emit(_Registers(builder))
            return context.get_dummy_value()

        return types.void(packed), codegen

    return intrinsic_of


# For one thread: before its first tile, and after the last.
configure_registers, release_registers = _for_panels_like(_Registers.configure), _for_panels_like(_Registers.release)


def emit_tile(builder, a, b, items, c, c_stride, base, base_stride, add):
    """Emit C[32, 32] = A B, or base + A B if `add`; see `matmul.tile`. items: of depth, a multiple of a register's."""
    registers, totals = _Registers(builder), {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}
    a, b, c, base = (builder.bitcast(pointer, _BYTE.as_pointer()) for pointer in (a, b, c, base))
    row_bytes = 4 * REGISTER_ITEMS

    def quarter(pointer, stride, down, across):
        start = builder.mul(stride, ir.Constant(_SIZE, down * REGISTER_ROWS))
        return builder.gep(pointer, [builder.add(start, ir.Constant(_SIZE, across * row_bytes))])

    c_stride, base_stride = (builder.mul(stride, ir.Constant(_SIZE, 4)) for stride in (c_stride, base_stride))
    with builder.if_else(add) as (more, fresh):
        with more:
            for (down, across), total in totals.items():
                registers.load(total, quarter(base, base_stride, down, across), base_stride)
        with fresh:
            for total in totals.values():
                registers.zero(total)
    of_block = MATRIX_ROWS * row_bytes  # of A's panel, and of B's, whose rows are twice as long and half as many
    block_bytes, a_stride, b_stride = (ir.Constant(_SIZE, n) for n in (of_block, row_bytes, 2 * row_bytes))
    with cgutils.for_range(builder, builder.udiv(items, ir.Constant(_SIZE, REGISTER_ITEMS))) as loop:
        block = builder.mul(loop.index, block_bytes)
        a_now, b_now = builder.gep(a, [block]), builder.gep(b, [block])
        for across in (0, 1):
            registers.load(6 + across, quarter(b_now, b_stride, 0, across), b_stride)
        for down in (0, 1):
            registers.load(4 + down, quarter(a_now, a_stride, down, 0), a_stride)
            for across in (0, 1):
                registers.multiply_add(totals[down, across], 4 + down, 6 + across)
    for (down, across), total in totals.items():
        registers.store(total, quarter(c, c_stride, down, across), c_stride)


@intrinsic
def _pack_row(typingctx, source, start, packed, packed_start):
    """Pack a row of a register: 32 k that lie side by side in memory."""

    def codegen(context, builder, signature, args):
        vectors, pairs = Vectors(builder, signature.args[0].dtype), Vectors(builder, signature.args[2].dtype)
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        target = pointer_to(context, builder, signature.args[2], args[2], args[3])
        first, second = vectors.load(pointer), vectors.load(vectors.at(pointer, vectors.lanes))
        even = vectors.shuffle(first, second, list(range(0, 2 * vectors.lanes, 2)))
        odd = vectors.shuffle(first, second, list(range(1, 2 * vectors.lanes, 2)))
        pairs.store(emit_bfloat16_pair(builder, even, odd), target)
        return context.get_dummy_value()

    return types.void(source, types.intp, packed, types.intp), codegen


@intrinsic
def _pack_register(typingctx, source, start, stride, packed, packed_start):
    """Pack a whole register: 32 k, `stride` apart in memory, of 16 rows that lie side by side."""

    def codegen(context, builder, signature, args):
        source, start, stride, packed, packed_start = args
        vectors, pairs = Vectors(builder, signature.args[0].dtype), Vectors(builder, signature.args[3].dtype)
        pointer = pointer_to(context, builder, signature.args[0], source, start)
        target = pointer_to(context, builder, signature.args[3], packed, packed_start)
        loaded = [vectors.load(builder.gep(pointer, [builder.mul(stride, ir.Constant(_SIZE, k))]))
                  for k in range(BLOCK_K)]
        columns = [emit_bfloat16_pair(builder, loaded[k], loaded[k + 1]) for k in range(0, BLOCK_K, 2)]
        for row, of_row in enumerate(pairs.transpose(columns)):
            pairs.store(of_row, pairs.at(target, row * REGISTER_ITEMS))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, packed, types.intp), codegen


@jit
def _pack_corner(source, start, row_stride, k_stride, rows, depth, packed, packed_start):
    """Pack a register of which only `rows` and `depth` are there; the rest becomes 0."""
    zero = source.dtype.type(0)
    for row in range(REGISTER_ROWS):
        for item in range(REGISTER_ITEMS):
            at, left = start + row * row_stride + 2 * item * k_stride, depth - 2 * item if row < rows else 0
            even, odd = source[at] if left > 0 else zero, source[at + k_stride] if left > 1 else zero
            packed[packed_start + row * REGISTER_ITEMS + item] = bfloat16_pair(even, odd)


@jit
def pack_rows_in_blocks(source, start, stride, transposed, rows, depth, packed, panel_stride):
    """Pack A[rows, depth] for the matrix unit, into panels `panel_stride` items apart; like `packing.pack_rows`.

    Zeros fill the last panel and the last block of k. Where rows lie side by side, all of them are read for some k
    before the next k are.
    """
    size = REGISTER_ROWS * REGISTER_ITEMS
    blocks, groups = (depth + BLOCK_K - 1) // BLOCK_K, (rows + MATRIX_ROWS - 1) // MATRIX_ROWS * 2
    row_stride, k_stride = (1, stride) if transposed else (stride, 1)
    for outer in range(blocks if transposed else groups):
        for inner in range(groups if transposed else blocks):
            block, group = (outer, inner) if transposed else (inner, outer)
            n_rows, n_k = rows - group * REGISTER_ROWS, depth - block * BLOCK_K
            at = start + group * REGISTER_ROWS * row_stride + block * BLOCK_K * k_stride
            into = group // 2 * panel_stride + (2 * block + group % 2) * size
            if n_rows < REGISTER_ROWS or n_k < BLOCK_K:
                _pack_corner(source, at, row_stride, k_stride, n_rows, n_k, packed, into)
            elif transposed:
                _pack_register(source, at, stride, packed, into)
            else:
                for row in range(REGISTER_ROWS):
                    _pack_row(source, at + row * stride, packed, into + row * REGISTER_ITEMS)
