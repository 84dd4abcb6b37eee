"""What is said about the data before a run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft import Entry, Turn
from tinyft.data.report import describe, histogram, report_lines
from tinyft.data.schemas import Account

A, B, C = Entry.single("a", "", "b"), Entry.single("a", "", "c"), Entry.single("a", "i", "b")


def account(**counts) -> Account:
    return Account(["data.json"], **{name: Counter(count) for name, count in counts.items()})


def test_nothing_is_said_of_what_is_nothing():
    facts = describe(account(schemas={"Alpaca": 2}), [A, C])
    assert facts == {"files": ["data.json"], "entries": 2, "schemas": {"Alpaca": 2}, "replies": 2}
    assert report_lines(facts) == ["2 entries: Alpaca"]


def test_a_report_of_everything():
    chat = Entry((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")))
    facts = describe(
        account(schemas={"messages": 1, "Alpaca": 4}, dropped={"no reply to learn": 3}, ignored={"id": 2, "text ": 5},
                changed={"<noinput> read as no input": 2}),
        [A, A, B, C, chat], [8, 12, 31, 40, 7], [2, 3, 4, 5, 6], max_length=32, cut=1, dropped={"too long": 1})
    assert json.loads(json.dumps(facts)) == facts
    assert report_lines(facts) == [
        "5 entries: 4 Alpaca, 1 messages; 6 replies in them",
        "  dropped            3  no reply to learn",
        "                     1  too long",
        "  changed            2  <noinput> read as no input",
        "  ignored keys       5  'text '",
        "                     2  'id'",
        "  repeated           1  the same as another entry",
        "                     1  same prompt, other reply",
        "98 tokens in 5 examples of 7 to 40 (median 12); 20 are targets (20%)",
        "           5-9       2  " + "#" * 40,
        "         10-14       1  " + "#" * 20,
        "         15-19       0",
        "         20-24       0",
        "         25-29       0",
        "         30-32       1  " + "#" * 20,
        "         33-40       1  " + "#" * 20 + "  beyond the limit of 32",
        "1 reply loses its end at the limit of 32 tokens",
    ]


def test_a_report_fits_a_screen():
    many = {f"key number {i}" * 9 + "\n": i + 1 for i in range(100)}
    facts = describe(account(schemas={"Alpaca": 1}, ignored=many, dropped=many, changed=many), [A],
                     np.arange(1, 5000), np.arange(1, 5000), max_length=1024, cut=3976)
    lines = report_lines(facts)
    assert len(lines) <= 40
    assert "in 93 more" in "".join(lines) and not any("\n" in line for line in lines if "number" not in line)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), st.none() | st.integers(0, 10_000))
def test_histogram_counts_every_length_once(lengths, limit):
    bins = histogram(lengths, limit)
    assert len(bins) <= 11
    for bin in bins:
        assert bin["count"] == sum(bin["from"] <= length <= bin["to"] for length in lengths)
        assert limit is None or bin["to"] <= limit or bin["from"] == limit + 1
    assert sum(bin["count"] for bin in bins) == len(lengths)


@pytest.mark.parametrize("entries, duplicates, others", [
    ([A, A, A], 2, None), ([A, B], None, 1), ([A, C], None, None), ([A, B, A, B], 2, 1),
])
def test_duplicates(entries, duplicates, others):
    facts = describe(account(), entries)
    assert (facts.get("duplicates"), facts.get("other_replies")) == (duplicates, others)
