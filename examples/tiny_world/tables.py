"""Read the CSV tables once and give them out as plain Python values."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


@cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """All rows of tables/NAME.csv, in file order."""
    with open(TABLES / f"{name}.csv", encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def rows_by(name: str, column: str) -> dict[str, tuple[dict[str, str], ...]]:
    """The rows of tables/NAME.csv for each value of a column, in file order."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows(name):
        found.setdefault(row[column], []).append(row)
    return {value: tuple(some) for value, some in found.items()}


@cache
def words(word_class: str) -> tuple[str, ...]:
    """The words of one class in tables/classes.csv."""
    found = tuple(row["word"] for row in rows("classes") if row["class"] == word_class)
    if not found:
        raise KeyError(f"tables/classes.csv has no class named {word_class!r}")
    return found


@cache
def names() -> tuple[str, ...]:
    """First names of people."""
    return tuple(row["name"] for row in rows("names"))


@cache
def pronouns() -> dict[str, str]:
    """The pronoun (he or she) of each name."""
    return {row["name"]: row["pronoun"] for row in rows("names")}


@cache
def plurals() -> dict[str, str]:
    """The plural of each noun."""
    return {row["noun"]: row["plural"] for row in rows("nouns")}


@cache
def places() -> dict[str, str]:
    """Where somebody in a place is, such as "in the garden" for "garden"."""
    return {row["place"]: f"{row['preposition']} the {row['place']}" for row in rows("places")}


@cache
def place_phrases() -> tuple[str, ...]:
    """All places as phrases, such as "in the garden"."""
    return tuple(places().values())
