"""What a person sees of a run: a progress bar, a line for each evaluation, metrics.jsonl and a plot."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from .files import read_json_lines, replacing, write_text
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
        self.file = open(self.path, "a", encoding="utf-8")
        self.start_step = resumed_at
        self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.bar:
            self.bar.close()
        self.file.close()

    def _write(self, event: dict) -> None:
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.bar:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def add(self, event) -> None:
        """Take one event."""
        if isinstance(event, Started):
            try:  # imported here, as only people in front of a screen need it
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self.bar = tqdm(total=event.steps, initial=self.start_step, unit="step", dynamic_ncols=True,
                                smoothing=0.1, mininterval=0.5)
            return
        kind = "step" if isinstance(event, Stepped) else "evaluation"
        self.events.append({"kind": kind, **dataclasses.asdict(event)})
        self._write(self.events[-1])
        if isinstance(event, Stepped):
            self._show_step(event)
        elif isinstance(event, Evaluated):
            self._show_evaluation(event)

    def _show_step(self, event: Stepped) -> None:
        speed = event.processed / event.seconds
        if self.bar:
            self.bar.set_postfix_str(f"loss {event.loss:.3f}, {speed:.0f} tokens/s", refresh=False)
            self.bar.update()
        elif event.step % 20 == 0:
            print(f"step {event.step}: loss {event.loss:.3f}, {speed:.0f} tokens/s", file=sys.stderr, flush=True)

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
    axes.set(xlabel="epochs", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    tokens = sum(event["tokens"] for event in steps)
    unit, name = (10**6, "million") if tokens > 2 * 10**6 else (10**3, "thousand")
    per_epoch = max(tokens, 1) / max(epochs[-1], 1e-9) / unit
    above = axes.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda count: count / per_epoch))
    above.set_xlabel(f"{name} tokens learned", fontsize=8)
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
