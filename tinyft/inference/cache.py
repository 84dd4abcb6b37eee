"""Which blocks of the cache belong to which sequence, and what sequences that begin alike have in common.

A sequence that begins like an earlier one, running or finished, takes over the keys and values of what they share:
whole blocks are used by both, and the last one, of which only a part is shared, is copied. Finished sequences are kept
until their room is needed, so that a conversation goes on where it was, and a preamble is read once.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from ..kernels.cached_attention import BLOCK
from ..segments import common_prefix
from .engine import Engine

GRAIN = 8  # tokens; beginnings are found by their first 8, 16, 24, ...


class CachedSequence:
    """Tokens, the first `computed` of which are in the cache, in `blocks`."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = list(tokens)
        self.computed = 0
        self.blocks: list[int] = []


def _beginnings(tokens: Sequence[int]) -> list[bytes]:
    """The first 8, 16, 24, ... tokens as keys, the shortest first."""
    whole = np.asarray(tokens, np.int32)
    return [whole[:end].tobytes() for end in range(GRAIN, len(tokens) + 1, GRAIN)]


class Beginnings:
    """Finds the sequence that has most tokens in common with another at its beginning."""

    def __init__(self):
        self._sequences: dict[bytes, dict[int, CachedSequence]] = {}  # by beginning, and then by id

    def add(self, sequence: CachedSequence, count: int) -> None:
        """Let the first `count` tokens of a sequence be found."""
        for key in _beginnings(sequence.tokens[:count]):
            self._sequences.setdefault(key, {})[id(sequence)] = sequence

    def remove(self, sequence: CachedSequence) -> None:
        """Have a sequence not found any more."""
        for key in _beginnings(sequence.tokens):
            alike = self._sequences.get(key, {})
            alike.pop(id(sequence), None)
            if not alike:
                self._sequences.pop(key, None)

    def find(self, tokens: Sequence[int]) -> CachedSequence | None:
        """A sequence that begins like `tokens`, in multiples of GRAIN tokens; of several the last that was added."""
        key = next((key for key in reversed(_beginnings(tokens)) if key in self._sequences), None)
        return None if key is None else next(reversed(self._sequences[key].values()))


class Cache:
    """Hands out an engine's blocks."""

    def __init__(self, engine: Engine, retained_blocks: int | None = None):
        """retained_blocks: how many blocks finished sequences may keep, those that several share counted for each; by
        default as many as four of the longest have.
        """
        self._engine = engine
        self._free = list(range(engine.n_blocks))  # a heap: low numbers first, so that little memory is touched
        self._users = [0] * engine.n_blocks
        self._retained: OrderedDict[int, CachedSequence] = OrderedDict()
        self._beginnings = Beginnings()
        self._most_retained = 4 * engine.blocks_per_sequence if retained_blocks is None else retained_blocks

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free)

    def shared_with(self, tokens: Sequence[int], most: int) -> tuple[CachedSequence | None, int]:
        """Whose beginning is in the cache already, and how many tokens of it, at most `most`."""
        found = self._beginnings.find(tokens[:most])
        if found is None:
            return None, 0
        return found, min(most, common_prefix(tokens, found.tokens[: found.computed]))

    def open(self, sequence: CachedSequence, length: int, most_shared: int) -> int | None:
        """Give a sequence room for `length` tokens -> how many of its first tokens are there already.

        None if there is no room now. most_shared: of how many tokens keys and values may be another's.
        """
        donor, found = self.shared_with(sequence.tokens, most_shared)
        # A part of a block takes a copy, for which there may be no room beside it.
        for shared in dict.fromkeys((found, found // BLOCK * BLOCK)):
            whole, needed = shared // BLOCK, -(-length // BLOCK) - shared // BLOCK
            taken = donor.blocks[: -(-shared // BLOCK)] if donor else []
            for block in taken:  # before anything is thrown away for the rest
                self._users[block] += 1
            if self._make_room(needed):
                break
            self._give_back(taken)
        else:
            return None
        fresh = [heapq.heappop(self._free) for _ in range(needed)]
        for block in fresh:
            self._users[block] = 1
        sequence.blocks = [*taken[:whole], *fresh]
        if whole < len(taken):
            for part in (self._engine.keys, self._engine.values):
                part[:, fresh[0]] = part[:, taken[whole]]
            self._give_back(taken[whole:])
        sequence.computed = shared
        return shared

    def _make_room(self, needed: int) -> bool:
        """Have so many blocks free, if that is possible, by forgetting finished sequences."""
        if len(self._free) < needed and len(self._free) + self._only_retained() < needed:
            return False
        while len(self._free) < needed:
            self._forget_oldest()
        return True

    def _only_retained(self) -> int:
        """How many blocks finished sequences alone use."""
        uses = Counter(block for sequence in self._retained.values() for block in sequence.blocks)
        return sum(self._users[block] == count for block, count in uses.items())

    def offer(self, sequence: CachedSequence) -> None:
        """Let others take over what is computed of a sequence."""
        self._beginnings.add(sequence, sequence.computed)

    def close(self, sequence: CachedSequence) -> None:
        """A sequence is finished: it is kept as long as there is room."""
        used = -(-sequence.computed // BLOCK)
        self._give_back(sequence.blocks[used:])
        del sequence.blocks[used:], sequence.tokens[sequence.computed :]
        if not sequence.blocks:
            return
        self.offer(sequence)
        self._retained[id(sequence)] = sequence
        while sum(len(kept.blocks) for kept in self._retained.values()) > self._most_retained:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, sequence = self._retained.popitem(last=False)
        self._beginnings.remove(sequence)
        self._give_back(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0

    def _give_back(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] -= 1
            if self._users[block] == 0:
                heapq.heappush(self._free, block)
