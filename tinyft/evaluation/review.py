"""Reading replies one by one, and marking each right, half right or wrong.

Marks are lines of a journal beside the file of replies. Each belongs to what was read, not to its place in the file:
after another run into the same file, replies that are still the same keep their marks, and all others have none.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .journal import Journal, Snapshot
from .reply_files import Answered, read_answered
from .statistics import wilson_interval

MARKS = {"right": 1.0, "half": 0.5, "wrong": 0.0}  # and how much each counts


@dataclass(frozen=True)
class Reply:
    """One reply with what was asked and what was expected. asked: the turns before, where there are several."""

    index: int
    instruction: str
    input: str
    expected: str
    reply: str
    family: str
    asked: str = ""

    @property
    def digest(self) -> str:
        """Of all that a person reads; replies that are the same in all of it share a mark."""
        read = [self.asked, self.instruction, self.input, self.expected, self.reply]
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Mark:
    """mark: "right", "half", "wrong" or "" for none."""

    mark: str = ""
    note: str = ""


def read_replies(path: Path, key: str | None = None) -> list[Reply]:
    """The replies of a file, as `read_answered` reads it. key: where in an entry the reply stands.

    ValueError names the entry that has something wrong with it.
    """
    try:
        return [_reply(index, item) for index, item in enumerate(read_answered(path, key))]
    except OSError as error:
        raise ValueError(f"{path}: cannot read it ({error.strerror})") from None


def _reply(index: int, item: Answered) -> Reply:
    *before, last = item.turns
    asked = "\n\n".join(f"{turn.role}: {turn.content}" + f"\n{turn.input}" * bool(turn.input) for turn in before)
    return Reply(index, last.content, last.input, item.expected, item.reply, item.family, asked)


def marks_path(replies: Path) -> Path:
    """Where the marks of a file of replies are kept."""
    return replies.with_name(f"{replies.stem}.marks.jsonl")


def check_mark(record: dict, where: str) -> None:
    """ValueError, with where it stands, for a record of a journal that is no mark."""
    entry, mark, note = (record.get(name) for name in ("entry", "mark", "note"))
    if not isinstance(entry, str) or mark not in ("", *MARKS) or not isinstance(note, str):
        raise ValueError(f"{where}: expected an object with entry, mark (one of {', '.join(MARKS)}) and note")


class Review:
    """Replies with their marks. ValueError where the journal holds anything but marks.

    Of a snapshot of a journal it can tell everything, and `set` nothing.
    """

    def __init__(self, replies: Sequence[Reply], journal: Journal | Snapshot):
        self.replies, self.journal = replies, journal
        self._marks: dict[str, Mark] = {}
        for number, record in enumerate(journal.records, 1):
            check_mark(record, f"{journal.path}, mark {number}")
            self._take(record)
        self._digests = [reply.digest for reply in replies]

    @property
    def n_others(self) -> int:
        """How many marks in the journal are of replies that this file hasn't."""
        return len(self._marks.keys() - set(self._digests))

    def digest(self, index: int) -> str:
        """What ties a mark to its reply."""
        return self._digests[index]

    def mark(self, index: int) -> Mark:
        """What was said of a reply, the last time."""
        return self._marks.get(self._digests[index], Mark())

    def same_as(self, index: int) -> list[int]:
        """Where in the file the replies stand that share this one's mark, its own place among them."""
        return [i for i, digest in enumerate(self._digests) if digest == self._digests[index]]

    def set(self, index: int, mark: str | None = None, note: str | None = None) -> None:
        """Keep a mark or a note or both; None leaves it as it is. It is on disk when this returns.

        OSError where it can't be, and then it doesn't count.
        """
        said = self.mark(index)
        record = {"time": time.time(), "entry": self._digests[index], "mark": said.mark if mark is None else mark,
                  "note": said.note if note is None else note}
        self.journal.append(record)
        self._take(record)

    def _take(self, record: dict) -> None:
        self._marks[record["entry"]] = Mark(record["mark"], record["note"])

    def exported(self) -> list[dict]:
        """All replies that have a mark or a note, in the file's order; "mark" is None where there is only a note."""
        rows = []
        for reply in self.replies:
            said = self.mark(reply.index)
            if said.mark or said.note:
                rows.append({"index": reply.index, "mark": said.mark or None, "note": said.note, "family": reply.family,
                             "instruction": reply.instruction, "reply": reply.reply})
        return rows

    def summary(self) -> list[dict]:
        """For all replies, and then by family, how many are marked and which share is right, with its interval.

        Half counts half. The share and its 95 % interval (Wilson's) are None where nothing is marked.
        """
        families = sorted({reply.family for reply in self.replies})
        groups = [("", self.replies)]
        if families != [""]:
            groups += [(family, [reply for reply in self.replies if reply.family == family]) for family in families]
        return [self._summary(name, replies) for name, replies in groups]

    def _summary(self, name: str, replies: Sequence[Reply]) -> dict:
        marks = [self.mark(reply.index).mark for reply in replies]
        marked = [MARKS[mark] for mark in marks if mark]
        counts = {mark: marks.count(mark) for mark in MARKS}
        share = low = high = None
        if marked:
            share = sum(marked) / len(marked)
            low, high = wilson_interval(sum(marked), len(marked))
        return {"family": name, "replies": len(replies), "marked": len(marked), **counts, "share": share, "low": low,
                "high": high}


def summary_table(rows: Sequence[dict]) -> str:
    """A review's summary as text."""
    width = max(len("all replies"), *(len(row["family"]) for row in rows))
    lines = [f"{'':{width}}  marked  right  half  wrong  share right, 95 % interval"]
    for number, row in enumerate(rows):
        share = "" if row["share"] is None else f"{row['share']:.0%}  {row['low']:.0%} to {row['high']:.0%}"
        name = row["family"] if number else "all replies"
        lines.append(f"{name or '(no family)':{width}}  {row['marked']:6d}  {row['right']:5d}  {row['half']:4d}  "
                     f"{row['wrong']:5d}  {share}".rstrip())
    return "\n".join(lines)
