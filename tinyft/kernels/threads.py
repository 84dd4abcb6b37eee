"""Kernels called from several threads of Python.

Numba runs `prange` loops on one of three layers. With OpenMP and TBB several threads may call kernels at the
same time. Its own "workqueue", which is left where neither is installed, ends the whole process when two
threads are in kernels at once. There they take turns.

`numba.set_num_threads` (--threads) holds for the thread that calls it; others start with all that there are.
So whoever serves several requests does best to let one thread own the model.
"""

import functools
import importlib
import threading
from collections.abc import Callable

import numba

_taking_turns = threading.Lock()


def layer_is_thread_safe() -> bool:
    """Whether Numba will surely choose a layer that several threads may enter; it says which only afterwards."""
    layer = str(numba.config.THREADING_LAYER).lower()
    if layer != "default":
        return layer in ("tbb", "omp", "safe", "threadsafe")
    order = numba.config.THREADING_LAYER_PRIORITY
    if order.index("workqueue") < order.index("omp"):
        return False
    try:
        importlib.import_module("numba.np.ufunc.omppool")  # fails where there is no OpenMP library
    except ImportError:
        return False
    return True


def one_thread_at_a_time(kernel: Callable) -> Callable:
    """The same kernel for callers in Python, not in other kernels; it waits while another thread is in one."""

    @functools.wraps(kernel)
    def locked(*arguments, **options):
        with _taking_turns:
            return kernel(*arguments, **options)

    return locked
