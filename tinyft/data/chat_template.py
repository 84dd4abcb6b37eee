"""Chat templates of others: Jinja, rendered as transformers renders it. Needs jinja2 (pip install jinja2)."""

import json
from collections.abc import Sequence
from datetime import datetime

from ..tokenizer import Tokenizer
from .entries import Turn

try:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    jinja2, Extension = None, object

PROBE = "\ue000"  # a character that no template has


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks, for transformers, what a model has said.

    Here the text counts alone. It is rendered as the body of a call, as there, so that what it sets stays inside.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 expects it on the class

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller):
        return caller()


def _environment():
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers
    return environment


class JinjaStyle:
    """A prompt style that a chat template describes.

    What is a reply is found by rendering the conversation twice, up to the turn and with it; what follows the reply
    there begins with the token that ends it. `where` names the template in errors.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, where: str):
        if jinja2 is None:
            raise ValueError(f"{where} needs jinja2: pip install jinja2, or choose a style with --prompt-style")
        self.text, self.where = template, where
        self.variables = tokenizer.special_names
        try:
            self._compiled = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise ValueError(f"{where} is no Jinja template: {error}") from None
        # A template that doesn't know of inputs gets them as the last line of the content.
        self.knows_input = True
        self.knows_input = PROBE in self._render((Turn("user", "Hello.", PROBE),), True)
        self.end: str | None = None
        self.behind = self._split_off((Turn("user", "Hello."), Turn("assistant", "Hi.")), 1)[1].lstrip()
        first = tokenizer.encode(self.behind, add_special_tokens=False)[:1]
        if first and first[0] in tokenizer.added.values():
            self.end = tokenizer.decode(first)

    def _render(self, turns: Sequence[Turn], reply_follows: bool) -> str:
        messages = []
        for turn in turns:
            message = {"role": turn.role, "content": turn.content}
            if turn.input and self.knows_input:
                message["input"] = turn.input
            elif turn.input:
                message["content"] += f"\n{turn.input}"
            messages.append(message)
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=reply_follows, tools=None,
                                         documents=None, **self.variables)
        except Exception as error:  # a template is a program: whatever it raises
            raise ValueError(f"{self.where} can't write down a conversation of "
                             f"{', '.join(turn.role for turn in turns)}: {error}") from None

    def _split_off(self, turns: Sequence[Turn], i: int) -> tuple[str, str]:
        """The text up to reply i, and what stands behind that reply."""
        before, whole = self._render(turns[:i], True), self._render(turns[: i + 1], False)
        for content in (turns[i].content, turns[i].content.strip()):
            if whole.startswith(before + content):
                return before, whole[len(before + content):]
        raise ValueError(f"{self.where} writes a reply down in another way than it asks for one, so that what is to be "
                         "learned can't be told; use one whose generation prompt begins the assistant's turn")

    def pieces(self, turns: Sequence[Turn], *, reply_follows: bool = False) -> list[tuple[str, bool]]:
        """The conversation as (text, whether it is a reply), without what ends the replies."""
        n_replies = sum(turn.role == "assistant" for turn in turns)
        if self.end is None and n_replies > (0 if reply_follows or self.behind else 1):
            what = f"{self.behind[:20]!r}, which is no token of this tokenizer," if self.behind else "no token"
            raise ValueError(f"{self.where} puts {what} behind a reply, so that its end can't be learned; let it write "
                             "eos_token there, or add the token to the tokenizer and the model")
        pieces, done, pending = [], "", ""
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, behind = self._split_off(turns, i)
            whole = self._render(turns[: i + 1], False)
            if not before.startswith(done):
                raise ValueError(f"{self.where} writes turns in another way once others follow; tinyft can't learn "
                                 "from such a conversation")
            reply_end = len(whole) - (len(behind.lstrip()) if self._ends(behind) else len(behind))
            pieces += [(pending + before[len(done):], False), (whole[len(before):reply_end], True)]
            done, pending = whole, behind.lstrip()[len(self.end):] if self._ends(behind) else behind
        rest = self._render(turns, reply_follows)
        if not rest.startswith(done):
            raise ValueError(f"{self.where} writes turns in another way once others follow; tinyft can't ask in it")
        text = pending + rest[len(done):]
        return [*pieces, (text, False)] if text else pieces

    def _ends(self, behind: str) -> bool:
        """Whether the end of a reply comes next, but for white space, which belongs to the reply then."""
        return self.end is not None and behind.lstrip().startswith(self.end)

    def template(self, tokenizer: Tokenizer) -> str:
        """The template itself."""
        return self.text
