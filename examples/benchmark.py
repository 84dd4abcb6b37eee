"""How fast is tinyft on this machine, beside NumPy, PyTorch and what the machine can do at all?

Everything in a row is measured in the same run, taking turns, and medians are shown, because machines are
noisy: compare within a row. PyTorch and transformers join in where they are installed.
"""

import os
import sys

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is loaded: it would hold NumPy to an older kernel

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from benchmarks import kernels, machine, starting, training  # noqa: E402
from benchmarks.timing import Table  # noqa: E402

from tinyft import GPT2, GPT2Config, cli  # noqa: E402
from tinyft.files import write_json  # noqa: E402
from tinyft.memory import keep_freed_memory  # noqa: E402

PARTS = ("matmul", "kernels", "loss", "step", "decode", "start")
EXAMPLES = """\
  python examples/benchmark.py
  python examples/benchmark.py --only loss --only step
  python examples/benchmark.py --json numbers.json
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART",
                        help=f"one of {', '.join(PARTS)}; may be given more than once (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--without-torch", action="store_true", help="leave PyTorch out even if it is installed")
    parser.add_argument("--serve", help="for the benchmark's own use")
    return parser.parse_args()


def import_torch():
    """PyTorch, or None."""
    try:
        import torch
        import transformers  # noqa: F401
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


def main() -> None:
    """Run the parts that were asked for."""
    options = parse_arguments()
    threads = cli.use_threads(options.threads)
    if options.serve:
        training.serve(options.serve)
        return
    if options.json and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no such folder")
    parts, rng, table = options.only or PARTS, np.random.default_rng(0), Table()
    torch = None if options.without_torch else import_torch()
    keep_freed_memory()
    kernels.share_threads(torch)
    print(f"NumPy {np.__version__} with {numpy_kernel()}; PyTorch "
          f"{torch.__version__ if torch else 'is not installed'}; Python {sys.version.split()[0]}")
    limits = machine.measure(table)
    if "matmul" in parts:
        kernels.matmuls(table, limits, torch, rng)
    if "kernels" in parts:
        kernels.elementwise(table, torch, rng)
        kernels.optimizer(table, limits, torch, rng)
    if "loss" in parts:
        kernels.loss_by_live_targets(table, rng)
    if "decode" in parts:
        table.title("inference, GPT-2 124M")
        kernels.decode_and_prefill(table, GPT2(GPT2Config(), rng))
    if "step" in parts:
        training.measure(table, torch is not None, threads)
    if "start" in parts:
        starting.measure(table)
    if options.json:
        write_json(options.json, {"threads": threads, "rows": table.rows})


if __name__ == "__main__":
    cli.run(main)
