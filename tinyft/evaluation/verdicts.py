"""What a judge's words mean: a score from 0 to 100, or which of two replies is better. When in doubt, nothing."""

import re
from typing import Literal

Choice = Literal["first", "second", "tie"]
LOWEST, HIGHEST = 0, 100

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_UNFINISHED_THOUGHT = re.compile(r"<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"[*_`\"'“”‘’{}$]|\\boxed")
# "from 0 to 100", "(0-100)", "on a scale of 1 to 100": the question once more.
_SCALE = re.compile(r"(?:on a |a )?(?:scale )?(?:of |from |between )?\b[01]\s*(?:-|–|—|to|and)\s*100\b(?!\s*[/%])",
                    re.IGNORECASE)
_DIGITS = r"[0-9]+(?:[.,][0-9]+)*(?!\w|-\w)"
_NUMBER = rf"(?<![\w.,/])(?<!\w-)[-−]?{_DIGITS}"  # neither the 4 of GPT-4 nor that of A4
_OF = re.compile(rf"({_NUMBER})\s*(?:/|out of|of)\s*({_DIGITS})", re.IGNORECASE)
_LABELLED = re.compile(rf"\b(?:score|rating|mark|grade)[\s:=(]*(?:(?:is|of|would be|for (?:the|this) reply)[\s:=]+)*"
                       rf"({_NUMBER})([ \t]*(?:-|–|—|to|or|and)?[ \t]*[0-9])?", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^[ \t]*(\d+)[.)][ \t]+(?=\S)", re.MULTILINE)


def parse_score(text: str, is_cut: bool = False) -> float | None:
    """The score in a judge's reply, 0 to 100, or None where it isn't beyond doubt.

    Taken: a number that stands alone in the text; one after "score", "rating", "mark" or "grade", whatever other
    numbers there are; N/100, N out of 100 and N%. What only repeats the question's scale doesn't count, nor do the
    numbers of a list, or what stands between <think> and </think>. Not taken: two numbers that differ and could both be
    it ("80-90", "40. No, 60."), another scale (8/10), a number outside of 0 to 100, a fraction below 1 or "1.0", which
    may be meant as a share, numbers in words. is_cut: the reply was cut for its length, so that its last word may be
    half a number.
    """
    text = _plain(text, is_cut)
    if text is None:
        return None
    text = _without_list_numbers(_SCALE.sub(" ", text))
    scaled, foreign = set(), False
    for number, scale in _OF.findall(text):
        if _value(scale) == HIGHEST:
            scaled.add(number)
        else:
            foreign = True
    text = _OF.sub(lambda found: f" {found[1]} " if _value(found[2]) == HIGHEST else " ? ", text)
    labelled = {number if not more else "a range" for number, more in _LABELLED.findall(text)}
    if foreign and not labelled and not scaled:
        return None
    candidates = labelled or scaled or set(re.findall(_NUMBER, text))
    values = {_value(number) for number in candidates}
    return values.pop() if len(values) == 1 else None


def parse_choice(text: str, is_cut: bool = False) -> Choice | None:
    """Which reply a judge prefers, A (the first), B (the second) or neither, or None where it isn't beyond doubt.

    Taken: A, B or TIE that stands alone, on the first line or at its beginning; after "answer", "verdict", "winner" or
    the like; "reply A is better"; always with no other claim of the same kind that differs.
    """
    text = _plain(text, is_cut)
    if text is None:
        return None
    text = re.sub(r"[\[\]()<>]", "", text).strip()
    name = r"(?:(?:reply|response|answer|option|assistant)\s+)?"
    choice = rf"{name}(?-i:([AB])\b|\b(TIE|Tie|tie|DRAW|draw)\b)"
    lines = text.splitlines() or [""]
    patterns = (
        (lines[0], rf"^{choice}[\s.!]*$"),
        (text, rf"\b(?:answer|verdict|choice|winner|decision|preference|judge?ment)\s*(?:\s+is)?\s*[:=]?\s*{choice}"),
        (text, rf"\b{choice}\s+(?:is|was)\s+(?:clearly\s+|slightly\s+|much\s+|the\s+)*better\b"),
        (lines[0], rf"^{choice}\s*(?:[.,:;–—]|-\s)"),
    )
    for where, pattern in patterns:
        found = {("first" if letter == "A" else "second") if letter else "tie"
                 for letter, _ in re.findall(pattern, where, re.IGNORECASE)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _plain(text: str, is_cut: bool) -> str | None:
    """The text without thoughts and markup; None if nothing is left."""
    text = _UNFINISHED_THOUGHT.sub("", _THOUGHT.sub(" ", text))
    if is_cut:
        text = re.sub(r"\S+\s*\Z", "", text)
    return _MARKUP.sub("", text).strip() or None


def _without_list_numbers(text: str) -> str:
    """The text without the numbers in front of a list's items, which count from 1; "85. The reply ..." is none."""
    numbers = {found[1] for found in _LIST_ITEM.finditer(text)}

    counted = 0
    while str(counted + 1) in numbers:
        counted += 1
    items = {str(number) for number in range(1, counted + 1)}
    return _LIST_ITEM.sub(lambda found: "" if found[1] in items else found[0], text)


def _value(number: str) -> float | None:
    """What a number is worth as a score; None if it can't be one."""
    if not re.fullmatch(r"\d{1,3}(?:\.\d+)?", number):  # no sign, no comma, which may part thousands or decimals
        return None
    value = float(number)
    if "." in number and 0 < value <= 1:
        return None
    return value if LOWEST <= value <= HIGHEST else None
