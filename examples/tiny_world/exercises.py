"""Language and number exercises told as prose: the corpus form of what tuning asks later.

The corpus never gives an order and waits for an answer; it tells that somebody wrote a sentence
and somebody else turned it into the passive. The wordings are in tables/exercises.csv. Each
function here draws the matter of one exercise and returns the slots for those wordings.
"""

from __future__ import annotations

from functools import cache

from . import sentences
from .dice import Dice
from .grammar import NUMBER_WORDS, capitalise, with_article
from .tables import names, rows, rows_by

# How often each exercise appears in the corpus, compared with the others.
SHARES = {
    "passive": 5, "tense": 2, "negate": 4, "repeat": 5, "echo": 10, "first": 2, "last": 4, "remark": 3, "passage": 8,
    "count": 4, "sort": 4, "letters": 1, "odd": 8, "add": 3,
}  # fmt: skip


def lower_start(sentence: str) -> str:
    """The sentence as it stands inside another one: "The cup was" becomes "the cup was"."""
    if sentence.startswith(("The ", "My ")):
        return sentence[0].lower() + sentence[1:]
    return sentence


def comma_end(sentence: str) -> str:
    """The sentence as it stands in speech before "said Tom": with a comma for its full stop."""
    return sentence.removesuffix(".") + ","


def first_word(sentence: str) -> str:
    return sentence.split(" ", 1)[0]


def last_word(sentence: str) -> str:
    return sentence.rstrip(".").rsplit(" ", 1)[-1]


def _passive(dice: Dice) -> dict[str, str]:
    action = sentences.action(dice)
    return {"active": action.active, "passive": action.passive, "passive_low": lower_start(action.passive)}


def _tense(dice: Dice) -> dict[str, str]:
    action = sentences.action(dice)
    slots = {"subject": capitalise(action.subject), "subject_low": action.subject, "object": action.object}
    return slots | {"object_cap": capitalise(action.object)} | {
        form: action.verb[form] for form in ("base", "third", "past", "ing")
    }  # fmt: skip


def _negate(dice: Dice) -> dict[str, str]:
    plain, negated = sentences.plain_and_negated(dice)
    return {"plain": plain, "negated": negated}


@cache
def _all_words() -> tuple[str, ...]:
    nouns = (form for row in rows("nouns") for form in (row["noun"], row["plural"]))
    verbs = (form for row in rows("verbs") for form in (row["base"], row["past"]))
    return tuple(dict.fromkeys((*nouns, *verbs, *names())))


def _echo(dice: Dice) -> dict[str, str]:
    """Words that nobody could guess: the second time they can only be copied, which is what this teaches."""
    text = " ".join(dice.several(_all_words(), dice.number(4, 12)))
    return {"list": text, "list_cap": capitalise(text)}


def _sentence(dice: Dice) -> dict[str, str]:
    text = sentences.sentence(dice)
    return {
        "sentence": text, "sentence_low": lower_start(text), "sentence_comma": comma_end(text),
        "first": first_word(text), "last": last_word(text),
    }  # fmt: skip


def _remark(dice: Dice) -> dict[str, str]:
    remark, feeling = sentences.remark(dice)
    return {"remark": remark, "remark_comma": comma_end(remark), "exercise": feeling}


def _passage(dice: Dice) -> dict[str, str]:
    passage, question, answer = sentences.passage(dice)
    return {
        "passage": passage, "passage_comma": comma_end(passage), "question": question, "answer": answer
    }  # fmt: skip


def _count(dice: Dice) -> dict[str, str]:
    words = sentences.word_list(dice)
    written = str(len(words)) if dice.chance(0.5) else NUMBER_WORDS[len(words)]
    return {"list": ", ".join(words), "n": written, "N": capitalise(written)}


def _sort(dice: Dice) -> dict[str, str]:
    numbers = sentences.number_list(dice)
    return {
        "list": ", ".join(numbers), "sorted": ", ".join(sorted(numbers)),
        "smallest": min(numbers), "biggest": max(numbers),
    }  # fmt: skip


def _letters(dice: Dice) -> dict[str, str]:
    letters = dice.several("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 3)
    return {"list": ", ".join(letters), "sorted": ", ".join(sorted(letters))}


def _odd(dice: Dice) -> dict[str, str]:
    words, odd, kind = sentences.odd_one_out(dice)
    return {"list": ", ".join(words), "odd": odd, "kind": with_article(kind)}


def _add(dice: Dice) -> dict[str, str]:
    x, y = sentences.big_sum(dice)
    return {"x": str(x), "y": str(y), "z": str(x + y), "pair": f"{x} + {y}"}


DRAW = {
    "passive": _passive, "tense": _tense, "negate": _negate, "repeat": _sentence, "echo": _echo, "first": _sentence,
    "last": _sentence, "remark": _remark, "passage": _passage, "count": _count, "sort": _sort,
    "letters": _letters, "odd": _odd, "add": _add,
}  # fmt: skip
DECK = tuple(name for name, share in SHARES.items() for _ in range(share))


@cache
def wordings() -> dict[str, tuple[str, ...]]:
    """The wordings of each exercise."""
    return {name: tuple(row["text"] for row in some) for name, some in rows_by("exercises", "exercise").items()}


def exercise(dice: Dice, name: str | None = None) -> str:
    """One exercise with its result, told in a few sentences of prose."""
    name = name or dice.pick(DECK)
    slots = DRAW[name](dice)
    template = dice.pick(wordings()[slots.pop("exercise", name)])
    if "{A}" in template:
        slots["A"], slots["B"] = dice.several(names(), 2)
    return capitalise(template.format(**slots))
