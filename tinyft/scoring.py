"""How good are the replies? Side by side for a person, and exact matches by family."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from .data.entries import Entry


def normalise(text: str) -> str:
    """Lower case, single spaces, no quotes or full stop around: what should not make a reply wrong."""
    plain = " ".join(text.lower().split())
    return plain.strip("\"'. ") or plain


def exact_match(reply: str, expected: str) -> bool:
    """Whether a reply says exactly the expected text, up to case, space, outer quotes and full stops."""
    return normalise(reply) == normalise(expected)


def by_family(entries: Sequence[Entry], replies: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(right, all) for each family, in alphabetical order; entries without a family count as 'all'."""
    counts: dict[str, list[int]] = {}
    for entry, reply in zip(entries, replies, strict=True):
        right_and_all = counts.setdefault(entry.family or "all", [0, 0])
        right_and_all[0] += exact_match(reply, entry.output)
        right_and_all[1] += 1
    return {family: (right, n) for family, (right, n) in sorted(counts.items())}


def side_by_side(entries: Sequence[Entry], before: Sequence[str], after: Sequence[str],
                 width: int | None = None) -> str:
    """Instruction, expected reply, reply before and reply after, as four columns of text."""
    width = width or max(12, (shutil.get_terminal_size((146, 24)).columns - 10) // 4)

    def cell(text):
        return textwrap.wrap(" ".join(text.split()), width, max_lines=6, placeholder=" …") or [""]

    lines = []
    for entry, old, new in zip(entries, before, after, strict=True):
        question = entry.instruction + (f" [{entry.input}]" if entry.input else "")
        columns = [cell(question), cell(entry.output), cell(old), cell(new)]
        for i in range(max(map(len, columns))):
            lines.append(" | ".join(f"{column[i] if i < len(column) else '':{width}}" for column in columns).rstrip())
        lines.append("-+-".join("-" * width for _ in columns))
    head = " | ".join(f"{title:{width}}" for title in ("instruction", "expected", "before", "after")).rstrip()
    return "\n".join([head, "=+=".join("=" * width for _ in range(4)), *lines])


def compare_by_family(tests: dict[str, list[Entry]], before: Sequence[str], after: Sequence[str]) -> dict:
    """{title: {family: {"entries", "before", "after"}}} for the replies to all tests, one test after the other."""
    scores, start = {}, 0
    for title, entries in tests.items():
        part = slice(start, start + len(entries))
        old, new = by_family(entries, before[part]), by_family(entries, after[part])
        scores[title] = {family: {"entries": n, "before": old[family][0], "after": right}
                         for family, (right, n) in new.items()}
        start += len(entries)
    return scores


def score_table(scores: dict) -> str:
    """What `compare_by_family` found, as text. Families named "group/name" are counted by group as well."""
    lines = []
    for title, rows in scores.items():
        lines.append(f"{title:26}{'entries':>8}{'before':>9}{'after':>9}")
        groups: dict[str, dict] = {}
        for family, row in rows.items():
            group, _, name = family.rpartition("/")
            groups.setdefault(group, {})[name] = row
        for group, families in groups.items():
            if group:
                lines.append(_score_line(f"  {group}", families.values()))
            lines += [_score_line(f"{'  ' * bool(group)}  {name}", [row]) for name, row in families.items()]
        lines += [_score_line("  all together", rows.values()), ""]
    return "\n".join(lines)


def _score_line(name: str, rows: Iterable[dict]) -> str:
    rows = list(rows)
    n, before, after = (sum(row[key] for row in rows) for key in ("entries", "before", "after"))
    return f"{name:26}{n:>8}{before / n:>9.0%}{after / n:>9.0%}"
