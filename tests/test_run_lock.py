"""Two runs in one folder: the second is refused before it deletes anything, and a killed one keeps nobody out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from test_run import fit_few
from tiny import assert_all_close, weights
from tiny import one_thread as one_thread

import tinyft.run_lock
from tinyft.files import NotWritable
from tinyft.report import RunReport
from tinyft.run import claim_output
from tinyft.run_lock import lock_folder, unlock_folder
from tinyft.state import find_states

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX has them")


@contextmanager
def another_run(folder):
    """A process that has locked a folder and lives until it is killed."""
    code = ("import sys; from tinyft.run_lock import lock_folder; assert lock_folder(sys.argv[1]) is not None; "
            "print('locked', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def tree(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_a_second_run_is_refused_and_changes_nothing(tmp_path):
    fit_few(tmp_path)
    (tmp_path / ".metrics.jsonl.1.part").write_text("being written")
    with another_run(tmp_path) as other:
        before = tree(tmp_path)
        expected = (f"{tmp_path}: another run (process {other.pid}) is writing there; wait for it, or choose another "
                    "folder")
        for resume, overwrite in ((False, False), (False, True), (True, False)):
            assert refusal(claim_output, tmp_path, resume=resume, overwrite=overwrite) == expected
        for resume in (False, True):
            assert refusal(fit_few, tmp_path, resume=resume) == expected
        assert tree(tmp_path) == before
        other.kill()
        other.wait()
        fit_few(tmp_path, resume=True)
    assert not (tmp_path / ".metrics.jsonl.1.part").exists()


def test_a_run_holds_the_lock_until_its_end(tmp_path, monkeypatch):
    """Seen from another process, in the middle and behind it."""
    code = "import sys; from tinyft.run_lock import lock_folder; lock_folder(sys.argv[1])"

    def said() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        return done.stderr

    seen, add = [], RunReport.add

    def adding(report, event):
        add(report, event)
        if not seen:
            seen.append(said())

    monkeypatch.setattr(RunReport, "add", adding)
    fit_few(tmp_path)
    assert f"another run (process {os.getpid()}) is writing there" in seen[0] and said() == ""


@pytest.mark.heavy
def test_a_killed_run_leaves_its_folder_free(tmp_path):
    """Killed as it goes on, too: the states that it had stay."""
    code = """
import os, signal, sys
from pathlib import Path
from test_run import fit_few
from tinyft.report import RunReport
from tinyft.run import claim_output
from tinyft.state import find_states
from tinyft.train import Stepped
folder, add = Path(sys.argv[1]), RunReport.add
def adding(report, event):
    add(report, event)
    if isinstance(event, Stepped) and event.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
RunReport.add = adding
resume = sys.argv[3] == "resume"
claim_output(folder, resume=resume, overwrite=False)
fit_few(folder, steps=5, state_minutes=0, resume=resume)
"""
    run, whole = tmp_path / "run", tmp_path / "whole"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
                                "NUMBA_NUM_THREADS": "1"}
    for step, how in (("2", "start"), ("4", "resume")):
        done = subprocess.run([sys.executable, "-c", code, run, step, how], env=environment, capture_output=True,
                              text=True, timeout=100)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert find_states(run)[0].name == f"step-00000{int(step) - 1}.safetensors"
    resumed, events = fit_few(claim_output(run, resume=True, overwrite=False), steps=5, resume=True)
    expected, wanted = fit_few(whole, steps=5)
    assert_all_close(weights(resumed), weights(expected), rtol=0)
    assert [(event["step"], event["loss"]) for event in events] == [(event["step"], event["loss"]) for event in wanted]


def test_a_process_may_claim_a_folder_twice(tmp_path):
    """As a script does that claims its folder and then calls `fit`; the first claim stays."""
    first = lock_folder(tmp_path)
    try:
        (tmp_path / "link").symlink_to(tmp_path)
        assert first is not None and lock_folder(tmp_path) is None and lock_folder(tmp_path / "link") is None
        fit_few(tmp_path)
        assert first in tinyft.run_lock._held
    finally:
        unlock_folder(first)
    assert first not in tinyft.run_lock._held


def test_a_folder_that_was_removed_is_locked_anew(tmp_path):
    old = lock_folder(tmp_path)
    (tmp_path / "run.lock").unlink()
    new = lock_folder(tmp_path)
    assert new is not None
    unlock_folder(old)
    unlock_folder(new)


def test_a_refused_claim_keeps_no_lock(tmp_path):
    fit_few(tmp_path)
    assert "holds a run" in refusal(claim_output, tmp_path, resume=False, overwrite=False)
    with another_run(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(tinyft.run_lock.fcntl, "flock", fail)
    assert lock_folder(tmp_path) is None
    fit_few(tmp_path)


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(NotWritable, match="run.lock: cannot be written"):
        lock_folder(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
