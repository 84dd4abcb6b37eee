"""How fast is tinyft on this machine, beside NumPy, PyTorch and what the machine can do at all?

Everything in a row is measured in the same run, taking turns, and medians are shown, because machines are
noisy: compare within a row, and training steps and generation within a table. PyTorch, transformers, llama.cpp,
llms-from-scratch and JAX join in where they are installed.
"""

import argparse
import os
import sys

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is loaded: it would hold NumPy to an older kernel

from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from benchmarks import (  # noqa: E402
    account,
    busy,
    charts,
    decoding,
    evaluating,
    generators,
    kernels,
    machine,
    peers,
    processes,
    quality,
    serving,
    starting,
    training,
    tuning,
)
from benchmarks.timing import Table  # noqa: E402

from tinyft import cli  # noqa: E402
from tinyft.files import write_json  # noqa: E402
from tinyft.memory import keep_freed_memory  # noqa: E402

PARTS = ("matmul", "kernels", "loss", "decode", "serve", "quality", "evaluate", "step", "tuning", "account", "busy",
         "start")
CHARTED = ("matmul", "step", "decode")
PACKAGES = ("numpy", "numba", "torch", "transformers", "llms-from-scratch", "jax", "llama-cpp-python", "lm-eval",
            "peft")
EXAMPLES = """\
  python examples/benchmark.py
  python examples/benchmark.py --only loss --only step
  python examples/benchmark.py --only account             where every millisecond of a step goes
  python examples/benchmark.py --only decode --only serve     writing, and writing over HTTP
  python examples/benchmark.py --only evaluate            questions in lm-eval's harness
  python examples/benchmark.py --only tuning              adapters and large models, beside peft; takes long
  python examples/benchmark.py --only busy                how steps fare beside other programs
  python examples/benchmark.py --json numbers.json --chart chart.png
  python examples/benchmark.py --from numbers.json --chart chart.png
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART",
                        help=f"one of {', '.join(PARTS)}; may be given more than once (default: all)")
    parser.add_argument("--json", type=cli.file_to_write, metavar="FILE",
                        help="write all numbers there, after every part")
    parser.add_argument("--chart", type=cli.file_to_write, metavar="FILE.png",
                        help="draw training steps, matrix products and writing there; needs matplotlib")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="saved",
                        help="draw the --chart from numbers that --json wrote, and measure nothing")
    parser.add_argument("--without-torch", action="store_true", help="leave PyTorch out even if it is installed")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # for the processes that it starts
    parser.add_threads()
    return parser.parse_args()


def check(options) -> None:
    """ValueError for options that do not go together or cannot be carried out."""
    if options.chart:
        charts.check(options.chart)
    if options.saved and not options.chart:
        raise ValueError("--from only draws a chart: add --chart FILE.png")
    if options.saved and (options.only or options.json or options.without_torch):
        raise ValueError("--from measures nothing: leave out --only, --json and --without-torch")
    if options.chart and options.only and not set(CHARTED) & set(options.only):
        raise ValueError(f"--chart shows the parts {', '.join(CHARTED)}: add one of them with --only")


def import_torch():
    """PyTorch, or None."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def numpy_kernel() -> str:
    """Which of its kernels NumPy's BLAS chose, where threadpoolctl can tell."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown (pip install threadpoolctl)"
    return next((f"{info['internal_api']} {info.get('architecture', '')}" for info in threadpool_info()
                 if info["user_api"] == "blas"), "unknown")


def versions() -> dict[str, str]:
    """Of Python and of what is compared, as far as it is installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return found


def run_part(part: str, table: Table, limits: dict[str, float], torch, options, threads: int) -> None:
    """Measure one of PARTS."""
    rng = np.random.default_rng(0)
    if part == "matmul":
        kernels.matmuls(table, limits, torch, rng)
    elif part == "kernels":
        kernels.elementwise(table, torch, rng)
        kernels.optimizer(table, limits, torch, rng)
    elif part == "loss":
        kernels.loss_by_live_targets(table, rng)
    elif part == "decode":
        decoding.measure(table, options.without_torch, threads)
    elif part == "serve":
        serving.measure(table, threads)
    elif part == "quality":
        quality.measure(table)
    elif part == "evaluate":
        evaluating.measure(table, options.without_torch, threads)
    elif part == "step":
        training.measure(table, options.without_torch, threads)
    elif part == "tuning":
        tuning.measure(table, options.without_torch, threads)
    elif part == "account":
        account.measure(table, limits, threads)
    elif part == "busy":
        busy.measure(table, options.without_torch, threads)
    elif part == "start":
        starting.measure(table)


def measure(options, threads: int) -> dict:
    """Run the parts that were asked for; returns what --json writes."""
    table, torch = Table(), None if options.without_torch else import_torch()
    keep_freed_memory()
    kernels.share_threads(torch)
    print(f"NumPy {np.__version__} with {numpy_kernel()}; PyTorch "
          f"{torch.__version__ if torch else 'is left out or not installed'}; Python {sys.version.split()[0]}")
    limits = machine.measure(table)
    numbers = {"cpu": machine.cpu(), "threads": threads, "versions": versions(), "tables": table.titles,
               "rows": table.rows}
    for part in PARTS:
        if part in (options.only or PARTS):
            run_part(part, table, limits, torch, options, threads)
            if options.json:
                write_json(options.json, numbers)
    return numbers


def main() -> None:
    """Measure, or serve as one of the processes that are measured, or only draw."""
    options = parse_arguments()
    if generators.MARK in (options.serve or ""):
        return generators.serve(options.serve)
    if (options.serve or "").startswith(evaluating.MARK):
        return evaluating.serve(options.serve)
    if options.serve == "account":
        return processes.serve(account.make_step())
    if options.serve:
        return processes.serve(*peers.make_step(options.serve))
    check(options)
    if options.saved:
        numbers = charts.read_numbers(options.saved)
    else:
        numbers = measure(options, cli.use_threads(options.threads))
    if options.chart:
        charts.draw(numbers, options.chart)
        print(f"\nchart in {options.chart}")


if __name__ == "__main__":
    cli.run(main)
