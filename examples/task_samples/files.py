"""All samples together, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny_world.dice import Dice

from tinyft.files import make_writable_folder, write_text

from . import by_hand, pairs, puzzles, questions, reading
from .shape import Files

# Makers that take facts need to know which are held out, and so the seed; the others do with dice.
OF_FACTS: tuple[Callable[[Dice, int], Files], ...] = (
    questions.mmlu, questions.trivia, questions.big_bench, pairs.glue,
)  # fmt: skip
OTHERS: tuple[Callable[[Dice], Files], ...] = (
    puzzles.big_bench_hard, by_hand.acceptable, by_hand.inference, by_hand.pronouns, by_hand.causes, by_hand.senses,
    by_hand.endings, by_hand.functions, reading.squad, reading.boolq, reading.multirc, reading.record, reading.lambada,
    reading.wikitext,
)  # fmt: skip


def make_files(seed: int) -> Files:
    """The rows of each file by its name without .jsonl: `cais/mmlu/global_facts/test`."""
    made: Files = {}
    for number, of_facts in enumerate(OF_FACTS):
        made |= of_facts(Dice(seed * 1000 + number), seed)
    for number, other in enumerate(OTHERS, len(OF_FACTS)):
        made |= other(Dice(seed * 1000 + number))
    return made


def write_files(folder: Path, made: Files) -> None:
    """Write each file below the folder, one row to a line."""
    for name, rows in made.items():
        path = folder / f"{name}.jsonl"
        make_writable_folder(path.parent)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
