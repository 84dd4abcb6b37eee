"""Exact match by family."""

from __future__ import annotations

import pytest

from tinyft import Entry
from tinyft.scoring import by_family, exact_match, normalise, score_table


@pytest.mark.parametrize("reply, expected", [
    ("Paris", "paris"), ("Paris.", "Paris"), (" the  red\nfox ", "The red fox."), ('"Paris"', "Paris"),
    ("'Paris'.", "Paris"), ("It's ten o'clock.", "it's ten o'clock"), ("", ""),
])
def test_what_does_not_make_a_reply_wrong(reply, expected):
    assert exact_match(reply, expected) and exact_match(expected, reply)


@pytest.mark.parametrize("reply, expected", [
    ("Paris", "London"), ("Paris is it", "Paris"), ("", "Paris"), ("red fox", "redfox"), ("1.5", "15"),
    ("its", "it's"), ("ä", "a"),
])
def test_what_makes_a_reply_wrong(reply, expected):
    assert not exact_match(reply, expected) and not exact_match(expected, reply)


@pytest.mark.parametrize("reply, expected", [
    ("5", "-5"), ("C", "C++"), ("", "?"),
])
def test_signs_with_a_meaning_count(reply, expected):
    assert not exact_match(reply, expected)


def test_normalise_is_stable():
    for text in ("  A b.", '"Hi!"', "x"):
        assert normalise(normalise(text)) == normalise(text)


def test_by_family():
    entries = [Entry.single("a", "", "yes", "plural"), Entry.single("b", "", "no", "capital"),
               Entry.single("c", "", "x"),
               Entry.single("d", "", "two", "plural")]
    counts = by_family(entries, ["Yes.", "yes", "x", "three"])
    assert counts == {"all": (1, 1), "capital": (0, 1), "plural": (1, 2)}
    assert list(counts) == sorted(counts)
    assert by_family([], []) == {}
    with pytest.raises(ValueError):
        by_family(entries, ["yes"])


def test_score_table_counts_families_and_groups():
    row = {"entries": 4, "before": 0, "after": 1}
    table = score_table({"new": {"easy/a": row, "easy/b": row | {"after": 3}, "hard/c": row, "d": row}})
    lines = [line.split() for line in table.splitlines() if line]
    assert lines == [["new", "entries", "before", "after"], ["easy", "8", "0%", "50%"], ["a", "4", "0%", "25%"],
                     ["b", "4", "0%", "75%"], ["hard", "4", "0%", "25%"], ["c", "4", "0%", "25%"],
                     ["d", "4", "0%", "25%"], ["all", "together", "16", "0%", "38%"]]
