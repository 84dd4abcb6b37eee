"""Files of replies, read for whoever judges them: what was asked, what was expected, what a model has said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.containers import read_objects
from ..data.entries import Turn
from ..data.schemas import INPUTS, QUESTIONS, REPLIES, ROLES, SYSTEMS, kind_of, quoted, to_text

REPLY_KEYS = ("model_response", "reply")  # as finetune_alpaca.py and generate.py write them
BEFORE_KEYS = ("model_response_before", "before")  # a reply of the model as it was before it was tuned


@dataclass(frozen=True)
class Answered:
    """One question with its replies.

    turns: what was asked, the user's turn last. expected: the reply that counts as right, or "" where there is none.
    reply: the model's. before: that of the untuned model, or None. name: of the model, where the file says it.
    """

    turns: tuple[Turn, ...]
    reply: str
    expected: str = ""
    before: str | None = None
    family: str = ""
    name: str = ""


def read_answered(path: Path, key: str | None = None) -> list[Answered]:
    """The replies of a file in their order.

    It may be replies.json of finetune_alpaca.py, what generate.py writes for --prompts, or AlpacaEval's model outputs
    (instruction, output, generator), as a list or as lines. key: where the reply is (default: the usual place of the
    file's form). ValueError in one line if it is something else; OSError if it can't be read.
    """
    objects = read_objects(path)
    if not objects:
        raise ValueError(f"{path}: no replies in it")
    return [_answered(item, f"{path}, entry {number}", key) for number, item in enumerate(objects, 1)]


def check_same_questions(path: Path, answered: Sequence[Answered], other_path: Path, others: Sequence[Answered]
                         ) -> list[Answered]:
    """The other file's replies in the order of the first one's questions. ValueError unless both ask the same."""
    places: dict[tuple, list[int]] = {}
    for place, other in enumerate(others):
        places.setdefault(_question(other), []).append(place)
    ordered = []
    for number, item in enumerate(answered, 1):
        if not places.get(_question(item)):
            asked = " ".join(item.turns[-1].content.split())[:60]
            raise ValueError(f"{path}, entry {number}: \"{asked}\" is not asked in {other_path}; expected two files of "
                             "replies to the same questions")
        ordered.append(others[places[_question(item)].pop(0)])
    if len(others) > len(answered):
        raise ValueError(f"{other_path} has {len(others)} entries and {path} {len(answered)}; expected replies to the "
                         "same questions")
    return ordered


def _question(item: Answered) -> tuple:
    return tuple((turn.role, turn.content.strip(), turn.input.strip()) for turn in item.turns)


def _answered(item: Any, where: str, key: str | None) -> Answered:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {kind_of(item)}, expected an object with what was asked and a reply")
    reply_key = key or next((known for known in REPLY_KEYS if known in item), None)
    if reply_key is None and "generator" in item and "output" in item:
        reply_key = "output"
    if reply_key not in item:
        expected = repr(key) if key else f"{' or '.join(map(repr, REPLY_KEYS))}, or 'output' with 'generator'"
        raise ValueError(f"{where}: no reply; its keys are {quoted(item)}, expected {expected}; say which key has it "
                         "(--reply)")

    def text(*names: str) -> str:
        found = next((name for name in names if name in item and name != reply_key), None)
        return to_text(item[found], where, found) if found else ""

    before = next((name for name in BEFORE_KEYS if name in item and name != reply_key), None)
    turns, expected = _asked(item, where, text)
    if not any(turn.content.strip() or turn.input.strip() for turn in turns):
        raise ValueError(f"{where}: nothing is asked; its keys are {quoted(item)}, expected 'instruction', 'prompt' or "
                         "'messages'")
    return Answered(turns, to_text(item[reply_key], where, reply_key), expected,
                    text(before) if before else None, text("family"), text("generator"))


def _asked(item: dict, where: str, text) -> tuple[tuple[Turn, ...], str]:
    """The turns that ask, and the reply that is expected."""
    messages = item.get("messages")
    if messages is None:
        system = text(*SYSTEMS)
        turns = (Turn("system", system),) if system.strip() else ()
        return (*turns, Turn("user", text(*QUESTIONS), text(*INPUTS))), text(*REPLIES)
    if not isinstance(messages, list) or not all(isinstance(message, dict) and message.get("role") in ROLES
                                                 for message in messages):
        raise ValueError(f"{where}: 'messages' is no list of messages with role and content")
    turns = tuple(Turn(ROLES[message["role"]], to_text(message.get("content"), where, "content"),
                       to_text(message.get("input"), where, "input")) for message in messages)
    if turns and turns[-1].role == "assistant":
        return turns[:-1], turns[-1].content
    return turns, ""
