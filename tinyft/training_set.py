"""What can be trained on, and its target tokens: the positions whose target is not -100, which alone have a loss."""

from typing import Protocol

import numpy as np

from .losses import IGNORE


class TrainingSet(Protocol):
    """What can be trained on: `instructions.InstructionSet`, or anything else that makes batches.

    The number of batches must not depend on how they are shuffled.
    """

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Indices of each batch of one epoch, (batch_size,) or fewer; shuffled if there is an rng.

        For `Settings.batch_tokens` it needs a third argument of that name: tokens of a batch at most, instead.
        """

    def collate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one batch, (B, T) each, -100 where there is nothing to learn."""


def fingerprint(data: TrainingSet | None) -> str:
    """What the set's method of this name says of all that is learned, or that there is no set or no such method."""
    if data is None:
        return "none"
    return data.fingerprint() if hasattr(data, "fingerprint") else "of unknown content"


def count_targets(targets: np.ndarray) -> int:
    """The number of target tokens."""
    return int((targets != IGNORE).sum())


def has_targets(data: TrainingSet | None) -> bool:
    """Whether there is a set, with at least one target token in it."""
    return data is not None and any(count_targets(data.collate(indices)[1]) for indices in data.batches(1))
