"""Write small samples in the form of the best-known evaluation tasks, about the tiny world.

They show that an evaluation runs from end to end in a minute without a network, and measure nothing: see
examples/evaluation/samples/README.md. The same seed gives the same bytes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from task_samples.files import make_files, write_files

from tinyft import cli
from tinyft.files import make_writable_folder

EXAMPLES = "  python examples/make_samples.py --output examples/evaluation/samples --seed 0\n"


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER",
                        help="gets a folder for each data set: owner/name/config/split.jsonl")
    parser.add_argument("--seed", type=cli.not_negative_int, default=0, metavar="N",
                        help="asks for the facts that make_instructions.py holds out with the same seed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them, and say how many rows each file has."""
    options = parse_arguments(arguments)
    made = make_files(options.seed)
    make_writable_folder(options.output)
    write_files(options.output, made)
    for name, rows in made.items():
        print(f"{len(rows):4}  {name}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
