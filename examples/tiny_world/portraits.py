"""Portraits: a page about one person, made of sentences with true facts woven into them.

The sentences are in tables/portraits.csv under topics. What is told of the person is made up, but
the capitals, the sounds of animals and so on that come up on the way are as true as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .dice import Dice
from .facts import facts_by_relation
from .grammar import NUMBER_WORDS, with_article
from .sentences import nouns_by_kind
from .stories import FORMS
from .tables import names, plurals, pronouns, rows, rows_by, words

Slots = dict[str, str]
# Verbs that make sense without an object, for what somebody does every day.
HABITS = ("dance", "swim", "walk", "work", "read", "run", "climb", "laugh", "write", "paint", "cook")


def _fact(dice: Dice, relation: str, unit: str = "") -> Slots:
    """The slots of any fact of a relation (for the calendar: of that unit)."""
    facts = facts_by_relation()[relation]
    return dice.pick([fact for fact in facts if fact.slots["u"] == unit] if unit else facts).slots


def _work(dice: Dice) -> Slots:
    job = _fact(dice, "job")
    return {"a_job": job["ax"], "does": job["y"], "do": job["d"]}


def _travel(dice: Dice) -> Slots:
    capital = _fact(dice, "capital")
    month = _fact(dice, "next", "month")["x"]
    return {"country": capital["x"], "capital": capital["y"], "Capital": capital["Y"], "month": month}


def _pet(dice: Dice) -> Slots:
    caller, young, dweller = _fact(dice, "sound"), _fact(dice, "young"), _fact(dice, "home")
    return {
        "a_pet": caller["ax"], "pets": caller["px"], "sound": caller["y"], "sounds": caller["y3"],
        "a_mother": young["ax"], "baby": young["y"], "a_baby": young["ay"],
        "a_dweller": dweller["ax"], "home": dweller["y"],
    }  # fmt: skip


def _thing(dice: Dice) -> Slots:
    hue, made, tool = _fact(dice, "colour"), _fact(dice, "material"), _fact(dice, "use")
    noun = dice.pick(words("countable"))
    colour = dice.pick(words("colour"))
    return {
        "treasure": dice.pick(words("treasure")), "colour": colour, "a_colour": with_article(colour),
        "tool": tool["x"], "use": tool["y"], "noun": noun, "nouns": plurals()[noun],
        "hued": hue["x"], "hue": hue["y"], "made": made["x"], "material": made["y"],
    }  # fmt: skip


def _food(dice: Dice) -> Slots:
    kinds = nouns_by_kind()
    slots = {f"{kind}s": plurals()[dice.pick(kinds[kind])] for kind in ("fruit", "vegetable")}
    return slots | {"day": _fact(dice, "next", "day")["x"]}


def _family(dice: Dice) -> Slots:
    # Only words that can be said of a person.
    fit = [fact.slots for fact in facts_by_relation()["opposite"] if fact.key in words("person_opposite")]
    pair, day = dice.pick(fit), _fact(dice, "next", "day")
    return {"word": pair["x"], "opposite": pair["y"], "day": day["x"], "next_day": day["y"]}


def _week(dice: Dice) -> Slots:
    day, month = _fact(dice, "next", "day"), _fact(dice, "next", "month")
    verb = dice.pick([row for row in rows("verbs") if row["base"] in HABITS])
    return {
        "day": day["x"], "next_day": day["y"], "month": month["x"], "next_month": month["y"],
        "verbs": verb["third"], "past": verb["past"],
    }  # fmt: skip


TOPICS: dict[str, Callable[[Dice], Slots]] = {
    "work": _work, "travel": _travel, "pet": _pet, "thing": _thing, "food": _food, "family": _family,
    "week": _week, "end": lambda dice: {},
}  # fmt: skip


@cache
def sentences_by_topic() -> dict[str, tuple[str, ...]]:
    """The sentences of each topic."""
    return {topic: tuple(row["text"] for row in some) for topic, some in rows_by("portraits", "topic").items()}


def portrait(dice: Dice) -> str:
    """A paragraph of five to nine sentences or so about one person."""
    a, b = dice.several(names(), 2)
    he = pronouns()[a]
    person = {"A": a, "B": b, "he": he, "He": FORMS[he][0], "his": FORMS[he][1]}
    person["His"] = person["his"].capitalize()
    told: list[str] = []
    middle = ("travel", "pet", "pet", "thing", "thing", "food", "family", "week")
    topics = ["work", *dice.several(middle, dice.number(3, 7)), "end"]
    for topic in topics if dice.chance(0.3) else topics[:-1]:
        template = dice.pick(sentences_by_topic()[topic])
        slots = person | TOPICS[topic](dice) | {"count": NUMBER_WORDS[dice.number(2, 9)]}
        text = template.format(**slots)
        if text not in told:
            told.append(text)
    return " ".join(told)
