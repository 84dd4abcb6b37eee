"""How tinyft compiles: one `jit` decorator, one cache folder, one line while compiling.

Numba compiles a kernel at its first call, with all the helpers that it calls, and can keep the machine code on disk
(`cache.py`). A helper is compiled by itself, and once more into each kernel above it, so that the first training step
waits for little else. Hence what `jit` leaves out: what a helper would need to be called from Python, and a version of
its own for each constant that it is called with.
"""

import os
import sys

import llvmlite.binding as llvm
import numba
from numba.core import event, types

from .cache import cache_folder, make_dependable
from .cpu import may_use_matrix_unit
from .threads import layer_is_thread_safe, one_thread_at_a_time, prepare_threads

prepare_threads()

# Flags that let the compiler reorder sums, fuse a*b+c and ignore the sign of zero, which is what
# vectorising a reduction takes. "nnan" and "ninf" stay out: with them every test for NaN is
# optimised away and a diverged loss would go unnoticed.
REORDER = {"reassoc", "contract", "nsz"}

HOST_FEATURES = {name for name, present in llvm.get_host_cpu_features().items() if present}


def _vector_bytes() -> int:
    """Width of the host's vector registers in bytes; TINYFT_VECTOR_BITS=512|256|128 overrides it."""
    if "avx512f" in HOST_FEATURES:
        widest = 64
    elif {"avx2", "fma"} <= HOST_FEATURES:
        widest = 32
    else:  # NEON and SSE
        widest = 16
    wanted = os.environ.get("TINYFT_VECTOR_BITS")
    if wanted is None:
        return widest
    if wanted not in ("128", "256", "512") or int(wanted) > 8 * widest:
        raise ValueError(
            f"TINYFT_VECTOR_BITS is {wanted!r}, expected 128, 256 or 512 and at most {8 * widest}, "
            "the width of this CPU's vector registers; unset it to use the widest"
        )
    return int(wanted) // 8


VECTOR_BYTES = _vector_bytes()
HAS_BFLOAT16 = VECTOR_BYTES == 64 and "avx512bf16" in HOST_FEATURES  # products of bfloat16 pairs
NO_BFLOAT16 = ("TINYFT_VECTOR_BITS keeps them from AVX-512 BF16" if "avx512bf16" in HOST_FEATURES
               else "this CPU has no AVX-512 BF16")


def _has_matrix_unit() -> bool:
    """Whether products of bfloat16 are AMX's; TINYFT_MATRIX_UNIT=0 leaves them to vectors."""
    wanted = os.environ.get("TINYFT_MATRIX_UNIT", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"TINYFT_MATRIX_UNIT is {wanted!r}, expected 0, to do without the CPU's matrix unit, or 1")
    return wanted == "1" and HAS_BFLOAT16 and "amx-bf16" in HOST_FEATURES and may_use_matrix_unit()


HAS_MATRIX_UNIT = _has_matrix_unit()


CACHE_FOLDER = cache_folder(sorted(HOST_FEATURES), VECTOR_BYTES, HAS_MATRIX_UNIT)


def _ignore_constants(dispatcher) -> None:
    """Have Numba compile one f(x, n) for calls like f(x, 0) and f(x, 1), not one for each constant."""
    template_of = dispatcher.get_call_template

    def get_call_template(args, kws):
        return template_of([types.unliteral(kind) for kind in args],
                           {name: types.unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template


def jit(function=None, *, parallel: bool = False, reorder: bool = False, inline: bool = False, merge: bool = False,
        nogil: bool = False):
    """`numba.njit` with tinyft's settings.

    A helper whose name begins with an underscore can be called from other kernels alone, unless it is parallel.

    parallel: `prange` loops run on all threads.
    reorder: sums may be reordered, see REORDER; never where the order matters for accuracy.
    inline: always copied into the caller's machine code, for helpers inside hot loops. These are not kept on disk:
    optimised once more on their way from there into another kernel, their sums would come out in another order than in
    the first.
    nogil: other threads of Python run meanwhile.
    merge: read as if it stood in the caller, for helpers with one caller: they are not compiled by themselves.
    """

    def decorate(f):
        options = dict(
            parallel=parallel,
            fastmath=REORDER if reorder else False,
            error_model="numpy",  # a division by zero gives inf, as in NumPy, and costs no branch
            boundscheck=False,
            nogil=nogil,
        )
        if f.__name__.startswith("_") and not parallel:
            options["no_cpython_wrapper"] = options["no_cfunc_wrapper"] = True
        if inline:
            options["forceinline"] = True
        if merge:
            options["inline"] = "always"
        if CACHE_FOLDER is None or inline or merge:
            dispatcher = numba.njit(**options)(f)
        else:
            # Numba reads the folder when it decorates; put the user's own setting back afterwards.
            before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE_FOLDER)
            try:
                dispatcher = numba.njit(cache=True, **options)(f)
            finally:
                numba.config.CACHE_DIR = before
            make_dependable(dispatcher, CACHE_FOLDER)
        _ignore_constants(dispatcher)
        return dispatcher

    if parallel and not layer_is_thread_safe():
        def decorated(f):
            return one_thread_at_a_time(decorate(f))
    else:
        decorated = decorate
    return decorated if function is None else decorated(function)


class _CompileNotice(event.Listener):
    """Says once, on stderr, why the first call takes a while. Loading from the cache stays silent."""

    def on_start(self, happening):
        name = getattr(happening.data.get("dispatcher"), "__module__", "") or ""
        if name.startswith("tinyft."):
            event.unregister("numba:compile", self)
            kept = (f"they are kept in {CACHE_FOLDER}" if CACHE_FOLDER else
                    "again at every start, since no folder to keep them in is writable (TINYFT_CACHE can name one)")
            print(f"tinyft: compiling kernels for this CPU, which can take a minute; {kept}",
                  file=sys.stderr, flush=True)

    def on_end(self, happening):
        pass


event.register("numba:compile", _CompileNotice())
