"""The first training step waits for kernels to be compiled. A second process compiles half of them.

Numba compiles one kernel at a time, whatever the number of threads. So while the forward pass runs for the first time,
and each kernel that it calls is compiled, a process of its own compiles those of the backward pass and the optimizer,
for arrays of float32, and leaves them in the folder of compiled kernels, from where the backward pass takes them.
Nothing depends on it: a kernel that isn't there when it is called is compiled then.
"""

import atexit
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np

from .kernels.adamw import adamw_step
from .kernels.attention import attention_backward, attention_decode
from .kernels.cache import CAN_LOCK
from .kernels.embedding import embedding_backward
from .kernels.gelu import gelu_backward
from .kernels.jit import CACHE_FOLDER
from .kernels.norm import layer_norm_backward
from .kernels.one_row import multiply_row
from .kernels.sums import sum_of_squares, sum_rows
from .segments import segments_of

DONE = "backward-pass-is-compiled"  # a file in the folder of compiled kernels
LONGEST_WAIT = 120.0  # seconds; then this process compiles for itself
_helper: subprocess.Popen | None = None
_asked = False


def compile_backward_pass() -> None:
    """Call every kernel of the backward pass and the optimizer once, the one that takes longest first."""
    x, row, ids = np.zeros((4, 4), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int64)
    segments, qkv, lse = segments_of([4]), np.zeros((4, 12), np.float32), np.zeros((1, 4), np.float32)
    attention_backward(x, qkv, 1, segments, 0.5, lse, numba.get_num_threads())
    layer_norm_backward(x, x, row, row, row)
    gelu_backward(row, row)
    sum_rows(x)
    embedding_backward(x, ids, x.copy())
    sum_of_squares(row)
    adamw_step(row, row.copy(), row.copy(), row.copy(), 1.0, 0.0, 0.9, 0.999, 1e-8, 0.1, 1)
    (CACHE_FOLDER / DONE).touch()
    # What generation needs, which comes next in most programs.
    multiply_row(row, x, False, row.copy(), 64, row[:0])
    attention_decode(x, x[:, None], x[:, None], 1, 0.5)


def begin(dtype: np.dtype) -> None:
    """Before a forward pass: start the second process, once, if there is work for it and a core to do it on."""
    global _helper, _asked
    if _asked or dtype != np.float32:
        return
    _asked = True
    if CACHE_FOLDER is None or not CAN_LOCK or numba.config.NUMBA_NUM_THREADS < 2 or (CACHE_FOLDER / DONE).exists():
        return
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
            "from tinyft.compile_ahead import compile_backward_pass; compile_backward_pass()")
    nowhere = subprocess.DEVNULL
    try:
        _helper = subprocess.Popen([sys.executable, "-c", code], stdin=nowhere, stdout=nowhere, stderr=nowhere)
    except OSError:
        return
    atexit.register(_helper.kill)  # whoever ends sooner needs it no more


def wait() -> None:
    """Before a backward pass: wait until its kernels are there, if they are being compiled."""
    global _helper
    give_up = time.monotonic() + LONGEST_WAIT
    while _helper is not None and time.monotonic() < give_up:
        if (CACHE_FOLDER / DONE).exists() or _helper.poll() is not None:
            break
        time.sleep(0.05)
    _helper = None
