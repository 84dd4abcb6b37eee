"""From entries to batches: tokens, masks, splits, padding.

Masks are built by position, beside the ids. They are never found again by looking for a token: the padding
token is the end-of-text token, and that one has to be learned once in every row.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ops import IGNORE
from ..tokenizer import Tokenizer
from .entries import Entry
from .prompts import PROMPT_STYLES


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and reply, without the end-of-text; the reply starts at `prompt_length`."""

    ids: np.ndarray
    prompt_length: int


def encode(entry: Entry, prompt_style: str, tokenizer: Tokenizer) -> Example:
    """Prompt and reply are encoded apart and joined, so that training sees the very ids that inference sees.

    "<|endoftext|>" in an entry is text like any other.
    """
    prompt = tokenizer.encode_ordinary(PROMPT_STYLES[prompt_style](entry))
    reply = tokenizer.encode_ordinary(entry.output)
    return Example(np.array(prompt + reply, np.int64), len(prompt))


def collate(examples: Sequence[Example], end_of_text: int, *, max_length: int | None = None,
            mask_prompt: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Examples -> inputs (B, T), targets (B, T): what to predict at each position, -100 for nothing.

    As in chapter 7: one end-of-text is appended and learned, rows are padded to the longest with more of
    them, which are not; targets are the ids one to the left; both are cut at max_length. mask_prompt: the
    prompt is not learned either.
    """
    longest = max(len(example.ids) for example in examples)
    length = longest if max_length is None else min(longest, max_length)
    inputs = np.full((len(examples), longest), end_of_text, np.int64)
    targets = np.full((len(examples), longest), IGNORE, np.int64)
    for row, example in enumerate(examples):
        n = len(example.ids)
        inputs[row, :n] = example.ids
        targets[row, : n - 1] = example.ids[1:]
        targets[row, n - 1] = end_of_text
        if mask_prompt:
            targets[row, : example.prompt_length - 1] = IGNORE
    return inputs[:, :length], targets[:, :length]


class InstructionSet:
    """Encoded entries, and how to make batches of them.

    Entries that leave nothing of a reply to learn are left out: an empty reply, or a prompt longer than
    max_length. `dropped` lists their indices, and `cut` counts the replies that lose their end, for a report.
    """

    def __init__(self, entries: Sequence[Entry], tokenizer: Tokenizer, *, prompt_style: str = "alpaca",
                 mask_prompt: bool = False, max_length: int):
        self.end_of_text, self.mask_prompt, self.max_length = tokenizer.eot_token, mask_prompt, max_length
        self.examples, self.dropped, self.cut = [], [], 0
        for i, entry in enumerate(entries):
            example = encode(entry, prompt_style, tokenizer)
            if entry.output.strip() and example.prompt_length <= max_length:
                self.examples.append(example)
                self.cut += len(example.ids) > max_length
            else:
                self.dropped.append(i)

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """A short hash of all that is learned, to tell whether two sets are the same."""
        digest = hashlib.sha256(f"{self.mask_prompt} {self.max_length} {self.end_of_text}".encode())
        for example in self.examples:
            digest.update(example.ids.tobytes() + bytes(example.prompt_length))
        return digest.hexdigest()[:16]

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Indices of each batch of one epoch; shuffled if there is an rng, else in order.

        Shuffled entries are sorted by length within buckets of 32 batches, so that a batch has rows of similar
        length, and the batches are shuffled again.
        """
        order = np.arange(len(self))
        if rng is None:
            return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        rng.shuffle(order)
        lengths = np.array([len(example.ids) for example in self.examples])
        batches = []
        for start in range(0, len(order), 32 * batch_size):
            bucket = order[start : start + 32 * batch_size]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def collate(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (B, T) of one batch."""
        return collate([self.examples[i] for i in indices], self.end_of_text,
                       max_length=self.max_length, mask_prompt=self.mask_prompt)


def split(entries: Sequence[Entry], *, train: float = 0.85, test: float = 0.10,
          rng: np.random.Generator | None = None) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Training, validation and test entries; what `train` and `test` leave over is for validation.

    With an rng shuffled; without, in the order of the file: training, test, validation, as in chapter 7.
    """
    if not (0 < train <= 1 and 0 <= test < 1 and train + test <= 1):
        raise ValueError(f"split: train = {train} and test = {test}, expected shares that add up to at most 1, "
                         "with something to train on")
    order = np.arange(len(entries)) if rng is None else rng.permutation(len(entries))
    first, second = int(len(entries) * train), int(len(entries) * train) + int(len(entries) * test)
    parts = order[:first], order[second:], order[first:second]
    return tuple([entries[i] for i in part] for part in parts)


def show_mask(example_inputs: np.ndarray, example_targets: np.ndarray, tokenizer: Tokenizer) -> str:
    """One row, (T,) and (T,), as text for a terminal: learned tokens green, the others grey."""
    ids = [*example_inputs[:1], *np.where(example_targets == IGNORE, np.append(example_inputs[1:], -1),
                                          example_targets)]
    learned = [False, *(example_targets != IGNORE)]
    shown = [(int(token), green) for token, green in zip(ids, learned, strict=True) if token >= 0]
    pieces = []
    # Tokens of one colour are decoded together: one character can be spread over several of them.
    for green, run in itertools.groupby(shown, key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run]).replace("\n", "\\n\n")
        pieces.append(f"\x1b[{32 if green else 90}m{text}\x1b[0m")
    return "".join(pieces)
