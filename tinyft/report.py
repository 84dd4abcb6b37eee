"""What a person sees of a run: its progress, a line for each evaluation, metrics.jsonl and a plot."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .files import one_line, read_json_lines, replacing, write_text
from .loggers import Logger
from .progress import ProgressMeter
from .train import Evaluated, Noticed, Progress, Started, Stepped

KINDS = {Stepped: "step", Evaluated: "evaluation", Noticed: "notice"}  # of the lines in metrics.jsonl
PLOT_SECONDS = 30.0  # between two plots of a run that goes on; more where drawing takes long


class RunReport:
    """Hand it every event of `train`; it shows progress on stderr and keeps metrics.jsonl and loss.png in `folder`.

    progress: where the run starts; of a resumed run, the earlier events are kept. loggers: told of every event, too
    (`loggers.py`). title: stands above the plot. Once a run is on its way, nothing here can end it: a full disk, a
    logger or a plot that fails is said once.
    """

    def __init__(self, folder: str | os.PathLike, progress: Progress, loggers: Sequence[Logger] = (), title: str = ""):
        self.path, self.plot_path, self.title = Path(folder) / "metrics.jsonl", Path(folder) / "loss.png", title
        self.start_step = progress.step
        resumed = progress.step > 0 or progress.evaluated_step >= 0
        self.events = _events_until(self.path, progress) if resumed else []
        self.loggers = list(loggers)
        for logger in self.loggers:  # before anything is written: what one refuses shall leave no traces of a run
            logger.start(progress.step if resumed else None, self.events)
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in self.events))
        self.file = open(self.path, "ab", buffering=0)  # unbuffered: it says how much of a line has found room
        self.unwritten = b""
        self.said: set[str] = set()
        self.meter: ProgressMeter | None = None
        self.next_plot = time.monotonic() + PLOT_SECONDS

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.meter:
            self.meter.close()
        self.file.close()
        for logger in self.loggers[:]:  # `_tell` removes one that fails
            self._tell(logger, logger.close)

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.meter:
            self.meter.say(text)
        else:
            print(text, flush=True)

    def say_once(self, text: str, about: str) -> None:
        """`say`, unless something was said about this before."""
        if about not in self.said:
            self.said.add(about)
            self.say(text)

    def add(self, event) -> None:
        """Take one event."""
        if isinstance(event, Started):
            self.meter = ProgressMeter(event.steps, "training", unit="step", initial=self.start_step)
        if type(event) not in KINDS:
            return
        self.events.append({"kind": KINDS[type(event)], **dataclasses.asdict(event)})
        self._write(json.dumps(self.events[-1]) + "\n")
        for logger in self.loggers[:]:
            self._tell(logger, logger.add, self.events[-1])
        if isinstance(event, Stepped):
            self.meter.update(f"loss {event.loss:.3f}, {event.processed / event.seconds:.0f} tokens/s")
        elif isinstance(event, Noticed):
            self.say(f"warning at step {event.step}: {event.text}")
        else:
            self._show_evaluation(event)
            if time.monotonic() >= self.next_plot:
                self.plot()

    def plot(self) -> None:
        """Draw loss.png now."""
        begin = time.monotonic()
        try:
            plot_losses(self.events, self.plot_path, self.title)
        except Exception as error:  # of matplotlib, or of the disk
            self.say_once(f"no plot: {one_line(error)}", "plot")
        now = time.monotonic()
        self.next_plot = now + max(PLOT_SECONDS, 50 * (now - begin))

    def _write(self, line: str) -> None:
        """Append to metrics.jsonl; what finds no room on the disk is tried again with the next line."""
        self.unwritten += line.encode()
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self.file.write(self.unwritten):]
        except OSError as error:
            self.say_once(f"warning: {self.path} can't be written ({one_line(error)}); training goes on, and what is "
                          "missing there is added as soon as it can be", "metrics")

    def _tell(self, logger: Logger, call, *arguments) -> None:
        """Call one of a logger's methods; a logger that fails is not told of anything more."""
        try:
            call(*arguments)
        except Exception as error:
            self.loggers.remove(logger)
            self.say(f"warning: {type(logger).__name__} failed ({one_line(error)}); training goes on without it")
            with suppress(Exception):
                logger.close()

    def _show_evaluation(self, event: Evaluated) -> None:
        train_loss = "" if event.train_loss is None else f"train {event.train_loss:.3f}, "
        mark = " (best so far)" if event.improved else ""
        self.say(f"  epoch {event.epoch:5.2f}, step {event.step:5d}: {train_loss}validation {event.loss:.3f}{mark}")


def read_events(path: Path) -> list[dict]:
    """The events in a metrics.jsonl; ValueError with path and line for a line that is none."""
    events = []
    for number, event in read_json_lines(path, may_be_cut=True):
        try:
            fits = event["kind"] in KINDS.values() and type(event["step"]) is int and 0 <= event["step"] < 2**63
            if not fits or event["kind"] != "notice" and type(event["loss"]) not in (int, float):
                raise ValueError
            float(event.get("loss", 0))
        except (ValueError, KeyError, TypeError, OverflowError):
            raise ValueError(f"{path}, line {number}: not an event of a run") from None
        events.append(event)
    return events


def _events_until(path: Path, progress: Progress) -> list[dict]:
    """The events of an interrupted run, up to the point from which it goes on."""
    if not path.exists():
        return []
    return [event for event in read_events(path)
            if event["step"] <= (progress.evaluated_step if event["kind"] == "evaluation" else progress.step)]


def plot_losses(events: list[dict], path: str | os.PathLike, title: str = "") -> bool:
    """Losses, gradient norm and learning rate against epochs and tokens, as PNG; False without matplotlib or steps."""
    try:  # here, since it takes longer to import than all the rest of tinyft
        from matplotlib.figure import Figure
    except ImportError:
        return False
    steps = [event for event in events if event["kind"] == "step"]
    if not steps:
        return False
    figure = Figure(figsize=(7.5, 6.2), dpi=120, layout="constrained")
    losses, norms, rates = figure.subplots(3, sharex=True, height_ratios=(4, 1, 1))
    epochs = [event["epoch"] for event in steps]
    _draw_losses(losses, epochs, steps, [event for event in events if event["kind"] == "evaluation"])
    losses.set_title(title, parse_math=False)  # a dollar sign is a dollar sign
    norms.plot(epochs, [event.get("gradient_norm", np.nan) for event in steps], color="C2", linewidth=0.8)
    norms.set_ylabel("gradient\nnorm", fontsize=8)
    known = [event["gradient_norm"] for event in steps if event.get("gradient_norm")]
    if known and max(known) > 20 * np.median(known):  # one spike would flatten all others
        norms.set_yscale("log")
    rates.plot(epochs, [event.get("learning_rate", np.nan) for event in steps], color="C3")
    rates.set_ylabel("learning\nrate", fontsize=8)
    rates.set_xlabel("epochs")
    rates.set_ylim(bottom=0)
    for axes in (norms, rates):
        axes.tick_params(labelsize=8)
        axes.yaxis.get_offset_text().set_fontsize(8)
    for axes in (losses, norms, rates):
        axes.grid(alpha=0.3)
    figure.align_ylabels()
    with replacing(path) as beside:
        figure.savefig(beside, format="png")
    return True


def _draw_losses(axes, epochs: list[float], steps: list[dict], evaluations: list[dict]) -> None:
    """Training and validation loss, the best one named, and target tokens along the top."""
    values = [event["loss"] for event in steps]
    if len(values) >= 60:
        axes.plot(epochs, values, color="0.8", linewidth=0.8, label="training, each step")
    axes.plot(epochs, smooth(values), color="C0", label="training")
    if evaluations:
        axes.plot([event["epoch"] for event in evaluations], [event["loss"] for event in evaluations],
                  color="C1", marker="o", markersize=3, label="validation")
        best = min(evaluations, key=lambda event: event["loss"])
        axes.annotate(f"best {best['loss']:.3f}", (best["epoch"], best["loss"]), xytext=(0, 12), fontsize=8,
                      textcoords="offset points", ha="center", color="C1")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    tokens = sum(event["tokens"] for event in steps)
    unit, name = (10**6, "million") if tokens > 2 * 10**6 else (10**3, "thousand")
    per_epoch = max(tokens, 1) / max(epochs[-1], 1e-9) / unit
    above = axes.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda count: count / per_epoch))
    above.set_xlabel(f"{name} target tokens", fontsize=8)
    above.tick_params(labelsize=8)


def smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a thirtieth of the run, as much of it ahead of each step as behind.

    At the steep start it is shorter; at the end what lies ahead is missing.
    """
    n = len(values)
    i = np.arange(n)
    half = np.minimum(n // 60, i)
    first, end = i - half, np.minimum(i + half + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return ((sums[end] - sums[first]) / (end - first)).tolist()
