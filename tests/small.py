"""A byte-level BPE, a GPT-2 and a data set that are small enough to be made anew in a test."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from tinyft import GPT2, GPT2Config, ops

GPT2_TOKENIZER = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gpt2-tokenizer"
WHY_NO_GPT2_TOKENIZER = f"GPT-2's vocab.json and merges.txt are not in {GPT2_TOKENIZER}"

CORPUS = """The cat sat on the mat, and the other cat sat on the hat. That's what cats do: they sit!
She'll say they've 12 hats; we're sure there are 345.  "Then count them again," he said.
Größe, naïve café, señor, 東京 and 東北, привет, приветы. Smile 🙂🙂🙃 at the 👩‍👩‍👧 there.
    def the_cat(hat):
        return hat + hat  # and that is that
"""

NASTY_TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", " \n \n", "\t\t x", "a", "The cat sat on the mat.", "   the   cat   ",
    "trailing space ", "trailing spaces   ", "trailing newline\n", "line\r\nline\r\n",
    "I'll, we've, it's, I'D, 'tis ' s",
    "0123456789 1 22 333 4444 1,000.50", "３４５ ½ ² Ⅷ ٣", "Größe naïve café Ångström", "e\u0301 versus é",
    "東京都 and 東北大学", "привет, мир", "مرحبا بالعالم", "שלום", "नमस्ते", "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈",
    "\u00a0non\u00a0breaking\u2003wide",
    "\u200bzero\u200bwidth\ufeff", "\x00\x01\x7f control", "a_b-c+d=e;{f}[g]<h>|i|\\j\\", "!!!???...---", "....\n\n  x",
    "https://example.org/?q=1&r=%20#x", "    def f(x):\n        return x\n\n\n", "mixed日本語text混在",
    "ﷺ", "Ǆ ǅ ǆ ß ẞ",
    "\U0001d400\U0001d401", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\u2028line\u2029paragraph\x85next",
]


def byte_symbols() -> dict[int, str]:
    """GPT-2's spelling of each byte in vocab.json, in the order of their ids."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def learn_merges(text: str = CORPUS, count: int = 80) -> list[tuple[str, str]]:
    """Byte pair encoding as in the textbook: merge the most frequent pair, again and again."""
    symbols = byte_symbols()
    words = [[symbols[b] for b in word.encode()] for word in re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s", text)]
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False)
                        if "".join(pair) not in made)
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((left, right))
        made.add(left + right)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return merges


def write_tokenizer(folder: Path, merges: list[tuple[str, str]] | None = None) -> dict[str, int]:
    """Write vocab.json and merges.txt as Hugging Face does; returns the vocabulary."""
    merges = learn_merges() if merges is None else merges
    tokens = [*byte_symbols().values(), *(a + b for a, b in merges), "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    return vocab


def make_model(seed: int = 0, dtype=np.float32, scale: float = 0.25, **shape) -> GPT2:
    """A GPT-2 with all parameters random, biases and norms too; room for `write_tokenizer`'s tokens."""
    shape = {"vocab_size": 340, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3} | shape
    rng = np.random.default_rng(seed)
    model = GPT2(GPT2Config(**shape), rng, dtype)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.data = (centre + scale * rng.standard_normal(parameter.shape)).astype(np.float32).astype(dtype)
    return model


def weights_of(model: GPT2) -> dict[str, np.ndarray]:
    """Copies of all parameters by name."""
    return {name: parameter.data.copy() for name, parameter in model.named_parameters()}


def assert_same_weights(one: GPT2, other: GPT2) -> None:
    """Equal in every bit, names and shapes included."""
    left, right = weights_of(one), weights_of(other)
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)


class Rows:
    """A training set of random rows of different lengths, some targets dead."""

    def __init__(self, count: int, vocab_size: int, longest: int, seed: int):
        rng = np.random.default_rng(seed)
        self.rows = []
        for _ in range(count):
            ids = rng.integers(vocab_size, size=rng.integers(3, longest + 2))
            targets = ids[1:].copy()
            targets[: rng.integers(0, len(targets))] = -100
            self.rows.append((ids[:-1], targets))

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        order = np.arange(len(self.rows)) if rng is None else rng.permutation(len(self.rows))
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def collate(self, indices) -> tuple[np.ndarray, np.ndarray]:
        rows = [self.rows[i] for i in indices]
        shape = len(rows), max(len(ids) for ids, _ in rows)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, -100)
        for i, (ids, row_targets) in enumerate(rows):
            inputs[i, : len(ids)], targets[i, : len(ids)] = ids, row_targets
        return inputs, targets


def products_in(monkeypatch, compute):
    """Shapes (M, K, N) of the products that compute() makes, and its result."""
    shapes, kernel = [], ops.gemm

    def counting(a, b, *args, **options):
        shapes.append((*a.shape, b.shape[1]))
        return kernel(a, b, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "gemm", counting)
        result = compute()
    return shapes, result
