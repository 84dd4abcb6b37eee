"""What all tests share: generators of random numbers, threads put back, fresh interpreters."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import settings
from tiny import save_tiny_model

import tinyft

ROOT = Path(tinyft.__file__).resolve().parent.parent

# The same examples in every run: a red test is red again when somebody looks at it. No deadline: the first
# call of a kernel may compile it.
settings.register_profile("tinyft", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tinyft")


# A shell that runs something in the background has Ctrl-C ignored there, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMPILE = """
import numpy as np
from tinyft import Engine, generate
from tiny import make_model

for kept_as, dtype in ("float32", "float32"), ("float32", "float64"), ("bfloat16", "float32"), ("int8", "float32"):
    engine = Engine(make_model(dtype=np.dtype(dtype)), weights=kept_as, max_rows=1)
    list(generate(engine, [1, 2], max_new_tokens=2))
    engine.logits(np.zeros((1, engine.config.n_embd), dtype))
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked as heavy runs only where it is asked for."""
    if "heavy" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("heavy"):
                item.add_marker(pytest.mark.skip(reason="heavy: python -m pytest -m heavy runs it"))


@pytest.fixture(scope="session", autouse=True)
def kernels_of_inference() -> Iterator[None]:
    """A second process compiles the largest kernels, where they aren't yet, while the first tests run."""
    path, nowhere = [str(ROOT), str(Path(__file__).parent)], subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{COMPILE}"],
                               stdin=nowhere, stdout=nowhere, stderr=nowhere)
    yield
    process.kill()
    process.wait()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def one_and_two_threads():
    """f(compute) -> compute() with one thread and with two."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here")
    before = numba.get_num_threads()

    def run(compute):
        results = []
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(compute())
        return results

    yield run
    numba.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A saved model of a few hundred numbers with its tokenizer, to be read alone."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run_python():
    """f(code, **environment) -> a finished fresh interpreter: some settings are read at import only."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        ours = ("TINYFT_VECTOR_BITS", "TINYFT_MATRIX_UNIT")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        paths = [str(ROOT), str(Path(__file__).parent)]
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=900,
            env={**kept, "PYTHONPATH": os.pathsep.join(paths), **environment},
        )

    return run
