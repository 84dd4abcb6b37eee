"""Write the training text of the tiny world: stories, facts and exercises in simple English.

The same seed and size give the same bytes on every machine. Documents are divided by one blank line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiny_world.corpus import TOPICS, documents
from tiny_world.files import stop, written_whole

MEGABYTE = 1_000_000


def write_corpus(path: Path, megabytes: float, seed: int, drills: Sequence[str] = ()) -> int:
    """Write the corpus with a progress line on standard error; return its size in bytes."""
    size, started, shown = 0, time.perf_counter(), 0.0
    with written_whole(path) as file:
        for number, text in enumerate(documents(seed, int(megabytes * MEGABYTE), drills)):
            piece = text if number == 0 else "\n\n" + text
            file.write(piece)
            size += len(piece)
            now = time.perf_counter()
            if now - shown > 0.5:
                shown = now
                rate = size / MEGABYTE / (now - started + 1e-9)
                line = f"\r{size / MEGABYTE:7.1f} of {megabytes:g} MB, {rate:.1f} MB/s"
                print(line, end="", file=sys.stderr, flush=True)
        file.write("\n")
    seconds = time.perf_counter() - started
    print(f"\r{size / MEGABYTE:.1f} MB in {seconds:.1f} s written to {path}", file=sys.stderr)
    return size + 1


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python examples/make_corpus.py --output corpus.txt --megabytes 60 --seed 0\n"
        "  python examples/make_corpus.py --output drills.txt --megabytes 8 --seed 1 --drill odd odd passage",
    )
    parser.add_argument("--output", type=Path, required=True, help="the text file to write")
    parser.add_argument("--megabytes", type=float, default=60, help="about how much text (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other text (default 0)")
    parser.add_argument(
        "--drill", nargs="+", default=(), metavar="TOPIC", choices=TOPICS,
        help="let every other document practise one of these topics and nothing else; "
        f"one that is named twice comes twice as often; topics: {', '.join(TOPICS)}",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not 0 < options.megabytes <= 10_000:
        stop(f"--megabytes must be more than 0 and at most 10000, not {options.megabytes:g}")
    if options.seed < 0:
        stop(f"--seed must be 0 or more, not {options.seed}")
    try:
        write_corpus(options.output, options.megabytes, options.seed, options.drill)
    except OSError as error:
        stop(f"cannot write {options.output}: {error.strerror}; give --output a file in a folder that exists")


if __name__ == "__main__":
    main()
