"""What the scripts in examples/ share: options, threads, and errors in one line."""

import argparse
import sys
from collections.abc import Callable

import numba


class Parser(argparse.ArgumentParser):
    """argparse that shows defaults, keeps the examples' line breaks, and takes --an_option as --an-option."""

    def __init__(self, description: str, examples: str):
        super().__init__(description=description, epilog="examples:\n" + examples,
                         formatter_class=_HelpFormatter)
        self.add_argument("--threads", type=positive_int, metavar="N",
                          help=f"CPU threads (default: {numba.config.NUMBA_NUM_THREADS}, all that this machine gives)")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, after turning underscores in option names into hyphens."""
        args = list(sys.argv[1:] if args is None else args)
        for i, arg in enumerate(args):
            if arg == "--":
                break
            if arg.startswith("--"):
                name, equals, value = arg.partition("=")
                args[i] = name.replace("_", "-") + equals + value
        return super().parse_known_args(args, namespace)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action):
        shown = action.help or ""
        if "default" not in shown and action.default not in (None, False, True, argparse.SUPPRESS, []):
            shown += " (default: %(default)s)"
        return shown


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def not_negative_int(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 0")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
    return value


def not_negative_float(text: str) -> float:
    """A finite number of at least 0, for argparse."""
    return 0.0 if text.strip() in ("0", "0.0") else positive_float(text)


def use_threads(threads: int | None) -> int:
    """Limit the kernels to a number of threads; returns how many there are. ValueError if there are fewer."""
    most = numba.config.NUMBA_NUM_THREADS
    if threads is not None and threads > most:
        raise ValueError(f"--threads {threads}: this machine gives {most}")
    if threads is not None and threads != most:
        numba.set_num_threads(threads)
    return threads or most


def run(main: Callable[[], None]) -> None:
    """Run a script's main function; what a user can mend ends in one line and exit status 1, not a traceback."""
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        if "tinyft_debug" in sys._xoptions:  # python -X tinyft_debug: show the traceback after all
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
