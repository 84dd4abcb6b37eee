"""Plain text for pretraining: documents one after the other, cut into blocks."""

import hashlib

import numpy as np

from ..tokenizer import Tokenizer


class TextSet:
    """A long row of tokens, cut into blocks of one context each; every token is a target."""

    def __init__(self, ids: np.ndarray, context: int):
        self.ids, self.context = ids, context

    def batches(self, batch_size: int, rng: np.random.Generator | None = None,
                batch_tokens: int | None = None) -> list[np.ndarray]:
        """Starts of the blocks of each batch; shuffled, and cut at other places in each epoch, if there is an rng.

        batch_tokens: as many blocks as have so many tokens at most, one at least, whatever batch_size says.
        """
        if batch_tokens is not None:
            if batch_tokens < 1:
                raise ValueError(f"batches: batch_tokens is {batch_tokens}, expected at least 1")
            batch_size = max(1, batch_tokens // self.context)
        if rng is None:
            starts = np.arange(0, len(self.ids) - self.context, self.context)
            return [starts[i : i + batch_size] for i in range(0, len(starts), batch_size)]
        starts = np.arange(int(rng.integers(self.context)), len(self.ids) - self.context, self.context)
        rng.shuffle(starts)
        # A last, smaller batch is left out, so that all epochs have the same number.
        count = max(1, (len(self.ids) // self.context - 2) // batch_size)
        return [starts[i : i + batch_size] for i in range(0, count * batch_size, batch_size) if i < len(starts)]

    def describe(self, start: int) -> str:
        """A block in a few words, by which a person finds it."""
        return f"tokens {start} to {start + self.context}"

    def longest_rows(self, count: int) -> np.ndarray:
        """Starts of so many blocks, which are all of one length: to see what a step may take."""
        return np.arange(0, len(self.ids) - self.context, self.context)[:count]

    def fingerprint(self) -> str:
        """A short hash of the tokens and how they are cut."""
        return hashlib.sha256(f"{self.context}".encode() + self.ids.tobytes()).hexdigest()[:16]

    def collate(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (B, context); the targets are the inputs one to the left."""
        blocks = np.stack([self.ids[start : start + self.context + 1] for start in indices]).astype(np.int64)
        return blocks[:, :-1], blocks[:, 1:]


def encode_documents(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """All documents one after the other, an end-of-text behind each."""
    ids: list[int] = []
    for document in text.replace("\r\n", "\n").split("\n\n"):
        if document.strip():
            ids += tokenizer.encode(document.strip(), add_special_tokens=False)
            ids.append(tokenizer.eot_token)
    return np.array(ids, np.uint16 if tokenizer.n_vocab <= 2**16 else np.int32)
