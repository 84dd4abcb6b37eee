"""Three tasks of BIG-Bench Hard: true or false, how many, and who lies."""

from __future__ import annotations

from collections.abc import Callable

from tiny_world.dice import Dice
from tiny_world.grammar import NUMBER_WORDS, with_article
from tiny_world.sentences import nouns_by_kind
from tiny_world.tables import names, plurals

from .shape import Files, Row

ITEMS = 8
# No word of one kind here could count as another (a kiwi is a bird too, a plane a tool, a tomato a fruit to some).
COUNTED = {"fruit": "fruits", "flower": "flowers", "insect": "insects", "vehicle": "vehicles"}


def big_bench_hard(dice: Dice) -> Files:
    """Items in the form of three tasks; lm-eval has their few-shot examples itself."""
    made = {
        "boolean_expressions": _balanced(lambda: _boolean(dice), ("True", "False")),
        "object_counting": [_counting(dice) for _ in range(ITEMS)],
        "web_of_lies": _balanced(lambda: _lies(dice), ("Yes", "No")),
    }
    return {f"SaylorTwift/bbh/{name}/test": rows for name, rows in made.items()}


def _balanced(draw: Callable[[], Row], targets: tuple[str, str]) -> list[Row]:
    """Different rows, the two targets in turn."""
    made: list[Row] = []
    while len(made) < ITEMS:
        row = draw()
        if row["target"] == targets[len(made) % 2] and row not in made:
            made.append(row)
    return made


def _boolean(dice: Dice) -> Row:
    def factor() -> str:
        text = dice.pick(("True", "False"))
        text = f"( {text} {dice.pick(('and', 'or'))} {dice.pick(('True', 'False'))} )" if dice.chance(0.3) else text
        return f"not {text}" if dice.chance(0.4) else text

    text = factor()
    for _ in range(dice.number(1, 2)):
        text += f" {dice.pick(('and', 'or'))} {factor()}"
    return {"input": f"{text} is", "target": str(eval(text))}  # of nothing but True, False, and, or, not and brackets


def _counting(dice: Dice) -> Row:
    kind, other = dice.several(tuple(COUNTED), 2)
    nouns, more = (dice.several(nouns_by_kind()[name], count) for name, count in
                   ((kind, dice.number(2, 3)), (other, dice.number(1, 2))))  # fmt: skip
    counts = {noun: dice.number(1, 3) for noun in [*nouns, *more]}
    told = [with_article(noun) if count == 1 else f"{NUMBER_WORDS[count]} {plurals()[noun]}"
            for noun, count in counts.items()]  # fmt: skip
    listed = dice.shuffled(told)
    text = f"I have {', '.join(listed[:-1])}, and {listed[-1]}. How many {COUNTED[kind]} do I have?"
    return {"input": text, "target": str(sum(counts[noun] for noun in nouns))}


def _lies(dice: Dice) -> Row:
    first, *others = dice.several(names(), 5)
    honest = dice.chance(0.5)
    told, before = [f"{first} {'tells the truth' if honest else 'lies'}."], first
    for person in others:
        calls_honest = dice.chance(0.5)
        told.append(f"{person} says {before} {'tells the truth' if calls_honest else 'lies'}.")
        honest, before = calls_honest == honest, person
    text = f"Question: {' '.join(told)} Does {before} tell the truth?"
    return {"input": text, "target": "Yes" if honest else "No"}
