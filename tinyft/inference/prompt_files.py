"""Files of prompts: one JSON value a line, and what each asks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.entries import Turn
from ..files import read_text
from ..untrusted import shown

EXPECTED = ('a text, or an object with "prompt", with "instruction" (and "input", "system"), or with "messages"')


def check_text(text: str, name: str) -> str:
    """The text itself. ValueError if UTF-8 can't write it: it has bytes that aren't UTF-8, or half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (character {error.start + 1})") from None
    return text


@dataclass(frozen=True)
class PromptLine:
    """One line: what it says, and what is asked, as turns or as a text to go on with."""

    record: dict[str, Any]
    turns: tuple[Turn, ...]
    text: str = ""


def read_prompts(path: Path) -> list[PromptLine]:
    """All lines of a JSONL file but empty ones. ValueError names the line that is none, and what was expected."""
    try:
        found = list(_lines(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot read it ({error.strerror})") from None
    if not found:
        raise ValueError(f"{path} is empty, expected on each line {EXPECTED}")
    return found


def _lines(path: Path) -> Iterator[PromptLine]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _asked(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); expected {EXPECTED}") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: JSON that is nested too deeply; expected {EXPECTED}") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


def _asked(value: Any) -> PromptLine:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value, 40)}, expected {EXPECTED}")
    system = _text(value, "system", "")
    before = (Turn("system", system),) if system else ()
    if "messages" in value:
        turns = before + tuple(_turn(message) for message in _messages(value))
        if turns[-1].role != "user":
            raise ValueError(f"the last message is the {turns[-1].role}'s, expected a user's, which asks for a reply")
        return PromptLine(value, turns)
    if "instruction" in value:
        turn = Turn("user", _text(value, "instruction"), _text(value, "input", ""))
        return PromptLine(value, (*before, turn), turn.content)
    if "prompt" in value:
        text = _text(value, "prompt")
        return PromptLine(value, (*before, Turn("user", text)), text)
    raise ValueError(f"the keys are {shown(list(value))[1:-1] or 'none'}, expected {EXPECTED}")


def _messages(value: dict[str, Any]) -> list[Any]:
    if not isinstance(value["messages"], list) or not value["messages"]:
        raise ValueError("'messages' is no list of messages, expected [{\"role\": ..., \"content\": ...}, ...]")
    return value["messages"]


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise ValueError("a message has no role, expected system, user or assistant")
    return Turn(message["role"], _text(message, "content"))


def _text(value: dict[str, Any], key: str, default: str | None = None) -> str:
    text = value.get(key)
    text = default if text is None else text
    if not isinstance(text, str) or (not text.strip() and default is None):
        raise ValueError(f"'{key}' is {shown(text, 40)}, expected a text")
    return check_text(text, f"'{key}'")
