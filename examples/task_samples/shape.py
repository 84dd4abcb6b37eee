"""What the makers of samples share: rows, right answers spread over the positions, held-out facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tiny_world.dice import Dice
from tiny_world.instructions import FAMILIES, phrasings, split_facts

Row = dict[str, Any]
Files = dict[str, list[Row]]  # rows by "owner/name/config/split", the data set's address on the Hugging Face hub
Slots = dict[str, str]


def spread(dice: Dice, count: int, positions: int) -> list[int]:
    """Where the right answers stand: each of the positions equally often (or once more), in random order."""
    return dice.shuffled([number % positions for number in range(count)])


def placed(right: str, wrong: Sequence[str], position: int) -> list[str]:
    """All answers, the right one at a position."""
    return [*wrong[:position], right, *wrong[position:]]


def numbered(rows: Sequence[Row]) -> list[Row]:
    """The rows with their number under `idx`, as GLUE and SuperGLUE have it."""
    return [row | {"idx": number} for number, row in enumerate(rows)]


def facts(dice: Dice, relation: str, seed: int, held_out: bool) -> Iterator[Slots]:
    """The slots of facts in random order: of those that tuning never shows, or of the others."""
    return iter(dice.shuffled(split_facts(relation, seed)[1 if held_out else 0]))


def asked(relation: str, slots: Slots, number: int) -> str:
    """A fact as a question: the phrasings that need no input, in turn."""
    texts = [text for text, given in phrasings(_family(relation), "train") if not given and text.endswith("?")]
    return texts[number % len(texts)].format(**slots)


def answered(relation: str, slots: Slots) -> str:
    """The answer to it, as tuning words it."""
    return FAMILIES[_family(relation)].answer.format(**slots)


def _family(relation: str) -> str:
    return "addition" if relation == "sum" else relation
