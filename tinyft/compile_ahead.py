"""The first training step waits for kernels to be compiled. A second process compiles half of them.

Numba compiles one kernel at a time, whatever the number of threads. So while the forward pass runs for the first time,
and each kernel that it calls is compiled, a process of its own compiles those of the backward pass and the optimizer,
for arrays of float32, and leaves them in the folder of compiled kernels, where the backward pass finds them.
Nothing depends on it: a kernel that isn't there when it is called is compiled then.
"""

import atexit
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np

from .kernels.adamw import adamw_step
from .kernels.attention import attention_backward
from .kernels.cache import CAN_LOCK
from .kernels.embedding import embedding_backward
from .kernels.gelu import gelu_backward
from .kernels.jit import CACHE_FOLDER
from .kernels.norm import layer_norm_backward
from .kernels.sums import sum_of_squares, sum_rows
from .segments import segments_of

DONE = "backward-pass-is-compiled"  # a file in the folder of compiled kernels
LONGEST_WAIT = 120.0  # seconds; then this process compiles for itself
_helper: subprocess.Popen | None = None
_asked = False


def compile_backward_pass() -> None:
    """Call the kernels of GPT-2's usual backward pass and of AdamW once, the one that takes longest first."""
    x, row, ids = np.zeros((4, 4), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int64)
    segments, qkv, lse = segments_of([4]), np.zeros((4, 12), np.float32), np.zeros((1, 4), np.float32)
    attention_backward(x, qkv, 1, segments, 0.5, lse, numba.get_num_threads())
    layer_norm_backward(x, x, row, row, row)
    gelu_backward(row, row)
    sum_rows(x)
    embedding_backward(x, ids, x.copy())
    sum_of_squares(row)
    adamw_step(row, row.copy(), row.copy(), row.copy(), 1.0, 0.0, 0.9, 0.999, 1e-8, 0.1, 1, 0)
    (CACHE_FOLDER / DONE).touch()


def begin(dtype: np.dtype) -> None:
    """Before a forward pass: start the second process, once, if there is work for it and a core to do it on."""
    global _helper, _asked
    if _asked or dtype != np.float32:
        return
    _asked = True
    possible = CACHE_FOLDER is not None and CAN_LOCK and numba.get_num_threads() > 1 and sys.executable
    if not possible or (CACHE_FOLDER / DONE).exists():
        return
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
            "from tinyft.compile_ahead import compile_backward_pass; compile_backward_pass()")
    nowhere = subprocess.DEVNULL
    try:
        _helper = subprocess.Popen([sys.executable, "-c", code], stdin=nowhere, stdout=nowhere, stderr=nowhere)
    except OSError:
        return
    # Somebody has to take note of its end, or the system goes on listing it.
    threading.Thread(target=_helper.wait, daemon=True).start()
    atexit.register(stop)


def stop() -> None:
    """End the second process, when this one ends first."""
    if _helper is not None:
        _helper.kill()


def wait() -> None:
    """Before a backward pass: wait until its kernels are there, if they are being compiled."""
    give_up = time.monotonic() + LONGEST_WAIT
    while _helper is not None and _helper.poll() is None and not (CACHE_FOLDER / DONE).exists():
        if time.monotonic() > give_up:
            stop()
            break
        time.sleep(0.05)
