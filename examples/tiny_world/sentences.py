"""Single sentences and lists that can be rewritten, counted or sorted: the matter of exercises.

Every function takes `reserved`. With False it gives only matter for the corpus and for tuning,
with True only matter that is kept for the tests (see `reserve.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from .dice import Dice
from .grammar import capitalise
from .reserve import is_reserved
from .tables import names, place_phrases, plurals, rows, words

T = TypeVar("T")
MOST_DRAWS = 2000
WORD_RUN, NUMBER_RUN = 2, 3


@dataclass(frozen=True)
class Action:
    """Somebody does something to somebody or something: "Tom washed the cup."."""

    subject: str
    verb: dict[str, str]
    object: str

    @property
    def active(self) -> str:
        return f"{capitalise(self.subject)} {self.verb['past']} {self.object}."

    @property
    def passive(self) -> str:
        return f"{capitalise(self.object)} was {self.verb['participle']} by {self.subject}."


def _until(draw: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Draw until something is on the wanted side of the reservation."""
    for _ in range(MOST_DRAWS):
        drawn = draw()
        if wanted(drawn):
            return drawn
    raise RuntimeError("no exercise left on this side of the reservation: the word lists are too short")


def _list_fits(items: list[str], run: int, reserved: bool) -> bool:
    """Whether a list begins with a reserved run of so many items, or else has no such run in it.

    To look only at whole lists would not do: a long list of the corpus can hold a short test list.
    """
    runs = (", ".join(items[start : start + run]) for start in range(len(items) - run + 1))
    return is_reserved(next(runs)) if reserved else not any(map(is_reserved, runs))


@cache
def _class_members(word_class: str) -> tuple[str, ...]:
    """Who or what can stand in a sentence for a class of tables/verbs.csv."""
    if word_class == "person":
        return names() + words("person") * 2
    if word_class == "living":
        return _class_members("person") + words("animal") * 3
    return words(word_class)


@cache
def _action_verbs() -> tuple[dict[str, str], ...]:
    return tuple(row for row in rows("verbs") if "none" not in (row["subject"], row["object"]))


def _any_action(dice: Dice) -> Action:
    verb = dice.pick(_action_verbs())
    subject = dice.pick(_class_members(verb["subject"]))
    target = dice.pick(_class_members(verb["object"]))
    while target == subject:
        target = dice.pick(_class_members(verb["object"]))
    return Action(subject, verb, target)


def action(dice: Dice, reserved: bool = False) -> Action:
    """A sentence with a subject, a verb in the past and an object."""
    return _until(lambda: _any_action(dice), lambda drawn: is_reserved(drawn.active) == reserved)


def _any_plain(dice: Dice) -> tuple[str, str]:
    form = dice.random()
    if form < 0.3:
        subject, helper, rest = dice.pick(words("subject")), "is", dice.pick(words("subject_adjective"))
    elif form < 0.6:
        subject, helper = dice.pick(_class_members("living")), "is"
        rest = dice.pick(words("person_adjective"))
    elif form < 0.7:
        noun = dice.pick(words("countable"))
        subject, helper, rest = f"the {plurals()[noun]}", "are", dice.pick(words("subject_adjective"))
    elif form < 0.85:
        subject, helper, rest = dice.pick(_class_members("person")), "can", dice.pick(words("ability"))
    else:
        subject, helper, rest = dice.pick(_class_members("person")), "will", dice.pick(words("plan"))
    negated = "cannot" if helper == "can" else f"{helper} not"
    return f"{capitalise(subject)} {helper} {rest}.", f"{capitalise(subject)} {negated} {rest}."


def plain_and_negated(dice: Dice, reserved: bool = False) -> tuple[str, str]:
    """A sentence with is, are, can or will, and the same sentence with not."""
    return _until(lambda: _any_plain(dice), lambda pair: is_reserved(pair[0]) == reserved)


def _any_sentence(dice: Dice) -> str:
    form = dice.random()
    if form < 0.4:
        return _any_plain(dice)[0]
    if form < 0.7:
        return _any_action(dice).active
    return f"{_any_action(dice).active[:-1]} {dice.pick(place_phrases())}."


def sentence(dice: Dice, reserved: bool = False) -> str:
    """Any simple sentence, for saying again or for picking out a word."""
    return _until(lambda: _any_sentence(dice), lambda text: is_reserved(text) == reserved)


POSITIVE_REMARKS = (
    "{Thing} was {word}.", "{Thing} was {word} and I liked it.", "I think that {thing} was {word}.",
    "I loved {thing} because it was {word}.", "I liked {thing} very much. It was {word}.",
    "We enjoyed {thing}, which was {word}.", "{Thing} was {word}. I want it again.",
)  # fmt: skip
NEGATIVE_REMARKS = (
    "{Thing} was {word}.", "{Thing} was {word} and I did not like it.", "I think that {thing} was {word}.",
    "I hated {thing} because it was {word}.", "I did not like {thing} at all. It was {word}.",
    "We did not enjoy {thing}, which was {word}.", "{Thing} was {word}. I never want it again.",
)  # fmt: skip


def _any_remark(dice: Dice) -> tuple[str, str, str]:
    feeling = "positive" if dice.chance(0.5) else "negative"
    templates = POSITIVE_REMARKS if feeling == "positive" else NEGATIVE_REMARKS
    thing, word = dice.pick(words("remark_subject")), dice.pick(words(feeling))
    text = dice.pick(templates).format(thing=thing, Thing=capitalise(thing), word=word)
    return text, feeling, f"{thing} {word}"


def remark(dice: Dice, reserved: bool = False) -> tuple[str, str]:
    """What somebody thinks of something, and whether it is positive or negative.

    The reservation goes by thing and word, since one wording of a remark can hold another.
    """
    return _until(lambda: _any_remark(dice), lambda drawn: is_reserved(drawn[2]) == reserved)[:2]


def _any_passage(dice: Dice) -> tuple[str, str, str]:
    people = dice.several(names(), dice.number(2, 3))
    where = dice.several(place_phrases(), 2)
    things = dice.several(words("treasure"), 2)
    told: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    for index, person in enumerate(people):
        if index < 2 and dice.chance(0.5):
            here = where[index]
            told.append((f"{person} is {here}.", ((f"Where is {person}?", capitalise(here)),
                                                 (f"Who is {here}?", person))))  # fmt: skip
        elif index < 2:
            thing = things[index]
            told.append((f"{person} has the {thing}.", ((f"What does {person} have?", f"The {thing}"),
                                                       (f"Who has the {thing}?", person))))  # fmt: skip
        else:
            told.append((f"{person} feels {dice.pick(words('person_adjective'))}.", ()))
    question, answer = dice.pick(told[dice.number(0, 1)][1])
    return " ".join(text for text, _ in dice.shuffled(told)), question, answer


def passage(dice: Dice, reserved: bool = False) -> tuple[str, str, str]:
    """Two or three sentences, a question about one of them, and its answer."""
    return _until(lambda: _any_passage(dice), lambda drawn: is_reserved(drawn[0]) == reserved)


def word_list(dice: Dice, reserved: bool = False) -> list[str]:
    """Two to six different nouns, for counting."""
    count = dice.number(2, 6)

    def draw() -> list[str]:
        return dice.several(words("countable"), count)

    return _until(draw, lambda items: _list_fits(items, WORD_RUN, reserved))


def number_list(dice: Dice, reserved: bool = False) -> list[str]:
    """Three or four different numbers from 1 to 9 that are not in order."""
    count = dice.number(3, 4)

    def draw() -> list[str]:
        numbers = dice.several("123456789", count)
        return draw() if numbers == sorted(numbers) else numbers

    return _until(draw, lambda items: _list_fits(items, NUMBER_RUN, reserved))


@cache
def nouns_by_kind() -> dict[str, tuple[str, ...]]:
    """The nouns of each kind that has enough of them for an odd-one-out list."""
    kinds: dict[str, list[str]] = {}
    for row in rows("nouns"):
        if row["kind"] not in ("object", "room", "shape"):
            kinds.setdefault(row["kind"], []).append(row["noun"])
    return {kind: tuple(found) for kind, found in kinds.items()}


@cache
def _different_kinds() -> tuple[tuple[str, str], ...]:
    """Pairs of kinds of which the second is not a sort of the first (a bird is an animal too)."""
    inside = {("animal", "bird"), ("animal", "fish"), ("animal", "insect")}
    kinds = nouns_by_kind()
    return tuple((a, b) for a in kinds for b in kinds if a != b and (a, b) not in inside)


def _any_odd_one(dice: Dice) -> tuple[list[str], str, str]:
    kinds = nouns_by_kind()
    kind, other = dice.pick(_different_kinds())
    odd = dice.pick(kinds[other])
    return dice.shuffled([*dice.several(kinds[kind], 3), odd]), odd, kind


def odd_one_out(dice: Dice, reserved: bool = False) -> tuple[list[str], str, str]:
    """Four nouns of which three are of one kind; the odd one; and the kind of the three."""
    return _until(lambda: _any_odd_one(dice), lambda drawn: _list_fits(drawn[0], WORD_RUN, reserved))


def big_sum(dice: Dice, reserved: bool = False) -> tuple[int, int]:
    """Two numbers from 10 to 89 to add. In a reserved sum they are reserved in both orders."""

    def draw() -> tuple[int, int]:
        return dice.number(10, 89), dice.number(10, 89)

    def fits(pair: tuple[int, int]) -> bool:
        as_drawn, exchanged = (is_reserved(f"{x} + {y}") for x, y in (pair, pair[::-1]))
        return as_drawn and exchanged if reserved else not as_drawn

    return _until(draw, fits)
