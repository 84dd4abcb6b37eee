"""Learn a byte-level BPE tokenizer from a text and write it as GPT-2's vocab.json and merges.txt.

Numbers are cut into single digits before the merges are learned, and no token crosses a line end.
Needs the `tokenizers` package (pip install tokenizers) for the learning; using the result does not.
"""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyft import cli
from tinyft.files import make_writable_folder, read_text, write_json, write_text
from tinyft.tokenizer import END_OF_TEXT, byte_symbols

BYTES = 256
EXAMPLES = "  python examples/train_tokenizer.py --corpus corpus.txt --output tokenizer\n"


def learn_merges(corpus: Path, wanted: int) -> list[tuple[str, str]]:
    """Learn at most `wanted` merges, in the order in which they apply."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + wanted, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(io.StringIO(read_text(corpus)), trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in learned]


def without_repeats(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop a merge whose result an earlier merge has made, since each token needs its own id."""
    made: set[str] = set()
    kept = []
    for left, right in merges:
        if left + right not in made:
            made.add(left + right)
            kept.append((left, right))
    return kept


def write_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> int:
    """Write vocab.json and merges.txt in GPT-2's order of ids; return the number of ids."""
    tokens = [*byte_symbols().values()] + [left + right for left, right in merges] + [END_OF_TEXT]
    make_writable_folder(folder)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]))
    return len(tokens)


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="the text to learn from")
    parser.add_argument("--vocab-size", type=cli.positive_int, default=4000, metavar="N", help="number of ids in all")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets vocab.json and merges.txt")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn, write."""
    options = parse_arguments(arguments)
    wanted = options.vocab_size - BYTES - 1
    if not 0 <= wanted < 10**6:
        raise ValueError(f"--vocab-size {options.vocab_size}: expected from {BYTES + 1} (all bytes, {END_OF_TEXT}) "
                         "to a million")
    if options.corpus.is_dir():
        raise ValueError(f"--corpus {options.corpus} is a folder, expected a text file")
    if not options.corpus.is_file():
        raise ValueError(f"no file {options.corpus}; make it with examples/make_corpus.py or name another text")
    try:
        merges = without_repeats(learn_merges(options.corpus, wanted))
    except ImportError:
        raise ValueError("the tokenizers package is missing: pip install tokenizers, or tinyft with its extra "
                         "'corpus'") from None
    count = write_tokenizer(options.output, merges)
    if len(merges) < wanted:
        print(
            f"note: the text gives only {len(merges)} of {wanted} merges, so the vocabulary has {count} ids, "
            f"not {options.vocab_size}; use a longer text or a smaller --vocab-size",
            file=sys.stderr,
        )
    print(f"{count} ids written to {options.output}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
