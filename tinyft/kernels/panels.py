"""Weights that stay packed: each is read once for all rows, and may be kept in 16 or 8 bits.

To answer prompts, the same weights are multiplied by a few rows of activations again and again. A token of one sequence
uses each weight once, so that reading them from memory is all that takes time, and two things help: to read in the
order in which they lie, and to have fewer bytes. So a matrix (depth, columns) is kept as PANELS of two vectors of
columns, k by k, which is the order of `packing.py`, and in one of these forms:

  float32    as it is (float64 as well, for tests)
  bfloat16   the upper half of a float32, rounded; an item of 32 bits holds column j in its lower half and the column
             one vector further in its upper half, so that a shift and a mask give two vectors
  int8       a whole number from -127 to 127 for each weight, and a float32 scale for every GROUP of them in a column

They are expanded in registers: what is multiplied and added is float32 everywhere. So a product is exactly the one with
the rounded weights in float32.

Each element of a product is a[0] b[0] + a[1] b[1] + ... added in this very order, whatever the number of rows.
So what a sequence gets does not depend on how many others are computed along with it.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit import jit
from .kept import GROUP
from .packing import TILE_ROWS, TILE_VECTORS, pack_columns, pack_rows
from .pieces import WORKERS, new_counter, pieces
from .simd import Vectors, bfloat16_pair, lanes_of, maximum, pointer_to, round_half_even

# Rows are multiplied in groups of as many as a tile has, and the rest in the smallest of these that is large enough.
FEW_ROWS = 4 if TILE_ROWS > 8 else 2
DEPTH = 1024  # that a panel is used at a time, so that it stays in L2 for all rows
PREFETCH = 4096  # bytes before they are needed


class _Weights:
    """Emits what turns the stored weights of one k into two vectors of floats."""

    def __init__(self, builder, stored: types.Number, number: types.Number):
        self.builder, self.vectors = builder, Vectors(builder, number)
        self.lanes, self.stored = self.vectors.lanes, stored
        self.items = TILE_VECTORS * self.lanes if stored != types.uint32 else self.lanes
        self.bytes = self.items * stored.bitwidth // 8
        self.scales = None

    def load_scales(self, pointer):
        """Have the weights of a group multiplied by their scales."""
        if self.stored == types.int8:
            self.scales = [self.vectors.load(self.vectors.at(pointer, v * self.lanes)) for v in range(TILE_VECTORS)]

    def load(self, pointer) -> list:
        builder, vectors = self.builder, self.vectors
        if self.stored == types.uint32:
            whole = ir.VectorType(ir.IntType(32), self.lanes)
            pairs = builder.load(builder.bitcast(pointer, whole.as_pointer()))
            pairs.align = 4
            upper = builder.and_(pairs, ir.Constant(whole, [0xFFFF0000] * self.lanes))
            lower = builder.shl(pairs, ir.Constant(whole, [16] * self.lanes))
            return [builder.bitcast(bits, vectors.type) for bits in (lower, upper)]
        if self.stored != types.int8:
            return [vectors.load(vectors.at(pointer, v * self.lanes)) for v in range(TILE_VECTORS)]
        loaded, part = [], ir.VectorType(ir.IntType(8), self.lanes)
        for v in range(TILE_VECTORS):
            at = builder.bitcast(vectors.at(pointer, v * self.lanes), part.as_pointer())
            small = builder.load(at)
            small.align = 1
            wide = builder.sext(small, ir.VectorType(ir.IntType(32), self.lanes))
            loaded.append(builder.fmul(builder.sitofp(wide, vectors.type), self.scales[v]))
        return loaded


def _accumulate_of(rows: int):
    """Make the intrinsic that multiplies `rows` rows by a panel."""

    @intrinsic
    def accumulate(typingctx, a, a_start, panel, panel_start, scales, scales_start, depth, c, c_start, fresh):
        """C[rows, 2 vectors] (+)= A B. a: depth x rows, from a_start; c: row after row, from c_start; all flat.

        fresh: begin with 0, not with what stands in C.
        """

        def codegen(context, builder, signature, args):
            a, a_start, panel, panel_start, scales, scales_start, depth, c, c_start, fresh = args
            kinds, index = signature.args, ir.IntType(64)
            pointer_a = pointer_to(context, builder, kinds[0], a, a_start)
            pointer_b = pointer_to(context, builder, kinds[2], panel, panel_start)
            pointer_c = pointer_to(context, builder, kinds[7], c, c_start)
            weights = _Weights(builder, kinds[2].dtype, kinds[7].dtype)
            vectors = weights.vectors
            weights.load_scales(pointer_to(context, builder, kinds[4], scales, scales_start))
            places = [vectors.at(pointer_c, at * vectors.lanes) for at in range(rows * TILE_VECTORS)]

            entry = builder.block
            reading, loop, after = (builder.append_basic_block(name) for name in ("read_c", "k", "end"))
            builder.cbranch(fresh, loop, reading)
            builder.position_at_end(reading)
            before = [vectors.load(place) for place in places]
            builder.branch(loop)

            builder.position_at_end(loop)
            k = builder.phi(index)
            sums = [builder.phi(vectors.type) for _ in places]
            row_of_b = builder.gep(pointer_b, [builder.mul(k, ir.Constant(index, weights.items))])
            byte = builder.bitcast(row_of_b, ir.IntType(8).as_pointer())
            for line in range(0, weights.bytes, 64):
                vectors.prefetch(builder.gep(byte, [ir.Constant(index, PREFETCH + line)]))
            loaded = weights.load(row_of_b)
            updated = []
            for row in range(rows):
                at = builder.add(builder.mul(k, ir.Constant(index, rows)), ir.Constant(index, row))
                number = vectors.splat(builder.gep(pointer_a, [at]))
                for column in range(TILE_VECTORS):
                    updated.append(vectors.multiply_add(number, loaded[column], sums[row * TILE_VECTORS + column]))
            following = builder.add(k, ir.Constant(index, 1))
            for block, values in ((entry, [vectors.zero] * len(places)), (reading, before), (loop, updated)):
                k.add_incoming(following if block is loop else ir.Constant(index, 0), block)
                for total, value in zip(sums, values, strict=True):
                    total.add_incoming(value, block)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

            builder.position_at_end(after)
            for place, value in zip(places, updated, strict=True):
                vectors.store(value, place)
            return context.get_dummy_value()

        at = types.intp
        return types.void(a, at, panel, at, scales, at, at, c, at, types.boolean), codegen

    return accumulate


_accumulate_one, _accumulate_few, _accumulate_tile = (_accumulate_of(rows) for rows in (1, FEW_ROWS, TILE_ROWS))


@intrinsic
def items_per_k(typingctx, weights, like):
    """Items that a panel has for one k; `like` is an array of the type that is computed in."""
    items = TILE_VECTORS * Vectors(None, like.dtype).lanes
    if weights.dtype == types.uint32:
        items //= 2

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), items)

    return types.intp(weights, like), codegen


@intrinsic
def _group_of(typingctx, weights):
    """How many k are multiplied with the same scales: GROUP in int8, else all."""
    group = GROUP if weights.dtype == types.int8 else DEPTH

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), group)

    return types.intp(weights), codegen


@intrinsic
def is_rounded(typingctx, weights):
    """Whether weights are kept in fewer bits than they are computed in."""
    rounded = not isinstance(weights.dtype, types.Float)

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(1), int(rounded))

    return types.boolean(weights), codegen


@jit
def scales_per_panel(depth, width):
    """How many scales a panel of so much depth has."""
    return (depth + GROUP - 1) // GROUP * width


@jit
def rows_of_group(rows):
    """The size of the group that so many rows are multiplied in: 1, FEW_ROWS or TILE_ROWS."""
    if rows == 1:
        return 1
    return FEW_ROWS if rows <= FEW_ROWS else TILE_ROWS


@jit
def pack_group(source, start, stride, rows, depth, group, packed, packed_start):
    """Pack `rows` rows of `depth` elements for `multiply_group`: depth x group, with zeros for rows that aren't there.

    One vector more than that may be written.
    """
    if group == TILE_ROWS:
        pack_rows(source, start, stride, False, rows, depth, packed[packed_start:], 0)
        return
    for row in range(group):
        at, into = start + row * stride, packed_start + row
        for k in range(depth):
            packed[into + k * group] = source[at + k] if row < rows else 0


@jit
def multiply_group(group, a, a_start, panel, panel_start, scales, scales_start, depth, c, c_start, fresh):
    """C[group, 2 vectors] (+)= A B for one packed group of rows and one panel.

    scales: those of the panel, two vectors for each GROUP of k; of any size where there are none.
    """
    step, items = _group_of(panel), items_per_k(panel, c)
    width = TILE_VECTORS * lanes_of(c)
    for k in range(0, depth, step):
        n, at, begin = min(step, depth - k), panel_start + k * items, fresh and k == 0
        scale = scales_start + k // step * width
        if group == 1:
            _accumulate_one(a, a_start + k, panel, at, scales, scale, n, c, c_start, begin)
        elif group == FEW_ROWS:
            _accumulate_few(a, a_start + k * FEW_ROWS, panel, at, scales, scale, n, c, c_start, begin)
        else:
            _accumulate_tile(a, a_start + k * TILE_ROWS, panel, at, scales, scale, n, c, c_start, begin)


@intrinsic
def _expand_k(typingctx, panel, panel_start, scales, scales_start, out, out_start):
    """The weights of one k as two vectors of floats."""

    def codegen(context, builder, signature, args):
        panel, panel_start, scales, scales_start, out, out_start = args
        kinds = signature.args
        weights = _Weights(builder, kinds[0].dtype, kinds[4].dtype)
        weights.load_scales(pointer_to(context, builder, kinds[2], scales, scales_start))
        into = pointer_to(context, builder, kinds[4], out, out_start)
        for v, vector in enumerate(weights.load(pointer_to(context, builder, kinds[0], panel, panel_start))):
            weights.vectors.store(vector, weights.vectors.at(into, v * weights.lanes))
        return context.get_dummy_value()

    at = types.intp
    return types.void(panel, at, scales, at, out, at), codegen


@jit
def expand_panel(panel, panel_start, scales, scales_start, depth, out):
    """The weights of a panel in full: depth x 2 vectors."""
    items, width, group = items_per_k(panel, out), TILE_VECTORS * lanes_of(out), _group_of(panel)
    for k in range(depth):
        _expand_k(panel, panel_start + k * items, scales, scales_start + k // group * width, out, k * width)


@jit
def weight_at(panels, start, scales, scales_start, depth, k, column, like):
    """B[k, column] of a matrix that is kept as panels from `start` on, as a float."""
    lanes, items = lanes_of(like), items_per_k(panels, like)
    width = TILE_VECTORS * lanes
    panel, lane = column // width, column % width
    scale = scales_start + panel * scales_per_panel(depth, width) + k // GROUP * width + lane
    return _stored_at(panels, start + panel * depth * items + k * items, lane, lanes, scales, scale, like)


@intrinsic
def _stored_at(typingctx, panels, at, lane, lanes, scales, scale, like):
    """The float that is kept in one lane of a panel."""
    number, stored = like.dtype, panels.dtype

    def codegen(context, builder, signature, args):
        panels, at, lane, lanes, scales, scale, _ = args
        if stored == types.uint32:
            item = builder.srem(lane, lanes)
            pair = builder.load(pointer_to(context, builder, signature.args[0], panels, builder.add(at, item)))
            in_upper = builder.icmp_signed(">=", lane, lanes)
            lower = builder.shl(pair, ir.Constant(pair.type, 16))
            upper = builder.and_(pair, ir.Constant(pair.type, 0xFFFF0000))
            return builder.bitcast(builder.select(in_upper, upper, lower), ir.FloatType())
        value = builder.load(pointer_to(context, builder, signature.args[0], panels, builder.add(at, lane)))
        if stored != types.int8:
            return value
        factor = builder.load(pointer_to(context, builder, signature.args[4], scales, scale))
        return builder.fmul(builder.sitofp(builder.sext(value, ir.IntType(32)), factor.type), factor)

    at_type = types.intp
    return number(panels, at_type, at_type, at_type, scales, at_type, like), codegen


# ---- preparing


@jit
def _keep_in_16_bits(panel, depth, kept, kept_start):
    """Round a panel of floats to bfloat16."""
    lanes = lanes_of(panel)
    for k in range(depth):
        for j in range(lanes):
            at = k * TILE_VECTORS * lanes + j
            kept[kept_start + k * lanes + j] = bfloat16_pair(panel[at], panel[at + lanes])


@jit(reorder=True)
def _keep_in_8_bits(panel, depth, kept, kept_start, scales, scales_start):
    """Round a panel of floats to whole numbers from -127 to 127, times a scale for each group in a column."""
    width = TILE_VECTORS * lanes_of(panel)
    zero, most, one = panel.dtype.type(0), panel.dtype.type(127), panel.dtype.type(1)
    for first in range(0, depth, GROUP):
        at = scales_start + first // GROUP * width
        scale, last = scales[at : at + width], min(depth, first + GROUP)
        for j in range(width):
            scale[j] = 0
        for k in range(first, last):
            row = panel[k * width : (k + 1) * width]
            for j in range(width):
                scale[j] = maximum(scale[j], abs(row[j]))
        for j in range(width):
            scale[j] /= most
        for k in range(first, last):
            row, into = panel[k * width : (k + 1) * width], kept[kept_start + k * width : kept_start + (k + 1) * width]
            for j in range(width):
                inverse = one / scale[j] if scale[j] > zero else zero
                into[j] = round_half_even(row[j] * inverse)


@jit
def _pack_panel(source, transposed, depth, columns, panel, packed, at):
    width = TILE_VECTORS * lanes_of(source)
    first = panel * width
    begin, stride = (first * depth, depth) if transposed else (first, columns)
    pack_columns(source, source, begin, stride, transposed, min(width, columns - first), depth, packed, at,
                 depth * width)


@jit(parallel=True)
def prepare_floats(source, transposed, depth, columns, kept, start):
    """Keep a matrix (depth, columns) as panels, from kept[start] on.

    source: flat, (depth, columns) row by row, or (columns, depth) if `transposed`.
    """
    width, counter = TILE_VECTORS * lanes_of(source), new_counter()
    for _ in prange(WORKERS):
        for panel in pieces(counter, (columns + width - 1) // width):
            _pack_panel(source, transposed, depth, columns, panel, kept, start + panel * depth * width)


@jit(parallel=True)
def prepare_bfloat16(source, transposed, depth, columns, kept, start, threads):
    """The same, rounded to bfloat16; kept: uint32."""
    lanes, counter = lanes_of(source), new_counter()
    for _ in prange(threads):
        floats = np.empty(depth * TILE_VECTORS * lanes, source.dtype)
        for panel in pieces(counter, (columns + TILE_VECTORS * lanes - 1) // (TILE_VECTORS * lanes)):
            _pack_panel(source, transposed, depth, columns, panel, floats, 0)
            _keep_in_16_bits(floats, depth, kept, start + panel * depth * lanes)


@jit(parallel=True)
def prepare_int8(source, transposed, depth, columns, kept, start, scales, scales_start, threads):
    """The same, rounded to int8, with scales[scales_start:] for each GROUP of k and each column."""
    width, counter = TILE_VECTORS * lanes_of(source), new_counter()
    for _ in prange(threads):
        floats = np.empty(depth * width, source.dtype)
        for panel in pieces(counter, (columns + width - 1) // width):
            _pack_panel(source, transposed, depth, columns, panel, floats, 0)
            _keep_in_8_bits(floats, depth, kept, start + panel * depth * width,
                            scales, scales_start + panel * scales_per_panel(depth, width))
