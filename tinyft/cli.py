"""What the scripts in examples/ share: options, threads, and errors in one line."""

import argparse
import io
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numba

from . import parallel
from .files import check_replaceable
from .ops import set_product_dtype

ENVIRONMENT = """\
environment:
  TINYFT_DEBUG=1                show the traceback of an error
  TINYFT_CACHE=FOLDER           keep compiled kernels there (default: ~/.cache/tinyft)
"""


class Parser(argparse.ArgumentParser):
    """argparse that shows defaults, keeps the examples' line breaks, and names the environment variables."""

    def __init__(self, description: str, examples: str):
        super().__init__(description=description, epilog=f"examples:\n{examples}\n{ENVIRONMENT}",
                         formatter_class=_HelpFormatter)

    def add_threads(self) -> None:
        """The option --threads; `use_threads` carries it out."""
        self.add_argument("--threads", type=positive_int, metavar="N",
                          help=f"CPU threads (default: {numba.config.NUMBA_NUM_THREADS}, all that this machine gives)")

    def add_dtype(self) -> None:
        """The option --dtype; `use_dtype` carries it out."""
        self.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                          help="of the factors in matrix products; all else stays float32. bfloat16 is faster and "
                          "needs a CPU with AVX-512 BF16")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action):
        shown = action.help or ""
        silent = any(action.default is value for value in (None, False, True, "", argparse.SUPPRESS))
        if "default" not in shown and not silent:
            shown += " (default: %(default)s)"
        return shown


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _whole_number(text, 1)


def not_negative_int(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    return _whole_number(text, 0)


def _whole_number(text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {lowest}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    return _number(text, "above 0", lambda value: value > 0)


def not_negative_float(text: str) -> float:
    """A finite number of at least 0, for argparse."""
    return _number(text, "of at least 0", lambda value: value >= 0)


def _number(text: str, expected: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number {expected}")
    return value


def file_to_write(text: str) -> Path:
    """The path of a file that can be made, for argparse; found out before the work that fills it."""
    path = Path(text)
    try:
        check_replaceable(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}; make it first")
    return path


def use_threads(threads: int | None) -> int:
    """Limit the kernels to a number of threads; returns how many there are. ValueError if there are fewer.

    None: all, or this rank's share where `parallel.connect` has found others on this host.
    """
    most = numba.config.NUMBA_NUM_THREADS
    ranks = parallel.connected()
    if threads is not None and threads > most:
        raise ValueError(f"--threads {threads}: this machine gives {most}, one for each core, or as many as "
                         "NUMBA_NUM_THREADS in the environment says")
    threads = threads or (ranks.threads if ranks else most)
    if threads != most or ranks:
        numba.set_num_threads(threads)
    if ranks and threads > ranks.cores + 0.01:
        print(f"warning: {ranks.on_host} ranks on this host, with --threads {threads} each, have to take turns on its "
              f"cores; start fewer ranks{', or give fewer --threads' * (threads > 1)}", file=sys.stderr)
    return threads


def use_dtype(dtype: str) -> None:
    """Carry out --dtype. ValueError if this CPU has no bfloat16."""
    try:
        set_product_dtype(dtype)
    except ValueError as error:
        raise ValueError(f"--dtype {dtype}: {error}") from None


def run(main: Callable[[], None]) -> None:
    """Run a script's main function; what a user can mend ends in one line and exit status 1, not a traceback.

    Ctrl-C ends in exit status 130, as a shell expects. TINYFT_DEBUG=1 shows the traceback after all. Where mpirun has
    started several ranks, an error on one of them ends them all, with one message.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that a terminal lacks must not fail a run
    try:
        _run(main)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            parallel.end_job(leaving.code)
        raise
    except BaseException:
        parallel.end_job(traceback.format_exc())
        raise


def _run(main: Callable[[], None]) -> None:
    """As `run`, for one process."""
    try:
        main()
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        sys.exit("error: not enough memory; try a smaller model, or less of what --help offers: --micro-batch-size and "
                 "--max-length in training, --max-rows in serving")
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("TINYFT_DEBUG", "0") not in ("", "0"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        sys.exit(getattr(error, "exit_status", 130))
