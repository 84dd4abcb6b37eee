"""From entries to batches: tokens, masks, splits, padding.

Masks are built by position, beside the ids. They are never found again by looking for a token: the padding
token is the end-of-text token, and that one has to be learned once in every row.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..losses import IGNORE
from ..tokenizer import END_OF_TEXT, Tokenizer
from .entries import Entry
from .prompts import Style, encode_conversation, end_of_reply, find_style

END_MARKER_CHOICES = ("strip", "keep", "refuse")


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, (n,), with the ends of its replies; and which of them are learned, (n,)."""

    ids: np.ndarray
    learned: np.ndarray


def encode(entry: Entry, style: Style, tokenizer: Tokenizer) -> Example:
    """The ids of a conversation; of each reply the tokens and the end are learned, of the rest none."""
    ids, learned = encode_conversation(entry.turns, style, tokenizer)
    return Example(np.array(ids, np.int64), np.array(learned, bool))


def collate(examples: Sequence[Example], padding: int, *, max_length: int | None = None,
            mask_prompt: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Examples -> inputs (B, T), targets (B, T): what to predict at each position, -100 for nothing.

    As in chapter 7 of "Build a Large Language Model (From Scratch)": the end behind a reply is learned, rows are filled
    up to the longest with `padding`, which is not; targets are the ids one to the left; both are cut at max_length.
    mask_prompt: what is no reply is not learned either.

    >>> import numpy as np
    >>> from tinyft.data.instructions import Example
    >>> short = Example(np.array([5, 6, 0]), np.array([False, True, True]))
    >>> long = Example(np.array([5, 7, 8, 9, 0]), np.array([False, False, True, True, True]))
    >>> inputs, targets = collate([short, long], padding=0, mask_prompt=True)
    >>> inputs.tolist(), targets.tolist()
    ([[5, 6, 0, 0], [5, 7, 8, 9]], [[6, 0, -100, -100], [-100, 8, 9, 0]])
    """
    longest = max(len(example.ids) for example in examples) - 1
    length = longest if max_length is None else min(longest, max_length)
    inputs = np.full((len(examples), longest + 1), padding, np.int64)
    targets = np.full((len(examples), longest), IGNORE, np.int64)
    for row, example in enumerate(examples):
        n = len(example.ids)
        inputs[row, :n] = example.ids
        targets[row, : n - 1] = np.where(example.learned[1:] | (not mask_prompt), example.ids[1:], IGNORE)
    return inputs[:, :length], targets[:, :length]


class InstructionSet:
    """Encoded entries, and how to make batches of them.

    Entries that leave nothing of a reply to learn are left out: an empty reply, or a prompt longer than max_length.
    prompt_style: a name, a style, or None for the tokenizer's own. end_marker: what to do with an end of text that is
    written out at the end of a reply, "<|endoftext|>" or the tokenizer's own: "strip" it, "keep" it as a token, or
    "refuse" it. Within a reply it is always the token that it stands for.

    For a report: `dropped` lists the indices of entries left out and `reasons` counts why, `cut` counts those that lose
    their end at max_length, and `end_markers` those with a written end.

    >>> from tinyft import Entry, InstructionSet, load_tokenizer
    >>> tokenizer = load_tokenizer("weights/tiny-world")
    >>> entry = Entry.single("Name a fruit.", output="A plum")
    >>> data = InstructionSet([entry], tokenizer, mask_prompt=True, max_length=128)
    >>> inputs, targets = data.collate([0])
    >>> tokenizer.decode([token for token in targets[0].tolist() if token != -100])
    'A plum<|endoftext|>'
    """

    def __init__(self, entries: Sequence[Entry], tokenizer: Tokenizer, *, prompt_style: str | Style | None = None,
                 mask_prompt: bool = False, max_length: int, end_marker: str = "strip"):
        if end_marker not in END_MARKER_CHOICES:
            raise ValueError(f"end_marker is {end_marker!r}, expected one of {', '.join(END_MARKER_CHOICES)}")
        self.style = find_style(tokenizer, prompt_style)
        self.padding, self.mask_prompt, self.max_length = tokenizer.eot_token, mask_prompt, max_length
        self.examples, self.asked = [], []
        self.dropped, self.reasons, self.cut, self.end_markers = [], Counter(), 0, 0
        for i, entry in enumerate(entries):
            without = handle_end_markers(entry, self.style, tokenizer, keep=end_marker == "keep")
            if without is not entry:
                self.end_markers += 1
                if end_marker == "refuse":
                    raise ValueError(f"the entry that asks {entry.instruction[:60]!r} has an end of text written out "
                                     f"in a reply ({entry.output[-40:]!r}); remove it, or choose --end-marker strip")
                entry = without
            try:
                example = encode(entry, self.style, tokenizer)
            except ValueError as error:
                raise ValueError(f"the entry that asks {entry.instruction[:60]!r}: {error}") from None
            reason = _why_not(entry, example, max_length)
            if reason is None:
                self.examples.append(example)
                self.asked.append(entry.instruction)
                self.cut += len(example.ids) - 1 > max_length
            else:
                self.dropped.append(i)
                self.reasons[reason] += 1

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """A short hash of all that is learned, to tell whether two sets are the same."""
        digest = hashlib.sha256(f"{self.mask_prompt} {self.max_length} {self.padding}".encode())
        for example in self.examples:
            digest.update(f"{len(example.ids)}".encode() + example.ids.tobytes() + example.learned.tobytes())
        return digest.hexdigest()[:16]

    def describe(self, index: int) -> str:
        """A row in a few words, by which a person finds its entry."""
        return f"asks {self.asked[index][:40]!r}"

    def lengths(self) -> np.ndarray:
        """How many tokens of each row are computed, those up to its last target: (n,)."""
        return np.array([self._length(example) for example in self.examples], np.int64)

    def _length(self, example: Example) -> int:
        n = min(len(example.ids) - 1, self.max_length)
        return int(np.flatnonzero(example.learned[1 : n + 1])[-1]) + 1 if self.mask_prompt else n

    def batches(self, batch_size: int, rng: np.random.Generator | None = None,
                batch_tokens: int | None = None) -> list[np.ndarray]:
        """Indices of each batch of one epoch; shuffled if there is an rng, else in order.

        Shuffled entries are sorted by length within buckets of 32 batches, so that a batch has rows of similar
        length, and the batches are shuffled again.

        batch_tokens: put as many rows together as have so many tokens at most (see `lengths`), whatever batch_size
        says; a row with more is a batch of its own. All entries are sorted by length then, those of one length in
        another order each time: cut anywhere else, the number of batches would depend on the order, and with it how
        many steps there are.
        """
        order = np.arange(len(self))
        if batch_tokens is not None:
            lengths = self.lengths()
            if rng is not None:
                rng.shuffle(order)
                order = order[np.argsort(lengths[order], kind="stable")]
            batches = cut_by_tokens(order, lengths[order], batch_tokens)
            return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
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

    def longest_rows(self, count: int) -> np.ndarray:
        """Indices of so many of the longest rows, or of all, the longest first: to see what a step may take."""
        return np.argsort(-self.lengths(), kind="stable")[:count]

    def collate(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (B, T) of one batch."""
        return collate([self.examples[i] for i in indices], self.padding,
                       max_length=self.max_length, mask_prompt=self.mask_prompt)


def cut_by_tokens(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut an order of rows into batches, each as long as its rows have `budget` tokens at most; one row at least.

    lengths: of the rows in this order.
    """
    if budget < 1:
        raise ValueError(f"batches: batch_tokens is {budget}, expected at least 1")
    cuts, so_far = [], 0
    for i, length in enumerate(lengths.tolist()):
        so_far += length
        if so_far > budget and i:
            cuts.append(i)
            so_far = length
    return np.split(order, cuts) if len(order) else []


def _why_not(entry: Entry, example: Example, max_length: int) -> str | None:
    """Why an entry teaches nothing, or None if it does."""
    if not any(turn.role == "assistant" and turn.content.strip() for turn in entry.turns):
        return "without a reply"
    if not any(turn.role != "assistant" and (turn.content + turn.input).strip() for turn in entry.turns):
        return "without an instruction"
    if not example.learned[1 : max_length + 1].any():
        return f"with a prompt of more than {max_length} tokens"
    return None


def handle_end_markers(entry: Entry, style: Style, tokenizer: Tokenizer, *, keep: bool = False) -> Entry:
    """The entry with ends of text that are written out in its replies as tokens; the same entry where there are none.

    Those at the end of a reply are left out, but for keep. A marker that is no token of this tokenizer, so that it
    would be learned letter by letter, becomes the end of a reply that it stands for.
    """
    end, _ = end_of_reply(style, tokenizer)
    markers = {END_OF_TEXT, tokenizer.decode([tokenizer.eot_token]), end}
    foreign = [marker for marker in markers if tokenizer.token_id(marker) is None]

    def handled(text: str) -> str:
        last, found = len(text), False  # moved from the end, not cut off each time: there can be very many
        while True:
            while last and text[last - 1].isspace():
                last -= 1
            marker = next((m for m in markers if m and text.endswith(m, 0, last)), None)
            if marker is None:
                break
            last, found = last - len(marker), True
        text = text[:last] if found and not keep else text
        for marker in foreign:
            text = text.replace(marker, end)
        return text

    turns = tuple(replace(turn, content=handled(turn.content)) if turn.role == "assistant" else turn
                  for turn in entry.turns)
    marked = any(marker in turn.content for turn in entry.turns if turn.role == "assistant" for marker in markers)
    return replace(entry, turns=turns) if marked else entry


def split(entries: Sequence[Entry], *, train: float = 0.85, test: float = 0.10,
          rng: np.random.Generator | None = None) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Training, validation and test entries; what `train` and `test` leave over is for validation.

    With an rng shuffled; without, in the order of the file: training, test, validation, as in chapter 7.

    >>> entries = [Entry.single(f"Count to {n}.") for n in range(20)]
    >>> [len(part) for part in split(entries)]
    [17, 1, 2]
    """
    if not (0 < train <= 1 and 0 <= test < 1 and train + test <= 1):
        raise ValueError(f"split: a train share of {train:g} and a test share of {test:g}, expected shares that add up "
                         "to at most 1, with something to train on")
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
