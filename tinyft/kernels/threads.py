"""The threads that kernels run on: how many, how they wait, and who may call from several threads of Python.

Numba runs `prange` loops on one of three layers. With OpenMP and TBB several threads may call kernels at the
same time. Its own "workqueue", which is left where neither is installed, ends the whole process when two
threads are in kernels at once. There they take turns.

There is a thread for each core that this process may use: no more than a container's quota allows, hyper-threads of
one core counted once (`cpu.py`). NUMBA_NUM_THREADS, or --threads, says otherwise. `numba.set_num_threads` holds for
the thread that calls it; others start with all that there are. So whoever serves several requests does best to let one
thread own the model.

A thread that has done its part of a loop waits for the others, and OpenMP's wait by asking again and again, for
milliseconds. Alone on the machine that is the fastest way. But beside another program, the waiting thread keeps from
the core the very thread that it waits for. So here they ask two thousand times and then sleep. And kernels hand out
their work in small pieces from a counter, so that a thread which gets less of its core takes fewer of them.
"""

import functools
import importlib
import os
import threading
from collections.abc import Callable

import numba
from numba.np.ufunc import parallel

from .cpu import default_threads

# What OpenMP libraries look up when they are loaded. GNU's is how often to ask, each time a pause of some 10 to 40 ns,
# which bridges the shortest gaps between two kernels of a step; a thread that sleeps takes some 50 us to wake. To ask
# more often is faster on an idle machine and slower on a busy one. Intel's and LLVM's is in milliseconds.
BRIEF_WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


def prepare_threads() -> None:
    """Wait briefly, and use the cores that there are; what the user has set stays. For the start, before any kernel."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in BRIEF_WAITING.items():
            os.environ.setdefault(name, value)
    if "NUMBA_NUM_THREADS" not in os.environ and not parallel._is_initialized:
        threads = min(default_threads(), numba.config.NUMBA_NUM_THREADS)
        # In the environment as well, where Numba looks again whenever that has changed.
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
        numba.config.NUMBA_NUM_THREADS = threads


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
