"""Vector registers: code that uses them by name, and small pieces that make plain loops use them.

`Vectors` emits whole-vector loads, multiply-adds and transposes for the intrinsics of `packing` and `matmul`,
whose registers must not be left to chance. Everywhere else loops are plain, and LLVM vectorises them.

The C library's `exp` is scalar under Numba: a loop that calls it runs one element at a time. `exp` here is
plain arithmetic without a branch, so LLVM turns a loop over it into vector instructions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .jit import VECTOR_BYTES, jit


def round_to_bfloat16(builder, values, bits: ir.Type):
    """Emit float32 -> uint32 whose upper half is the nearest bfloat16, ties to even; a number or a whole vector.

    Half of the last place that stays is added, less one bit where that place is even, and carries do the rest: they
    reach the exponent where they should, up to infinity. In a NaN they would too, so NaNs are made quiet instead.
    """
    lanes = bits.count if isinstance(bits, ir.VectorType) else None

    def constant(number):
        return ir.Constant(bits, number if lanes is None else [number] * lanes)

    number = builder.bitcast(values, bits)
    last_place = builder.and_(builder.lshr(number, constant(16)), constant(1))
    nearest = builder.add(builder.add(number, last_place), constant(0x7FFF))
    quiet = builder.or_(number, constant(0x00400000))
    return builder.select(builder.fcmp_unordered("uno", values, values), quiet, nearest)


def emit_bfloat16_pair(builder, even, odd):
    """Emit two float32, or vectors of them, as pairs of bfloat16 in uint32; see `round_to_bfloat16`."""
    lanes = even.type.count if isinstance(even.type, ir.VectorType) else None
    bits = ir.IntType(32) if lanes is None else ir.VectorType(ir.IntType(32), lanes)

    def constant(number):
        return ir.Constant(bits, number if lanes is None else [number] * lanes)

    low, high = (round_to_bfloat16(builder, values, bits) for values in (even, odd))
    return builder.or_(builder.lshr(low, constant(16)), builder.and_(high, constant(0xFFFF0000)))


@intrinsic
def bfloat16_pair(typingctx, even, odd):
    """Two float32 as one pair of bfloat16."""

    def codegen(context, builder, signature, args):
        return emit_bfloat16_pair(builder, *args)

    return types.uint32(types.float32, types.float32), codegen


@intrinsic
def as_factor(typingctx, packed, x):
    """x as a product sees it: rounded to bfloat16 where `packed` holds bfloat16 pairs, else as it is."""

    def codegen(context, builder, signature, args):
        if packed.dtype != types.uint32:
            return args[1]
        bits = ir.IntType(32)
        upper = builder.and_(round_to_bfloat16(builder, args[1], bits), ir.Constant(bits, 0xFFFF0000))
        return builder.bitcast(upper, args[1].type)

    return x(packed, x), codegen


def expand(builder, value):
    """Emit what makes a float32 of the 16 bits of a bfloat16 or of an int8; a number or a whole vector.

    Numbers of more bits stay as they are.
    """
    lanes = value.type.count if isinstance(value.type, ir.VectorType) else None

    def kind(scalar):
        return scalar if lanes is None else ir.VectorType(scalar, lanes)

    if value.type == kind(ir.IntType(16)):
        bits = builder.zext(value, kind(ir.IntType(32)))
        half = ir.Constant(bits.type, 16 if lanes is None else [16] * lanes)
        return builder.bitcast(builder.shl(bits, half), kind(ir.FloatType()))
    if value.type == kind(ir.IntType(8)):
        return builder.sitofp(value, kind(ir.FloatType()))
    return value


@intrinsic
def lanes_of(typingctx, array):
    """Elements per vector register, expanded, for the array's type; a constant of the compiled code."""
    lanes = VECTOR_BYTES * 8 // max(32, array.dtype.bitwidth)

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), lanes)

    return types.intp(array), codegen


def pointer_to(context, builder, array_type, array, offset):
    """The address of element `offset` of a flat array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


class _Bfloat16(ir.types._BaseFloatType):
    """LLVM's bfloat, which llvmlite does not have: the upper half of a float32."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"

    def format_constant(self, value):
        return str(value)


_Bfloat16._create_instance()


class Vectors:
    """Emits loads, stores and arithmetic on whole vectors of float32, float64, or pairs of bfloat16 (uint32).

    A pair has the element of an even k in its lower half and that of the next k in its upper half. Of single bfloat16
    (uint16) and of int8, what is loaded is vectors of float32.
    """

    STORED = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint32: ir.IntType(32),
              types.uint16: ir.IntType(16), types.int8: ir.IntType(8)}

    def __init__(self, builder, number_type: types.Number):
        self.builder = builder
        self.lanes = VECTOR_BYTES * 8 // max(32, number_type.bitwidth)
        self.stored = ir.VectorType(self.STORED[number_type], self.lanes)
        self.scalar = self.stored.element if number_type.bitwidth >= 32 else ir.FloatType()
        self.type = ir.VectorType(self.scalar, self.lanes)
        self.align = number_type.bitwidth // 8
        self.zero = ir.Constant(self.type, [0] * self.lanes)
        self.undefined = ir.Constant(self.type, ir.Undefined)

    def multiply_add(self, a, b, c):
        """a * b + c; for pairs, the sum of both products is added to a float32."""
        if self.scalar == ir.IntType(32):
            pairs, sums = ir.VectorType(_Bfloat16(), 2 * self.lanes), ir.VectorType(ir.FloatType(), self.lanes)
            kind, name = ir.FunctionType(sums, [sums, pairs, pairs]), "llvm.x86.avx512bf16.dpbf16ps.512"
            arguments = c, self.builder.bitcast(a, pairs), self.builder.bitcast(b, pairs)
        else:
            kind, name = ir.FunctionType(self.type, [self.type] * 3), f"llvm.fma.v{self.lanes}f{8 * self.align}"
            arguments = a, b, c
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def at(self, pointer, offset: int):
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), offset)])

    def load(self, pointer):
        loaded = self.builder.load(self.builder.bitcast(pointer, self.stored.as_pointer()))
        loaded.align = self.align
        return expand(self.builder, loaded)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, self.type.as_pointer())).align = self.align

    def prefetch(self, pointer):
        """Have what stands there fetched into the nearest cache while other things are done; any address will do."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        reading, nearest, data = (ir.Constant(number, code) for code in (0, 3, 1))
        self.builder.call(function, [self.builder.bitcast(pointer, byte), reading, nearest, data])

    def shuffle(self, a, b, lanes: list[int]):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def splat(self, pointer):
        first = self.builder.insert_element(
            self.undefined, self.builder.load(pointer), ir.Constant(ir.IntType(32), 0)
        )
        return self.shuffle(first, self.undefined, [0] * self.lanes)

    def transpose(self, rows: list) -> list:
        """Turn `lanes` vectors, each a row, into `lanes` vectors, each a column.

        One round for every bit of the index swaps the off-diagonal quarters of each 2 x 2 block of blocks.
        """
        width = 1
        while width < self.lanes:
            low = [i + (i & width and self.lanes - width) for i in range(self.lanes)]
            high = [i + width + (i & width and self.lanes - width) for i in range(self.lanes)]
            transposed = list(rows)
            for i in range(self.lanes):
                if not i & width:
                    transposed[i] = self.shuffle(rows[i], rows[i + width], low)
                    transposed[i + width] = self.shuffle(rows[i], rows[i + width], high)
            rows, width = transposed, 2 * width
        return rows


@intrinsic
def prefetch_lines(typingctx, source, start, count):
    """Have source[start : start + count] fetched into the nearest cache while other things are done.

    It may lie outside of the array: nothing is read that isn't there.
    """

    def codegen(context, builder, signature, args):
        vectors, index = Vectors(builder, signature.args[0].dtype), ir.IntType(64)
        pointer = pointer_to(context, builder, signature.args[0], *args[:2])
        line = ir.Constant(index, 64 // vectors.align)
        lines = builder.sdiv(builder.add(args[2], builder.sub(line, ir.Constant(index, 1))), line)
        with cgutils.for_range(builder, lines) as loop:
            vectors.prefetch(builder.gep(pointer, [builder.mul(loop.index, line)]))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once. All three of one float type."""
    if not (isinstance(a, types.Float) and a == b == c):
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def round_half_even(typingctx, x):
    """The nearest integer, still as a float (ties to even): one instruction."""

    def codegen(context, builder, signature, args):
        function = builder.module.declare_intrinsic("llvm.rint", [args[0].type])
        return builder.call(function, args)

    return x(x), codegen


@intrinsic
def power_of_two(typingctx, n):
    """2.0**n for a float n that holds a whole number in the exponent's range, or one beyond: 0 and inf.

    A float stores its exponent, plus a bias, just above its fraction bits; writing n there is all it takes.
    """
    fraction_bits, bias = (23, 127) if n == types.float32 else (52, 1023)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(n.bitwidth)
        exponent = builder.add(builder.fptosi(args[0], integer), ir.Constant(integer, bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, fraction_bits)), args[0].type)

    return n(n), codegen


@intrinsic
def maximum(typingctx, a, b):
    """The greater of two floats of one type; NaN if either is. Unlike `max`, LLVM vectorises a loop over it."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(args[0].type, [args[0].type] * 2)
        return builder.call(builder.module.declare_intrinsic("llvm.maximum", [args[0].type], kind), args)

    return a(a, a), codegen


def _make_exp(real, terms: int, exponents: int, ln2_high: float, ln2_low: float):
    """Build exp for one float type.

    Range reduction: exp(x) = 2**n * exp(r) with n = round(x / ln 2), so |r| <= ln(2)/2. r is formed in two
    steps, with ln 2 = ln2_high + ln2_low and ln2_high short enough that n * ln2_high is exact (Cody and
    Waite, "Software Manual for the Elementary Functions", 1980). exp(r) is its Taylor series by Horner's rule.

    x is held between the two n where the exponent's bits become all 0 or all 1, which is how 0 and inf are
    written. Both comparisons are false for NaN, which passes through.
    """
    lowest, highest = real(-(exponents - 1) * math.log(2)), real(exponents * math.log(2))
    log2_e = real(1 / math.log(2))
    minus_ln2_high, minus_ln2_low = real(-ln2_high), real(-ln2_low)
    series = tuple(real(1 / math.factorial(k)) for k in reversed(range(terms)))

    # No reordering here: it would merge the two parts of ln 2 again.
    @jit(inline=True)
    def exp_of(x):
        inside = lowest if x < lowest else x
        inside = highest if inside > highest else inside
        n = round_half_even(inside * log2_e)
        r = fma(n, minus_ln2_low, fma(n, minus_ln2_high, inside))
        p = series[0]
        for k in range(1, terms):
            p = fma(p, r, series[k])
        return p * power_of_two(n)

    return exp_of


_exp32 = _make_exp(np.float32, 8, 128, 0.693359375, -2.1219444005469058e-4)
_exp64 = _make_exp(np.float64, 14, 1024, 0.6931471803691238, 1.9082149292705877e-10)


def exp(x):
    """e**x inside a kernel, float32 or float64, within 2 ulp of the exact value (`tests/test_simd.py`).

    Below 0.7 times the smallest normal float it gives 0, from 0.7 times the largest on inf; NaN stays NaN.
    """
    raise NotImplementedError("exp is for jitted code; use numpy.exp in Python")


@overload(exp, inline="never")
def _choose_exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    if x == types.float64:
        return lambda x: _exp64(x)
    return None
