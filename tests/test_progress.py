"""Progress: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import itertools
import sys
import time

import pytest

from tinyft.progress import SECONDS_BETWEEN_LINES, ProgressMeter, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds pass between two looks at the clock."""
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


def test_lines_come_by_time_and_without_carriage_returns(clock, capfd):
    with ProgressMeter(500, "training", "step") as meter:
        for _ in range(400):
            meter.update("loss 1.250")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err
    assert len(lines) == 4000 // SECONDS_BETWEEN_LINES
    assert lines[0] == "training: step 3 of 500, 0:30 passed, about 1:22:50 left, loss 1.250"


def test_what_is_left_of_a_resumed_job(clock, capfd):
    meter = ProgressMeter(106, "training", "step", initial=100)
    for _ in range(3):
        meter.update()
    assert capfd.readouterr().err == "training: step 103 of 106, 0:30 passed, about 0:30 left\n"


def test_short_jobs_say_nothing_in_a_pipe(capfd):
    assert list(progress([1, 2, 3], "replies", unit="reply")) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm", reason="tqdm is not installed, and bars need it")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressMeter(3, "training", "step") as meter:
        meter.update("loss 1.250")
    assert "training: " in sys.stderr.getvalue() and "| 1/3 [" in sys.stderr.getvalue()


def test_lines_on_a_terminal_without_tqdm(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(progress(range(3), "replies", unit="reply")) == [0, 1, 2]
    assert sys.stderr.getvalue() == "replies: reply 3 of 3, 0:30 passed, about 0:00 left\n"


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_said_lines_go_to_stdout(stderr, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stderr())
    with ProgressMeter(3, "training", "step") as meter:
        meter.say("validation 2.0")
    assert capsys.readouterr().out == "validation 2.0\n"


def test_without_stderr(monkeypatch):
    """As under pythonw on Windows."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress([1], "replies", unit="reply")) == [1]
