"""Packing: copy the operands of a matrix product into the order in which its inner loop reads them.

A PANEL holds a strip of a matrix, k by k: for each k the TILE_ROWS elements of A, or the two vectors of B, that
one tile of the result needs. (Only A's panels for `matrix_unit.py` are in another order.) Where they lie side by side
in memory they are copied; where k does, squares of elements are transposed in registers on the way. Strips that are
narrower are filled up with zeros.

Panels of uint32 hold bfloat16 pairs: elements of two k at a time, rounded on the way.

B may be kept in fewer bits (`kept.py`) and is expanded on the way. `scales`, flat, are those of int8: for each GROUP of
rows, as they lie in memory, one for each column. Else it is any array of the expanded type. The columns of a panel of B
are never of two groups, nor are both k of a pair.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic, overload

from .jit import HOST_FEATURES, VECTOR_BYTES, jit
from .kept import GROUP
from .matrix_unit import BLOCK_K, MATRIX_ROWS, pack_rows_in_blocks, uses_matrix_unit
from .simd import Vectors, emit_bfloat16_pair, expand, lanes_of, pointer_to, prefetch_lines

# AVX-512 and 64-bit ARM have 32 vector registers, other CPUs 16. A tile takes all but a few of them: two
# hold the vectors of B and one the element of A that is being used.
TILE_ROWS = 14 if VECTOR_BYTES == 64 or "neon" in HOST_FEATURES else 6
TILE_VECTORS = 2
AHEAD = 16  # how many k before they are packed elements are prefetched


class Layout(NamedTuple):
    """How panels of one type are packed."""

    tile_rows: int  # of C, and so of a panel of A
    tile_columns: int  # of C, and so of a panel of B
    items: int  # how many k one packed item holds: 2 for bfloat16 pairs, else 1
    unit: int  # how many k are packed together; zeros fill the last of them


def layout_of(packed: np.dtype) -> Layout:
    """The layout of panels whose items are float32, float64, or bfloat16 pairs as uint32."""
    if uses_matrix_unit(from_dtype(packed)):
        return Layout(MATRIX_ROWS, MATRIX_ROWS, 2, BLOCK_K)
    items = 2 if packed == np.uint32 else 1
    return Layout(TILE_ROWS, TILE_VECTORS * VECTOR_BYTES // packed.itemsize, items, items)


def _constant_of(field):
    """Make an intrinsic that gives a field of the layout of an array's panels, as a constant of the compiled code."""

    @intrinsic
    def constant(typingctx, packed):
        number = getattr(layout_of(np.dtype(packed.dtype.name)), field)

        def codegen(context, builder, signature, args):
            return ir.Constant(ir.IntType(64), number)

        return types.intp(packed), codegen

    return constant


tile_rows_of, elements_per_item, unit_of = (_constant_of(field) for field in ("tile_rows", "items", "unit"))


def _loader(context, builder, kinds, source, scales, scale):
    """load(start, offset): emits a vector of source[start + offset:], times scales[scale + offset:] of int8."""
    vectors, numbers = Vectors(builder, kinds[0].dtype), Vectors(builder, kinds[1].dtype)
    factors = pointer_to(context, builder, kinds[1], scales, scale)

    def load(start, offset=0):
        loaded = vectors.load(vectors.at(pointer_to(context, builder, kinds[0], source, start), offset))
        if kinds[0].dtype != types.int8:
            return loaded
        return builder.fmul(loaded, numbers.load(numbers.at(factors, offset)))

    return load


@intrinsic
def _element(typingctx, source, scales, start, scale):
    """source[start], expanded, times scales[scale] of int8."""

    def codegen(context, builder, signature, args):
        source, scales, start, scale = args
        value = expand(builder, builder.load(pointer_to(context, builder, signature.args[0], source, start)))
        if signature.args[0].dtype != types.int8:
            return value
        return builder.fmul(value, builder.load(pointer_to(context, builder, signature.args[1], scales, scale)))

    return scales.dtype(source, scales, types.intp, types.intp), codegen


def _transposed_pack_of(rows_in):
    """Make an intrinsic that packs rows_in(lanes) rows x one vector of columns, transposed."""

    @intrinsic
    def pack(typingctx, source, scales, start, scale, stride, packed, packed_start):
        def codegen(context, builder, signature, args):
            source, scales, start, scale, stride, packed, packed_start = args
            vectors = Vectors(builder, signature.args[1].dtype)
            rows = rows_in(vectors.lanes)
            load = _loader(context, builder, signature.args, source, scales, scale)
            target = pointer_to(context, builder, signature.args[5], packed, packed_start)
            groups = []
            for first in range(0, rows, vectors.lanes):
                loaded = [
                    load(builder.add(start, builder.mul(stride, ir.Constant(ir.IntType(64), row))))
                    if row < rows else vectors.undefined
                    for row in range(first, first + vectors.lanes)
                ]
                groups.append(vectors.transpose(loaded))
            # Ascending addresses: where rows is no multiple of the vector, a store spills over its end, and
            # the next store puts right what it overwrote.
            into, pairs = Vectors(builder, signature.args[5].dtype), signature.args[5].dtype == types.uint32
            for k in range(vectors.lanes // 2 if pairs else vectors.lanes):
                for group, transposed in enumerate(groups):
                    column = transposed[k]
                    if pairs:
                        column = emit_bfloat16_pair(builder, transposed[2 * k], transposed[2 * k + 1])
                    into.store(column, vectors.at(target, k * rows + group * vectors.lanes))
            return context.get_dummy_value()

        at = types.intp
        return types.void(source, scales, at, at, at, packed, at), codegen

    return pack


def _pack_of(width_in):
    """Make an intrinsic that packs `width_in(lanes)` elements, rounded up to whole vectors, of one k or a pair."""

    @intrinsic
    def pack(typingctx, source, scales, even, odd, scale, packed, packed_start):
        def codegen(context, builder, signature, args):
            source, scales, even, odd, scale, packed, packed_start = args
            into, pairs = Vectors(builder, signature.args[5].dtype), signature.args[5].dtype == types.uint32
            load = _loader(context, builder, signature.args, source, scales, scale)
            target = pointer_to(context, builder, signature.args[5], packed, packed_start)
            for first in range(0, width_in(into.lanes), into.lanes):
                values = load(even, first)
                if pairs:
                    values = emit_bfloat16_pair(builder, values, load(odd, first))
                into.store(values, into.at(target, first))
            return context.get_dummy_value()

        at = types.intp
        return types.void(source, scales, at, at, at, packed, at), codegen

    return pack


_pack_tile_rows_transposed = _transposed_pack_of(lambda lanes: TILE_ROWS)
_pack_tile_columns_transposed = _transposed_pack_of(lambda lanes: TILE_VECTORS * lanes)
_pack_tile_rows = _pack_of(lambda lanes: TILE_ROWS)
_pack_tile_columns = _pack_of(lambda lanes: TILE_VECTORS * lanes)


@intrinsic
def _item_of(typingctx, packed, even, odd):
    """What `packed` holds for one k, `even`, or for two k as a pair of bfloat16."""
    pairs = packed.dtype == types.uint32

    def codegen(context, builder, signature, args):
        return emit_bfloat16_pair(builder, *args[1:]) if pairs else args[1]

    return packed.dtype(packed, even, odd), codegen


@jit(inline=True)
def _scale_of(at, stride):
    """Where the scale of source[at] stands, for rows of `stride` elements."""
    return at // stride // GROUP * stride + at % stride


@jit
def _pack_along(source, scales, start, stride, width, depth, packed, packed_start, panel_width, panel_stride):
    """Pack panels whose elements for one k lie side by side in memory; zeros fill the last one.

    k runs outside, so that long stretches of memory are read, not a few elements from each page, and those of a later k
    are prefetched. A copy of whole vectors spills over the end of TILE_ROWS elements; the next
    k puts that right, and the last k is copied element by element.
    """
    items, zero = elements_per_item(packed), scales.dtype.type(0)
    for k in range(0, depth, items):
        scale = _scale_of(start + k * stride, stride)
        row, target, whole = start + k * stride, packed_start + k // items * panel_width, 0
        if k + items < depth:
            whole = width // panel_width
            for ahead in range(row + AHEAD * stride, row + (AHEAD + items) * stride, stride):
                prefetch_lines(source, ahead, width)
            for panel in range(whole):
                at, into = row + panel * panel_width, target + panel * panel_stride
                if panel_width == TILE_ROWS:
                    _pack_tile_rows(source, scales, at, at + stride, scale + panel * panel_width, packed, into)
                else:
                    _pack_tile_columns(source, scales, at, at + stride, scale + panel * panel_width, packed, into)
        for panel in range(whole, (width + panel_width - 1) // panel_width):
            first = panel * panel_width
            into = packed[target + panel * panel_stride : target + panel * panel_stride + panel_width]
            filled = min(panel_width, width - first)
            for i in range(filled):
                at, of = row + first + i, scale + first + i
                into[i] = _item_of(packed, _element(source, scales, at, of),
                                   _element(source, scales, at + stride, of) if k + 1 < depth else zero)
            for i in range(filled, panel_width):
                into[i] = 0


@jit
def _pack_across(source, scales, start, stride, width, depth, packed, packed_start, panel_width):
    """Pack a panel whose `depth` elements for one row lie side by side in memory; zeros fill the rest."""
    items, lanes, zero = elements_per_item(packed), lanes_of(source), scales.dtype.type(0)
    scale, k = _scale_of(start, stride), 0
    if width == panel_width:
        while k + lanes <= depth:
            into = packed_start + k // items * panel_width
            if panel_width == TILE_ROWS:
                _pack_tile_rows_transposed(source, scales, start + k, scale + k, stride, packed, into)
            else:
                _pack_tile_columns_transposed(source, scales, start + k, scale + k, stride, packed, into)
            k += lanes
    while k < depth:
        target = packed[packed_start + k // items * panel_width : packed_start + (k // items + 1) * panel_width]
        for i in range(width):
            at = start + i * stride + k
            target[i] = _item_of(packed, _element(source, scales, at, scale + k),
                                 _element(source, scales, at + 1, scale + k + 1) if k + 1 < depth else zero)
        for i in range(width, panel_width):
            target[i] = 0
        k += items


@jit
def _pack_rows_by_k(source, start, stride, transposed, rows, depth, packed, panel_stride):
    if transposed:
        _pack_along(source, source, start, stride, rows, depth, packed, 0, TILE_ROWS, panel_stride)
        return
    for panel in range((rows + TILE_ROWS - 1) // TILE_ROWS):
        first = panel * TILE_ROWS
        _pack_across(source, source, start + first * stride, stride, min(TILE_ROWS, rows - first), depth,
                     packed, panel * panel_stride, TILE_ROWS)


def pack_rows(source, start, stride, transposed, rows, depth, packed, panel_stride):
    """Pack A[rows, depth] into panels of a tile's rows, `panel_stride` items apart; for jitted code.

    A[i, k] is source[start + i * stride + k], or source[start + k * stride + i] if `transposed`. `packed` needs
    one vector of slack at its end, see `_transposed_pack_of`.
    """
    raise NotImplementedError("pack_rows is for jitted code")


@overload(pack_rows, inline="always")
def _choose_pack_rows(source, start, stride, transposed, rows, depth, packed, panel_stride):
    pack = pack_rows_in_blocks if uses_matrix_unit(packed.dtype) else _pack_rows_by_k

    def chosen(source, start, stride, transposed, rows, depth, packed, panel_stride):
        pack(source, start, stride, transposed, rows, depth, packed, panel_stride)

    return chosen


@jit
def pack_columns(source, scales, start, stride, transposed, columns, depth, packed, packed_start, panel_stride):
    """Pack B[depth, columns] into panels one tile wide, `panel_stride` elements apart.

    B[k, j] is source[start + k * stride + j], or source[start + j * stride + k] if `transposed`.
    """
    tile_columns = TILE_VECTORS * lanes_of(source)
    if not transposed:
        _pack_along(source, scales, start, stride, columns, depth, packed, packed_start, tile_columns, panel_stride)
    items, unit = elements_per_item(packed), unit_of(packed)
    end = (depth + items - 1) // items * tile_columns
    padded_end = (depth + unit - 1) // unit * unit // items * tile_columns
    for panel in range((columns + tile_columns - 1) // tile_columns):
        first, at = panel * tile_columns, packed_start + panel * panel_stride
        if transposed:
            _pack_across(source, scales, start + first * stride, stride, min(tile_columns, columns - first), depth,
                         packed, at, tile_columns)
        for i in range(at + end, at + padded_end):
            packed[i] = 0
