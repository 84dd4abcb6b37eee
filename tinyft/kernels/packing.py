"""Packing: copy the operands of a matrix product into the order in which its inner loop reads them.

A PANEL holds a strip of a matrix, k by k: for each k the TILE_ROWS elements of A, or the two vectors of B, that
one tile of the result needs. Where they lie side by side in memory they are copied; where k does, squares of
elements are transposed in registers on the way. Strips that are narrower are filled up with zeros.

Panels of uint32 hold bfloat16 pairs: elements of two k at a time, rounded on the way.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import HOST_FEATURES, VECTOR_BYTES, jit
from .simd import Vectors, bfloat16_pair, elements_per_item, lanes_of, pointer_to

# AVX-512 and 64-bit ARM have 32 vector registers, other CPUs 16. A tile takes all but a few of them: two
# hold the vectors of B and one the element of A that is being used.
TILE_ROWS = 14 if VECTOR_BYTES == 64 or "neon" in HOST_FEATURES else 6
TILE_VECTORS = 2


def _transposed_pack_of(rows_in):
    """Make an intrinsic that packs rows_in(lanes) rows x one vector of columns, transposed."""

    @intrinsic
    def pack(typingctx, source, start, stride, packed, packed_start):
        def codegen(context, builder, signature, args):
            source, start, stride, packed, packed_start = args
            vectors = Vectors(builder, signature.args[0].dtype)
            rows = rows_in(vectors.lanes)
            pointer = pointer_to(context, builder, signature.args[0], source, start)
            target = pointer_to(context, builder, signature.args[3], packed, packed_start)
            groups = []
            for first in range(0, rows, vectors.lanes):
                loaded = [
                    vectors.load(builder.gep(pointer, [builder.mul(stride, ir.Constant(ir.IntType(64), row))]))
                    if row < rows else vectors.undefined
                    for row in range(first, first + vectors.lanes)
                ]
                groups.append(vectors.transpose(loaded))
            # Ascending addresses: where rows is no multiple of the vector, a store spills over its end, and
            # the next store puts right what it overwrote.
            into, pairs = Vectors(builder, signature.args[3].dtype), signature.args[3].dtype == types.uint32
            for k in range(vectors.lanes // 2 if pairs else vectors.lanes):
                for group, transposed in enumerate(groups):
                    column = vectors.pair(transposed[2 * k], transposed[2 * k + 1]) if pairs else transposed[k]
                    into.store(column, vectors.at(target, k * rows + group * vectors.lanes))
            return context.get_dummy_value()

        return types.void(source, types.intp, types.intp, packed, types.intp), codegen

    return pack


def _copy_of(width_in):
    """Make an intrinsic that copies as many vectors as `width_in(lanes)` elements take, rounded up."""

    @intrinsic
    def copy(typingctx, source, start, target, target_start):
        def codegen(context, builder, signature, args):
            vectors = Vectors(builder, signature.args[0].dtype)
            pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
            into = pointer_to(context, builder, signature.args[2], args[2], args[3])
            for first in range(0, width_in(vectors.lanes), vectors.lanes):
                vectors.store(vectors.load(vectors.at(pointer, first)), vectors.at(into, first))
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), codegen

    return copy


_pack_tile_rows_transposed = _transposed_pack_of(lambda lanes: TILE_ROWS)
_pack_tile_columns_transposed = _transposed_pack_of(lambda lanes: TILE_VECTORS * lanes)
_copy_tile_rows = _copy_of(lambda lanes: TILE_ROWS)
_copy_tile_columns = _copy_of(lambda lanes: TILE_VECTORS * lanes)


@jit
def _pack_along(source, start, stride, width, depth, packed, packed_start, panel_width, panel_stride):
    """Pack panels whose elements for one k lie side by side in memory; zeros fill the last one.

    k runs outside, so that long stretches of memory are read, not a few elements from each page. A copy of
    whole vectors spills over the end of TILE_ROWS elements; the next k puts that right, and the last k is
    copied element by element.
    """
    zero = source.dtype.type(0)
    if elements_per_item(packed) == 2:
        for k in range(0, depth, 2):
            row, target = start + k * stride, packed_start + k // 2 * panel_width
            after = row + stride if k + 1 < depth else row
            for panel in range((width + panel_width - 1) // panel_width):
                first = panel * panel_width
                into = packed[target + panel * panel_stride : target + panel * panel_stride + panel_width]
                filled = min(panel_width, width - first)
                even, odd = source[row + first : row + first + filled], source[after + first : after + first + filled]
                for i in range(filled):
                    into[i] = bfloat16_pair(even[i], odd[i] if k + 1 < depth else zero)
                for i in range(filled, panel_width):
                    into[i] = 0
        return
    whole = width // panel_width
    for k in range(depth):
        row, target = start + k * stride, packed_start + k * panel_width
        for panel in range(whole):
            at, into = row + panel * panel_width, target + panel * panel_stride
            if panel_width != TILE_ROWS:
                _copy_tile_columns(source, at, packed, into)
            elif k < depth - 1:
                _copy_tile_rows(source, at, packed, into)
            else:
                for i in range(panel_width):
                    packed[into + i] = source[at + i]
        for i in range(whole * panel_width, (width + panel_width - 1) // panel_width * panel_width):
            packed[target + whole * panel_stride + i - whole * panel_width] = source[row + i] if i < width else zero


@jit
def _pack_across(source, start, stride, width, depth, packed, packed_start, panel_width):
    """Pack a panel whose `depth` elements for one row lie side by side in memory; zeros fill the rest."""
    lanes = lanes_of(source)
    k = 0
    if width == panel_width:
        while k + lanes <= depth:
            into = packed_start + k // elements_per_item(packed) * panel_width
            if panel_width == TILE_ROWS:
                _pack_tile_rows_transposed(source, start + k, stride, packed, into)
            else:
                _pack_tile_columns_transposed(source, start + k, stride, packed, into)
            k += lanes
    zero = source.dtype.type(0)
    if elements_per_item(packed) == 2:
        for even in range(k, depth, 2):
            target = packed[packed_start + even // 2 * panel_width : packed_start + (even // 2 + 1) * panel_width]
            for i in range(width):
                at = start + i * stride + even
                target[i] = bfloat16_pair(source[at], source[at + 1] if even + 1 < depth else zero)
            for i in range(width, panel_width):
                target[i] = 0
        return
    while k < depth:
        target = packed[packed_start + k * panel_width : packed_start + (k + 1) * panel_width]
        for i in range(width):
            target[i] = source[start + i * stride + k]
        for i in range(width, panel_width):
            target[i] = zero
        k += 1


@jit
def pack_rows(source, start, stride, transposed, rows, depth, packed, panel_stride):
    """Pack A[rows, depth] into panels of TILE_ROWS rows, `panel_stride` elements apart.

    A[i, k] is source[start + i * stride + k], or source[start + k * stride + i] if `transposed`. `packed` needs
    one vector of slack at its end, see `_transposed_pack_of`.
    """
    if transposed:
        _pack_along(source, start, stride, rows, depth, packed, 0, TILE_ROWS, panel_stride)
        return
    for panel in range((rows + TILE_ROWS - 1) // TILE_ROWS):
        first = panel * TILE_ROWS
        _pack_across(source, start + first * stride, stride, min(TILE_ROWS, rows - first), depth,
                     packed, panel * panel_stride, TILE_ROWS)


@jit
def pack_columns(source, start, stride, transposed, columns, depth, packed, packed_start, panel_stride):
    """Pack B[depth, columns] into panels one tile wide, `panel_stride` elements apart.

    B[k, j] is source[start + k * stride + j], or source[start + j * stride + k] if `transposed`.
    """
    tile_columns = TILE_VECTORS * lanes_of(source)
    if not transposed:
        _pack_along(source, start, stride, columns, depth, packed, packed_start, tile_columns, panel_stride)
        return
    for panel in range((columns + tile_columns - 1) // tile_columns):
        first = panel * tile_columns
        _pack_across(source, start + first * stride, stride, min(tile_columns, columns - first), depth,
                     packed, packed_start + panel * panel_stride, tile_columns)
