"""Tuning examples in the Alpaca form, and two test sets that share nothing with them.

A family is one sort of question. Recall families ask for facts of the corpus; rule families ask
for something to be done to a sentence, a list or a number. Of the facts, a held-out part is never
used for tuning; of the sentences and lists, the reserved part (see `reserve.py`) is in neither
the corpus nor the tuning set. The questions are worded in tables/phrasings.csv, where two
phrasings of each family are held out as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from . import sentences
from .dice import Dice
from .exercises import first_word, last_word
from .facts import Fact, facts_by_relation
from .stories import tell_story
from .tables import rows

Example = dict[str, str]
Slots = dict[str, str]
Source = Callable[[Dice], Slots]
HELD_OUT_SHARE = 0.3
MOST_TRIES = 200


@dataclass(frozen=True)
class Family:
    """One sort of question: how hard it is, how many examples it gets, and where they come from.

    `difficulty` is "learnable" (a small model should get most answers exactly right), "borderline",
    "impossible" (too hard for it, kept to show a limit) or "open" (no single right answer).
    A recall family names a relation of `facts.py` and the slot of the answer; any other family
    has a `draw` function, which gets the dice and whether to give reserved matter.
    """

    difficulty: str
    train: int
    items: int
    phrasings: int
    relation: str = ""
    answer: str = ""
    draw: Callable[[Dice, bool], Slots] | None = None


def _negate(dice: Dice, reserved: bool) -> Slots:
    plain, negated = sentences.plain_and_negated(dice, reserved)
    return {"plain": plain, "output": negated}


def _passive(dice: Dice, reserved: bool) -> Slots:
    action = sentences.action(dice, reserved)
    return {"active": action.active, "output": action.passive}


def _first(dice: Dice, reserved: bool) -> Slots:
    text = sentences.sentence(dice, reserved)
    if text.startswith("The "):  # half of all sentences do, which would make the question dull
        text = sentences.sentence(dice, reserved)
    return {"sentence": text, "output": first_word(text)}


def _last(dice: Dice, reserved: bool) -> Slots:
    text = sentences.sentence(dice, reserved)
    return {"sentence": text, "output": last_word(text)}


def _repeat(dice: Dice, reserved: bool) -> Slots:
    text = sentences.sentence(dice, reserved)
    return {"sentence": text, "output": text}


def _sentiment(dice: Dice, reserved: bool) -> Slots:
    remark, feeling = sentences.remark(dice, reserved)
    return {"remark": remark, "output": feeling}


def _passage(dice: Dice, reserved: bool) -> Slots:
    passage, question, answer = sentences.passage(dice, reserved)
    return {"passage": passage, "question": question, "output": answer}


def _count(dice: Dice, reserved: bool) -> Slots:
    words = sentences.word_list(dice, reserved)
    return {"list": ", ".join(words), "output": str(len(words))}


def _sort(dice: Dice, reserved: bool) -> Slots:
    numbers = sentences.number_list(dice, reserved)
    return {"list": ", ".join(numbers), "output": ", ".join(sorted(numbers))}


def _odd(dice: Dice, reserved: bool) -> Slots:
    words, odd, _ = sentences.odd_one_out(dice, reserved)
    return {"list": ", ".join(words), "output": odd}


def _big_addition(dice: Dice, reserved: bool) -> Slots:
    x, y = sentences.big_sum(dice, reserved)
    slots = {"x": str(x), "y": str(y), "output": str(x + y)}
    return slots | {"once": f"{min(x, y)} + {max(x, y)}"} if reserved else slots


def _story(dice: Dice, reserved: bool) -> Slots:
    told = tell_story(dice).told
    cut = len(told) // 2
    return {"start": " ".join(told[:cut]), "output": " ".join(told[cut : cut + 2])}


def _recall(relation: str, answer: str, train: int = 140) -> Family:
    return Family("learnable", train, 18, 13, relation, answer)


def _rule(draw: Callable[[Dice, bool], Slots], train: int = 140) -> Family:
    return Family("learnable", train, 18, 13, draw=draw)


FAMILIES: dict[str, Family] = {
    "capital": _recall("capital", "{Y}"),
    "young": _recall("young", "{Ay}"),
    "sound": _recall("sound", "It {y3}"),
    "home": _recall("home", "In {y}"),
    "kind": _recall("kind", "{Y}", 100),
    "colour": _recall("colour", "{Y}", 100),
    "symbol": _recall("symbol", "{y}"),
    "opposite": _recall("opposite", "{y}", 160),
    "plural": _recall("plural", "{y}"),
    "past": _recall("past", "{y}", 160),
    "addition": _recall("sum", "{z}", 160),
    "negate": _rule(_negate, 100),
    "passive": _rule(_passive, 160),
    "first": _rule(_first, 80),
    "last": _rule(_last, 140),
    "repeat": _rule(_repeat, 80),
    "sentiment": _rule(_sentiment, 80),
    "passage": _rule(_passage, 240),
    "count": _rule(_count, 120),
    "sort": _rule(_sort, 100),
    "odd": _rule(_odd, 240),
    "big_addition": Family("borderline", 80, 15, 12, draw=_big_addition),
    "reverse": Family("impossible", 60, 10, 8, relation="plural", answer="{reversed}"),
    "story": Family("open", 60, 10, 8, draw=_story),
}


@cache
def phrasings(family: str, split: str) -> tuple[tuple[str, str], ...]:
    """The (instruction, input) templates of a family; split is "train" or "heldout"."""
    found = [row for row in rows("phrasings") if (row["family"], row["split"]) == (family, split)]
    return tuple((row["instruction"], "" if row["input"] == "-" else row["input"]) for row in found)


def fact_item(fact: Fact) -> tuple[str, ...]:
    """What must stay on one side of the split: 3 + 5 and 5 + 3 are one item, hot and cold too."""
    slots = fact.slots
    return (fact.relation, *sorted((slots["x"], slots["y"])))


def split_facts(relation: str, seed: int) -> tuple[list[Slots], list[Slots]]:
    """The slots of the facts for tuning and of the held-out facts."""
    facts = facts_by_relation()[relation]
    order = Dice(seed).shuffled(sorted({fact_item(fact) for fact in facts}))
    held_out = set(order[: int(len(order) * HELD_OUT_SHARE)])
    train = [fact.slots for fact in facts if fact_item(fact) not in held_out]
    test = [fact.slots for fact in facts if fact_item(fact) in held_out]
    if relation == "opposite":
        return train + [_swapped(slots) for slots in train], test + [_swapped(slots) for slots in test]
    return train, test


def _swapped(slots: Slots) -> Slots:
    """An opposite asked from the other side."""
    return slots | {"x": slots["y"], "y": slots["x"], "X": slots["Y"], "Y": slots["X"]}


def _source(family: Family, seed: int, reserved: bool) -> Source:
    """A function that draws the slots of one example, with its output."""
    if family.draw is not None:
        draw = family.draw
        return lambda dice: draw(dice, reserved)
    pool = split_facts(family.relation, seed)[1 if reserved else 0]

    def pick(dice: Dice) -> Slots:
        slots = dice.pick(pool)
        return slots | {"output": family.answer.format(**slots, reversed=slots["x"][::-1])}

    return pick


def _examples(
    name: str, split: str, source: Source, count: int, dice: Dice, taken: set[str | tuple[str, str]]
) -> list[Example]:
    """Examples of one family whose (instruction, input) is not taken yet, phrasings in turn.

    A source that gives "once" with its slots is not asked twice about that, in whatever words.
    """
    templates = phrasings(name, split)
    found: list[Example] = []
    for _ in range(count * MOST_TRIES):
        if len(found) == count:
            break
        slots = source(dice)
        instruction, given = (text.format(**slots) for text in templates[len(found) % len(templates)])
        matter = slots.get("once", (instruction, given))
        if matter not in taken:
            taken.add(matter)
            example = {"instruction": instruction, "input": given, "output": slots["output"]}
            found.append(example | {"family": f"{FAMILIES[name].difficulty}/{name}"})
    return found


def make_sets(seed: int) -> dict[str, list[Example]]:
    """The three shuffled sets: train, test_items and test_phrasings."""
    sets: dict[str, list[Example]] = {"train": [], "test_items": [], "test_phrasings": []}
    for number, (name, family) in enumerate(FAMILIES.items()):
        dice = Dice(seed * 1000 + number)
        taken: set[str | tuple[str, str]] = set()
        known, unseen = _source(family, seed, reserved=False), _source(family, seed, reserved=True)
        sets["train"] += _examples(name, "train", known, family.train, dice, taken)
        sets["test_items"] += _examples(name, "train", unseen, family.items, dice, taken)
        half = family.phrasings // 2 if family.relation else 0
        sets["test_phrasings"] += _examples(name, "heldout", known, half, dice, taken)
        sets["test_phrasings"] += _examples(name, "heldout", unseen, family.phrasings - half, dice, taken)
    return {name: Dice(seed).shuffled(examples) for name, examples in sets.items()}
