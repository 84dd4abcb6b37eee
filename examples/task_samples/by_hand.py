"""Brings what `written.py` holds into the form of each task, with right answers spread over the positions."""

from __future__ import annotations

from collections.abc import Sequence

from tiny_world.dice import Dice
from tiny_world.grammar import capitalise

from .shape import Files, Row, numbered, placed, spread
from .written import CAUSES, ENDINGS, ENTAILED, FUNCTIONS, PREMISES, PRONOUNS, SENSES, SENTENCES

GLUE, SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"


def acceptable(dice: Dice) -> Files:
    """CoLA: label 1 is acceptable English."""
    rows = [{"sentence": text, "label": label} for good, bad in SENTENCES for text, label in ((good, 1), (bad, 0))]
    return _split(f"{GLUE}/cola", dice, rows, 10)


def inference(dice: Dice) -> Files:
    """MNLI, RTE and WNLI of GLUE, CB and RTE of SuperGLUE: does the second sentence follow?"""
    three = [{"premise": premise, "hypothesis": text, "label": label}
             for premise, *texts in PREMISES for label, text in enumerate(texts)]  # fmt: skip
    two = [{"premise": premise, "hypothesis": text, "label": label}
           for premise, *texts in ENTAILED for label, text in enumerate(texts)]  # fmt: skip
    mnli = {"train": three[:6], "validation_matched": three[6:15], "validation_mismatched": three[15:21]}
    made = {f"{GLUE}/mnli/{split}": numbered(dice.shuffled(rows)) for split, rows in mnli.items()}
    # CB has contradictions before what is neutral, and no full stop at the end.
    cb = [row | {"hypothesis": row["hypothesis"].rstrip("."), "label": (0, 2, 1)[row["label"]]} for row in three[21:]]
    rte = [{"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"]} for row in two[:14]]
    return (made | _split(f"{SUPER_GLUE}/cb", dice, cb, 9) | _split(f"{GLUE}/rte", dice, rte, 8)
            | _split(f"{SUPER_GLUE}/rte", dice, two[14:], 8) | _pronoun_pairs(dice))  # fmt: skip


def _pronoun_pairs(dice: Dice) -> Files:
    """WNLI: label 1 puts in for the pronoun what it means."""
    rows = [{"sentence1": text, "sentence2": capitalise(said.format(noun)), "label": label}
            for text, _, right, wrong, said in PRONOUNS[:8] for noun, label in ((right, 1), (wrong, 0))]  # fmt: skip
    return _split(f"{GLUE}/wnli", dice, rows, 10)


def pronouns(dice: Dice) -> Files:
    """WSC: label 1 asks about what the pronoun means. Places are counted in words."""
    rows: list[Row] = []
    for text, pronoun, right, wrong, _ in PRONOUNS[8:]:
        for noun, label in ((right, 1), (wrong, 0)):
            span = text[text.lower().index(noun.lower()) :][: len(noun)]
            rows.append({"text": text, "span1_index": _word_at(text, span), "span1_text": span,
                         "span2_index": _word_at(text, pronoun), "span2_text": pronoun, "label": label})  # fmt: skip
    return _split(f"{SUPER_GLUE}/wsc.fixed", dice, rows, 10)


def _word_at(text: str, span: str) -> int:
    """The number of the word with which a span begins."""
    spoken = [word.strip(".,") for word in text.split()]
    wanted = span.split()
    return next(n for n in range(len(spoken)) if spoken[n : n + len(wanted)] == wanted)


def causes(dice: Dice) -> Files:
    """COPA: the likelier cause or effect."""
    rows = []
    for (premise, kind, right, wrong), place in zip(CAUSES, _even(dice, 8, 6, 2), strict=True):
        first, second = placed(right, [wrong], place)
        rows.append({"premise": premise, "choice1": first, "choice2": second, "question": kind, "label": place})
    return _cut(f"{SUPER_GLUE}/copa", rows, 8)


def senses(dice: Dice) -> Files:
    """WiC: label 1 has the word in the same sense twice. Places are counted in characters."""
    rows = []
    for (word, one, same, other), label in zip(SENSES, _even(dice, 8, 6, 2), strict=True):
        second = same if label else other
        starts = one.index(word), second.index(word)
        rows.append({"word": word, "sentence1": one, "sentence2": second, "start1": starts[0], "start2": starts[1],
                     "end1": starts[0] + len(word), "end2": starts[1] + len(word), "label": label})  # fmt: skip
    return _cut(f"{SUPER_GLUE}/wic", rows, 8)


def endings(dice: Dice) -> Files:
    """HellaSwag: how it goes on. The label is a text there."""
    rows = []
    for number, (row, place) in enumerate(zip(ENDINGS, _even(dice, 8, 6, 4), strict=True)):
        what, begun, pronoun, right, wrong = row
        rows.append({"ind": number, "activity_label": what, "ctx_a": begun, "ctx_b": pronoun,
                     "ctx": f"{begun} {pronoun}", "endings": placed(right, wrong, place),
                     "source_id": f"tiny~{number}", "split_type": "indomain", "label": str(place)})  # fmt: skip
    return {"Rowan/hellaswag/validation": rows[:8], "Rowan/hellaswag/train": rows[8:]}


def functions(_: Dice) -> Files:
    """HumanEval: write the body of a function."""
    rows = []
    for number, (name, arguments, result, does, call, value, body, held) in enumerate(FUNCTIONS):
        head = f'def {name}({arguments}) -> {result}:\n    """{does}\n\n    >>> {call}\n    {value}\n    """\n'
        checks = "".join(f"    assert {check}\n" for check in held)
        rows.append({"task_id": f"Tiny/{number}", "prompt": head, "canonical_solution": body,
                     "test": f"def check(candidate):\n{checks}", "entry_point": name})  # fmt: skip
    return {"openai/openai_humaneval/test": rows}


def _even(dice: Dice, first: int, second: int, positions: int) -> list[int]:
    return spread(dice, first, positions) + spread(dice, second, positions)


def _split(address: str, dice: Dice, rows: Sequence[Row], first: int) -> Files:
    """The first rows to validate with, the others to show, each in random order."""
    return _cut(address, [*dice.shuffled(rows[:first]), *dice.shuffled(rows[first:])], first)


def _cut(address: str, rows: Sequence[Row], first: int) -> Files:
    return {f"{address}/validation": numbered(rows[:first]), f"{address}/train": numbered(rows[first:])}
