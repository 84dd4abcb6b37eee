"""How far a judge agrees with a person's marks, or with another judge."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json
from .reply_files import Answered
from .review import MARKS as WORTH
from .statistics import cohens_kappa
from .verdicts import HIGHEST, LOWEST

MARKS = tuple(sorted(WORTH, key=WORTH.get))  # a person's, from worst to best
OUTCOMES = ("loss", "tie", "win")
THRESHOLDS = (25.0, 75.0)  # the mark that is nearest, counting wrong as 0, half as 50 and right as 100


def mark_of(score: float, thresholds: tuple[float, float] = THRESHOLDS) -> str:
    """A person's mark for a score: right from the upper threshold on, half from the lower, else wrong."""
    low, high = thresholds
    return "right" if score >= high else "half" if score >= low else "wrong"


def read_marks(path: Path, items: Sequence[Answered]) -> dict[int, str]:
    """{place of the reply in its file, from 0: mark}, as review.py exports them. ValueError if they are something else.

    A reply without a mark may be listed with null. What is said of replies, where it is, must be these replies.
    """
    listed, marks = read_json(path), {}
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected a JSON list of objects with 'index' and 'mark'")
    for number, item in enumerate(listed, 1):
        where = f"{path}, mark {number}"
        index, mark = (item.get("index"), item.get("mark")) if isinstance(item, dict) else (None, None)
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f"{where}: 'index' is {index!r:.40}, expected the reply's place in its file, from 0")
        if index in marks:
            raise ValueError(f"{where}: there is another mark with the index {index}; keep one")
        if mark is not None and mark not in MARKS:
            raise ValueError(f"{where}: 'mark' is {mark!r:.40}, expected one of {', '.join(MARKS)}")
        if index >= len(items):
            raise ValueError(f"{where}: 'index' is {index}, but there are {len(items)} replies, counted from 0; give "
                             "the file of replies that was reviewed")
        if mark is None:
            continue
        reply = item.get("reply", items[index].reply)
        if isinstance(reply, str) and reply.strip() != items[index].reply.strip():
            raise ValueError(f"{where}: the mark is for another reply than the one at {index}; give the file of "
                             "replies that was reviewed")
        marks[index] = mark
    return marks


def agreement(first: Sequence[str | None], second: Sequence[str | None], labels: Sequence[str]) -> dict:
    """How far two judges agree on what both have judged (None: not judged); labels are from worst to best."""
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if None not in (one, other)]
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    kappa = cohens_kappa(ones, others, labels=labels)
    weighted = cohens_kappa(ones, others, weights="linear", labels=labels)
    return {"both": len(pairs), "same": sum(one == other for one, other in pairs),
            "kappa": None if math.isnan(kappa) else kappa,
            "weighted_kappa": None if math.isnan(weighted) else weighted,
            "counts": {one: {other: pairs.count((one, other)) for other in labels} for one in labels}}


def agreement_lines(found: dict, other: str) -> list[str]:
    """An agreement in words, with its table."""
    if not found["both"]:
        return [f"agreement with {other}: nothing is judged by both"]

    def shown(kappa: float | None) -> str:
        return "undefined" if kappa is None else f"{kappa:.2f}"

    labels = list(found["counts"])
    return [f"agreement with {other}: {found['same']} of {found['both']} the same "
            f"({found['same'] / found['both']:.0%}), Cohen's kappa {shown(found['kappa'])}, with linear weights "
            f"{shown(found['weighted_kappa'])}",
            f"  {'judge, by row':16}" + "".join(f"{label:>8}" for label in labels),
            *(f"  {label:16}" + "".join(f"{found['counts'][label][other]:>8}" for other in labels) for label in labels)]


def read_judgements(path: Path, kind: str, judgements: Sequence[dict]) -> list[Any]:
    """The scores or outcomes that another judge gave, in the order of `judgements`; None where it gave none.

    ValueError if the file isn't of the same kind, or not about the same replies.
    """
    found, value = read_json(path), {"scores": "score", "comparisons": "outcome"}[kind]
    if not isinstance(found, dict) or found.get("kind") != kind or not isinstance(found.get("judgements"), list):
        raise ValueError(f"{path}: expected what judge.py writes as --output, with {kind}")
    known = {}
    for number, item in enumerate(found["judgements"], 1):
        try:
            known[_subject(item)] = given = item[value]
        except (KeyError, TypeError):
            raise ValueError(f"{path}, judgement {number}: not a judgement of judge.py's") from None
        if not _is_given(given, kind):
            expected = f"a number from {LOWEST} to {HIGHEST}" if kind == "scores" else f"one of {', '.join(OUTCOMES)}"
            raise ValueError(f"{path}, judgement {number}: '{value}' is {given!r:.40}, expected {expected}, or null")
    if judgements and not any(_subject(item) in known for item in judgements):
        raise ValueError(f"{path}: it judges other replies; give judgements of the same ones")
    return [known.get(_subject(item)) for item in judgements]


def _is_given(value: Any, kind: str) -> bool:
    if value is None or kind != "scores":
        return value is None or value in OUTCOMES
    return isinstance(value, int | float) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST


def _subject(item: dict) -> tuple:
    return item["index"], item.get("column"), item["reply"], item.get("other_reply")
