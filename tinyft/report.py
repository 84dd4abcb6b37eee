"""What a person sees of a run: its progress, a line for each evaluation, metrics.jsonl and a plot."""

import dataclasses
import json
import os
from pathlib import Path

from .files import read_json_lines, replacing, write_text
from .progress import ProgressMeter
from .train import Evaluated, Progress, Started, Stepped


class RunReport:
    """Hand it every event of `train`; it shows progress on stderr and keeps metrics.jsonl in `folder`.

    progress: where the run starts; of a resumed run, the earlier events are kept.
    """

    def __init__(self, folder: str | os.PathLike, progress: Progress):
        resumed_at = progress.step
        self.path = Path(folder) / "metrics.jsonl"
        self.events = _events_until(self.path, progress) if resumed_at else []
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in self.events))
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")
        self.start_step = resumed_at
        self.meter: ProgressMeter | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.meter:
            self.meter.close()
        self.file.close()

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.meter:
            self.meter.say(text)
        else:
            print(text, flush=True)

    def add(self, event) -> None:
        """Take one event."""
        if isinstance(event, Started):
            self.meter = ProgressMeter(event.steps, "training", unit="step", initial=self.start_step)
            return
        kind = "step" if isinstance(event, Stepped) else "evaluation"
        self.events.append({"kind": kind, **dataclasses.asdict(event)})
        self.file.write(json.dumps(self.events[-1]) + "\n")
        self.file.flush()
        if isinstance(event, Stepped):
            self.meter.update(f"loss {event.loss:.3f}, {event.processed / event.seconds:.0f} tokens/s")
        else:
            self._show_evaluation(event)

    def _show_evaluation(self, event: Evaluated) -> None:
        train_loss = "" if event.train_loss is None else f"train {event.train_loss:.3f}, "
        mark = " (best so far)" if event.improved else ""
        self.say(f"  epoch {event.epoch:5.2f}, step {event.step:5d}: {train_loss}validation {event.loss:.3f}{mark}")


def _events_until(path: Path, progress: Progress) -> list[dict]:
    """The events of an interrupted run, up to the point from which it goes on."""
    if not path.exists():
        return []
    events = (event for _, event in read_json_lines(path, may_be_cut=True))
    return [event for event in events
            if event["step"] <= (progress.step if event["kind"] == "step" else progress.evaluated_step)]


def plot_losses(events: list[dict], path: str | os.PathLike, title: str = "") -> bool:
    """Training and validation loss against epochs and tokens, as PNG; False without matplotlib."""
    try:  # here, since it takes longer to import than all the rest of tinyft
        from matplotlib.figure import Figure
    except ImportError:
        return False
    steps = [event for event in events if event["kind"] == "step"]
    evaluations = [event for event in events if event["kind"] == "evaluation"]
    if not steps:
        return False
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="tight")
    axes = figure.subplots()
    epochs = [event["epoch"] for event in steps]
    if len(steps) >= 60:
        axes.plot(epochs, [event["loss"] for event in steps], color="0.8", linewidth=0.8,
                  label="training, each step")
    axes.plot(epochs, smooth([event["loss"] for event in steps]), color="tab:blue", label="training")
    if evaluations:
        axes.plot([event["epoch"] for event in evaluations], [event["loss"] for event in evaluations],
                  color="tab:orange", marker="o", markersize=3, label="validation")
        best = min(evaluations, key=lambda event: event["loss"])
        axes.annotate(f"best {best['loss']:.3f}", (best["epoch"], best["loss"]), xytext=(0, 12), fontsize=8,
                      textcoords="offset points", ha="center", color="tab:orange")
    axes.set(xlabel="epochs", ylabel="loss (nats per token)")
    axes.set_title(title, parse_math=False)  # a dollar sign is a dollar sign
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    tokens = sum(event["tokens"] for event in steps)
    unit, name = (10**6, "million") if tokens > 2 * 10**6 else (10**3, "thousand")
    per_epoch = max(tokens, 1) / max(epochs[-1], 1e-9) / unit
    above = axes.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda count: count / per_epoch))
    above.set_xlabel(f"{name} target tokens", fontsize=8)
    above.tick_params(labelsize=8)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")
    return True


def smooth(values: list[float]) -> list[float]:
    """A running mean over about a thirtieth of the run, as much of it ahead of each step as behind.

    At the steep start it is shorter; at the end what lies ahead is missing.
    """
    smoothed = []
    for i in range(len(values)):
        half = min(len(values) // 60, i)
        window = values[i - half : i + half + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed
