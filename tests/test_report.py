"""What a run leaves for people to look at: metrics.jsonl on a full disk and after a break, warnings, the plot."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

import tinyft.report
from tinyft.report import PLOT_SECONDS, RunReport, plot_losses, read_events
from tinyft.train import Accumulated, Evaluated, Noticed, Progress, Started, Stepped


def stepped(step: int) -> Stepped:
    return Stepped(step, step / 10, 5.0 / step, 1e-3, 2.0, 100, 200, 0.5)


def evaluated(step: int) -> Evaluated:
    return Evaluated(step, step / 10, 100 * step, 1.0, 4.0 / (step + 1), True, False)


def lines(folder: Path) -> list[dict]:
    content = (folder / "metrics.jsonl").read_bytes()
    assert content.endswith(b"\n") or not content
    return [json.loads(line) for line in content.splitlines()]


def names(events: list[dict]) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in events]


@pytest.fixture
def clock(monkeypatch):
    """The report's clock, moved by hand."""
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    moved = Clock()
    monkeypatch.setattr(tinyft.report, "time", moved)
    return moved


# ---- metrics.jsonl


def test_events_become_lines_at_once(tmp_path, capsys):
    with RunReport(tmp_path, Progress()) as report:
        for event in (Started(9, 9), evaluated(0), Accumulated(1, 1, 2), stepped(1), Noticed(1, "odd numbers")):
            report.add(event)
            assert lines(tmp_path) == report.events
    assert names(lines(tmp_path)) == [("evaluation", 0), ("step", 1), ("notice", 1)]
    assert lines(tmp_path)[1] == {"kind": "step", "step": 1, "epoch": 0.1, "loss": 5.0, "learning_rate": 1e-3,
                                  "gradient_norm": 2.0, "tokens": 100, "processed": 200, "seconds": 0.5}
    assert "warning at step 1: odd numbers\n" in capsys.readouterr().out


def run_until(folder: Path, step: int) -> None:
    with RunReport(folder, Progress()) as report:
        report.add(Started(20, 20))
        report.add(evaluated(0))
        for number in range(1, step + 1):
            report.add(stepped(number))
            if number % 2 == 0:
                report.add(evaluated(number))
            if number == 3:
                report.add(Noticed(3, "odd"))


@pytest.mark.parametrize(("progress", "kept"), [
    (Progress(), []),
    (Progress(evaluated_step=0), [("evaluation", 0)]),  # within the first step
    (Progress(step=2, evaluated_step=0), [("evaluation", 0), ("step", 1), ("step", 2)]),
    (Progress(step=3, evaluated_step=2),
     [("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("notice", 3)]),
])
def test_a_resumed_run_keeps_what_it_goes_on_from(tmp_path, progress, kept):
    run_until(tmp_path, 6)
    with RunReport(tmp_path, progress) as report:
        assert names(report.events) == names(lines(tmp_path)) == kept
        report.add(Started(20, 20))
        report.add(stepped(progress.step + 1))
    assert names(lines(tmp_path)) == [*kept, ("step", progress.step + 1)]


@pytest.mark.parametrize("line", [
    "[]", '"step"', "3", "null", "{}", '{"kind": "step"}', '{"kind": "step", "step": "x", "loss": 1}',
    '{"kind": ["step"], "step": 1, "loss": 1}', '{"kind": "step", "step": 1.5, "loss": 1}',
    '{"kind": "step", "step": true, "loss": 1}', '{"kind": "step", "step": -1, "loss": 1}',
    '{"kind": "evaluation", "step": 1, "loss": "1"}', '{"kind": "step", "step": 1, "loss": 1' + 400 * "0" + "}",
    '{"kind": "step", "step": 1' + 400 * "0" + ', "loss": 1}', '{"kind": "other", "step": 1, "loss": 1}',
])
def test_what_is_no_event_is_refused(tmp_path, line):
    good = json.dumps({"kind": "step", "step": 1, "loss": 1.5})
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: not an event of a run"):
        RunReport(tmp_path, Progress(step=1))
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{good[:-3]}", encoding="utf-8")
    assert names(read_events(tmp_path / "metrics.jsonl")) == [("step", 1)]


class Disk:
    """A file on a disk with so many bytes left."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 150, 170, 171, 400])
def test_a_full_disk_is_said_once_and_made_good(tmp_path, capsys, room):
    with RunReport(tmp_path, Progress()) as report:
        report.file = Disk(report.file, room)
        report.add(Started(20, 20))
        for step in range(1, 5):
            report.add(stepped(step))
        assert (tmp_path / "metrics.jsonl").stat().st_size == room
        report.file.room = 10**6
        report.add(stepped(5))
        assert lines(tmp_path) == report.events and len(report.events) == 5
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and "metrics.jsonl can't be written" in out and "No space left" in out


# ---- loggers


class Listener:
    """A logger that notes what it is told, and fails when told to."""

    def __init__(self, fails: str = ""):
        self.told, self.fails = [], fails

    def start(self, step, events):
        self._tell("start", step, names(events))

    def add(self, event):
        self._tell("add", event["kind"], event["step"])

    def close(self):
        self._tell("close")

    def _tell(self, *what):
        self.told.append(what)
        if what[0] == self.fails:
            raise RuntimeError("gone\naway")


def test_loggers_are_told_of_everything(tmp_path):
    new, resumed = Listener(), Listener()
    for listener, progress in ((new, Progress()), (resumed, Progress(step=1, evaluated_step=0))):
        with RunReport(tmp_path, progress, [listener]) as report:
            for event in (Started(9, 9), stepped(progress.step + 1), Noticed(1, "odd"), evaluated(2)):
                report.add(event)
    assert new.told == [("start", None, []), ("add", "step", 1), ("add", "notice", 1), ("add", "evaluation", 2),
                        ("close",)]
    assert resumed.told[0] == ("start", 1, [("step", 1), ("notice", 1)]) and resumed.told[-1] == ("close",)


def test_a_logger_that_fails_is_left_out(tmp_path, capsys):
    first, second, third = Listener("add"), Listener(), Listener("close")
    with RunReport(tmp_path, Progress(), [first, third, second]) as report:
        for event in (Started(9, 9), stepped(1), stepped(2)):
            report.add(event)
    assert first.told == [("start", None, []), ("add", "step", 1), ("close",)]
    assert second.told[1:] == [("add", "step", 1), ("add", "step", 2), ("close",)]
    assert third.told == [*second.told, ("close",)], "tried once more, and not told of"
    out = capsys.readouterr().out.splitlines()
    assert out == ["warning: Listener failed (gone away); training goes on without it"] * 2


def test_a_logger_that_cannot_start_ends_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="gone"):
        RunReport(tmp_path, Progress(), [Listener("start")])


# ---- the plot


def test_the_plot_is_redrawn_at_evaluations_but_not_often(tmp_path, monkeypatch, clock):
    drawn, cost = [], 0.0

    def plot(events, path, title):
        assert path == tmp_path / "loss.png" and title == "my run"
        drawn.append(events[-1]["step"])
        clock.now += cost

    monkeypatch.setattr(tinyft.report, "plot_losses", plot)
    with RunReport(tmp_path, Progress(), title="my run") as report:
        report.add(Started(100, 100))
        for step in range(1, 13):  # one step takes 10 seconds
            clock.now += PLOT_SECONDS / 3
            report.add(stepped(step))
            if step % 2 == 0:
                report.add(evaluated(step))
        assert drawn == [4, 8, 12]
        cost = PLOT_SECONDS / 10  # what takes so long is drawn every 50 times as long
        for step in range(13, 41):
            clock.now += PLOT_SECONDS / 3
            report.add(evaluated(step))
        assert drawn == [4, 8, 12, 15, 30]
        report.plot()
        assert drawn[-1] == 40 and len(drawn) == 6


def test_a_plot_that_fails_is_said_once(tmp_path, monkeypatch, clock, capsys):
    def plot(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tinyft.report, "plot_losses", plot)
    with RunReport(tmp_path, Progress()) as report:
        report.add(Started(9, 9))
        for step in range(4):
            clock.now += 100 * PLOT_SECONDS
            report.add(evaluated(step))
    assert capsys.readouterr().out.count("no plot: [Errno 28] No space left on device") == 1


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved; looked at instead of its pixels."""
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed, and plots need it")
    saved, save = [], figure.Figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    return saved


def events_of(count: int, **changes) -> list[dict]:
    steps = [{"kind": "step", "step": i, "epoch": i / 10, "loss": 5 / i, "learning_rate": 1e-3 / i,
              "gradient_norm": 1 + i % 3, "tokens": 100} for i in range(1, count + 1)]
    steps[-1] |= changes
    return [*steps, {"kind": "notice", "step": 1, "text": "odd"},
            {"kind": "evaluation", "step": count, "epoch": count / 10, "loss": 1.25}]


def test_the_plot_has_loss_gradient_norm_and_learning_rate(tmp_path, figures):
    assert plot_losses(events_of(80), tmp_path / "loss.png", "my run")
    losses, norms, rates = figures[0].axes
    assert [line.get_label() for line in losses.lines] == ["training, each step", "training", "validation"]
    assert [text.get_text() for text in losses.texts] == ["best 1.250"]
    assert list(norms.lines[0].get_ydata()) == [1 + i % 3 for i in range(1, 81)] and norms.get_yscale() == "linear"
    assert list(rates.lines[0].get_ydata()) == [1e-3 / i for i in range(1, 81)] and rates.get_ylim()[0] == 0
    assert list(rates.lines[0].get_xdata()) == [i / 10 for i in range(1, 81)]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_spike_of_the_gradient_does_not_flatten_the_others(tmp_path, figures):
    assert plot_losses(events_of(20, gradient_norm=1e4), tmp_path / "loss.png")
    assert figures[0].axes[1].get_yscale() == "log"


def test_steps_of_earlier_versions_are_drawn(tmp_path, figures):
    steps = [{key: event[key] for key in ("kind", "step", "epoch", "loss", "tokens")} for event in events_of(5)[:5]]
    assert plot_losses(steps, tmp_path / "loss.png") and len(figures) == 1
    assert not plot_losses(events_of(5)[5:], tmp_path / "none.png") and len(figures) == 1
