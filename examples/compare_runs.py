"""Draw the losses of several runs in one plot, to see what an option changes.

A run is an output folder of finetune_alpaca.py or pretrain.py; its metrics.jsonl is read.
"""

import math
from pathlib import Path

from tinyft import cli
from tinyft.files import read_json_lines, replacing
from tinyft.report import smooth

EXAMPLES = """\
  python examples/finetune_alpaca.py --output-dir runs/float32
  python examples/finetune_alpaca.py --output-dir runs/bfloat16 --dtype bfloat16
  python examples/compare_runs.py runs/float32 runs/bfloat16 --output both.png
  python examples/compare_runs.py runs/short runs/long --log --title "how long to train"
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of a run")
    parser.add_argument("--output", type=cli.file_to_write, default=Path("runs.png"), metavar="FILE",
                        help="where the plot goes, as .png, .svg or .pdf")
    parser.add_argument("--log", action="store_true", help="a logarithmic axis of losses, to see small ones apart")
    parser.add_argument("--title", default="", help="stands above the plot")
    return parser.parse_args()


def read_run(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and the evaluations of a run, each with its loss."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; {folder} is not the output folder of a run")
    events: dict[str, list[tuple[int, float]]] = {"step": [], "evaluation": []}
    for number, event in read_json_lines(path, may_be_cut=True):
        try:
            events[event["kind"]].append((int(event["step"]), float(event["loss"])))
        except (ValueError, KeyError, TypeError, OverflowError):
            raise ValueError(f"{path}, line {number}: not an event of a run") from None
    if not events["step"]:
        raise ValueError(f"{path}: the run has no steps yet")
    return events


def literal(text: str) -> str:
    """Text that matplotlib won't take for a formula."""
    return text.replace("$", r"\$")


def main() -> None:
    """Read the runs, draw them, and say where each ended."""
    options = parse_arguments()
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("drawing needs matplotlib: pip install matplotlib") from None
    runs = {str(folder): read_run(folder) for folder in options.runs}
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="tight")
    axes = figure.subplots()
    for number, (name, events) in enumerate(runs.items()):
        steps, evaluations, colour = events["step"], events["evaluation"], f"C{number}"
        label = literal(name)
        # Broader lines below, so that curves on top of each other can all be seen.
        axes.plot([step for step, _ in steps], smooth([loss for _, loss in steps]), color=colour,
                  linewidth=1 + 2 * (len(runs) - 1 - number), label=f"training, {label}")
        if evaluations:
            axes.plot(*zip(*evaluations, strict=True), "o--", color=colour,
                      markersize=3, linewidth=0.8, label=f"validation, {label}")
            best_step, best = min(evaluations, key=lambda evaluation: (math.isnan(evaluation[1]), evaluation[1]))
            print(f"{name}: best validation loss {best:.4f} at step {best_step} of {steps[-1][0]}")
    axes.set(xlabel="steps", ylabel="loss (nats per token)", title=literal(options.title))
    if options.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    with replacing(options.output) as beside:
        figure.savefig(beside, format=options.output.suffix.removeprefix(".") or "png")
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    cli.run(main)
