"""What the machine is, what the kernels chose for it, and what it can do: multiply-adds in registers, and reading."""

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange, threading_layer, types
from numba.extending import intrinsic

from tinyft.kernels.cpu import cache_sizes, cpu_name, cpu_quota, physical_cores
from tinyft.kernels.jit import HAS_BFLOAT16, HAS_MATRIX_UNIT, VECTOR_BYTES, jit
from tinyft.kernels.matmul import PIECE_BYTES, SHARED_BYTES
from tinyft.kernels.packing import TILE_ROWS, TILE_VECTORS
from tinyft.kernels.simd import Vectors

from .timing import Table, interleaved

PEAK = "multiply-adds in registers, float32"
CHAINS = TILE_ROWS * TILE_VECTORS  # independent sums, as many as the tile of `matmul` has


@intrinsic
def _fma_chains(typingctx, start, rounds):
    """`rounds` multiply-adds on each of CHAINS vectors of float32 that never leave their registers."""

    def codegen(context, builder, signature, args):
        vectors = Vectors(builder, types.float32)
        index = ir.IntType(64)
        splat = builder.insert_element(vectors.undefined, args[0], ir.Constant(ir.IntType(32), 0))
        splat = vectors.shuffle(splat, vectors.undefined, [0] * vectors.lanes)
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(index)
        k.add_incoming(ir.Constant(index, 0), before)
        sums = [builder.phi(vectors.type) for _ in range(CHAINS)]
        updated = [vectors.multiply_add(splat, total, splat) for total in sums]
        following = builder.add(k, ir.Constant(index, 1))
        k.add_incoming(following, loop)
        for total, new in zip(sums, updated, strict=True):
            total.add_incoming(splat, before)
            total.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[1]), loop, after)
        builder.position_at_end(after)
        total = updated[0]
        for new in updated[1:]:
            total = builder.fadd(total, new)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.float32, types.int64), codegen


@jit(parallel=True)
def _fma_peak(threads, rounds, results):
    for thread in prange(threads):
        results[thread] = _fma_chains(np.float32(0.5), rounds)


@jit(reorder=True)
def _sum(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i]
    return total


@jit(parallel=True)
def _read(x, parts):
    sums = np.zeros(parts, x.dtype)
    for part in prange(parts):
        sums[part] = _sum(x[x.size * part // parts : x.size * (part + 1) // parts])
    return sums.sum()


def multiply_adds(threads: int, rounds: int = 2_000_000) -> int:
    """Do multiply-adds in registers as fast as they go, in so many threads; returns their number, each counted as two.

    Divided by the time that it takes, that is the machine's peak in float32.
    """
    _fma_peak(threads, rounds, np.zeros(threads, np.float32))
    return 2 * CHAINS * (VECTOR_BYTES // 4) * rounds * threads


def limits() -> dict[str, float]:
    """Peak GFLOP/s in float32 and GB/s of reading, with all threads."""
    threads = get_num_threads()
    data = np.ones(2**28, np.float32)
    flops = multiply_adds(threads)
    times = interleaved({"fma": lambda: multiply_adds(threads), "read": lambda: _read(data, 8 * threads)})
    return {"peak": flops / times["fma"] / 1e9, "bandwidth": data.nbytes / times["read"] / 1e9}


def cpu() -> dict[str, str | float | None]:
    """The CPU, and what was chosen for it; sizes in bytes. Only after a kernel ran, which chooses the layer."""
    caches = cache_sizes()
    return {"name": cpu_name(), "L1d": caches.l1d, "L2": caches.l2, "L3": caches.l3, "cores": physical_cores(),
            "quota": cpu_quota(), "threads": get_num_threads(), "threading_layer": threading_layer(),
            "vector_bits": 8 * VECTOR_BYTES, "bfloat16": HAS_BFLOAT16,
            "matrix_unit": HAS_MATRIX_UNIT, "tile_rows": TILE_ROWS, "tile_vectors": TILE_VECTORS,
            "piece_bytes": PIECE_BYTES, "shared_bytes": SHARED_BYTES}


def _size(count: int) -> str:
    """Bytes in binary units, as makers of CPUs count them; caches are whole numbers of KB."""
    if not count:
        return "none"
    return f"{count / 2**20:g} MB" if count >= 2**20 else f"{count / 2**10:g} KB"


def describe(found: dict) -> str:
    """What `cpu` found, in two lines."""
    quota = f"a quota of {found['quota']:g}" if found["quota"] else "no quota"
    bfloat16 = "no bfloat16"
    if found["bfloat16"]:
        bfloat16 = "bfloat16 in the matrix unit" if found["matrix_unit"] else "bfloat16 in vectors"
    return (f"CPU: {found['name']}; {found['cores']} cores, {quota}; "
            f"L1d {_size(found['L1d'])}, L2 {_size(found['L2'])} a core, L3 {_size(found['L3'])}\n"
            f"chosen: {found['threads']} threads ({found['threading_layer']}), vectors of {found['vector_bits']} bits, "
            f"{bfloat16}; matmul: tiles of {found['tile_rows']} rows x {found['tile_vectors']} vectors, "
            f"pieces of {_size(found['piece_bytes'])}, up to {_size(found['shared_bytes'])} shared")


def measure(table: Table) -> dict[str, float]:
    """What the machine is, and a table of its limits, which are returned."""
    machine = limits()
    print(describe(cpu()))
    table.title("machine", f"machine, {get_num_threads()} threads, vectors of {8 * VECTOR_BYTES} bits")
    table.add(PEAK, "GFLOP/s", measured=machine["peak"])
    table.add("reading 1 GiB", "GB/s", measured=machine["bandwidth"])
    return machine
