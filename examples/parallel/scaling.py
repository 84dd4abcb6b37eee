"""How much faster several ranks train: steps are measured, a formula is fitted, and what networks make of it follows.

The formula: seconds of a step = compute / ranks + update + bytes / bandwidth. Forward and backward pass are divided
among the ranks; each makes the optimizer's whole update; and each sends 2 (ranks - 1) / ranks times all gradients, as
the best ways to add them up do (Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms", 2009). It knows nothing
of what travels while the backward pass still runs, so that it promises too little rather than too much.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tinyft import GPT2, AdamW, GPT2Config, Progress, Settings, cli, parallel, train
from tinyft.gpt2 import SIZES
from tinyft.lora import LoraConfig, add_lora
from tinyft.train import Stepped

EXAMPLES = """\
  python examples/parallel/scaling.py --ranks 2
  python examples/parallel/scaling.py --ranks 2,4 --size gpt2-medium --rows 16 --plot scaling.png
  python examples/parallel/scaling.py --ranks 2 --lora-rank 8
"""
NETWORKS = {"1 Gbit/s": 0.125e9, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes per second


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--ranks", type=lambda text: [cli.positive_int(part) for part in text.split(",")], default=[2],
        metavar="N,...", help="how many ranks to measure, besides 1, each with --threads (default: 2)")
    add("--size", choices=SIZES, default="gpt2", help="which GPT-2, with random weights")
    add("--rows", type=cli.positive_int, default=8, metavar="N", help="rows of a batch, all ranks together")
    add("--length", type=cli.positive_int, default=128, metavar="N", help="tokens of a row, all of them targets")
    add("--steps", type=cli.positive_int, default=5, metavar="N", help="steps that are measured, after two that aren't")
    add("--lora-rank", type=cli.positive_int, metavar="R", help="train adapters of this rank, and nothing else")
    add("--threads", type=cli.positive_int, default=1, metavar="N", help="CPU threads of each rank")
    add("--plot", type=cli.file_to_write, metavar="FILE", help="draw the speed-up on each network, as PNG")
    add("--here", action="store_true", help="measure the ranks that this script is one of, and print that as JSON")
    return parser.parse_args()


class RandomRows:
    """A training set of random ids, in which no two rows begin alike."""

    def __init__(self, rows: int, length: int, vocab_size: int):
        self.ids = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1))

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """One batch with all rows."""
        return [np.arange(len(self.ids))]

    def collate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets."""
        return self.ids[indices, :-1], self.ids[indices, 1:]


class TimedAdamW(AdamW):
    """AdamW that notes how long each update takes."""

    def step(self, *arguments, **options) -> float:
        """As AdamW's."""
        begin = time.perf_counter()
        norm = super().step(*arguments, **options)
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - begin]
        return norm


def measure(options) -> dict:
    """Seconds of a step, of its update, and of adding up gradients while nothing else is done; medians."""
    ranks = parallel.connect()
    cli.use_threads(options.threads)
    model = GPT2(GPT2Config.named(options.size), np.random.default_rng(0))
    if options.lora_rank:
        add_lora(model, LoraConfig(rank=options.lora_rank), np.random.default_rng(0))
    optimizer = TimedAdamW(model)
    data = RandomRows(options.rows, options.length, model.config.vocab_size)
    settings = Settings(epochs=options.steps + 2, batch_size=options.rows)
    steps = [event.seconds for event in train(model, optimizer, data, None, settings, Progress(),
                                              np.random.default_rng(0), ranks) if isinstance(event, Stepped)]
    sums = []
    for _ in range(options.steps if ranks.size > 1 else 0):
        ranks.sum(0)  # all begin together
        begin = time.perf_counter()
        ranks.finish_sums(model, optimizer.parameters)
        sums.append(time.perf_counter() - begin)
    return {"ranks": ranks.size, "step": statistics.median(steps[2:]),
            "update": statistics.median(optimizer.seconds[2:]), "sums": statistics.median(sums) if sums else 0.0,
            "bytes": sum(p.size * p.dtype.itemsize for p in optimizer.parameters.values())}


def measure_ranks(count: int) -> dict:
    """`measure` in so many ranks, which mpirun starts."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--here"]
    if count > 1:
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        mpirun = shutil.which("mpirun", path=beside)
        if mpirun is None:
            raise ValueError("there is no mpirun; pip install mpich mpi4py, or measure one rank alone with --ranks 1")
        command = [mpirun, "-n", str(count), *command]
    print(f"measuring {count} rank{'s' * (count > 1)} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"--ranks {count} ended with exit status {done.returncode}; what it said is above")
    return json.loads(done.stdout.splitlines()[-1])


def sent(ranks: int, size: float) -> float:
    """Bytes that each rank sends to add up gradients of so many bytes."""
    return 2 * (ranks - 1) / ranks * size


def fit(points: list[dict]) -> tuple[float, float]:
    """The formula's compute (seconds) and bandwidth (bytes per second), by least squares; inf where nothing is lost."""
    a = np.array([[1 / point["ranks"], sent(point["ranks"], point["bytes"])] for point in points])
    seconds = np.array([point["step"] - point["update"] for point in points])
    if len(points) == 1:
        return float(seconds[0] * points[0]["ranks"]), np.inf
    compute, per_gigabyte = map(float, np.linalg.lstsq(a / [1, 1e9], seconds, rcond=None)[0])
    return (compute, 1e9 / per_gigabyte) if per_gigabyte > 0 else (float((seconds / a[:, 0]).mean()), np.inf)


def predict(ranks: int, compute: float, update: float, size: float, bandwidth: float) -> float:
    """Seconds of a step by the formula."""
    return compute / ranks + update + sent(ranks, size) / bandwidth


def worthwhile(compute: float, update: float, size: float, bandwidth: float) -> int:
    """The most ranks, of at most 1,000, with which each still does half of what it would do alone."""
    alone = predict(1, compute, update, size, bandwidth)
    return max(ranks for ranks in range(1, 1001)
               if alone / (ranks * predict(ranks, compute, update, size, bandwidth)) >= 0.5)


def tables(points: list[dict], rows: int) -> str:
    """What was measured and what follows from it, in Markdown."""
    compute, bandwidth = fit(points)
    update, size = statistics.median(point["update"] for point in points), points[0]["bytes"]
    lines = ["| ranks | a step | of it the update | by the formula | speed-up | sums alone |",
             "|--:|--:|--:|--:|--:|--:|"]
    for point in points:
        reckoned = predict(point["ranks"], compute, point["update"], size, bandwidth)
        lines.append(f"| {point['ranks']} | {point['step']:.2f} s | {point['update']:.2f} s | {reckoned:.2f} s | "
                     f"{points[0]['step'] / point['step']:.2f} | {point['sums']:.2f} s |")
    at = f"{bandwidth / 1e9:.2f} GB/s" if np.isfinite(bandwidth) else "no cost"
    alone = [f"{sent(point['ranks'], size) / point['sums'] / 1e9:.2f} GB/s" for point in points if point["sums"]]
    lines += ["", f"compute {compute:.2f} s, update {update:.2f} s, {size / 1e6:,.1f} MB of gradients at {at} "
              f"(added up while nothing else is done: {', '.join(alone) or 'not measured'})", "",
              "| network | rows of a batch | 2 ranks | 4 | 8 | 16 | ranks that still do half of what one alone does |",
              "|---|--:|--:|--:|--:|--:|--:|"]
    for name, speed in NETWORKS.items():
        for more in (1, 8):
            constants = compute * more, update, size, speed
            gains = [predict(1, *constants) / predict(ranks, *constants) for ranks in (2, 4, 8, 16)]
            lines.append(f"| {name} | {rows * more} | " + " | ".join(f"{gain:.1f}x" for gain in gains)
                         + f" | {worthwhile(*constants)} |")
    return "\n".join(lines)


def plot(points: list[dict], path: Path) -> None:
    """Draw the speed-up that was measured and those that the formula gives for each network."""
    from matplotlib.figure import Figure  # an extra

    compute, _ = fit(points)
    update, size = statistics.median(point["update"] for point in points), points[0]["bytes"]
    ranks = np.arange(1, 65)
    figure = Figure(figsize=(6, 4), dpi=120, layout="tight")
    axes = figure.subplots()
    axes.plot(ranks, ranks, color="0.8", linewidth=0.8, label="all that one could wish")
    for name, speed in NETWORKS.items():
        constants = compute, update, size, speed
        axes.plot(ranks, [predict(1, *constants) / predict(int(n), *constants) for n in ranks], label=name)
    axes.plot([point["ranks"] for point in points], [points[0]["step"] / point["step"] for point in points], "ko",
              markersize=4, label="measured on this host")
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="speed-up of a step")
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def main() -> None:
    """Measure, fit, print."""
    options = parse_arguments()
    if options.here:
        print(json.dumps(measure(options)))
        return
    points = [measure_ranks(count) for count in sorted({1, *options.ranks})]  # speed-ups are over one rank
    print(tables(points, options.rows))
    if options.plot:
        plot(points, options.plot)


if __name__ == "__main__":
    cli.run(main)
