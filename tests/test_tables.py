"""The tiny world's word forms and symbols against packages that know them."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

from tiny_world import tables  # noqa: E402

pytestmark = pytest.mark.referee
TAGS = {"third": "VBZ", "past": "VBD", "participle": "VBN", "ing": "VBG"}
# English has two forms of these, and the package prefers the other.
OTHER_FORMS = {("smell", "participle"): "smelled", ("spell", "participle"): "spelled", ("knit", "past"): "knitted",
               ("knit", "participle"): "knitted", ("get", "participle"): "got"}


def package(name: str):
    return pytest.importorskip(name, reason=f"no referee: the {name} package (pip install '.[referees]')")


def test_plurals():
    engine = package("inflect").engine()
    differing = {row["noun"]: row["plural"] for row in tables.rows("nouns")
                 if row["plural"] != engine.plural_noun(row["noun"])}
    assert differing == {"thief": "thieves"}  # the package has thiefs, which dictionaries don't


def test_forms_of_verbs():
    inflection = package("lemminflect").getInflection
    differing = {(row["base"], form): row[form] for row in tables.rows("verbs") for form, tag in TAGS.items()
                 if row[form] not in inflection(row["base"], tag)}
    assert differing == OTHER_FORMS


def test_symbols():
    elements = package("periodictable").elements
    symbols = {element.name: element.symbol for element in elements} | {"aluminium": "Al"}  # there: aluminum
    differing = [row for row in tables.rows("elements") if row["symbol"] != symbols[row["element"]]]
    assert differing == []
