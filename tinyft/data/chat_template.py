"""Chat templates of others: Jinja, rendered as transformers renders it. Needs jinja2 (pip install jinja2).

They are rendered in a process of their own (`template_process.py`), which is ended where one takes too long.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..tokenizer import Tokenizer
from ..untrusted import shown
from .entries import Turn

PROBE = "\ue000"  # a character that no template has
SECONDS = 1.0  # of a processor, for a text
PATIENCE = 30.0  # seconds by the clock, for a machine that has no time for it
MOST_BYTES, MOST_CHARACTERS = 256 << 20, 200_000  # of a text, beyond several times what its messages have
LONGEST, MOST_TURNS = 1 << 20, 1000  # characters of a template; turns, for all of which it is rendered anew


class TemplateProcess:
    """Renders templates elsewhere; started when it is first asked, and again after it had to be ended."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._template = ""  # that it has
        self._owner, self._lock = os.getpid(), threading.Lock()

    def render(self, template: str, variables: dict[str, str], requests: list) -> dict:
        """{"texts": [...]}, one for each request [messages, add_generation_prompt], or {"error", "kind"}."""
        with self._lock:
            if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
                self._start()
            timer = threading.Timer(PATIENCE, self._process.kill)
            timer.start()
            try:
                new = {} if template == self._template else {"template": template}
                answer = self._ask({**new, "variables": variables, "requests": requests})
                self._template = template
            except (OSError, ValueError):  # it is gone, or was when it had written half an answer
                answer = None
            finally:
                timer.cancel()
            if answer is None:
                self.stop()
                return {"error": "it takes too long or too much memory", "kind": "limit"}
            return answer

    def _start(self) -> None:
        script = Path(__file__).with_name("template_process.py")
        # -I: nothing of the folder that it is started in, nor of the script's, takes the place of Python's modules.
        self._process = subprocess.Popen([sys.executable, "-I", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL)
        self._owner, self._template = os.getpid(), ""
        self._send({"path": sys.path, "seconds": SECONDS, "bytes": MOST_BYTES, "characters": MOST_CHARACTERS})

    def _send(self, value: dict) -> None:
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def _ask(self, value: dict) -> dict | None:
        self._send(value)
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def stop(self) -> None:
        """End the process, if it is this one's."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


_PROCESS = TemplateProcess()
atexit.register(_PROCESS.stop)


class JinjaStyle:
    """A prompt style that a chat template describes.

    What is a reply is found by rendering the conversation twice, up to the turn and with it; what follows the reply
    there begins with the token that ends it. `where` names the template in errors.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, where: str):
        if find_spec("jinja2") is None:
            raise ValueError(f"{where} needs jinja2: pip install jinja2, or choose a style with --prompt-style")
        if len(template) > LONGEST:
            raise ValueError(f"{where} has {len(template):,} characters, expected at most {LONGEST:,}; is it one?")
        self.text, self.where = template, where
        self.variables = tokenizer.special_names
        # A template that doesn't know of inputs gets them as the last line of the content.
        self.knows_input = True
        self.knows_input = PROBE in self._render([((Turn("user", "Hello.", PROBE),), True)])[0]
        self.end: str | None = None
        asked, whole = self._render([((Turn("user", "Hello."),), True),
                                     ((Turn("user", "Hello."), Turn("assistant", "Hi.")), False)])
        self.behind = self._behind(asked, whole, Turn("assistant", "Hi.")).lstrip()
        first = tokenizer.encode(self.behind, add_special_tokens=False)[:1]
        if first and first[0] in tokenizer.added.values():
            self.end = tokenizer.decode(first)

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        messages = []
        for turn in turns:
            message = {"role": turn.role, "content": turn.content}
            if turn.input and self.knows_input:
                message["input"] = turn.input
            elif turn.input:
                message["content"] += f"\n{turn.input}"
            messages.append(message)
        return messages

    def _render(self, requests: Sequence[tuple[Sequence[Turn], bool]]) -> list[str]:
        """The text of each (turns, whether a reply follows)."""
        found = _PROCESS.render(self.text, self.variables, [[self._messages(turns), follows]
                                                            for turns, follows in requests])
        if "texts" in found:
            return found["texts"]
        said = shown(found["error"], 300)[1:-1]
        if found["kind"] == "syntax":
            raise ValueError(f"{self.where} is no Jinja template: {said}")
        raise ValueError(f"{self.where} can't write down a conversation of "
                         f"{shown(', '.join(turn.role for turn in requests[0][0]))[1:-1]}: {said}")

    def _behind(self, before: str, whole: str, reply: Turn) -> str:
        """What stands behind a reply. before: the text up to it; whole: the text with it."""
        for content in (reply.content, reply.content.strip()):
            if whole.startswith(before + content):
                return whole[len(before + content):]
        raise ValueError(f"{self.where} writes a reply down in another way than it asks for one, so that what is to be "
                         "learned can't be told; use one whose generation prompt begins the assistant's turn")

    def pieces(self, turns: Sequence[Turn], *, reply_follows: bool = False) -> list[tuple[str, bool]]:
        """The conversation as (text, whether it is a reply), without what ends the replies."""
        if len(turns) > MOST_TURNS:
            raise ValueError(f"a conversation has {len(turns):,} turns, and {self.where} would be rendered as often; "
                             f"cut it to {MOST_TURNS:,}, or choose a style with --prompt-style")
        replies = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if self.end is None and len(replies) > (0 if reply_follows or self.behind else 1):
            what = f"{shown(self.behind[:20])}, which is no token of this tokenizer," if self.behind else "no token"
            raise ValueError(f"{self.where} puts {what} behind a reply, so that its end can't be learned; let it write "
                             "eos_token there, or add the token to the tokenizer and the model")
        texts = self._render([*((turns[:i], True) for i in replies), *((turns[: i + 1], False) for i in replies),
                              (turns, reply_follows)])
        pieces, done, pending = [], "", ""
        for i, before, whole in zip(replies, texts, texts[len(replies):], strict=False):
            behind = self._behind(before, whole, turns[i])
            if not before.startswith(done):
                raise ValueError(f"{self.where} writes turns in another way once others follow; tinyft can't learn "
                                 "from such a conversation")
            reply_end = len(whole) - (len(behind.lstrip()) if self._ends(behind) else len(behind))
            pieces += [(pending + before[len(done):], False), (whole[len(before):reply_end], True)]
            done, pending = whole, behind.lstrip()[len(self.end):] if self._ends(behind) else behind
        rest = texts[-1]
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
