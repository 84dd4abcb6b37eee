"""True facts about the tiny world, each worded in many ways.

A fact is one row of a table (France, Paris) under one relation (capital). The wordings of a
relation are in tables/paraphrases.csv: `say` is a statement, `ask` a question with its short
answer, and `back` a question in the other direction, which is used only where that answer is
the only right one (many animals live in a den, so nobody asks who lives there).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .grammar import NUMBER_WORDS, capitalise, with_article
from .tables import plurals, rows

LARGEST_SUM = 20

# How often a fact of each relation is told, compared with the others. Relations that the tuning
# set asks about, and those whose words occur nowhere else, are told more often.
WEIGHTS = {
    "capital": 5, "young": 7, "sound": 8, "home": 7, "kind": 2, "colour": 5, "material": 2, "use": 2,
    "part": 2, "job": 2, "symbol": 6, "opposite": 8, "plural": 3, "past": 6, "next": 3, "before": 3,
    "sum": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One true fact, with its slots for templates and its finished wordings."""

    relation: str
    key: str
    slots: dict[str, str]
    statements: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def _calendar_slots() -> Iterator[tuple[str, dict[str, str]]]:
    for unit in ("day", "month"):
        cycle = [row["name"] for row in rows("calendar") if row["unit"] == unit]
        for index, name in enumerate(cycle):
            yield "next", {"x": name, "y": cycle[(index + 1) % len(cycle)], "u": unit}
            yield "before", {"x": name, "y": cycle[index - 1], "u": unit}


def _sum_slots() -> Iterator[tuple[str, dict[str, str]]]:
    for x in range(LARGEST_SUM + 1):
        for y in range(LARGEST_SUM + 1 - x):
            slots = {"x": str(x), "y": str(y), "z": str(x + y)}
            slots |= {"xw": NUMBER_WORDS[x], "yw": NUMBER_WORDS[y], "zw": NUMBER_WORDS[x + y]}
            yield "sum", slots


def _kind_slots() -> Iterator[tuple[str, dict[str, str]]]:
    for row in rows("nouns"):
        if row["kind"] != "object":
            yield "kind", {"x": with_article(row["noun"]), "y": with_article(row["kind"]), "yn": row["kind"]}
    for row in rows("kinds"):
        yield "kind", {"x": row["thing"], "y": row["kind"], "yn": row["kind"].split(" ", 1)[1]}


def _slots() -> Iterator[tuple[str, dict[str, str]]]:
    """The relation and the particular slots of every fact."""
    for row in rows("capitals"):
        yield "capital", {"x": row["country"], "y": row["capital"]}
    for row in rows("young"):
        yield "young", {"x": row["animal"], "y": row["baby"]}
    for row in rows("sounds"):
        yield "sound", {"x": row["animal"], "y": row["sound"], "y3": row["sounds"]}
    for row in rows("homes"):
        yield "home", {"x": row["animal"], "y": row["home"]}
    yield from _kind_slots()
    for row in rows("colours"):
        yield "colour", {"x": row["thing"], "y": row["colour"]}
    for row in rows("materials"):
        yield "material", {"x": row["thing"], "y": row["material"]}
    for row in rows("uses"):
        yield "use", {"x": row["tool"], "y": row["use"], "g": row["using"]}
    for row in rows("parts"):
        yield "part", {"x": row["part"], "y": row["whole"]}
    for row in rows("jobs"):
        yield "job", {"x": row["job"], "y": row["does"], "d": row["do"]}
    for row in rows("elements"):
        yield "symbol", {"x": row["element"], "y": row["symbol"]}
    for row in rows("opposites"):
        yield "opposite", {"x": row["word"], "y": row["opposite"]}
    for row in rows("nouns"):
        yield "plural", {"x": row["noun"], "y": row["plural"]}
    for row in rows("verbs"):
        yield "past", {"x": row["base"], "y": row["past"], "x3": row["third"]}
    yield from _calendar_slots()
    yield from _sum_slots()


def _complete(slots: dict[str, str]) -> dict[str, str]:
    """Add the derived slots: a/an forms, the plural of x, and all of them with a capital letter."""
    full = dict(slots)
    full["ax"], full["ay"] = with_article(slots["x"]), with_article(slots["y"])
    full["px"] = plurals().get(slots["x"], slots["x"] + "s")
    full["gerund"] = slots.get("g", slots["y"])
    for name in list(full):
        full[capitalise(name)] = capitalise(full[name])
    return full


@cache
def paraphrases() -> dict[str, list[tuple[str, str, str]]]:
    """For each relation its wordings as (form, text, answer)."""
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in rows("paraphrases"):
        found[row["relation"]].append((row["form"], row["text"], row["answer"]))
    return dict(found)


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the tiny world with all its wordings filled in."""
    pairs = list(_slots())
    answers = Counter((relation, slots["y"]) for relation, slots in pairs)
    facts = []
    for relation, slots in pairs:
        full = _complete(slots)
        statements, questions = [], []
        for form, text, answer in paraphrases()[relation]:
            if form == "say":
                statements.append(text.format(**full))
            elif form == "ask" or answers[relation, slots["y"]] == 1:
                questions.append((text.format(**full), answer.format(**full)))
        key = f"{slots['x']} {slots['y']}" if relation == "sum" else slots["x"]
        facts.append(Fact(relation, key, full, tuple(statements), tuple(questions)))
    return tuple(facts)


@cache
def fact_deck() -> tuple[Fact, ...]:
    """All facts, each repeated by the weight of its relation: pick from this for the corpus."""
    return tuple(fact for fact in all_facts() for _ in range(WEIGHTS[fact.relation]))


@cache
def facts_by_relation() -> dict[str, tuple[Fact, ...]]:
    """The facts of each relation."""
    return {name: tuple(fact for fact in all_facts() if fact.relation == name) for name in WEIGHTS}


@cache
def facts_by_subject() -> tuple[tuple[Fact, ...], ...]:
    """Groups of three or more facts about the same word, such as all there is to know of a dog."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in all_facts():
        if fact.relation != "sum":
            groups[fact.key.removeprefix("a ").removeprefix("an ")].append(fact)
    return tuple(tuple(group) for group in groups.values() if len(group) >= 3)
