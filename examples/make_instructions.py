"""Write the tuning set of the tiny world and its two test sets as Alpaca JSON files.

train.json is for tuning. test_items.json asks about held-out facts and sentences in phrasings that
tuning has shown; test_phrasings.json asks in phrasings that it has not. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tiny_world.files import stop, written_whole
from tiny_world.instructions import FAMILIES, Example, make_sets


def write_set(path: Path, examples: list[Example]) -> None:
    """Write one JSON list with one example to a line."""
    lines = ",\n".join(json.dumps(example, ensure_ascii=False) for example in examples)
    with written_whole(path) as file:
        file.write(f"[\n{lines}\n]\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python examples/make_instructions.py --output examples/data --seed 0",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder for the three files")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other items (default 0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        stop(f"--seed must be 0 or more, not {options.seed}")
    sets = make_sets(options.seed)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, examples in sets.items():
            write_set(options.output / f"{name}.json", examples)
    except OSError as error:
        stop(f"cannot write to {options.output}: {error.strerror}; give --output a folder")
    counts = {name: Counter(example["family"].split("/")[1] for example in examples) for name, examples in sets.items()}
    print(f"{'family':14}{'train':>7}{'items':>7}{'phrasings':>11}  difficulty", file=sys.stderr)
    for name, family in FAMILIES.items():
        train, items, new = (counts[part][name] for part in sets)
        print(f"{name:14}{train:7}{items:7}{new:11}  {family.difficulty}", file=sys.stderr)


if __name__ == "__main__":
    main()
