"""Seeded chance that gives the same numbers on every machine and Python version.

Python promises that `random.Random.random` repeats itself for the same seed, and promises it for
no other method. Everything random in this package is therefore made from that one method.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of seeded random choices."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self.random() * len(items))]

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order, in a new list."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = int(self.random() * (last + 1))
            result[last], result[other] = result[other], result[last]
        return result

    def several(self, items: Sequence[T], count: int) -> list[T]:
        """Different items (by position), in random order; quick for a few out of many."""
        if count * 3 > len(items):
            return self.shuffled(items)[:count]
        chosen: list[int] = []
        while len(chosen) < count:
            index = int(self.random() * len(items))
            if index not in chosen:
                chosen.append(index)
        return [items[index] for index in chosen]
