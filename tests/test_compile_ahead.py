"""What saves time at the very first step: a second process, one version of each helper, and an index kept whole."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from tinyft import GPT2, GPT2Config, compile_ahead, no_grad
from tinyft.kernels import cache
from tinyft.kernels.jit import jit

STEP = """
import numpy as np
from numba.core import event

compiled = []

class Listener(event.Listener):
    def on_start(self, happening):
        compiled.append(happening.data["dispatcher"].py_func.__name__)
    def on_end(self, happening):
        pass

event.register("numba:compile", Listener())
from tinyft import GPT2, AdamW, GPT2Config
model = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2), np.random.default_rng(0))
optimizer, ids = AdamW(model), np.arange(16).reshape(2, 8)
for _ in range(2):
    loss = model.loss(ids, ids)
    loss.backward()
    optimizer.step(0.1, max_norm=1.0)
print(float(loss.item()).hex(), *compiled)
"""
BACKWARD = {"attention_backward", "layer_norm_backward", "gelu_backward", "sum_rows", "embedding_backward",
            "sum_of_squares", "adamw_step"}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Commands that would have been started, where there is a folder for kernels and two cores."""
    commands = []

    class Started:
        killed = False

        def __init__(self, command, **options):
            commands.append(command)

        def poll(self):
            return -9 if self.killed else None

        def wait(self):
            return None

        def kill(self):
            self.killed = True

    monkeypatch.setattr(compile_ahead.subprocess, "Popen", Started)
    monkeypatch.setattr(compile_ahead.atexit, "register", lambda function: None)
    monkeypatch.setattr(compile_ahead, "CACHE_FOLDER", tmp_path)
    monkeypatch.setattr(compile_ahead, "CAN_LOCK", True)
    monkeypatch.setattr(compile_ahead, "_asked", False)
    monkeypatch.setattr(compile_ahead, "_helper", None)
    monkeypatch.setattr(compile_ahead.numba, "get_num_threads", lambda: 2)
    return commands


@pytest.mark.heavy
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2 or not cache.CAN_LOCK,
                    reason="needs two cores and a system that locks files")
def test_a_second_process_compiles_the_backward_pass(run_python, tmp_path):
    """That it is for the very types of a real step shows in that nothing of it is compiled again."""
    first = run_python(STEP, TINYFT_CACHE=str(tmp_path))
    assert first.returncode == 0, first.stderr
    loss, *compiled = first.stdout.split()
    assert "attention_forward" in compiled and not BACKWARD & set(compiled)
    assert first.stderr.count("\n") == 1  # the notice that kernels are being compiled
    second = run_python(STEP, TINYFT_CACHE=str(tmp_path))
    assert second.stdout.split() == [loss]


def test_it_is_started_once(started):
    for _ in range(3):
        compile_ahead.begin(np.dtype(np.float32))
    assert len(started) == 1


def test_there_is_nothing_to_do(started, tmp_path):
    compile_ahead.begin(np.dtype(np.float64))
    (tmp_path / compile_ahead.DONE).touch()
    compile_ahead.begin(np.dtype(np.float32))
    assert started == []


@pytest.mark.parametrize(("name", "value"), [("CACHE_FOLDER", None), ("CAN_LOCK", False)])
def test_nowhere_to_leave_the_kernels(started, monkeypatch, name, value):
    monkeypatch.setattr(compile_ahead, name, value)
    compile_ahead.begin(np.dtype(np.float32))
    assert started == []


def test_one_core_has_enough_to_do(started, monkeypatch):
    monkeypatch.setattr(compile_ahead.numba, "get_num_threads", lambda: 1)
    compile_ahead.begin(np.dtype(np.float32))
    assert started == []


def test_a_process_that_cannot_be_started_is_done_without(started, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no more processes")

    monkeypatch.setattr(compile_ahead.subprocess, "Popen", refuse)
    compile_ahead.begin(np.dtype(np.float32))
    compile_ahead.wait()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2 or not cache.CAN_LOCK,
                    reason="needs two cores and a system that locks files")
def test_nothing_is_left_behind(run_python, tmp_path):
    """A process that ends first takes the second one along."""
    done = run_python("import numpy as np; from tinyft import compile_ahead as c; c.begin(np.dtype(np.float32)); "
                      "print(c._helper.pid)", TINYFT_CACHE=str(tmp_path))
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the second process goes on")


def test_evaluation_starts_none(started, monkeypatch):
    monkeypatch.setattr(compile_ahead, "LONGEST_WAIT", 0.0)
    model = GPT2(GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1), np.random.default_rng(0))
    ids = np.arange(4)[None]
    with no_grad():
        model.loss(ids, ids)
    assert started == []
    model.loss(ids, ids)
    assert len(started) == 1


@pytest.mark.parametrize("how", ["ends", "is done", "takes too long"])
def test_waiting_ends(started, monkeypatch, tmp_path, how):
    compile_ahead.begin(np.dtype(np.float32))
    if how == "ends":
        compile_ahead._helper.poll = lambda: 1
    elif how == "is done":
        (tmp_path / compile_ahead.DONE).touch()
    else:
        monkeypatch.setattr(compile_ahead, "LONGEST_WAIT", 0.2)
    begin = time.monotonic()
    compile_ahead.wait()
    assert time.monotonic() - begin < 20
    assert compile_ahead._helper.killed == (how == "takes too long")
    compile_ahead.stop()  # as at the end of this process: the kernels of generation may still be compiled
    assert compile_ahead._helper.killed


def test_a_helper_has_one_version_for_all_constants():
    @jit
    def _add(x, n):
        return x + n

    @jit
    def kernel(x):
        return _add(x, 1) + _add(x, 2) + _add(x, x)

    assert kernel(5) == 6 + 7 + 10
    assert len(_add.overloads) == 1


def test_kernels_are_saved_one_at_a_time(tmp_path):
    inside, most = 0, 0

    def save(signature, compiled):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1

    if not cache.CAN_LOCK:
        pytest.skip("this system doesn't lock files")
    dispatchers = [SimpleNamespace(_cache=SimpleNamespace(save_overload=save)) for _ in range(8)]
    threads = []
    for dispatcher in dispatchers:
        dispatcher._cache.load_overload = None
        cache.make_dependable(dispatcher, tmp_path)
        threads.append(threading.Thread(target=dispatcher._cache.save_overload, args=(None, None)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_folder_that_has_gone_is_done_without(tmp_path):
    dispatcher = SimpleNamespace(_cache=SimpleNamespace(save_overload=lambda signature, compiled: 1 / 0,
                                                        load_overload=None))
    cache.make_dependable(dispatcher, tmp_path / "gone")
    dispatcher._cache.save_overload(None, None)


@pytest.mark.heavy
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
@pytest.mark.parametrize("files", ["*.nbi", "*.nbc"])
def test_damaged_files_are_made_anew(run_python, tmp_path, damage, files):
    code = ("import numpy as np; from tinyft.kernels.sums import sum_of_squares; "
            "print(sum_of_squares(np.arange(4, dtype=np.float32)))")
    assert run_python(code, TINYFT_CACHE=str(tmp_path)).stdout == "14.0\n"
    kept = list(tmp_path.rglob(files))
    for file in kept:
        file.write_bytes(damage(file.read_bytes()))
    assert kept
    mended, again = (run_python(code, TINYFT_CACHE=str(tmp_path)) for _ in range(2))
    assert mended.stdout == again.stdout == "14.0\n", mended.stderr
    assert "compiling" in mended.stderr and again.stderr == ""


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way on Windows")
def test_ctrl_c_ends_compiling(tmp_path):
    """A KeyboardInterrupt would be lost where LLVM calls back."""
    # What a shell starts in the background ignores Ctrl-C, and so do these tests then, and what they start.
    code = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from tinyft.cli import run; from tinyft.run import warm_up; run(warm_up); print('went on')")
    env = {**os.environ, "TINYFT_CACHE": str(tmp_path), "PYTHONPATH": str(Path(compile_ahead.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert "compiling" in process.stderr.readline()
    time.sleep(3)  # in the middle of it
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "") and errors.strip().endswith("interrupted")
