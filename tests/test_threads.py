"""How many threads there are, how they wait, and that work from a counter is done once each."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import prange

from tinyft.kernels.cpu import CacheSizes
from tinyft.kernels.jit import jit
from tinyft.kernels.matmul import PIECES, _plan, _sizes
from tinyft.kernels.packing import Layout, layout_of
from tinyft.kernels.pieces import WORKERS, finish, new_counter, new_counters, pieces, wait_for

SAID = "import os, tinyft, numba; print(*(os.environ.get(name) for name in {names}), numba.get_num_threads())"
NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# What a process that has imported tinyft hands on to its children.
UNSET = {"GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None, "NUMBA_NUM_THREADS": None, "OMP_WAIT_POLICY": None}


@pytest.fixture
def said(run_python, monkeypatch):
    """f(**environment) -> what tinyft has set, as words."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)

    def run(code: str = SAID.format(names=NAMES), **environment: str) -> list[str]:
        done = run_python(code, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


def test_waiting_is_brief(said):
    assert said()[:2] == ["2000", "1"]


def test_what_the_user_says_of_waiting_stays(said):
    assert said(GOMP_SPINCOUNT="5")[:2] == ["5", "1"]
    assert said(OMP_WAIT_POLICY="active")[:2] == ["None", "None"]


def test_number_of_threads(said):
    from tinyft.kernels.cpu import default_threads

    assert int(said()[-1]) == default_threads()
    assert said(NUMBA_NUM_THREADS="3")[-1] == "3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_a_mask_of_one_core_gives_one_thread(said):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + SAID.format(names=NAMES)
    assert said(code)[-1] == "1"


def test_threads_that_run_already_stay(said):
    code = """
import numpy, numba
@numba.njit(parallel=True)
def total(x):
    return x.sum()
total(numpy.ones(9))
before = numba.get_num_threads()
import tinyft
from tinyft.kernels.sums import sum_of_squares
sum_of_squares(numpy.ones(10**5))
print(before == numba.get_num_threads())
"""
    assert said(code) == ["True"]


@jit(parallel=True)
def _count_visits(count, visits):
    counter = new_counter()
    for _ in prange(WORKERS):
        for piece in pieces(counter, count):
            visits[piece] += 1


@pytest.mark.parametrize("count", [0, 1, 2, WORKERS, 10_000])
def test_each_piece_is_done_once(count):
    visits = np.zeros(count, np.int64)
    _count_visits(count, visits)
    np.testing.assert_array_equal(visits, 1)


@jit(parallel=True)
def _relay(stages, values, workers):
    """In each stage every value becomes the sum of all values of the stage before, plus 1."""
    counters = new_counters(2 * stages)
    for _ in prange(workers):
        for stage in range(stages):
            for piece in pieces(counters, values.shape[1], 2 * stage):
                values[stage + 1, piece] = values[stage].sum() + 1
                finish(counters, 2 * stage + 1)
            wait_for(counters, 2 * stage + 1, values.shape[1])


def test_a_stage_sees_all_of_the_one_before():
    stages, width = 12, 3
    expected = [0]
    for _ in range(stages):
        expected.append(width * expected[-1] + 1)
    for _ in range(200):
        values = np.zeros((stages + 1, width), np.int64)
        _relay(stages, values, 2)
        np.testing.assert_array_equal(values, np.tile(np.array(expected)[:, None], width))


@given(rows=st.integers(1, 60_000), depth=st.integers(1, 60_000), columns=st.integers(1, 60_000),
       threads=st.integers(1, 64), l2=st.sampled_from([2**18, 2**19, 2**21]), l3=st.sampled_from([0, 2**23, 2**29]),
       kind=st.sampled_from(["float32", "float64", "uint32", "matrix unit"]))
def test_plans_fit_their_buffers_and_cover_the_product(rows, depth, columns, threads, l2, l3, kind):
    own_bytes, shared_bytes = _sizes(CacheSizes(l1d=2**15, l2=l2, l3=l3))
    item = np.dtype("uint32" if kind == "matrix unit" else kind)
    own_room, shared_room = (room // item.itemsize for room in (own_bytes, shared_bytes))
    layout = Layout(32, 32, 2, 32) if kind == "matrix unit" else layout_of(item)
    plan = _plan(rows, depth, columns, threads, layout, own_room, shared_room)
    down, across = -(-rows // layout.tile_rows), -(-columns // layout.tile_columns)
    shared, own, shared_panel, own_panel = ((down, across, plan.a_panel, plan.b_panel) if plan.share_a
                                            else (across, down, plan.b_panel, plan.a_panel))
    assert (plan.shared_panels, plan.own_panels) == (shared, own)
    assert 1 <= plan.shared_step and plan.shared_step * shared_panel <= shared_room
    assert 1 <= plan.own_pieces <= own and -(-own // plan.own_pieces) * own_panel <= own_room
    assert plan.stages == -(-shared // plan.shared_step) * -(-depth // plan.k_step)
    assert own < PIECES * threads or plan.own_pieces >= PIECES * threads
