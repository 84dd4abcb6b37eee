"""What there is to say about the data before a training run: one screen of text, or a dict for JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .entries import Entry
from .schemas import Account

BAR_WIDTH = 40
N_BINS = 10
SHOWN = 8  # lines of a list; what there is beyond is counted in one more


def describe(account: Account, entries: Sequence[Entry], lengths: Sequence[int] | None = None,
             targets: Sequence[int] | None = None, *, max_length: int | None = None, cut: int = 0,
             end_markers: int = 0, dropped: Mapping[str, int] | None = None) -> dict:
    """Facts about the data that JSON can hold; `report_lines` makes text of them.

    account, entries: what `read_with_account` returned. Of the tokenised examples, where there are any: lengths and
    targets (N,), tokens of each example before anything is cut, and how many of them are learned; max_length, the limit
    in tokens; cut, the number of replies that lose their end there; end_markers, the number of entries with an end of
    text that is written out in a reply; dropped, reason -> entries that were left out when they became tokens.
    Parts that have nothing in them are left out.
    """
    facts = {
        "files": account.files, "entries": len(entries), "schemas": _by_count(account.schemas),
        "replies": sum(turn.role == "assistant" for entry in entries for turn in entry.turns),
        "dropped": _by_count(Counter(account.dropped) + Counter(dict(dropped or {}))),
        "changed": _by_count(account.changed), "ignored_keys": _by_count(account.ignored),
        "end_markers": end_markers, **_duplicates(entries),
    }
    if lengths is not None and len(lengths):
        facts["examples"], facts["tokens"] = len(lengths), int(np.sum(lengths))
        facts["lengths"] = {"min": int(np.min(lengths)), "median": float(np.median(lengths)),
                            "max": int(np.max(lengths))}
        facts["max_length"], facts["cut_replies"] = max_length, cut if max_length is not None else 0
        facts["histogram"] = histogram(lengths, max_length)
    if targets is not None and len(targets):
        facts["target_tokens"] = int(np.sum(targets))
    return {key: value for key, value in facts.items() if value or key == "entries"}


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _duplicates(entries: Sequence[Entry]) -> dict[str, int]:
    """Entries beyond the first of those that are the same, and of those that ask the same but have another reply."""
    distinct = {entry.turns for entry in entries}
    # The prompt is all that stands before the last reply.
    prompts = {turns[:-1] for turns in distinct}
    return {"duplicates": len(entries) - len(distinct), "other_replies": len(distinct) - len(prompts)}


def histogram(lengths: Sequence[int], limit: int | None = None, n_bins: int = N_BINS) -> list[dict[str, int]]:
    """Lengths (N,) counted in at most n_bins equal bins [{"from", "to", "count"}], bounds included.

    A bin is 1, 2, 5, 10, 20, 50, ... wide. With a limit, lengths beyond it are one bin of their own at the end.
    """
    lengths = np.asarray(lengths)
    within = lengths if limit is None else lengths[lengths <= limit]
    bins = []
    if len(within):
        top, low = int(within.max()), int(within.min())
        width = next(w for w in (m * 10**e for e in range(19) for m in (1, 2, 5)) if top // w - low // w < n_bins)
        counts = np.bincount(within // width - low // width)
        bins = [{"from": (low // width + i) * width, "to": (low // width + i + 1) * width - 1, "count": int(count)}
                for i, count in enumerate(counts)]
        if limit is not None:
            bins[-1]["to"] = min(bins[-1]["to"], limit)
    if len(within) < len(lengths):
        bins.append({"from": limit + 1, "to": int(lengths.max()), "count": len(lengths) - len(within)})
    return bins


def report_lines(facts: Mapping) -> list[str]:
    """The facts of `describe` as lines for a terminal: about one screen, without anything that is nothing."""
    schemas = facts.get("schemas", {})
    head = f"{facts['entries']:,} entries"
    if schemas:
        head += ": " + ", ".join(f"{count:,} {name}" if len(schemas) > 1 else name for name, count in schemas.items())
    if facts.get("replies", 0) > facts["entries"]:
        head += f"; {facts['replies']:,} replies in them"
    if len(facts.get("files", ())) > 1:
        head += f"; from {len(facts['files'])} files"
    lines = [head]
    lines += _list("dropped", facts.get("dropped", {}))
    lines += _list("changed", facts.get("changed", {}))
    lines += _list("ignored keys", {_shown(key): count for key, count in facts.get("ignored_keys", {}).items()})
    lines += _list("repeated", {"the same as another entry": facts.get("duplicates", 0),
                                "same prompt, other reply": facts.get("other_replies", 0)})
    if "tokens" in facts:
        lengths = facts["lengths"]
        line = (f"{facts['tokens']:,} tokens in {facts['examples']:,} examples of {lengths['min']:,} to "
                f"{lengths['max']:,} (median {lengths['median']:g})")
        if "target_tokens" in facts:
            line += f"; {facts['target_tokens']:,} are targets ({facts['target_tokens'] / facts['tokens']:.0%})"
        lines += [line, *_picture(facts["histogram"], facts.get("max_length"))]
    if "end_markers" in facts:
        lines.append(f"{facts['end_markers']:,} entries with an end of text that is written out in a reply "
                     "(see --end-marker)")
    if "cut_replies" in facts:
        replies = "1 reply loses its" if facts["cut_replies"] == 1 else f"{facts['cut_replies']:,} replies lose their"
        lines.append(f"{replies} end at the limit of {facts['max_length']:,} tokens")
    return lines


def _shown(key: str) -> str:
    """A key of a file, safe and short enough for a line: quoted, so that blanks can be seen."""
    return repr(key if len(key) <= 40 else key[:39] + "…")


def _list(title: str, counts: Mapping[str, int]) -> list[str]:
    """'  title  count  what' for each count; the title stands in the first line only."""
    rows = [(count, what) for what, count in counts.items() if count]
    if len(rows) > SHOWN:
        rest = rows[SHOWN - 1 :]
        rows = [*rows[: SHOWN - 1], (sum(count for count, _ in rest), f"in {len(rest)} more")]
    return [f"  {title if i == 0 else '':12} {count:7,}  {what}" for i, (count, what) in enumerate(rows)]


def _picture(bins: Sequence[Mapping[str, int]], limit: int | None) -> list[str]:
    """A bar for each bin of a histogram; whatever is there has a bar. What lies beyond the limit is marked."""
    highest = max(bin["count"] for bin in bins)
    names = [f"{bin['from']:,}-{bin['to']:,}" if bin["from"] < bin["to"] else f"{bin['from']:,}" for bin in bins]
    width = max(12, *map(len, names))
    lines = []
    for name, bin in zip(names, bins, strict=True):
        bar = "#" * -(-BAR_WIDTH * bin["count"] // highest)
        beyond = f"  beyond the limit of {limit:,}" if limit is not None and bin["from"] > limit else ""
        lines.append(f"  {name:>{width}} {bin['count']:7,}  {bar}{beyond}".rstrip())
    return lines
