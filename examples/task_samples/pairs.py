"""GLUE tasks whose right answers follow from how the tiny world is made: no label here was written by hand."""

from __future__ import annotations

from collections.abc import Callable

from tiny_world import sentences
from tiny_world.dice import Dice
from tiny_world.facts import Fact, facts_by_relation
from tiny_world.grammar import capitalise
from tiny_world.instructions import fact_item, phrasings, split_facts

from .shape import Files, Row, numbered

VALIDATION, TRAIN = 10, 6
RELATIONS = ("capital", "young", "sound", "home", "colour")
Draw = Callable[[Dice, int, bool, int], Row]  # dice, label, held out or not, number of the row -> row without idx


def glue(dice: Dice, seed: int) -> Files:
    """MRPC, QNLI, QQP and SST-2."""
    draws: dict[str, Draw] = {
        "mrpc": lambda dice, label, held_out, number: _paraphrase(dice, label, held_out),
        "qnli": lambda dice, label, held_out, number: _reply(dice, label, _pair(dice, seed, held_out, number)),
        "qqp": lambda dice, label, held_out, number: _questions(dice, label, _pair(dice, seed, held_out, number)),
        "sst2": lambda dice, label, held_out, number: _remark(dice, label, held_out),
    }
    made: Files = {}
    for task, draw in draws.items():
        for split, count in (("validation", VALIDATION), ("train", TRAIN)):
            rows = [draw(dice, number % 2, split == "validation", number) for number in range(count)]
            made[f"nyu-mll/glue/{task}/{split}"] = numbered(dice.shuffled(rows))
    return made


def _paraphrase(dice: Dice, label: int, reserved: bool) -> Row:
    """A sentence and its passive, or the passive of a sentence about something else."""
    said = sentences.action(dice, reserved)
    other = said
    while label == 0 and _noun(other.object) in (_noun(said.subject), _noun(said.object)):
        other = sentences.action(dice, reserved)
    passive = f"{capitalise(other.object)} was {said.verb['participle']} by {said.subject}."
    return {"sentence1": said.active, "sentence2": passive, "label": label}


def _noun(phrase: str) -> str:
    """The last word: the blue cup could be the cup of the other sentence."""
    return phrase.split()[-1]


def _pair(dice: Dice, seed: int, held_out: bool, number: int) -> tuple[Fact, Fact]:
    """Two facts of a relation with different answers."""
    relation = RELATIONS[number // 2 % len(RELATIONS)]
    kept = [(slots["x"], slots["y"]) for slots in split_facts(relation, seed)[1 if held_out else 0]]
    pool = [fact for fact in facts_by_relation()[relation] if (fact.slots["x"], fact.slots["y"]) in kept]
    while True:
        one, other = dice.several(pool, 2)
        if one.slots["y"] != other.slots["y"] and fact_item(one) != fact_item(other):
            return one, other


def _reply(dice: Dice, label: int, pair: tuple[Fact, Fact]) -> Row:
    """A question with a sentence that answers it (label 0), or with one about something else (label 1)."""
    questions = [text for text, given in phrasings(pair[0].relation, "train") if not given and text.endswith("?")]
    sentence = pair[label].statements[0]
    return {"question": dice.pick(questions).format(**pair[0].slots), "sentence": sentence, "label": label}


def _questions(dice: Dice, label: int, pair: tuple[Fact, Fact]) -> Row:
    """A question in other words (label 1), or a question about something else (label 0)."""
    texts = [text for text, given in phrasings(pair[0].relation, "train") if not given and text.endswith("?")]
    first, second = dice.several(texts, 2)
    other = pair[0] if label else pair[1]
    return {"question1": first.format(**pair[0].slots), "question2": second.format(**other.slots), "label": label}


def _remark(dice: Dice, label: int, reserved: bool) -> Row:
    """What somebody thinks of something; label 1 is positive."""
    while True:
        text, feeling = sentences.remark(dice, reserved)
        if feeling == ("negative", "positive")[label]:
            return {"sentence": text, "label": label}
