"""Draw the losses of several runs in one plot, to see what an option changes.

A run is an output folder of finetune_alpaca.py or pretrain.py; its metrics.jsonl is read. Runs that differ in nothing
but their seed are given as one setting, NAME=RUN,RUN,...: their mean is drawn, in a band that says how far they differ.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyft import cli
from tinyft.files import replacing
from tinyft.report import read_events, smooth

EXAMPLES = """\
  python examples/finetune_alpaca.py --output-dir runs/float32
  python examples/finetune_alpaca.py --output-dir runs/bfloat16 --dtype bfloat16
  python examples/compare_runs.py runs/float32 runs/bfloat16 --output both.png
  python examples/compare_runs.py runs/short runs/long --log --title "how long to train"
  python examples/compare_runs.py lora=runs/l1,runs/l2,runs/l3 full=runs/f1,runs/f2,runs/f3
"""
Curve = tuple[np.ndarray, np.ndarray]  # steps (n,), losses (n,)


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="output folder of a run; or NAME=RUN,RUN,... for runs of one setting with several seeds")
    parser.add_argument("--output", type=cli.file_to_write, default=Path("runs.png"), metavar="FILE",
                        help="where the plot goes, as .png, .svg or .pdf")
    parser.add_argument("--log", action="store_true", help="a logarithmic axis of losses, to see small ones apart")
    parser.add_argument("--title", default="", help="stands above the plot")
    options = parser.parse_args()
    if options.output.suffix.lower() not in ("", ".png", ".svg", ".pdf"):
        raise ValueError(f"--output {options.output}: expected a name that ends in .png, .svg or .pdf")
    return options


@dataclass
class Run:
    """The losses of one run. Training is smoothed; validation may be empty."""

    name: str
    training: Curve
    validation: Curve

    def best(self) -> tuple[float, int]:
        """The lowest validation loss that is finite, and its step; NaN if there is none."""
        steps, losses = self.validation
        finite = np.isfinite(losses)
        if not finite.any():
            return math.nan, 0
        best = np.argmin(losses[finite])
        return float(losses[finite][best]), int(steps[finite][best])


def read_run(folder: Path) -> Run:
    """A run from its folder; ValueError if it is none."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; {folder} is not the output folder of a run")
    events = read_events(path)

    def curve(kind: str) -> Curve:
        found = [(event["step"], event["loss"]) for event in events if event["kind"] == kind]
        return np.array([step for step, _ in found]), np.array([loss for _, loss in found], float)

    steps, losses = curve("step")
    if not len(steps):
        raise ValueError(f"{path}: the run has no steps yet")
    return Run(str(folder), (steps, np.array(smooth(losses))), curve("evaluation"))


def read_settings(arguments: list[str]) -> dict[str, list[Run]]:
    """The runs of each setting; a run that is given alone is a setting of its own. ValueError for what is neither."""
    folders: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, joined = argument.partition("=")
        parts = joined.split(",")
        if not equals or Path(argument).exists():  # a folder may have such a name
            name, parts = argument, [argument]
            if folders.get(name) == parts:
                continue
        if not name or not all(parts):
            raise ValueError(f"{argument!r}: expected NAME=RUN,RUN,..., with a name and folders")
        if len({Path(part).resolve() for part in parts}) < len(parts) or name in folders:
            what = f"the name {name!r}" if name in folders else "a run"
            raise ValueError(f"{argument!r}: {what} is given twice, expected once")
        folders[name] = parts
    return {name: [read_run(Path(part)) for part in parts] for name, parts in folders.items()}


def spread(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean, and the band's lower and upper edge, each (n,), up to the end of the shortest run.

    The band is the sample's standard deviation about the mean from three runs on, and both runs where there are two.
    The steps are those of the first run; where another has none of its own, its neighbours are joined by a line.
    """
    steps = curves[0][0][curves[0][0] <= min(steps[-1] for steps, _ in curves)]
    losses = np.array([np.interp(steps, *curve) for curve in curves])
    mean = losses.mean(axis=0)
    if len(curves) < 3:
        return steps, mean, losses.min(axis=0), losses.max(axis=0)
    deviation = losses.std(axis=0, ddof=1)
    return steps, mean, mean - deviation, mean + deviation


def draw(settings: dict[str, list[Run]], output: Path, *, log: bool, title: str) -> None:
    """A figure with all of them."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("drawing needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="tight")
    axes = figure.subplots()
    several = any(len(runs) > 1 for runs in settings.values())
    for number, (name, runs) in enumerate(settings.items()):
        band = {1: "", 2: " (mean, band: both runs)"}.get(len(runs), f" (mean ± s.d. of {len(runs)} runs)")
        label, colour = literal(name) + band, f"C{number}"
        # Broader lines below, so that curves on top of each other can all be seen; bands are enough of that.
        width = 1.3 if several else 1 + 2 * (len(settings) - 1 - number)
        for kind, style in (("training", dict(linewidth=width)),
                            ("validation", dict(linestyle="--", marker="o", markersize=3, linewidth=0.8))):
            curves = [getattr(run, kind) for run in runs]
            if all(len(steps) for steps, _ in curves):
                steps, mean, low, high = spread(curves)
                axes.plot(steps, mean, color=colour, label=f"{kind}, {label}", **style)
                if len(runs) > 1:
                    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="steps", ylabel="loss (nats per token)", title=literal(title))
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    with replacing(output) as beside:
        figure.savefig(beside, format=output.suffix.lower().removeprefix(".") or "png")


def literal(text: str) -> str:
    """Text that matplotlib won't take for a formula."""
    return text.replace("$", r"\$")


def table(settings: dict[str, list[Run]]) -> str:
    """The best validation loss of each setting over its runs."""
    width = max(len("setting"), *map(len, settings))
    lines = [f"{'setting':<{width}}  runs  best validation loss: mean ± s.d.  lowest  highest"]
    for name, runs in settings.items():
        best = [loss for loss, _ in map(Run.best, runs) if not math.isnan(loss)]
        shown = "-"
        if best:
            deviation = f" ± {statistics.stdev(best):.4f}" if len(best) > 1 else ""
            shown = f"{statistics.mean(best):.4f}{deviation:<9}".rjust(33) + f"  {min(best):.4f}   {max(best):.4f}"
        lines.append(f"{name:<{width}}  {len(best):4d}  {shown}")
    return "\n".join(lines)


def main() -> None:
    """Read the runs, draw them, and say where each ended."""
    options = parse_arguments()
    settings = read_settings(options.runs)
    draw(settings, options.output, log=options.log, title=options.title)
    for name, runs in settings.items():
        for run in runs:
            best, step = run.best()
            if step or not math.isnan(best):
                shown = run.name if len(runs) == 1 and run.name == name else f"{name}, {run.name}"
                print(f"{shown}: best validation loss {best:.4f} at step {step} of {run.training[0][-1]}")
    if any(len(runs) > 1 for runs in settings.values()):
        print("\n" + table(settings) + "\n")
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    cli.run(main)
