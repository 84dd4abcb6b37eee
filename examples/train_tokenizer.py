"""Learn a byte-level BPE tokenizer from a text and write it as GPT-2's vocab.json and merges.txt.

Numbers are cut into single digits before the merges are learned, and no token crosses a line end.
Needs the `tokenizers` package (pip install tokenizers) for the learning; using the result does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tiny_world.files import stop, written_whole

from tinyft.tokenizer import END_OF_TEXT, byte_symbols

BYTES = 256


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
    with open(corpus, encoding="utf-8") as lines:
        tokenizer.train_from_iterator(lines, trainer)
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
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "vocab.json") as file:
        json.dump({token: index for index, token in enumerate(tokens)}, file, ensure_ascii=False)
        file.write("\n")
    with written_whole(folder / "merges.txt") as file:
        file.write("#version: 0.2\n")
        file.writelines(f"{left} {right}\n" for left, right in merges)
    return len(tokens)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python examples/train_tokenizer.py --corpus corpus.txt --output tokenizer",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the text to learn from")
    parser.add_argument("--vocab-size", type=int, default=4000, help="number of ids in all (default 4000)")
    parser.add_argument("--output", type=Path, required=True, help="the folder for vocab.json and merges.txt")
    options = parser.parse_args(arguments)
    wanted = options.vocab_size - BYTES - 1
    if wanted < 0:
        stop(f"--vocab-size must be {BYTES + 1} or more (all bytes, {END_OF_TEXT}), not {options.vocab_size}")
    if not options.corpus.is_file():
        stop(f"no file {options.corpus}; make it with examples/make_corpus.py or name another text")
    try:
        merges = without_repeats(learn_merges(options.corpus, wanted))
        count = write_tokenizer(options.output, merges)
    except ImportError:
        stop("the tokenizers package is missing; install it with: pip install tokenizers")
    except UnicodeDecodeError:
        stop(f"{options.corpus} is not UTF-8 text; save it as UTF-8 first")
    except OSError as error:
        stop(f"cannot read {options.corpus} or write {options.output}: {error.strerror}")
    if len(merges) < wanted:
        print(
            f"note: the text gives only {len(merges)} of {wanted} merges, so the vocabulary has {count} ids, "
            f"not {options.vocab_size}; use a longer text or a smaller --vocab-size",
            file=sys.stderr,
        )
    print(f"{count} ids written to {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
