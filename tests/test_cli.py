"""What the scripts in examples/ share: options, threads, errors in one line."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import numba
import pytest

from tinyft import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser("Say something.", "  python say.py --batch-size 2\n  python say.py --all\n")
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, help="rows")
    parser.add_argument("--seed", type=cli.not_negative_int, default=0, help="of the draws")
    parser.add_argument("--epochs", type=cli.positive_int, default=1, help="passes")
    parser.add_argument("--learning-rate", type=cli.positive_float, metavar="X", help="at its highest")
    parser.add_argument("--weight-decay", type=cli.not_negative_float, default=0.0, help="on matrices")
    parser.add_argument("--title", default="", help="stands above")
    parser.add_argument("--all", action="store_true", help="everything")
    parser.add_threads()
    return parser


@pytest.mark.parametrize("args, said", [
    (["--batch-size", "0"], ["--batch-size", "'0'", "whole number of at least 1"]),
    (["--batch-size", "-2"], ["--batch-size", "whole number of at least 1"]),
    (["--batch-size", "1.5"], ["--batch-size", "'1.5'", "whole number of at least 1"]),
    (["--batch-size", "many"], ["--batch-size", "'many'", "whole number of at least 1"]),
    (["--batch-size", "²"], ["--batch-size", "'²'", "whole number of at least 1"]),
    (["--seed", "-1"], ["--seed", "whole number of at least 0"]),
    (["--seed", "x"], ["--seed", "'x'", "whole number of at least 0"]),
    (["--learning-rate", "0"], ["--learning-rate", "'0'", "number above 0"]),
    (["--learning-rate", "nan"], ["--learning-rate", "'nan'", "number above 0"]),
    (["--learning-rate", "inf"], ["--learning-rate", "'inf'", "number above 0"]),
    (["--learning-rate", "1e"], ["--learning-rate", "'1e'", "number above 0"]),
    (["--weight-decay=-0.1"], ["--weight-decay", "'-0.1'", "number of at least 0"]),
    (["--weight-decay", "nan"], ["--weight-decay", "'nan'", "number of at least 0"]),
    (["--threads", "0"], ["--threads", "'0'", "whole number of at least 1"]),
    (["--batch-sizes", "3"], ["unrecognized arguments: --batch-sizes"]),
    (["--batch-size"], ["--batch-size", "expected one argument"]),
])
def test_bad_values(args, said, capsys):
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(args)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize("text, value", [("0", 0.0), ("0.0", 0.0), ("0.00", 0.0), ("0e0", 0.0), ("0.25", 0.25),
                                         ("1e-3", 1e-3), ("3", 3.0)])
def test_not_negative_float(text, value):
    assert cli.not_negative_float(text) == value


def test_numbers():
    assert cli.positive_int("12") == 12 and cli.not_negative_int("0") == 0 and cli.positive_float("5e-5") == 5e-5
    with pytest.raises(argparse.ArgumentTypeError):
        cli.positive_float("0.0")


def test_help_shows_examples_as_they_are_written_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "examples:\n  python say.py --batch-size 2\n  python say.py --all\n" in text
    assert "rows (default: 8)" in text
    assert "stands above\n" in text, "an empty default says nothing"
    assert "\nenvironment:\n  TINYFT_DEBUG=1 " in text
    assert "at its highest\n" in text and "everything\n" in text
    assert f"(default: {numba.config.NUMBA_NUM_THREADS}, all that this machine gives)" in " ".join(text.split())


@pytest.mark.parametrize("shown", ["of the draws (default: 0)", "passes (default: 1)", "on matrices (default: 0.0)"])
def test_help_shows_the_defaults_0_and_1(shown, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    assert shown in capsys.readouterr().out


def test_threads():
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    try:
        assert cli.use_threads(None) == most
        assert cli.use_threads(1) == 1 == numba.get_num_threads()
        with pytest.raises(ValueError, match=f"--threads {most + 1}: this machine gives {most}"):
            cli.use_threads(most + 1)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("error", [ValueError("data.json, entry 3: no"), RuntimeError("the loss is nan"),
                                   FileNotFoundError(2, "No such file or directory", "x.json")])
def test_run_ends_in_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == f"error: {error}"


def test_run_lets_programming_errors_and_success_through():
    def broken():
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        cli.run(broken)
    cli.run(lambda: None)


def test_run_after_control_c():
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 130


SCRIPT = "from tinyft import cli\ndef main(): raise ValueError('data.json, entry 3: no')\ncli.run(main)"


@pytest.mark.parametrize("debug, traceback", [(None, False), ("", False), ("0", False), ("1", True)])
def test_run_as_a_program(monkeypatch, debug, traceback):
    monkeypatch.delenv("TINYFT_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("TINYFT_DEBUG", debug)
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    if traceback:
        assert result.stderr.startswith("Traceback") and "ValueError: data.json, entry 3: no" in result.stderr
    else:
        assert result.stderr.splitlines() == ["error: data.json, entry 3: no"]


def test_characters_that_stdout_lacks_do_not_fail_a_run():
    script = "from tinyft import cli\ncli.run(lambda: print('a \\u2026 b'))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
                            env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stdout) == (0, "a \\u2026 b\n"), result.stderr
