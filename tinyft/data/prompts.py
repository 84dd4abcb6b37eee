"""How a conversation is written down for a model: prompt styles, and the chat templates that tell other tools the same.

A style gives the text around each turn. A trained folder says its style in chat_template.jinja, in the language that
transformers (`apply_chat_template`) and llama.cpp read; a message may have an `input` beside its `content` there.
`chat_template.py` is for templates of others.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..files import read_text
from ..tokenizer import Tokenizer
from .entries import Turn

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


class Style(Protocol):
    """What all prompt styles can do.

    end: the text of the token that ends a reply, if the style has one of its own.
    """

    end: str | None

    def pieces(self, turns: Sequence[Turn], *, reply_follows: bool = False) -> list[tuple[str, bool]]:
        """The conversation as (text, whether it is a reply), without what ends the replies."""

    def template(self, tokenizer: Tokenizer) -> str:
        """The same as a chat template."""


@dataclass(frozen=True)
class PromptStyle:
    """Texts that stand around turns.

    system, reply: before and behind the text of such a turn; behind a reply its end comes first. user: before, between
    content and input, and behind. opening: in front of all where no system turn is; opening_with_input: the same where
    the first turn has an input. end: the token that ends a reply, where the tokenizer has it, else its own end of text.
    """

    system: tuple[str, str]
    user: tuple[str, str, str]
    reply: tuple[str, str]
    opening: str = ""
    opening_with_input: str | None = None
    end: str | None = None

    def pieces(self, turns: Sequence[Turn], *, reply_follows: bool = False) -> list[tuple[str, bool]]:
        """The conversation as (text, whether it is a reply), without what ends the replies."""
        pieces, text = [], ""
        if not turns or turns[0].role != "system":
            with_input = turns and turns[0].input and self.opening_with_input is not None
            text = self.opening_with_input if with_input else self.opening
        for turn in turns:
            if turn.role == "assistant":
                pieces += [(text + self.reply[0], False), (turn.content, True)]
                text = self.reply[1]
            elif turn.role == "system":
                text += self.system[0] + turn.content + self.system[1]
            else:
                text += self.user[0] + turn.content + (self.user[1] + turn.input if turn.input else "") + self.user[2]
        text += self.reply[0] if reply_follows else ""
        return [*pieces, (text, False)] if text else pieces

    def template(self, tokenizer: Tokenizer) -> str:
        """The same as a chat template, with the ids that a tokenizer puts in front and behind."""
        front = tokenizer.decode(tokenizer.bos_tokens)
        opening = "{{ " + _quoted(self.opening) + " }}" if self.opening else ""
        if self.opening_with_input is not None:
            opening = ("{% if messages[0]['input'] %}{{ " + _quoted(self.opening_with_input) + " }}{% else %}" + opening
                       + "{% endif %}")
        if opening:
            opening = "{% if messages[0]['role'] != 'system' %}" + opening + "{% endif %}"
        end, id = end_of_reply(self, tokenizer)
        behind = (end if tokenizer.token_id(end) == id else "") + self.reply[1]
        return "".join([
            "{{ " + _quoted(front) + " }}" if front else "", opening,
            "{% for message in messages %}{% if message['role'] == 'system' %}",
            _around("message['content']", *self.system),
            "{% elif message['role'] == 'user' %}", _around("message['content']", self.user[0], ""),
            "{% if message['input'] %}", _around("message['input']", self.user[1], ""), "{% endif %}",
            "{{ " + _quoted(self.user[2]) + " }}" if self.user[2] else "",
            "{% elif message['role'] == 'assistant' %}", _around("message['content']", self.reply[0], behind),
            "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ " + _quoted(self.reply[0]) + " }}{% endif %}",
        ])


def _quoted(text: str) -> str:
    """A literal of Jinja, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _around(name: str, before: str, behind: str) -> str:
    parts = [_quoted(before)] if before else []
    return "{{ " + " + ".join([*parts, name, *([_quoted(behind)] if behind else [])]) + " }}"


# alpaca: one preamble, as in chapter 7 of "Build a Large Language Model (From Scratch)"; stanford: Stanford's own, with
# another preamble where there is an input. phi3: Phi-3's marks in that book's exercise; phi3-chat: Microsoft's own.
_ALPACA = dict(system=("", ""), user=("\n\n### Instruction:\n", "\n\n### Input:\n", ""),
               reply=("\n\n### Response:\n", ""), opening=PREAMBLE)
PROMPT_STYLES: dict[str, PromptStyle] = {
    "alpaca": PromptStyle(**_ALPACA),
    "stanford": PromptStyle(**_ALPACA, opening_with_input=PREAMBLE_WITH_INPUT),
    "phi3": PromptStyle(("<|system|>\n", "\n"), ("<|user|>\n", "\n", "\n"), ("<|assistant|>\n", "")),
    "phi3-chat": PromptStyle(("<|system|>\n", "<|end|>\n"), ("<|user|>\n", "\n", "<|end|>\n"),
                             ("<|assistant|>\n", "\n"), end="<|end|>"),
    "chatml": PromptStyle(("<|im_start|>system\n", "<|im_end|>\n"), ("<|im_start|>user\n", "\n", "<|im_end|>\n"),
                          ("<|im_start|>assistant\n", "\n"), end="<|im_end|>"),
}


def find_style(tokenizer: Tokenizer, name: "str | Style | None" = None) -> Style:
    """A style by its name or by a file with a chat template; without either, what the model's folder says, or Alpaca's.

    A style itself is passed through. ValueError if there is no such style, or its template needs jinja2 and that is not
    installed.
    """
    if name is not None and not isinstance(name, str):
        return name
    if name in PROMPT_STYLES:
        return PROMPT_STYLES[name]
    if name is not None:
        if not Path(name).is_file():
            raise ValueError(f"--prompt-style {name}: expected one of {', '.join(PROMPT_STYLES)}, or a file with a "
                             "chat template")
        return _of_template(read_text(Path(name)), tokenizer, name)
    if tokenizer.chat_template is None:
        return PROMPT_STYLES["alpaca"]
    for style in PROMPT_STYLES.values():
        if style.template(tokenizer) == tokenizer.chat_template:
            return style
    return _of_template(tokenizer.chat_template, tokenizer, "the model's chat template")


def _of_template(template: str, tokenizer: Tokenizer, where: str) -> Style:
    from .chat_template import JinjaStyle  # jinja2 takes a while to import, and few need it

    return JinjaStyle(template, tokenizer, where)


def with_style(style: Style, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, saying that its model is asked in this style, as the folder will that it is saved into."""
    styled = copy.copy(tokenizer)
    styled.chat_template = style.template(tokenizer)
    _, end = end_of_reply(style, tokenizer)
    styled.stop_tokens = tuple(dict.fromkeys((*tokenizer.stop_tokens, end)))
    return styled


def end_of_reply(style: Style, tokenizer: Tokenizer) -> tuple[str, int]:
    """Text and id of the token that ends a reply: the style's, where the model has it, else the tokenizer's."""
    id = tokenizer.token_id(style.end) if style.end else None
    if id is None or (tokenizer.n_rows is not None and id >= tokenizer.n_rows):
        id = tokenizer.eot_token
    return tokenizer.decode([id]), id


def conversation_text(turns: Sequence[Turn], style: Style, tokenizer: Tokenizer, *, reply_follows: bool = True) -> str:
    """A conversation as a chat template writes it down, with the ids that stand in front and the ends of replies.

    reply_follows: with what asks for a reply. Without, the text ends with the last reply, open for more of it.
    """
    end, id = end_of_reply(style, tokenizer)
    pieces = style.pieces(turns, reply_follows=reply_follows)
    if not reply_follows:
        last = max((i for i, (_, is_reply) in enumerate(pieces) if is_reply), default=len(pieces) - 1)
        pieces = pieces[: last + 1]
    closed = [is_reply and (reply_follows or i < len(pieces) - 1) for i, (_, is_reply) in enumerate(pieces)]
    front = tokenizer.decode(tokenizer.bos_tokens) if isinstance(style, PromptStyle) else ""
    behind = end if tokenizer.token_id(end) == id else ""
    return front + "".join(text + behind * is_closed for (text, _), is_closed in zip(pieces, closed, strict=True))


def encode_prompt(turns: Sequence[Turn], style: Style, tokenizer: Tokenizer) -> list[int]:
    """The ids that ask for a reply to a conversation: those of apply_chat_template(..., add_generation_prompt=True)."""
    ids, _ = encode_conversation(turns, style, tokenizer, reply_follows=True)
    return ids


def encode_conversation(turns: Sequence[Turn], style: Style, tokenizer: Tokenizer, *,
                        reply_follows: bool = False) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them are to be learned: those of replies, each with its end.

    What stands before the last reply is encoded as one text, as a template has it done; that reply apart from it, since
    inference adds it token by token. So training sees the very ids that inference sees.
    """
    end, end_id = end_of_reply(style, tokenizer)
    as_text = tokenizer.token_id(end) == end_id  # found in text, together with the white space that it may take along
    pieces = style.pieces(turns, reply_follows=reply_follows)
    if pieces and isinstance(style, PromptStyle):  # found in the text like any added token, as a template has it done
        pieces[0] = (tokenizer.decode(tokenizer.bos_tokens) + pieces[0][0], False)
    ids, learned = [], []
    if as_text:
        replies = [i for i, (_, is_reply) in enumerate(pieces) if is_reply]
        last = len(pieces) if reply_follows else replies[-1] if replies else 0
        ids, learned = _encode_history(pieces[:last], end, tokenizer)
        pieces = pieces[last:]
    for text, is_reply in pieces:
        if is_reply:
            joined = bool(ids) and ids[-1] not in tokenizer.added.values()
            new = tokenizer.encode(text + end * as_text, add_special_tokens=False, continues=joined)
            new += [] if as_text else [end_id]
        else:
            after_end = bool(learned) and learned[-1] and as_text
            new = tokenizer.encode(tokenizer.behind(end, text) if after_end else text, add_special_tokens=False)
        ids += new
        learned += [is_reply] * len(new)
    return ids, learned


def _encode_history(pieces: Sequence[tuple[str, bool]], end: str,
                    tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Pieces, with `end` behind the replies, as one text; learned is each token that touches a reply."""
    text, replies, at = "", [], 0
    for piece, is_reply in pieces:
        piece += end * is_reply
        size = len(piece.encode())
        if is_reply:
            replies.append((at, at + size))
        text, at = text + piece, at + size
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not replies:
        return ids, [False] * len(ids)
    # Both follow each other in the text; looked for anew for each token, long conversations would take hours.
    learned, following = [], 0
    for begin, stop in tokenizer.spans(text):
        while following < len(replies) and replies[following][1] <= begin:
            following += 1
        learned.append(following < len(replies) and replies[following][0] < stop)
    return ids, learned
