"""Votes of an arena: what a line of votes.jsonl holds, and how it is read.

The names of winners are those of LMSYS' data (Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena",
2023, chatbot_arena_conversations).
"""

import os
from dataclasses import asdict, dataclass

from .journal import read_journal

# By what the page calls them.
WINNERS = {"a": "model_a", "b": "model_b", "tie": "tie", "bad": "tie (bothbad)"}


@dataclass(frozen=True)
class Vote:
    """One person's preference. time: in seconds since 1970. model_a is the one that was shown on the left."""

    id: str
    time: float
    prompt: str
    model_a: str
    model_b: str
    reply_a: str
    reply_b: str
    winner: str
    judge: str = ""

    def record(self) -> dict:
        """The line's object."""
        return asdict(self)


def check_vote(value: object, where: str) -> dict:
    """The object of one line. ValueError says what is wrong, where."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    for key in ("id", "prompt", "model_a", "model_b", "reply_a", "reply_b", "winner"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"{where}: '{key}' is {value.get(key)!r:.40}, expected a text")
    if value["winner"] not in WINNERS.values():
        raise ValueError(f"{where}: 'winner' is {value['winner']!r:.40}, expected one of {', '.join(WINNERS.values())}")
    if value["model_a"] == value["model_b"]:
        raise ValueError(f"{where}: model_a and model_b are both {value['model_a']!r:.60}, expected two models")
    return value


def read_votes(path: str | os.PathLike) -> list[dict]:
    """All votes of a file but one that is being written. ValueError with path and line."""
    try:
        return read_journal(path, check_vote).records
    except OSError as error:
        raise ValueError(f"{path}: cannot read it ({error.strerror})") from None


def storable(text: str) -> str:
    """The text as UTF-8 can write it: halves of surrogate pairs that stand alone become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
