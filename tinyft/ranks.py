"""Several processes train one model together, each on its share of the rows of every batch.

    mpirun -n 4 python examples/finetune_alpaca.py ...

Each process, a rank, has the whole model, the whole data and the same generator of random numbers, so that all agree on
the batches without a word. What they tell each other is the sum of their gradients: with it every one of them makes the
very same update, and the weights stay the same to the last bit.

`Ranks` is what the loop of `train` needs of them; here, for one process alone, there is nothing to do. `parallel.py`
has those that mpirun has started, which talk through MPI.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .gpt2 import GPT2
from .tensor import Tensor


class Ranks:
    """The processes that train together; this class itself is one process alone.

    All ranks call the same methods in the same order, except those that say that they need no other rank.
    """

    rank = 0  # the number of this process, from 0
    size = 1  # how many there are
    on_host = 1  # how many of them share this one's host, and with it the memory

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and saves. Needs no other rank."""
        return self.rank == 0

    def share(self, lengths: np.ndarray) -> np.ndarray:
        """Which of the rows with so many tokens, (n,), are this rank's: indices, in order. Needs no other rank."""
        return deal(lengths, self.size)[self.rank]

    def generator(self, rng: np.random.Generator, step: int) -> np.random.Generator:
        """What dropout draws from in a step. Needs no other rank.

        A process alone draws from rng itself. Of several, each must draw other numbers and leave rng, which shuffles
        the batches, as it is: its own generator is seeded by the state of rng, the step and the rank.
        """
        if self.size == 1:
            return rng
        said = json.dumps([rng.bit_generator.state, step, self.rank], sort_keys=True, default=repr)
        return np.random.default_rng(list(hashlib.sha256(said.encode()).digest()))

    def gather(self, value: Any) -> list:
        """The values of all ranks, in their order, on every rank."""
        return [value]

    def sum(self, *numbers: float) -> list[float]:
        """Each number added up over all ranks; the same on all of them to the last bit."""
        return [sum(of_all) for of_all in zip(*self.gather(numbers), strict=True)]

    def first(self, function: Callable, *arguments) -> Any:
        """What function(*arguments) gives on the first rank, which alone calls it; what it raises is raised on all."""
        outcome = None
        if self.is_first:
            try:
                outcome = function(*arguments), None
            except Exception as error:
                outcome = None, error
        value, error = self.gather(outcome)[0]
        if error is not None:
            raise error
        return value

    def in_turn(self, function: Callable[[], None]) -> None:
        """Call a function on one rank of each host, then on the others: what it leaves on the disk is there by then."""
        function()

    def copy_from_first(self, arrays: Sequence[np.ndarray]) -> None:
        """Overwrite arrays by those of the first rank."""

    def begin_sums(self, model: GPT2, parameters: dict[str, Tensor]) -> None:
        """From now on add up gradients over all ranks, block by block, while a backward pass forms them."""

    def finish_sums(self, model: GPT2, parameters: dict[str, Tensor]) -> None:
        """Add up all gradients that are not yet, and wait: `.grad` of each parameter is the sum then."""

    def check_same(self, facts: dict[str, Any]) -> None:
        """ValueError on every rank unless all of them give the same facts; it says what differs, and where."""
        of_all = self.gather({name: str(value) for name, value in facts.items()})
        if differing := _differences(of_all):
            raise ValueError(f"the {self.size} ranks have not been started alike: {differing}; start them all with the "
                             "same version, options, data and model")

    def check_weights(self, parameters: dict[str, Tensor], step: int) -> None:
        """RuntimeError on every rank if the weights are not the same on all of them, to the last bit."""
        if self.size == 1:
            return
        of_all = self.gather({name: f"{_checksum(p.data):08x}" for name, p in parameters.items()})
        if differing := _differences(of_all):
            raise RuntimeError(f"after step {step} the weights are no longer the same on all {self.size} ranks: "
                               f"{differing}; look for a host whose memory or network is not sound, then delete the "
                               "newest state in checkpoints/, and --resume goes on from the one before")


ALONE = Ranks()


def deal(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Deal rows with so many tokens, (n,), to `size` ranks; the indices of each, in order.

    The longest row goes first, each to the rank that has the fewest tokens so far (Graham, "Bounds on Multiprocessing
    Timing Anomalies", 1969: at most 4/3 of the best there is).
    """
    tokens, rows = [0] * size, [[] for _ in range(size)]
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        least = min(range(size), key=lambda rank: (tokens[rank], len(rows[rank])))
        rows[least].append(int(row))
        tokens[least] += int(lengths[row])
    return [np.array(sorted(own), np.int64) for own in rows]


def _checksum(array: np.ndarray) -> int:
    """The sum of an array's 32-bit words, modulo 2**32; it takes no longer than to read them."""
    return int(np.add.reduce(array.reshape(-1).view(np.uint32), dtype=np.uint32))


def _differences(facts_of: list[dict[str, str]]) -> str:
    """The facts in which ranks differ, and who says what, in words; empty if there is none."""
    found = []
    for name in dict.fromkeys(name for facts in facts_of for name in facts):
        said: dict[str, list[int]] = {}
        for rank, facts in enumerate(facts_of):
            said.setdefault(facts.get(name, "missing"), []).append(rank)
        if len(said) > 1:
            found.append(f"{name} is " + ", ".join(f"{value} on rank{'s' * (len(ranks) > 1)} {_numbers(ranks)}"
                                                   for value, ranks in said.items()))
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _numbers(ranks: list[int]) -> str:
    """The first few ranks, and how many more there are."""
    return " ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
