"""Short stories in which who has what, and where everybody is, stays true to the end.

A plot in tables/plots.csv is a list of steps such as `give A B t`. A `World` carries out each
step, refuses one that is impossible (nobody can give what they do not have), and words it with a
sentence from tables/steps.csv. Questions inside the story are answered from the world, so they
are right by construction. Steps: see the methods of `World`; `text` is narration that changes
nothing, with alternatives divided by " / ".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

from .dice import Dice
from .grammar import NUMBER_WORDS, capitalise, with_article
from .tables import names, places, pronouns, rows, words

PROBE_CHANCE, SCENE_CHANCE, WEATHER_CHANCE = 0.08, 0.15, 0.5
PRONOUN_CHANCE = 0.45
PEOPLE, THINGS, PLACES = "ABC", "ts", "pqr"
PRONOUN_STARTS = ("{a}", "Then {a}", "So {a}", "After that {a}")
FORMS = {"he": ("He", "his", "him"), "she": ("She", "her", "her")}


class PlotError(ValueError):
    """A plot asks for something that cannot happen in the world as it is."""


@cache
def plots() -> dict[str, tuple[tuple[str, ...], ...]]:
    """The steps of each plot, split into a verb and its arguments."""
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for row in rows("plots"):
        verb, _, rest = row["step"].partition(" ")
        found[row["plot"]].append((verb, *(rest.split(" / ") if verb == "text" else rest.split())))
    return {name: tuple(steps) for name, steps in found.items()}


@cache
def step_wordings() -> dict[str, tuple[str, ...]]:
    """The sentences in which each kind of step can be told."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows("steps"):
        found[row["step"]].append(row["text"])
    return {name: tuple(texts) for name, texts in found.items()}


@dataclass
class World:
    """The state of one story: where people and things are, and what has been told."""

    dice: Dice
    cast: dict[str, str]
    adjective: dict[str, str]
    place_of: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str | None] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    events: list[tuple[str, ...]] = field(default_factory=list)
    answers: list[tuple[int, str, str, str]] = field(default_factory=list)
    only_person: str | None = None

    def say(self, wording: str, a: str = "", b: str = "", t: str = "", p: str = "", **more: str) -> None:
        """Tell one step in one of its wordings, perhaps with a pronoun for the person just named."""
        template = self.dice.pick(step_wordings()[wording])
        slots = dict(more)
        if a:
            he = pronouns()[self.cast[a]]
            slots["He"], slots["his"], slots["him"] = FORMS[he]
            slots["his_cap"] = capitalise(slots["his"])
            alone = template.count("{a}") == 1 and "{b}" not in template
            repeated = alone and template.startswith(PRONOUN_STARTS) and self.only_person == a
            slots["a"] = he if repeated and self.dice.chance(PRONOUN_CHANCE) else self.cast[a]
        if b:
            slots["b"] = self.cast[b]
        if t:
            slots |= self.thing_slots(t)
        if p:
            slots["p"], slots["in_p"] = p, places()[p]
            slots["In_p"] = capitalise(slots["in_p"])
        self.told.append(capitalise(template.format(**slots)))
        self.only_person = a if a and not b else None

    def thing_slots(self, t: str) -> dict[str, str]:
        """Ways to name a thing, and where it is if that is known."""
        noun = self.cast[t]
        full = f"{self.adjective[t]} {noun}"
        the_t = f"the {noun}" if self.dice.chance(0.6) else f"the {full}"
        slots = {"a_t": with_article(full), "the_t": the_t, "The_t": capitalise(the_t)}
        slots["A_t"] = capitalise(slots["a_t"])
        if t in self.holder:
            where = self.where(t)
            slots["in_t"] = places()[where] if where else "not here"
        return slots

    def where(self, t: str) -> str | None:
        """The place of a thing: its own, or that of the person who has it."""
        owner = self.holder[t]
        return self.place_of.get(owner if owner else t)

    def need(self, true: bool, why: str) -> None:
        if not true:
            raise PlotError(why)

    def need_together(self, a: str, other: str) -> None:
        here = self.place_of.get(a)
        there = self.where(other) if other in THINGS else self.place_of.get(other)
        self.need(here is not None and here == there, f"{a} and {other} are not in the same place")

    def step(self, verb: str, *arguments: str) -> None:
        """Carry out one step of a plot."""
        getattr(self, f"do_{verb}")(*arguments)
        if verb != "text":
            self.events.append((verb, *(self.cast.get(word, word) for word in arguments)))

    def do_at(self, a: str, p: str) -> None:
        self.place_of[a] = self.cast[p]
        self.say("at", a, p=self.cast[p])

    def do_both(self, a: str, b: str, p: str) -> None:
        self.place_of[a] = self.place_of[b] = self.cast[p]
        self.say("both", a, b, p=self.cast[p])

    def do_own(self, a: str, t: str) -> None:
        self.holder[t] = a
        self.say("own", a, t=t)

    def do_lies(self, t: str, p: str) -> None:
        self.holder[t], self.place_of[t] = None, self.cast[p]
        self.say("lies", t=t, p=self.cast[p])

    def do_go(self, a: str, p: str) -> None:
        held = [t for t, owner in self.holder.items() if owner == a]
        self.place_of[a] = self.cast[p]
        if held and self.dice.chance(0.6):
            self.say("bring", a, t=held[0], p=self.cast[p])
        else:
            self.say("go", a, p=self.cast[p])

    def do_take(self, a: str, t: str) -> None:
        self.need(self.holder[t] is None, f"{t} is not lying there")
        self.need_together(a, t)
        self.holder[t] = a
        self.say("take", a, t=t, p=self.place_of[a])

    def _put(self, wording: str, a: str, t: str) -> None:
        self.need(self.holder[t] == a and a in self.place_of, f"{a} does not have {t}")
        self.holder[t], self.place_of[t] = None, self.place_of[a]
        self.say(wording, a, t=t, p=self.place_of[a])

    def do_drop(self, a: str, t: str) -> None:
        self._put("drop", a, t)

    def do_hide(self, a: str, t: str) -> None:
        self._put("hide", a, t)

    def do_lose(self, a: str, t: str) -> None:
        self._put("lose", a, t)

    def do_give(self, a: str, b: str, t: str) -> None:
        self.need(self.holder[t] == a, f"{a} does not have {t}")
        self.need_together(a, b)
        self.holder[t] = b
        self.say("give", a, b, t)

    def do_give_new(self, a: str, b: str, t: str) -> None:
        self.need_together(a, b)
        self.holder[t] = b
        self.say("give_new", a, b, t)

    def do_show(self, a: str, b: str, t: str) -> None:
        self.need(self.holder[t] == a, f"{a} does not have {t}")
        self.say("show", a, b, t)

    def do_seek(self, a: str, t: str) -> None:
        self.need(self.holder[t] != a, f"{a} has {t} already")
        self.say("seek", a, t=t)

    def do_tell(self, a: str, b: str, t: str) -> None:
        self.need(self.where(t) is not None, f"nobody knows where {t} is")
        self.say("tell", a, b, t)

    def do_thank(self, a: str, b: str) -> None:
        self.say("thank", a, b)

    def do_feel(self, a: str, word: str) -> None:
        self.say("feel", a, word=word)

    def do_meet(self, a: str, b: str) -> None:
        self.place_of.setdefault(a, self.place_of.get(b, ""))
        self.place_of.setdefault(b, self.place_of[a])
        self.need_together(a, b)
        self.say("meet", a, b)

    def do_look(self, a: str, b: str, p: str) -> None:
        self.need(self.place_of[b] != self.cast[p], f"{b} is there")
        self.say("look", a, b, p=self.cast[p])

    def do_text(self, *choices: str) -> None:
        slots = {slot: word for slot, word in self.cast.items() if slot not in THINGS}
        slots["count"] = NUMBER_WORDS[self.dice.number(2, 9)]
        for t in self.holder:
            slots |= {name.replace("_t", f"_{t}"): text for name, text in self.thing_slots(t).items()}
        if "C" in self.place_of:
            slots["in_C"] = places()[self.place_of["C"]]
        self.told.append(capitalise(self.dice.pick(choices).format(**slots)))
        self.only_person = None

    def do_probe(self, subject: str) -> None:
        """Ask and answer one question about a person or a thing."""
        if subject in PEOPLE:
            self._answer("where_person", subject, self.place_of[subject], a=subject, p=self.place_of[subject])
            return
        owner, place = self.holder[subject], self.where(subject)
        if owner:
            others = [b for b in PEOPLE if b in self.place_of and b != owner]
            if others and self.dice.chance(0.25):
                self._answer("not_with", subject, self.cast[owner], a=owner, b=others[0], t=subject)
            else:
                self._answer("who_has", subject, self.cast[owner], a=owner, t=subject)
        elif place:
            other = self.dice.pick([name for name in places() if name != place])
            wording = "not_there" if self.dice.chance(0.2) else "where_thing"
            self._answer(wording, subject, place, t=subject, p=place, in_q=places()[other])

    def _answer(self, wording: str, subject: str, answer: str, **slots: str) -> None:
        self.say(wording, **slots)
        self.answers.append((len(self.events), wording, self.cast[subject], answer))

    def known(self) -> list[str]:
        """Everybody and everything that a question can be asked about now."""
        return [a for a in PEOPLE if a in self.place_of] + list(self.holder)


def _new_world(dice: Dice, steps: tuple[tuple[str, ...], ...]) -> World:
    cast = dict(zip(PEOPLE, dice.several(names(), 3), strict=True))
    cast |= dict(zip(THINGS, dice.several(words("treasure"), 2), strict=True))
    cast |= dict(zip(PLACES, dice.several(tuple(places()), 3), strict=True))
    cast |= {word[0]: word[2:] for step in steps if step[0] != "text" for word in step if word[1:2] == "="}
    looks = words("adjective") + words("colour")
    return World(dice, cast, dict(zip(THINGS, dice.several(looks, 2), strict=True)))


@cache
def _tells_weather(steps: tuple[tuple[str, ...], ...]) -> bool:
    """True for a plot that speaks of rain, night or the like, and so needs no other weather."""
    told = " ".join(word for step in steps if step[0] == "text" for word in step)
    return any(word in told for word in ("rain", "snow", "fog", "night", "dark", "sun"))


def tell_story(dice: Dice, plot: str | None = None) -> World:
    """Play one plot, or any plot, to its end; the sentences are in the `told` of the world."""
    steps = plots()[plot] if plot else dice.pick(tuple(plots().values()))
    world = _new_world(dice, steps)
    if dice.chance(WEATHER_CHANCE) and not _tells_weather(steps):
        world.told.append(dice.pick(words("weather")))
    for verb, *arguments in steps:
        world.step(verb, *(arguments if verb == "text" else [word.split("=")[0] for word in arguments]))
        if dice.chance(PROBE_CHANCE) and world.known():
            world.do_probe(dice.pick(world.known()))
        elif dice.chance(SCENE_CHANCE):
            world.do_text(*words("scene"))
    for subject in dice.shuffled(world.known())[: dice.number(0, 2)]:
        world.do_probe(subject)
    return world
