"""Write the tuning set of the tiny world and its two test sets as Alpaca JSON files.

train.json is for tuning. test_items.json asks about held-out facts and sentences in phrasings that
tuning has shown; test_phrasings.json asks in phrasings that it has not. The same seed gives the same bytes.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tiny_world.instructions import FAMILIES, Example, make_sets

from tinyft import cli
from tinyft.files import make_writable_folder, write_text

EXAMPLES = "  python examples/make_instructions.py --output examples/data --seed 0\n"


def write_set(path: Path, examples: list[Example]) -> None:
    """Write one JSON list with one example to a line."""
    lines = ",\n".join(json.dumps(example, ensure_ascii=False) for example in examples)
    write_text(path, f"[\n{lines}\n]\n")


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets the three files")
    parser.add_argument("--seed", type=cli.not_negative_int, default=0, metavar="N",
                        help="another seed holds out other items")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them, and say how many entries of each family there are."""
    options = parse_arguments(arguments)
    sets = make_sets(options.seed)
    make_writable_folder(options.output)
    for name, examples in sets.items():
        write_set(options.output / f"{name}.json", examples)
    counts = {name: Counter(example["family"].split("/")[1] for example in examples) for name, examples in sets.items()}
    print(f"{'family':14}{'train':>7}{'items':>7}{'phrasings':>11}  difficulty", file=sys.stderr)
    for name, family in FAMILIES.items():
        train, items, new = (counts[part][name] for part in sets)
        print(f"{name:14}{train:7}{items:7}{new:11}  {family.difficulty}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
