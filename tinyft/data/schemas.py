"""From one object of a file to an entry: which of the known forms it has, told by its keys.

Forms of one turn name what is asked (`instruction`, `prompt`, `question`, `query`) and what is to be learned
(`output`, `completion`, `response`, `answer`): Alpaca, Dolly, prompt/completion, OpenOrca and the like. Forms of
several turns hold a list of messages: OpenAI's `messages` (role, content), ShareGPT's `conversations` (from, value),
or TRL's `prompt` and `completion` that are both such lists.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..untrusted import shown
from .entries import Entry, Turn

QUESTIONS = ("instruction", "prompt", "question", "query")
REPLIES = ("output", "completion", "response", "answer")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations", "conversation")
KNOWN = (*QUESTIONS, *REPLIES, *INPUTS, *SYSTEMS, *CONVERSATIONS, "history", "family")
TARGETS = ("instruction", "input", "output", "system", "history", "messages", "family")  # of a mapping of one's own
NAMES = {("instruction", "output"): "Alpaca", ("instruction", "response"): "Dolly"}
PARTNERS = {"instruction": "output", "prompt": "completion", "question": "answer", "query": "response",
            "output": "instruction", "completion": "prompt", "response": "instruction", "answer": "question"}
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
         "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
         "model": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
NO_INPUT = "<noinput>"


class Number(str):
    """A number of a JSON file, as it is spelled there: the digits are what is learned."""


@dataclass
class Account:
    """What became of the entries that were read. The counters count entries.

    schemas: form -> kept; dropped: reason -> dropped; changed: what was changed -> kept; ignored: key -> entries that
    have it.
    """

    files: list[str] = field(default_factory=list)
    schemas: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    changed: Counter = field(default_factory=Counter)
    ignored: Counter = field(default_factory=Counter)


def kind_of(value) -> str:
    """What a value of a file is, in words."""
    names = {dict: "an object", str: "a string", list: "a list", type(None): "null", bool: "true or false",
             Number: "a number", int: "a number", float: "a number", bytes: "binary data"}
    return names.get(type(value), f"of the type {type(value).__name__}")


def parse_columns(text: str) -> dict[str, str]:
    """'instruction=ask,output=reply' -> {"instruction": "ask", "output": "reply"}: our name, then the file's key.

    ValueError where a part is no NAME=KEY, a name is unknown or occurs twice.

    >>> parse_columns("instruction=ask,output=reply")
    {'instruction': 'ask', 'output': 'reply'}
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        name, equals, key = part.partition("=")
        name = name.strip()
        if not equals or not name or not key:
            raise ValueError(f"columns: {part!r} is no NAME=KEY, expected for instance instruction=ask,output=reply")
        if name in columns:
            raise ValueError(f"columns: {name!r} occurs twice")
        columns[name] = key
    check_columns(columns)
    return columns


def check_columns(columns: Mapping[str, str]) -> None:
    """ValueError if a mapping of one's own has a name that means nothing or a key that is used twice."""
    for name in columns:
        if name not in TARGETS:
            raise ValueError(f"columns: there is no {name!r}, expected one of {', '.join(TARGETS)}")
    for key, count in Counter(columns.values()).items():
        if count > 1:
            raise ValueError(f"columns: {key!r} is named for two columns, expected one for each")
    if "messages" in columns and ("instruction" in columns or "output" in columns):
        raise ValueError("columns: 'messages' is a whole conversation, expected no 'instruction' or 'output' with it")


def quoted(names) -> str:
    """Keys for a message, at most a dozen."""
    names = [shown(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def is_message(value) -> bool:
    """Is this a message of a conversation, in OpenAI's or ShareGPT's form?"""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def is_conversation(value) -> bool:
    """Is this a list of messages?"""
    return isinstance(value, list) and bool(value) and is_message(value[0])


def is_entry(item: dict, columns: Mapping[str, str] | None = None) -> bool:
    """Does an object say for itself what is asked and what is to be learned, rather than hold others that do?"""
    def has(names):
        keys = (*names, *(key for name, key in (columns or {}).items() if name in names))
        return any(key in item and (not isinstance(item[key], dict | list) or is_conversation(item[key]))
                   for key in keys)

    return has(QUESTIONS) and has(REPLIES) or any(map(is_conversation, item.values()))


@functools.cache  # of any number of keys: a table of many columns asks for all of them with every row
def near_miss(key: str) -> str | None:
    """The known key that `key` was probably meant to be ("Input", "input : ", "instructions", "ouput"), if any."""
    if key in KNOWN or key == "content":  # "content" is a word of its own, a letter beside "context"
        return None
    bare = key.strip(" \t\r\n\xa0\ufeff:=.,;*#\"'`_-").casefold()
    return next((known for known in KNOWN if bare == known or _a_letter_off(bare, known)), None)


def _a_letter_off(word: str, other: str) -> bool:
    """Is one letter added, left out, another, or are two neighbours swapped?"""
    if abs(len(word) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    a, b = word[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def to_text(value, where: str, name: str) -> str:
    """Text of a value: numbers become their digits, null and NaN are empty. ValueError for all else."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{where}: {name!r} has an unpaired surrogate (\\ud800 to \\udfff), which is no "
                             "character; remove it") from None
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{where}: {name!r} is {kind_of(value)}, expected text")


def to_entry(item: Any, where: str, account: Account, columns: Mapping[str, str] | None = None) -> Entry | None:
    """One object as an entry, or None if there is nothing to learn in it; `account` is told what became of it.

    where: file and number of the entry, for errors. columns: a mapping of one's own, our name -> the object's key.
    ValueError if the form is not known, a key is nearly a known one, or a value is no text.
    """
    if is_conversation(item):
        item = {"messages": item}  # a conversation that stands for itself
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {kind_of(item)}, expected an object with 'instruction' and 'output'")
    keys = _our_names(item, where, columns or {})
    values = {name: item[key] for name, key in keys.items()}
    conversation = _choose(values, CONVERSATIONS, where, "the conversation")
    if conversation and not (_is_blank(values[conversation]) and values.keys() & {*QUESTIONS, *REPLIES}):
        used, schema, turns = (*CONVERSATIONS, *SYSTEMS), conversation, []
        if not _is_blank(values[conversation]):
            _add_messages(turns, values[conversation], f"{where}, {keys[conversation]!r}", account)
    else:
        used, schema, turns = _single_turn(values, keys, item, where, account)
    system = _choose(values, SYSTEMS, where, "the system turn")
    if system and (text := to_text(values[system], where, keys[system])).strip():
        if any(turn.role == "system" for turn in turns):
            raise ValueError(f"{where}: there is a system turn in {keys[conversation]!r} and one more in "
                             f"{keys[system]!r}; remove one of them")
        turns.insert(0, Turn("system", text))
    family = to_text(values.get("family"), where, keys.get("family", "family"))
    used_keys = {keys[name] for name in (*used, "family") if name in keys}
    account.ignored.update(key for key in item if key not in used_keys
                           and not (key in KNOWN and _is_blank(item[key])))
    is_chat = any(map(is_conversation, values.values()))
    if not is_chat and len(turns) > 1 and not (turns[-2].content + turns[-2].input).strip():
        account.dropped["nothing is asked"] += 1
        return None
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.content.strip()), default=None)
    if last is None:
        account.dropped["no reply to learn"] += 1
        return None
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns[:last]):
        account.changed["an empty reply between turns, learned as an end at once"] += 1
    if last < len(turns) - 1:
        account.changed["turns after the last reply left out"] += 1
    account.schemas[schema] += 1
    return Entry(tuple(turns[: last + 1]), family)


def _our_names(item: dict, where: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the object's key, for the keys that mean something; a mapping of one's own goes before all else."""
    if not columns:
        for key in item:
            if isinstance(key, str) and (known := near_miss(key)):
                raise ValueError(f"{where}: the key {shown(key)} is not known, but nearly '{known}'; rename it to "
                                 f"'{known}', or say with --columns which keys are to be read")
        return {key: key for key in item if key in KNOWN}
    hidden = set(columns.values())
    for name, others in (("instruction", (*QUESTIONS, *CONVERSATIONS)), ("output", (*REPLIES, *CONVERSATIONS)),
                         ("input", INPUTS), ("system", SYSTEMS), ("messages", CONVERSATIONS),
                         ("history", ("history",)), ("family", ("family",))):
        if name in columns:
            hidden.update(others)
    return ({key: key for key in item if key in KNOWN and key not in hidden}
            | {name: key for name, key in columns.items() if key in item})


def _is_blank(value) -> bool:
    return (value is None or value == [] or isinstance(value, str) and not value.strip()
            or isinstance(value, float) and math.isnan(value))


def _choose(values: dict, names: tuple[str, ...], where: str, what: str) -> str | None:
    """The one of `names` that there is; of several, the one that is not blank. None if there is none."""
    there = [name for name in names if name in values]
    filled = [name for name in there if not _is_blank(values[name])]
    if len(filled) > 1:
        raise ValueError(f"{where}: {' and '.join(map(repr, filled))} could each be {what}; "
                         "say with --columns which is")
    return (filled or there or [None])[0]


def _single_turn(values: dict, keys: dict, item: dict, where: str, account: Account
                 ) -> tuple[tuple[str, ...], str, list[Turn]]:
    """Names that were used, the form's name, and the turns of an object without a list of messages."""
    if "instruction" in values and {"output", "response"} & values.keys():
        values = {name: value for name, value in values.items() if name != "prompt"}  # the whole prompt, once more
    question = _choose(values, QUESTIONS, where, "what is asked")
    reply = _choose(values, REPLIES, where, "the reply")
    if question is None or reply is None:
        _refuse_form(question or reply, item, where)
    schema, turns = NAMES.get((question, reply), f"{question}/{reply}"), []
    used = tuple(name for name in values if name not in CONVERSATIONS)
    if is_conversation(values[question]):
        _add_messages(turns, values[question], f"{where}, {keys[question]!r}", account)
        if isinstance(values[reply], list):
            _add_messages(turns, values[reply], f"{where}, {keys[reply]!r}", account)
        else:
            turns.append(Turn("assistant", to_text(values[reply], where, keys[reply])))
        return used, schema, turns
    _add_history(turns, values.get("history"), where, keys.get("history", "history"))
    given = _choose(values, INPUTS, where, "the input")
    given_text = to_text(values[given], where, keys[given]) if given else ""
    if given_text.strip().casefold() == NO_INPUT:
        account.changed[f"{NO_INPUT} read as no input"] += 1
        given_text = ""
    if not given_text.strip():
        given_text = ""
    turns.append(Turn("user", to_text(values[question], where, keys[question]), given_text))
    turns.append(Turn("assistant", to_text(values[reply], where, keys[reply])))
    return used, schema, turns


def _refuse_form(known: str | None, item: dict, where: str) -> NoReturn:
    """Name the keys that there are, and a mapping that would do. known: the part that was found, if any."""
    # As they are typed, with line ends and the like escaped.
    texts = [shown(key)[1:-1] for key, value in item.items() if key not in KNOWN and type(value) is str]
    chats = [shown(key)[1:-1] for key, value in item.items() if is_conversation(value)]
    problem, keys = f"'{PARTNERS[known]}' is missing" if known else "none of the known forms", quoted(item)
    if chats:
        hint = f"; its keys are {keys}; say with --columns messages={chats[0]} that it is a conversation"
    elif known:
        name = "output" if known in QUESTIONS else "instruction"
        hint = f"; its keys are {keys}; if it has another name: --columns {name}={texts[0]}" if texts else ""
    else:
        question, reply = (texts + ["KEY", "KEY"])[:2]
        hint = f"; its keys are {keys}; say which are meant with --columns instruction={question},output={reply}"
    raise ValueError(f"{where}: {problem}{hint}")


def _add_history(turns: list[Turn], history, where: str, name: str) -> None:
    """Earlier rounds as LlamaFactory has them: [[question, reply], ...]."""
    if _is_blank(history):
        return
    if not isinstance(history, list):
        raise ValueError(f"{where}: {name!r} is {kind_of(history)}, expected a list of [question, reply]")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: {name!r} has something else than [question, reply] in it, expected two texts")
        turns.append(Turn("user", to_text(pair[0], where, name)))
        turns.append(Turn("assistant", to_text(pair[1], where, name)))


def _add_messages(turns: list[Turn], messages, where: str, account: Account) -> None:
    """Messages of a conversation, in OpenAI's form (role, content) or ShareGPT's (from, value)."""
    if not isinstance(messages, list):
        raise ValueError(f"{where} is {kind_of(messages)}, expected a list of messages with 'role' and 'content'")
    for number, message in enumerate(messages, 1):
        turns.append(_turn(message, f"{where}, message {number}", account))


def _turn(message, where: str, account: Account) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is {kind_of(message)}, expected an object with 'role' and 'content'")
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"{where}: calls of tools cannot be learned; remove such conversations, or write the calls "
                         "as text")
    form = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    for name in form:
        if name not in message:
            raise ValueError(f"{where}: {name!r} is missing; its keys are {quoted(message)}")
    given_role = to_text(message[form[0]], where, form[0])
    role = ROLES.get(given_role.strip().casefold())
    if role is None:
        reason = ("messages of tools cannot be learned; remove such conversations"
                  if given_role.strip().casefold() in TOOL_ROLES else "expected system, user or assistant")
        raise ValueError(f"{where}: {form[0]} {shown(given_role)}: {reason}")
    if role == "assistant" and (message.get("train") is False or str(message.get("weight")) in ("0", "0.0", "False")):
        raise ValueError(f"{where}: a reply that is not to be learned ('weight' 0 or 'train' false), but all replies "
                         "are; remove the message or the mark")
    account.ignored.update(f"{key} (of messages)" for key, value in message.items()
                           if key not in (*form, "weight", "train", "tool_calls", "function_call")
                           and not _is_blank(value))
    return Turn(role, _content(message[form[1]], where, form[1]))


def _content(value, where: str, name: str) -> str:
    """Content of a message: text, or a list of OpenAI's parts that are all text."""
    if not isinstance(value, list):
        return to_text(value, where, name)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or "text" not in part:
            what = f"of the type {shown(part.get('type'))}" if isinstance(part, dict) else kind_of(part)
            raise ValueError(f"{where}: {name!r} has a part that is {what}, expected parts of text")
    return "".join(to_text(part["text"], where, name) for part in value)
