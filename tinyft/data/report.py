"""What is in the data, before anything is learned from it: as lines for a person, and as numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .entries import Entry
from .instructions import InstructionSet
from .schemas import Account

BARS = 8  # at most, in the histogram
BAR_WIDTH = 40


@dataclass(frozen=True)
class DataReport:
    """Counts of what was read and of what became of it.

    repeated: entries that stood there before; several_replies: prompts that have more than one reply. lengths, targets:
    tokens of every example that is kept, and those of them that are learned, (N,).
    """

    account: Account
    dropped: Counter
    end_markers: int
    cut: int
    repeated: int
    several_replies: int
    lengths: np.ndarray
    targets: np.ndarray
    max_length: int

    def lines(self) -> list[str]:
        """The report as text: what is as expected takes three lines and a histogram, the rest stands only if it is."""
        total = sum(self.account.schemas.values())
        schemas = ", ".join(f"{n:,} {name}" for name, n in self.account.schemas.most_common())
        lines = [f"{total:,} entries read" + f": {schemas}" * bool(schemas)]
        if self.account.ignored:
            ignored = ", ".join(f"'{key}' in {n:,}" for key, n in self.account.ignored.most_common())
            lines.append(f"keys ignored: {ignored}")
        lines += [f"{n:,} {what}" for what, n in self.account.changed.most_common()]
        if self.end_markers:
            lines.append(f"{self.end_markers:,} replies end with an end of text that is written out")
        if self.dropped:
            lines.append("left out: " + ", ".join(f"{n:,} {why}" for why, n in self.dropped.most_common()))
        if self.repeated:
            lines.append(f"{self.repeated:,} entries are there more than once")
        if self.several_replies:
            lines.append(f"{self.several_replies:,} prompts have several replies")
        if len(self.lengths):
            lines.append(f"{self.lengths.sum():,} tokens, {self.lengths.mean():.0f} an entry on average; "
                         f"{self.targets.sum() / self.lengths.sum():.0%} are learned")
            lines += self.histogram()
        if self.cut:
            lines.append(f"{self.cut:,} entries cut at {self.max_length:,} tokens, so that the end of a reply is lost")
        return lines

    def histogram(self) -> list[str]:
        """How many entries have how many tokens, as bars."""
        longest = int(self.lengths.max(initial=1))
        width = 8
        while longest > width * BARS:
            width *= 2
        counts = np.bincount((self.lengths - 1) // width)
        first = int(np.flatnonzero(counts)[0])
        lines = []
        for i, count in enumerate(counts[first:], first):
            bar = "#" * int(np.ceil(BAR_WIDTH * count / counts.max()))
            here = self.cut and i * width < self.max_length <= (i + 1) * width
            limit = f"  <- cut at {self.max_length:,}" if here else ""
            lines.append(f"{i * width + 1:>6,} to {(i + 1) * width:>5,} tokens  {bar:<{BAR_WIDTH}} {count:>6,}{limit}")
        return lines

    def as_dict(self) -> dict:
        """The same for a JSON file."""
        return {
            "entries": dict(self.account.schemas), "keys ignored": dict(self.account.ignored),
            "changed": dict(self.account.changed), "left out": dict(self.dropped), "end markers": self.end_markers,
            "repeated": self.repeated, "several replies": self.several_replies, "cut": self.cut,
            "tokens": int(self.lengths.sum()), "targets": int(self.targets.sum()),
            "longest": int(self.lengths.max(initial=0)), "max length": self.max_length,
        }


def report_on(account: Account, entries: Sequence[Entry], sets: Sequence[InstructionSet]) -> DataReport:
    """A report on entries and on the sets that were made of them."""
    prompts: dict[tuple, set] = {}
    for entry in entries:
        prompts.setdefault(entry.turns[:-1], set()).add(entry.turns[-1:])
    examples = [example for data in sets for example in data.examples]
    learned = [int(example.learned.sum()) if data.mask_prompt else len(example.ids) - 1
               for data in sets for example in data.examples]
    return DataReport(
        account=account, dropped=sum((data.reasons for data in sets), Counter()),
        end_markers=sum(data.end_markers for data in sets), cut=sum(data.cut for data in sets),
        repeated=len(entries) - len({entry.turns for entry in entries}),
        several_replies=sum(len(replies) > 1 for replies in prompts.values()),
        lengths=np.array([len(example.ids) for example in examples], np.int64),
        targets=np.array(learned, np.int64), max_length=max((data.max_length for data in sets), default=0))
