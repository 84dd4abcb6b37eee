"""Work in small pieces, which threads take from a counter until none is left.

Shared out beforehand, each thread would get as much as the next one, and all would wait for whichever is late: the one
that another program keeps from its core, or that has a slow core. From a counter, it takes fewer pieces.

    counter = new_counter()
    for _ in prange(WORKERS):
        for piece in pieces(counter, count):
            ...

Where a second stage needs all of the first, each piece of the first is said to `finish`, and threads `wait_for` them
within the loop. Unlike the end of a parallel loop, that waits for nobody who has not begun: a thread that comes late
finds its part done.
"""

import os

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import jit

# How often the loop over pieces is started; by each thread at least once, and all but its first find nothing left.
WORKERS = 128
LINE = 8  # counters in a cache line; those that several threads count up at a time should not share one
SPINS = 200  # times that `wait_for` looks before it lets others have the core


@jit
def new_counters(count):
    """Counters at 0. In a parallel function np.zeros would become one more parallel loop."""
    return np.zeros(count, np.int64)


@jit
def new_counter():
    """One counter at 0."""
    return new_counters(1)


def _address(context, builder, signature, args):
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def _fetch_and_increment(typingctx, counters, at):
    """counters[at], counting it up by one in the same instant, so that no two threads get the same.

    What a thread wrote before is written for whoever sees the new number with `_look`.
    """

    def codegen(context, builder, signature, args):
        pointer = _address(context, builder, signature, args)
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters, types.intp), codegen


@intrinsic
def _look(typingctx, counters, at):
    """counters[at] as it is now."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_address(context, builder, signature, args), "acquire", 8)

    return types.int64(counters, types.intp), codegen


@intrinsic
def _yield_core(typingctx):
    """Let another thread that is ready have this core, where there is one."""

    def codegen(context, builder, signature, args):
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


# Inline, which keeps it off the disk: a generator that Numba loads from its cache can't be used in a new kernel.
@jit(inline=True)
def pieces(counters, count, at=0):
    """The numbers below `count` that no other thread has taken from counters[at] yet, one after the other."""
    while True:
        piece = _fetch_and_increment(counters, at)
        if piece >= count:
            return
        yield piece


@jit(inline=True)
def pieces_in_order(counters, count, at, worker, workers):
    """The same for pieces that lie side by side in memory, which is read fastest in the order in which it lies.

    Each worker takes pieces from a stretch of its own, with a counter in counters[at + worker * LINE], and then what is
    left of the others'.
    """
    for turn in range(workers):
        owner = (worker + turn) % workers
        first, end = count * owner // workers, count * (owner + 1) // workers
        while True:
            piece = first + _fetch_and_increment(counters, at + owner * LINE)
            if piece >= end:
                break
            yield piece


@jit
def finish(counters, at):
    """Say that a piece is finished."""
    _fetch_and_increment(counters, at)


@jit
def wait_for(counters, at, count):
    """Wait until `count` pieces are finished; what was written by then can be read afterwards."""
    looks = 0
    while _look(counters, at) < count:
        looks += 1
        if looks > SPINS:
            _yield_core()
