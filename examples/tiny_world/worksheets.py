"""Worksheets: questions with their answers, set out line by line as in an exercise book.

A worksheet has one layout from its first line to its last. There are two dozen of them, many with
labels or names that are drawn anew for each page. They are meant to teach that an answer stands in
its place whatever the page looks like, since the tuning set has a layout of its own. The tasks are
in tables/worksheets.csv, the layouts in tables/layouts.csv; what is asked comes from `facts.py`
and `exercises.py`.
"""

from __future__ import annotations

from .dice import Dice
from .exercises import DRAW
from .facts import fact_deck, facts_by_relation
from .grammar import capitalise
from .tables import names, rows, rows_by

Slots = dict[str, str]
ASKED = ("Question", "Q", "Asked", "The question", "Problem", "To answer", "Quiz", "A question", "Find out")
ANSWERED = ("Answer", "A", "Solution", "Written", "The answer", "Result", "Right", "We say", "Reply", "Known")

# What is given and what is to be found, among the slots of each exercise.
GIVEN_AND_FOUND = {
    "passive": ("active", "passive"), "negate": ("plain", "negated"), "repeat": ("sentence", "sentence"),
    "echo": ("list_cap", "list_cap"), "first": ("sentence", "first"), "last": ("sentence", "last"),
    "remark": ("remark", "exercise"), "passage": ("passage", "answer"), "count": ("list", "n"),
    "sort": ("list", "sorted"), "letters": ("list", "sorted"), "odd": ("list", "odd"), "add": ("pair", "z"),
}  # fmt: skip
# How often each exercise stands on a worksheet, compared with the others.
WORKSHEET_SHARES = {
    "passive": 3, "negate": 3, "repeat": 4, "echo": 2, "first": 2, "last": 5, "remark": 3, "passage": 8,
    "count": 4, "sort": 3, "letters": 1, "odd": 9, "add": 2,
}  # fmt: skip
EXERCISE_DECK = tuple(name for name, share in WORKSHEET_SHARES.items() for _ in range(share))


def worksheet_tasks() -> dict[str, tuple[Slots, ...]]:
    """The rows of tables/worksheets.csv for each task."""
    return rows_by("worksheets", "task")


def _any_task(dice: Dice) -> str:
    return dice.pick(fact_deck()).relation if dice.chance(0.45) else dice.pick(EXERCISE_DECK)


def _fact(dice: Dice, relation: str) -> Slots:
    """What is given of one fact and what to answer, and the fact as a whole question with its own answer."""
    fact = dice.pick(facts_by_relation()[relation])
    slots = fact.slots
    whole, whole_answer = dice.pick(fact.questions)
    given, answer = slots["x"], slots["gerund"]
    if relation == "sum":
        given, answer = f"{slots['x']} + {slots['y']}", slots["z"]
    elif relation == "opposite" and dice.chance(0.5):
        given, answer = slots["y"], slots["x"]
    if dice.chance(0.4):
        given, answer = capitalise(given), capitalise(answer)
    return {"given": given, "answer": answer, "whole": whole, "whole_answer": whole_answer, "question": ""}


def _exercise(dice: Dice, name: str) -> Slots:
    """What is given in one exercise and what to answer; of a passage also what is asked."""
    drawn = DRAW[name](dice)
    given, answer = (drawn[slot] for slot in GIVEN_AND_FOUND[name])
    return {"given": given, "answer": answer, "whole": "", "whole_answer": answer,
            "question": drawn.get("question", "")}  # fmt: skip


def _record(dice: Dice, task: str, layout: Slots, labels: Slots) -> str:
    """One question of a worksheet with its answer, in the worksheet's layout."""
    row = dice.pick(worksheet_tasks()[task])
    slots = _exercise(dice, task) if task in GIVEN_AND_FOUND else _fact(dice, task)
    own_question = slots["question"]  # a passage has one, every other task always asks the same
    slots["question"] = row["question"].format(question=own_question)
    if layout["layout"] == "whole":
        slots["whole"] = slots["whole"] or f"{slots['question']} {slots['given']}"
        slots["answer"] = slots["whole_answer"]
    elif layout["layout"] == "label" and own_question:
        slots["given"] += " " + own_question
    return layout["text"].format(**slots, **labels, G=row["given"], R=row["answer"])


def worksheet(dice: Dice, task: str | None = None) -> str:
    """Four to eight questions with their answers, of one task or of several, all in one layout."""
    if task is None and dice.chance(0.35):
        task = _any_task(dice)
    layout = dice.pick(rows("layouts"))
    a, b = dice.several(names(), 2)
    labels = {"asked": dice.pick(ASKED), "answered": dice.pick(ANSWERED), "A": a, "B": b}
    records = [
        _record(dice, task or _any_task(dice), layout, labels | {"n": str(n)})
        for n in range(1, dice.number(4, 8) + 1)
    ]
    return capitalise("\n".join(records))
