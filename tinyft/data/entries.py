"""What a model learns from: conversations, of which an instruction with its reply is the simplest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. role: "system", "user" or "assistant"; input: Alpaca's second part of a user's."""

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Entry:
    """A conversation: what is asked and what is to be learned. `family` groups entries in reports; it may be empty."""

    turns: tuple[Turn, ...]
    family: str = ""

    @classmethod
    def single(cls, instruction: str, input: str = "", output: str = "", family: str = "") -> "Entry":
        """One instruction and the reply to it."""
        return cls((Turn("user", instruction, input), Turn("assistant", output)), family)

    @property
    def system(self) -> str:
        """The text of a leading system turn."""
        return self.turns[0].content if self.turns and self.turns[0].role == "system" else ""

    def _last(self) -> tuple[Turn, Turn]:
        """The last turn of the assistant, and that of the user before it; empty ones where there is none."""
        at = max((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), default=len(self.turns))
        asked = next((turn for turn in self.turns[:at][::-1] if turn.role == "user"), Turn("user", ""))
        return asked, self.turns[at] if at < len(self.turns) else Turn("assistant", "")

    @property
    def instruction(self) -> str:
        """What was asked last."""
        return self._last()[0].content

    @property
    def input(self) -> str:
        """What that is about, if it came apart."""
        return self._last()[0].input

    @property
    def output(self) -> str:
        """The last reply."""
        return self._last()[1].content
