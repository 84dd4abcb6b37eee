"""One object of a data file as an entry: which keys say what is asked and what is to be replied.

Known are Alpaca's keys, prompt and completion, Dolly's, question and answer, and lists of messages as OpenAI's and
ShareGPT's have them. What is not known is counted, and what looks like a misspelt key is an error: a column that is
silently left out is the worst that can happen to data.
"""

import datetime
import decimal
import math
from collections import Counter
from dataclasses import dataclass, field

from .containers import Number, Repeated, kind
from .entries import Entry, Turn

# Pairs of keys for what is asked and what is replied, those that mean most first.
PAIRS = {("instruction", "output"): "Alpaca", ("instruction", "response"): "Dolly",
         ("prompt", "completion"): "prompt/completion", ("prompt", "response"): "prompt/response",
         ("question", "answer"): "question/answer", ("query", "response"): "query/response",
         ("question", "response"): "question/response", ("instruction", "answer"): "instruction/answer",
         ("prompt", "output"): "prompt/output", ("instruction", "completion"): "instruction/completion"}
CONVERSATIONS = {"messages": "messages", "conversations": "ShareGPT"}
BESIDE = ("input", "context", "system", "system_prompt", "history", "family")
KNOWN_KEYS = frozenset(key for pair in PAIRS for key in pair) | CONVERSATIONS.keys() | set(BESIDE)
COLUMNS = ("instruction", "input", "output", "system", "family", "messages")
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant"}
OTHER_WORDS = {"content", "contents"}  # a letter from "context", but a word of its own


@dataclass
class Account:
    """What was read, for a report: entries by schema, keys that were ignored, values that were changed."""

    schemas: Counter = field(default_factory=Counter)
    ignored: Counter = field(default_factory=Counter)
    changed: Counter = field(default_factory=Counter)


def parse_columns(text: str) -> dict[str, str]:
    """"instruction=ask,output=reply" as {"instruction": "ask", "output": "reply"}: which key stands for what."""
    columns = {}
    for part in text.split(","):
        name, equals, key = part.partition("=")
        if not equals or not key or name.strip() not in COLUMNS:
            raise ValueError(f"--columns {text}: {part!r} is not NAME=KEY, with one of {', '.join(COLUMNS)} as NAME")
        if name.strip() in columns:
            raise ValueError(f"--columns {text}: '{name.strip()}' is given twice")
        columns[name.strip()] = key
    return columns


def to_entry(item, where: str, columns: dict[str, str], account: Account) -> Entry:
    """An entry from an object. ValueError that begins with `where` if it is none, or a value is no text."""
    if not isinstance(item, dict):
        if isinstance(item, list) and item and all(isinstance(turn, dict) for turn in item):
            item = {"messages": item}
        else:
            what = "a number" if isinstance(item, Number) else kind(item)
            raise ValueError(f"{where} is {what}, expected an object with 'instruction' and 'output', or 'messages'")
    _check_keys(item, where, columns)
    values = {key: value for key, value in item.items() if key not in columns.values()}
    values = {key: value for key, value in values.items() if key not in columns}
    values |= {name: item[key] for name, key in columns.items() if key in item}
    used = _keys_of_schema(values, where, item)
    reader = _Values(where, account)
    if used[0] in CONVERSATIONS:
        turns = reader.turns(used[0], values[used[0]])
        system = _system(values, reader)
        if system and not any(turn.role == "system" for turn in turns):
            turns = [Turn("system", system), *turns]
        turns = reader.up_to_the_last_reply(turns)
        beside = ["system", "system_prompt"]
        account.schemas[CONVERSATIONS[used[0]]] += 1
    else:
        turns, beside = _asked_and_replied(used, values, reader)
        account.schemas[PAIRS[used]] += 1
    family = reader.text("family", values.get("family"))
    read = {columns.get(name, name) for name in (*used, *beside, "family") if name in values}
    account.ignored.update(set(item) - read)
    return Entry(tuple(turns), family)


def _asked_and_replied(used: tuple[str, str], values: dict, reader: "_Values") -> tuple[list[Turn], list[str]]:
    """Turns of a pair of keys, and the keys beside it that were read."""
    asked, replied = values[used[0]], values[used[1]]
    beside = ["system" if "system" in values else "system_prompt", "history"]
    system = _system(values, reader)
    turns = [Turn("system", system)] if system else []
    turns += reader.history(values.get("history"))
    if isinstance(asked, list) and isinstance(replied, list):  # as TRL has them
        turns += reader.turns(used[0], asked) + reader.turns(used[1], replied)
        return reader.up_to_the_last_reply(turns), beside
    if isinstance(asked, list) and asked and all(isinstance(turn, dict) for turn in asked):
        turns += reader.turns(used[0], asked)
        return [*turns, Turn("assistant", reader.text(used[1], replied))], beside
    name = "input" if "input" in values else "context"
    given = reader.text(name, values.get(name))
    if given.strip() == "<noinput>":
        reader.account.changed["inputs that say <noinput>"] += 1
        given = ""
    given = given if given.strip() else ""
    turns.append(Turn("user", reader.text(used[0], asked), given))
    return [*turns, Turn("assistant", reader.text(used[1], replied))], [*beside, name]


def _system(values: dict, reader: "_Values") -> str:
    name = "system" if "system" in values else "system_prompt"
    text = reader.text(name, values.get(name))
    return text if text.strip() else ""


# ---- keys


def _check_keys(item: dict, where: str, columns: dict[str, str]) -> None:
    """ValueError for a key that stands twice, or that looks like a misspelt one."""
    if isinstance(item, Repeated):
        raise ValueError(f"{where}: the key '{item.key}' stands twice; remove one of them")
    for key in item:
        if key in KNOWN_KEYS or key in columns.values():
            continue
        meant = next((known for known in sorted(KNOWN_KEYS) if known not in item and _near(str(key), known)), None)
        if meant is not None:
            remedy = f", or say --columns {meant}='{key}'" if meant in COLUMNS and "," not in key else ""
            raise ValueError(f"{where}: the key '{key}' is not known, but '{meant}' is; rename it (or remove "
                             f"it){remedy}")


def _near(key: str, known: str) -> bool:
    """Whether a key is a known one but for case, signs around it, or one letter more, less, other or exchanged."""
    plain = "".join(sign for sign in key.casefold() if sign.isalnum() or sign == "_").strip("_")
    if plain == known or plain.replace("_", "") == known.replace("_", ""):
        return True
    if len(known) < 5 or abs(len(plain) - len(known)) > 1 or plain in OTHER_WORDS:
        return False
    same = next((i for i, (a, b) in enumerate(zip(plain, known, strict=False)) if a != b), min(len(plain), len(known)))
    rest, known_rest = plain[same:], known[same:]
    return (rest[1:] == known_rest or rest == known_rest[1:] or rest[1:] == known_rest[1:]
            or (rest[:2] == known_rest[:2][::-1] and rest[2:] == known_rest[2:]))


def _keys_of_schema(values: dict, where: str, item: dict) -> tuple[str, ...]:
    """The keys that say what is asked and replied; ValueError if there are none."""
    for name in CONVERSATIONS:
        if isinstance(values.get(name), list) or (name in values and not any(pair[0] in values for pair in PAIRS)):
            return (name,)
    for pair in PAIRS:
        if pair[0] in values and pair[1] in values:
            return pair
    there = ", ".join(f"'{key}'" for key in item) or "none"
    half = next((pair for pair in PAIRS if pair[0] in values or pair[1] in values), None)
    if half is not None:
        missing = half[1] if half[0] in values else half[0]
        raise ValueError(f"{where}: '{missing}' is missing; its keys are {there}; if one of them says the same, give "
                         f"--columns {'output' if half[0] in values else 'instruction'}=KEY")
    raise ValueError(f"{where}: no known keys; there are {there}; say which is which, as in "
                     "--columns instruction=KEY,output=KEY")


# ---- values


@dataclass
class _Values:
    """Reads values of one object; `where` begins every error."""

    where: str
    account: Account

    def text(self, name: str, value) -> str:
        """A value as text: numbers as their digits, null and NaN as none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, Number) or (isinstance(value, (int, float, decimal.Decimal, datetime.date))
                                         and not isinstance(value, bool)):
            self.account.changed[f"numbers in '{name}' read as their digits"] += 1
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: '{name}' is {kind(value)}, expected text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{self.where}: '{name}' has an unpaired surrogate (\\ud800 to \\udfff), which is no "
                             "character; remove it") from None
        return value

    def turns(self, name: str, messages) -> list[Turn]:
        """A list of messages, with role and content or from and value, as turns."""
        if not isinstance(messages, list):
            raise ValueError(f"{self.where}: '{name}' is {kind(messages)}, expected a list of messages")
        return [self._turn(f"{name}[{i}]", message) for i, message in enumerate(messages)]

    def _turn(self, name: str, message) -> Turn:
        if not isinstance(message, dict):
            raise ValueError(f"{self.where}: {name} is {kind(message)}, expected an object with 'role' and 'content'")
        if isinstance(message, Repeated):
            raise ValueError(f"{self.where}: {name} has the key '{message.key}' twice; remove one of them")
        keys = ("role", "content") if "role" in message else ("from", "value")
        for key in keys:
            if key not in message:
                raise ValueError(f"{self.where}: {name} has no '{key}'; its keys are {', '.join(message) or 'none'}, "
                                 "expected 'role' and 'content', or 'from' and 'value'")
        role = ROLES.get(str(message[keys[0]]).lower())
        if role is None or message.get("tool_calls") or message.get("function_call"):
            what = f"the role {message[keys[0]]!r}" if role is None else "calls of tools"
            raise ValueError(f"{self.where}: {name} has {what}; only system, user and assistant with text are "
                             "supported")
        if role == "assistant" and str(message.get("weight", "1")) in ("0", "0.0"):
            raise ValueError(f"{self.where}: {name} has the weight 0; replies that are not to be learned are not "
                             "supported")
        content = message[keys[1]]
        if isinstance(content, list):
            content = "".join(self._part(f"{name}.{keys[1]}", part) for part in content)
        known = {*keys, "input"} if role == "user" else set(keys)
        self.account.ignored.update({f"message {key}" for key in set(message) - known if message[key] is not None})
        given = self.text(f"{name}.input", message.get("input")) if role == "user" else ""
        return Turn(role, self.text(f"{name}.{keys[1]}", content), given)

    def _part(self, name: str, part) -> str:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
            what = part.get("type", "an object without text") if isinstance(part, dict) else kind(part)
            raise ValueError(f"{self.where}: {name} has a part that is no text ({what}); only text is supported")
        return self.text(f"{name}.text", part["text"])

    def history(self, pairs) -> list[Turn]:
        """Earlier questions and replies, [[question, reply], ...]."""
        if pairs is None or pairs == "":
            return []
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"{self.where}: 'history' is expected to be a list of pairs [question, reply]")
        return [Turn(role, self.text("history", text)) for pair in pairs
                for role, text in zip(("user", "assistant"), pair, strict=True)]

    def up_to_the_last_reply(self, turns: list[Turn]) -> list[Turn]:
        """Turns that no reply follows teach nothing; they are left out and counted."""
        end = max((i + 1 for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        if end < len(turns):
            self.account.changed["conversations cut behind their last reply"] += 1
        return turns[:end]
