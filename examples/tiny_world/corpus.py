"""Mix stories, facts and exercises into documents of plain English text.

A document has no blank line in it; blank lines divide the documents of a corpus. Most documents
mix two kinds of text, so that a window of a few hundred tokens always holds something to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .dice import Dice
from .exercises import DECK, DRAW, comma_end, exercise
from .facts import WEIGHTS, Fact, fact_deck, facts_by_relation, facts_by_subject
from .portraits import portrait
from .stories import tell_story
from .tables import names
from .worksheets import worksheet, worksheet_tasks

QUESTION_FORMS = (
    '"{question}" asked {A}. "{answer}," said {B}.',
    '"{question}" asked {A}.\n"{answer}," said {B}.',
    '{A} asked {B}, "{question}" "{answer}," said {B}.',
    '{A} asked, "{question}" {B} knew it. "{answer}," was the answer.',
    "{question} {answer}.",
    "{question}\n{answer}.",
    '"{question}" "{answer}." {statement}',
    '"{question}" {A} wanted to know. "{answer}," said {B}. {statement}',
    '{A} did not know the answer to this: "{question}" {B} did. "{answer}," said {B}.',
    '"Tell me this," said {A}. "{question}" {B} said, "{answer}."',
)
STATEMENT_FORMS = (
    '"{statement_comma}" said {A}.', '{A} said, "{statement}"', '{A} learned this: "{statement}"',
    '{A} told {B}, "{statement}"', '"{statement_comma}" said the teacher.', "{A} knew it well. {statement}",
    '{A} read in a book, "{statement}"', "It is true. {statement}",
)  # fmt: skip
OPENINGS = (
    "{A} and {B} talked about many things.", "{A} wanted to learn something.",
    "{A} had a book full of facts.", "The teacher asked the children.",
    "{A} and {B} sat together.", "This is what {A} wrote.",
    "Here is what {A} knows.", "{A} asked {B} a lot of questions.", "There was a quiz at school.",
    "{A} likes to know things.", "{A} told {B} what happened.", "Now {A} tells {B} what happened next.",
)  # fmt: skip
LESSON_OPENINGS = (
    "{A} and {B} were at school.", "It was time for a lesson.", "{A} had homework to do.",
    "{A} helped {B} to learn.", "The teacher had some sentences for {A}.",
    "{A} worked with words and numbers.", "{A} and {B} played with words.",
)  # fmt: skip


def two_names(dice: Dice) -> dict[str, str]:
    """Names for the slots A and B."""
    a, b = dice.several(names(), 2)
    return {"A": a, "B": b}


def told_by_somebody(dice: Dice, statement: str) -> str:
    """A statement as something said; one with quotation marks of its own stays as it is."""
    if '"' in statement:
        return statement
    return dice.pick(STATEMENT_FORMS).format(
        statement=statement, statement_comma=comma_end(statement), **two_names(dice)
    )


def tell_fact(dice: Dice, fact: Fact) -> str:
    """One fact as a bare statement, as something said, or as a question with its answer."""
    form = dice.random()
    if form < 0.5:
        return dice.pick(fact.statements)
    if form < 0.62:
        return told_by_somebody(dice, dice.pick(fact.statements))
    question, answer = dice.pick(fact.questions)
    return dice.pick(QUESTION_FORMS).format(
        question=question, answer=answer, statement=dice.pick(fact.statements), **two_names(dice)
    )


def _some_facts(dice: Dice) -> list[str]:
    """Some facts: of all kinds, of one relation, or all about one thing."""
    form, count = dice.random(), dice.number(3, 9)
    if form < 0.6:
        chosen = [dice.pick(fact_deck()) for _ in range(count)]
    elif form < 0.85:
        chosen = dice.several(facts_by_relation()[dice.pick(fact_deck()).relation], count)
    else:
        chosen = dice.shuffled(dice.pick(facts_by_subject()))
    return [tell_fact(dice, fact) for fact in chosen]


def fact_part(dice: Dice) -> str:
    """A paragraph of facts, as prose or one to a line."""
    told = _some_facts(dice)
    if dice.chance(0.4):
        told.insert(0, dice.pick(OPENINGS).format(**two_names(dice)))
    return ("\n" if dice.chance(0.25) else " ").join(told)


def quiz_part(dice: Dice) -> str:
    """Two people who ask each other questions, one speech to a line."""
    a, b = dice.several(names(), 2)
    lines = [dice.pick(OPENINGS).format(A=a, B=b)] if dice.chance(0.7) else []
    for number in range(dice.number(3, 7)):
        question, answer = dice.pick(dice.pick(fact_deck()).questions)
        tag = f" asked {a}." if number == 0 else ""
        lines += [f'"{question}"{tag}', f'"{answer}," said {b}.' if dice.chance(0.5) else f'"{answer}."']
        if dice.chance(0.3):
            a, b = b, a
    return "\n".join(lines)


def story_part(dice: Dice) -> str:
    """A story, with a fact in it now and then."""
    told = tell_story(dice).told
    if dice.chance(0.35):
        place = dice.number(1, len(told))
        told.insert(place, told_by_somebody(dice, dice.pick(dice.pick(fact_deck()).statements)))
    return " ".join(told)


def portrait_part(dice: Dice) -> str:
    """A portrait of somebody, now and then with a question from the facts after it."""
    text = portrait(dice)
    return f"{text} {tell_fact(dice, dice.pick(fact_deck()))}" if dice.chance(0.2) else text


def exercise_part(dice: Dice) -> str:
    """Several exercises, mixed or all of one sort, as prose or one to a line."""
    one_sort = dice.pick(DECK) if dice.chance(0.4) else None
    told = [exercise(dice, one_sort) for _ in range(dice.number(3, 7))]
    if dice.chance(0.3):
        told.insert(0, dice.pick(LESSON_OPENINGS).format(**two_names(dice)))
    return ("\n" if dice.chance(0.3) else " ").join(told)


PARTS: tuple[Callable[[Dice], str], ...] = (
    *[fact_part] * 5, *[quiz_part] * 2, *[story_part] * 3, *[portrait_part] * 2, *[exercise_part] * 5,
    *[worksheet] * 5,
)  # fmt: skip
FEWEST_CHARACTERS = 450
DRILL_SHARE = 0.5
TOPICS = (*DRAW, *WEIGHTS)  # what can be drilled


def document(dice: Dice) -> str:
    """One document of one to three parts, mostly 60 to 250 words."""
    part = dice.pick(PARTS)
    text = part(dice)
    while len(text) < FEWEST_CHARACTERS or dice.chance(0.15):
        before, part = part, dice.pick(PARTS)
        on_same_line = dice.chance(0.5) and worksheet not in (before, part)
        text += (" " if on_same_line else "\n") + part(dice)
    return text


def drill(dice: Dice, topics: Sequence[str]) -> str:
    """A page on one of the topics, which are exercises and relations: one to a line, or as a worksheet."""
    topic = dice.pick(topics)
    if topic in worksheet_tasks() and dice.chance(0.5):
        return worksheet(dice, topic)
    if topic in DRAW:
        return "\n".join(exercise(dice, topic) for _ in range(dice.number(4, 8)))
    return "\n".join(tell_fact(dice, fact) for fact in dice.several(facts_by_relation()[topic], dice.number(4, 8)))


def documents(seed: int, characters: int, drills: Sequence[str] = ()) -> Iterator[str]:
    """Documents until they hold, with the blank lines between them, that many characters.

    With drills, every other document practises one of these exercises or relations and nothing else.
    """
    dice, written = Dice(seed), 0
    while written < characters:
        text = drill(dice, drills) if drills and dice.chance(DRILL_SHARE) else document(dice)
        written += len(text) + 2
        yield text
