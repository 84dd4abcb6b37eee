"""What is learned from: conversations, of which one instruction with its reply is the simplest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. `role` is "system", "user" or "assistant"; `input` is the second part that a
    user turn has in Alpaca's form, and may be empty.

    >>> Turn("user", "Make this plural.", "a mouse").role
    'user'
    """

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Entry:
    """A conversation: what is asked and what is to be learned. `family` groups entries in reports; it may be empty.

    >>> entry = Entry.single("Name the capital of France.", output="Paris")
    >>> [turn.role for turn in entry.turns], entry.output
    (['user', 'assistant'], 'Paris')
    """

    turns: tuple[Turn, ...]
    family: str = ""

    @classmethod
    def single(cls, instruction: str, input: str = "", output: str = "", family: str = "") -> "Entry":
        """One instruction with the reply to learn."""
        return cls((Turn("user", instruction, input), Turn("assistant", output)), family)

    @property
    def system(self) -> str:
        """Content of a leading system turn, or ""."""
        return self.turns[0].content if self.turns and self.turns[0].role == "system" else ""

    @property
    def instruction(self) -> str:
        """Content of the user turn right before the last assistant turn, or ""."""
        return self._last_question().content

    @property
    def input(self) -> str:
        """Input of the user turn right before the last assistant turn, or ""."""
        return self._last_question().input

    @property
    def output(self) -> str:
        """Content of the last assistant turn, or ""."""
        last = self._last_assistant()
        return self.turns[last].content if last >= 0 else ""

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns before the last assistant turn; all where there is none."""
        last = self._last_assistant()
        return self.turns[:last] if last >= 0 else self.turns

    def _last_assistant(self) -> int:
        return max((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), default=-1)

    def _last_question(self) -> Turn:
        before = self._last_assistant() - 1
        return self.turns[before] if before >= 0 and self.turns[before].role == "user" else Turn("user", "")
