"""Write the training text of the tiny world: stories, facts and exercises in simple English.

The same seed and size give the same bytes on every machine. Documents are divided by one blank line.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiny_world.corpus import TOPICS, documents

from tinyft import cli
from tinyft.files import replacing

MEGABYTE = 1_000_000
MOST_MEGABYTES = 10_000
EXAMPLES = """\
  python examples/make_corpus.py --output corpus.txt --megabytes 60 --seed 0
  python examples/make_corpus.py --output drills.txt --megabytes 8 --seed 1 --drill odd odd passage
"""


def write_corpus(path: Path, megabytes: float, seed: int, drills: Sequence[str] = ()) -> int:
    """Write the corpus with a progress line on standard error; return its size in bytes."""
    size, started, shown = 0, time.perf_counter(), 0.0
    with replacing(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
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


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--output", type=cli.file_to_write, required=True, metavar="FILE",
                        help="the text file to write")
    parser.add_argument("--megabytes", type=cli.positive_float, default=60, metavar="X", help="about how much text")
    parser.add_argument("--seed", type=cli.not_negative_int, default=0, metavar="N",
                        help="another seed gives other text; the same gives the same bytes on every machine")
    parser.add_argument("--drill", nargs="+", metavar="TOPIC", choices=TOPICS,
                        help="let every other document practise one of these topics and nothing else; one that is "
                        f"named twice comes twice as often; topics: {', '.join(TOPICS)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write it."""
    options = parse_arguments(arguments)
    if options.megabytes > MOST_MEGABYTES:
        raise ValueError(f"--megabytes {options.megabytes:g}: expected at most {MOST_MEGABYTES}")
    write_corpus(options.output, options.megabytes, options.seed, options.drill or ())


if __name__ == "__main__":
    cli.run(main)
