"""What is decided at import: vector width, cache folder, the notice. Each in a fresh interpreter."""

import sys

import numba
import pytest

from tinyft.kernels.jit import REORDER, VECTOR_BYTES
from tinyft.kernels.threads import layer_is_thread_safe

SUM_OF_SQUARES = """
import numpy as np
from tinyft.kernels.sums import sum_of_squares
print(sum_of_squares(np.arange(4, dtype=np.float32)))
"""
NOTICE = "tinyft: compiling kernels"


@pytest.mark.heavy
@pytest.mark.parametrize("bits", [512, 256, 128])
def test_narrower_vectors(run_python, bits):
    """Tiles, packing and their edges depend on the width, so that each is a program of its own."""
    if bits > 8 * VECTOR_BYTES:
        pytest.skip(f"this CPU's vectors have {8 * VECTOR_BYTES} bits")
    if bits == 8 * VECTOR_BYTES:
        pytest.skip("the width that all other tests run with")
    done = run_python(
        "import reference; from tinyft.kernels.jit import VECTOR_BYTES\n"
        "reference.check_a_few_shapes(); print(8 * VECTOR_BYTES)",
        TINYFT_VECTOR_BITS=str(bits),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(bits)]


@pytest.mark.parametrize("bits", ["banana", "64", "1024", "", "256.0"])
def test_bad_vector_width_is_named(run_python, bits):
    done = run_python("import tinyft.kernels.jit", TINYFT_VECTOR_BITS=bits)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: TINYFT_VECTOR_BITS is {bits!r}, expected 128, 256 or 512")


def test_folder_that_cannot_be_made_is_done_without(run_python, tmp_path):
    # A file in the place of the folder, since permissions don't bind root.
    file = tmp_path / "file"
    file.write_text("")
    done = run_python(SUM_OF_SQUARES + "import tinyft.kernels.jit as j; print(j.CACHE_FOLDER)", TINYFT_CACHE=str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["14.0", "None"]
    assert done.stderr.count(NOTICE) == 1 and "since no folder to keep them in is writable" in done.stderr
    assert file.read_text() == ""


def test_notice_comes_once_and_only_while_compiling(run_python, tmp_path):
    first, second = (run_python(SUM_OF_SQUARES, TINYFT_CACHE=str(tmp_path)) for _ in range(2))
    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert done.stdout == "14.0\n"
    assert first.stderr.count(NOTICE) == 1 and str(tmp_path) in first.stderr
    assert second.stderr == ""


@pytest.mark.parametrize("setting", ["", "elsewhere"])
def test_users_own_numba_cache_setting_stays(run_python, tmp_path, setting):
    folder = str(tmp_path / setting) if setting else ""
    done = run_python(
        "import numba; before = numba.config.CACHE_DIR\nimport tinyft\nassert numba.config.CACHE_DIR == before\n"
        "print(before)",
        **({"NUMBA_CACHE_DIR": folder} if folder else {}),
    )
    assert done.returncode == 0, done.stderr
    if folder:
        assert done.stdout.strip() == folder


def test_cache_setting_is_put_back_here_too():
    assert "kernels-" not in numba.config.CACHE_DIR


def test_reordering_flags_leave_nan_and_inf_alone():
    """A compiler that may assume there are none doesn't always make use of it, so that results can't tell."""
    assert not {"nnan", "ninf", "fast"} & REORDER


TWO_THREADS = """
import threading
import numba, numpy as np
from tinyft.kernels.sums import sum_of_squares
array, results = np.ones(100_000, np.float32), []
threads = [threading.Thread(target=lambda: results.extend(sum_of_squares(array) for _ in range(300)))
           for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(numba.threading_layer(), len(results), set(results))
"""


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_two_threads_in_kernels(run_python, layer):
    """On Numba's workqueue layer this ended the process."""
    done = run_python(TWO_THREADS, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    name, *results = done.stdout.split()
    assert results == ["600", "{100000.0}"] and (name == "workqueue" or layer == "default")


@pytest.mark.parametrize("layer, safe", [("workqueue", False), ("forksafe", False), ("omp", True), ("tbb", True)])
def test_layers_that_several_threads_may_enter(monkeypatch, layer, safe):
    monkeypatch.setattr(numba.config, "THREADING_LAYER", layer)
    assert layer_is_thread_safe() is safe


def test_without_openmp_kernels_take_turns(monkeypatch):
    monkeypatch.setattr(numba.config, "THREADING_LAYER", "default")
    monkeypatch.setitem(sys.modules, "numba.np.ufunc.omppool", None)
    assert not layer_is_thread_safe()


LOSSES_OF_TWO_KERNELS = """
import sys
import numpy as np
from tinyft.kernels.loss import cross_entropy_and_gradient, cross_entropy_in_place
rng = np.random.default_rng(0)
for _ in range(300):
    logits, targets = rng.standard_normal((11, 257)).astype(np.float32), rng.integers(0, 257, 11)
    scales = np.ones(11, np.float32)
    losses = cross_entropy_in_place(logits.copy(), targets, scales)
    if "both" == {which!r}:
        assert np.array_equal(losses, cross_entropy_and_gradient(logits, targets, 1.0)[0])
"""


@pytest.mark.heavy
def test_a_kernel_sums_in_the_same_order_whenever_it_was_compiled(run_python, tmp_path):
    """The second kernel is compiled in another process than the first, with a helper that both merge."""
    for which in ("one", "both"):
        done = run_python(LOSSES_OF_TWO_KERNELS.format(which=which), TINYFT_CACHE=str(tmp_path))
        assert done.returncode == 0, done.stderr
