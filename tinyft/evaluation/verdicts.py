"""What a judge's words mean: a score from 0 to 100, or which of two replies is better. When in doubt, nothing."""

import re
from bisect import bisect_right
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
_SCALED = re.compile(rf"({_NUMBER})/100\b")
_LABELLED = re.compile(rf"\b(?:score|rating|mark|grade)[\s:=(]*(?:(?:is|of|would be|for (?:the|this) reply)[\s:=]+)*"
                       rf"({_NUMBER})([ \t]*(?:-|–|—|to|or|and)?[ \t]*[0-9])?", re.IGNORECASE)
# What may stand between the beginning of a sentence and a score. Anything else ("not", "above", "<", "the expected
# reply gets") may turn it into something else than the score of this reply.
_VERBS = "say|give|gives|rate|score|scores|rating|mark|grade|award|assign|get|gets|deserve|deserves|earn|earns"
_LEAD = re.compile(rf"(?:(?:so|thus|therefore|hence|overall|final|total|my|the|an?|this|reply|one|it|i|id|ill|would|"
                   rf"will|be|is|has|think|at|of|as|and|about|around|roughly|here|based|on|criteria|{_VERBS})\b|[\s,:=~()\[\]])*",
                   re.IGNORECASE)
_VERB = re.compile(rf"\b(?:{_VERBS})\b", re.IGNORECASE)
_AGAINST = re.compile(r"\+|[<>]|\b(?:too|not|more|less|above|below|over|under|higher|lower|most|least|high|"
                      r"low|max(?:imum)?|generous|harsh|unfair|(?:is|be|was) wrong)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z)|\n")
# A judge that thinks again. Apostrophes are gone by then: "isn't" is "isnt".
_SECOND_THOUGHT = re.compile(r"\b(?:no|wait|actually|correction)\b\s*[,.:;!–—-]", re.IGNORECASE)
_DOUBT = re.compile(r"\b(?:no|nor|not|neither|never|cannot|hardly|wait|actually|if|whether|unless|unclear|worse|worst|"
                    r"wrong|incorrect|weaker|(?:do|does|did|is|are|was|were|ca|wo|would|could|should|has|have)nt)\b",
                    re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since)\b[^\n.!?;]*", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^[ \t]*(\d+)[.)][ \t]+(?=\S)", re.MULTILINE)
# What a choice looks like: alone, on a line of its own, in a sentence.
_CHOICE = (r"(?:(?:reply|response|answer|option|assistant)\s+)?"
           r"(?-i:(?P<letter>[AB])\b|\b(?:TIE|Tie|tie|DRAW|draw)\b)")
_LABEL = (r"\b(?:answer|verdict|choice|winner|decision|preference|judge?ment)\s*(?:\bis\s*[:=]?|[:=])\s*" + _CHOICE)
_STOP = r"(?=[.!]+(?:\s|\Z)|[ \t]*(?:\n|\Z)|[,;]?\s+because\b)"
_ALONE = re.compile(_CHOICE + r"[\s.!]*", re.IGNORECASE)
_LINE = re.compile(rf"^[ \t]*(?:(?:so|the|my|final|overall|better|best)[\s,]+)*{_LABEL}[ \t.!]*$",
                   re.IGNORECASE | re.MULTILINE)
_CHOSEN = re.compile(_LABEL + _STOP, re.IGNORECASE)
_BETTER = re.compile(rf"\b{_CHOICE}\s+(?:is|was)\s+(?:clearly\s+|slightly\s+|much\s+|the\s+)*better\b"
                     rf"(?:\s+than\s+(?:(?:the|reply|response|answer|option|assistant|other)\s*)*(?-i:\b[AB]\b)?)?{_STOP}",
                     re.IGNORECASE)
_FIRST_WORD = re.compile(rf"{_CHOICE}(?:\s*[.,;–—]\s|\s+-\s|[,;]?\s+(?=because\b))", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:A|B|TIE|Tie|tie|DRAW|draw)\b")


def parse_score(text: str, is_cut: bool = False) -> float | None:
    """The score in a judge's reply, 0 to 100, or None where it isn't beyond doubt.

    Taken: a number after "score", "rating", "mark" or "grade", whatever other numbers there are; N/100, N out of 100
    and N%; a number that is all that its sentence says ("85.", "I'd say 85."), where there is no other. What only
    repeats the question's scale doesn't count, nor do the numbers of a list, or what stands between <think> and
    </think>. Not taken: two numbers that differ and could both be it ("80-90", "40. No, 60."), one that is denied,
    compared with or somebody else's ("not 100", "at most 30", "the expected reply has a score of 100"), another scale
    (8/10), a number outside of 0 to 100, a fraction below 1 or "1.0", which may be meant as a share, numbers in words.
    is_cut: the reply was cut for its length, so that its last word may be half a number.
    """
    text = _plain(text, is_cut)
    if text is None:
        return None
    text = _without_list_numbers(_SCALE.sub(" ", text))
    is_foreign = any(_value(scale) != HIGHEST for _, scale in _OF.findall(text))
    text = _OF.sub(lambda found: f" {found[1]}/100 " if _value(found[2]) == HIGHEST else " ? ", text)
    candidates = list(_LABELLED.finditer(text)) or list(_SCALED.finditer(text))
    is_bare = not candidates
    if is_bare:
        if is_foreign:
            return None
        candidates = list(re.finditer(f"({_NUMBER})", text))
    values = {None if found.re is _LABELLED and found[2] else _value(found[1]) for found in candidates}
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(text))]
    if len(values) != 1 or not any(_is_claimed(text, ends, found, is_bare) for found in candidates):
        return None
    return None if _SECOND_THOUGHT.search(text, candidates[0].end()) else values.pop()


def _is_claimed(text: str, ends: list[int], found: re.Match, is_bare: bool) -> bool:
    """Whether the sentence around a score says that it is this reply's score, and not that it is above it, say.

    ends: where the text's sentences end, and 0.
    """
    begin = ends[bisect_right(ends, found.start()) - 1]
    place = bisect_right(ends, found.end())
    before, after = text[begin:found.start()], text[found.end():ends[place] if place < len(ends) else None]
    after = after.rstrip(".!?;\n")
    if re.match(r"\w+\s*[:=]", found[0]):  # a field among others, as in JSON
        before = before.rpartition(",")[2]
    if not _LEAD.fullmatch(before) or _AGAINST.search(_REASON.sub(" ", after)):
        return False
    if not is_bare:
        return True
    is_said = not re.search(r"\w", before) or _VERB.search(before) is not None
    return is_said and re.fullmatch(r"[\s)\]%,]*(?:points?|percent)?[\s)\]%,]*", _REASON.sub(" ", after)) is not None


def parse_choice(text: str, is_cut: bool = False) -> Choice | None:
    """Which reply a judge prefers, A (the first), B (the second) or neither, or None where it isn't beyond doubt.

    Taken: A, B or TIE that stands alone, on the first line or the last; a line such as "Verdict: A"; and, as long as no
    sentence denies or doubts something, "the winner is A.", "reply A is better." and "A. ..." or "A, because ..." at
    the beginning. Not taken: where two of these differ, and what is said about one reply alone ("A: wrong").
    """
    text = _plain(text, is_cut)
    if text is None:
        return None
    text = re.sub(r"[\[\]()<>]", "", text).strip()
    lines = [line.strip() for line in text.splitlines()] or [""]
    bare = [_ALONE.fullmatch(line) for line in lines]
    claims = [found for found in bare if found] if bare[0] or (bare[-1] and not is_cut) else []
    claims += _LINE.finditer(text)
    reasoned = _REASON.sub("because", text)
    if not _DOUBT.search(reasoned):
        claims += [found for pattern in (_CHOSEN, _BETTER) for found in pattern.finditer(reasoned)]
        if not claims and (found := _FIRST_WORD.match(reasoned)) and not _NAMED.search(reasoned, found.end()):
            claims.append(found)
    choices = {_choice_of(found) for found in (*claims, *filter(None, bare if claims else ()))}
    if len(choices) != 1 or _SECOND_THOUGHT.search(text):
        return None
    return choices.pop()


def _choice_of(found: re.Match) -> Choice:
    return {"A": "first", "B": "second", None: "tie"}[found["letter"]]


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
