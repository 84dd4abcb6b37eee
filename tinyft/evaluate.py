"""How good are the replies? Exact match, by family."""

import string
from collections.abc import Sequence

from .instructions import Entry


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop or quotes around: what should not make a reply wrong."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def exact_match(reply: str, expected: str) -> bool:
    """Whether a reply says exactly the expected text, up to case, space and outer punctuation."""
    return normalise(reply) == normalise(expected)


def by_family(entries: Sequence[Entry], replies: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(right, all) for each family, in alphabetical order; entries without a family count as 'all'."""
    counts: dict[str, list[int]] = {}
    for entry, reply in zip(entries, replies, strict=True):
        right_and_all = counts.setdefault(entry.family or "all", [0, 0])
        right_and_all[0] += exact_match(reply, entry.output)
        right_and_all[1] += 1
    return {family: (right, n) for family, (right, n) in sorted(counts.items())}
