"""How long until something happens: imports, and the first training step with and without compiled kernels."""

import os
import subprocess
import sys
import tempfile
import time

from .peers import SMALL
from .timing import Table, interleaved

FIRST_STEP = f"""
import numpy as np
from tinyft import GPT2, GPT2Config, AdamW
model = GPT2(GPT2Config(**{SMALL}), np.random.default_rng(0))
ids = np.arange(128).reshape(2, 64)
model.loss(ids, ids).backward()
AdamW(model).step(1e-4, max_norm=1.0)
"""


def _python(code: str, **environment: str) -> None:
    # Python is to keep its bytecode as it does for everybody who has not forbidden it.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=inherited | environment, stderr=subprocess.DEVNULL)


def _imports(table: Table) -> None:
    """What `import tinyft` adds to the packages that it cannot do without."""
    times = interleaved({"tinyft": lambda: _python("import tinyft"),
                         "numpy_numba": lambda: _python("import numpy, numba"),
                         "all_dependencies": lambda: _python("import numpy, numba, tiktoken, safetensors.numpy")})
    table.add("import", "s", **times, **{"tinyft-numpy_numba": times["tinyft"] - times["numpy_numba"],
                                         "tinyft/numpy_numba": times["tinyft"] / times["numpy_numba"]})


def _first_steps(table: Table) -> None:
    """The same program twice: into an empty cache of kernels, then from the cache that this left."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        _python(FIRST_STEP, TINYFT_CACHE=cache)
        cold = time.perf_counter() - begin
        warm = interleaved({"tinyft": lambda: _python(FIRST_STEP, TINYFT_CACHE=cache)})["tinyft"]
    table.add("first training step, empty cache", "s", tinyft=cold)
    table.add("first training step, kernels in cache", "s", tinyft=warm)


def measure(table: Table) -> None:
    """Whole processes, so interpreter start is part of each number."""
    table.title("start", "from process start to process end")
    _imports(table)
    _first_steps(table)
