"""Small rules of English that every part of the tiny world needs."""

from __future__ import annotations

from collections.abc import Sequence

# Words that sound as if they began with the other kind of letter.
AN_THOUGH_CONSONANT = ("hour", "honest", "heir")
A_THOUGH_VOWEL = ("one", "use", "uniform", "unit", "university", "european")

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()


def article(word: str) -> str:
    """The right indefinite article for a word: "a" or "an"."""
    lower = word.lower()
    if lower.startswith(A_THOUGH_VOWEL):
        return "a"
    return "an" if lower[0] in "aeiou" or lower.startswith(AN_THOUGH_CONSONANT) else "a"


def with_article(word: str) -> str:
    """A noun phrase such as "an apple"."""
    return f"{article(word)} {word}"


def capitalise(text: str) -> str:
    """The text with a capital first letter, the rest left alone."""
    return text[:1].upper() + text[1:]


def join_and(items: Sequence[str]) -> str:
    """A spoken list: "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + " and " + items[-1]
