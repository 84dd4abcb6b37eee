"""What is said of the public names, and the pages that speak of the tree."""

import re
from pathlib import Path

import pytest

import tinyft

ROOT = Path(tinyft.__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md",
         *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("examples/**/*.md")))]
NAMES = [name for name in tinyft.__all__ if not name.startswith("__") and name != "cli"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    """`python -m pytest --doctest-modules ...` runs them (CONTRIBUTING.md); a pair of functions may share one."""
    text = getattr(tinyft, name).__doc__
    assert ">>> " in text or re.search(r"See `\w+` for an example\.", text)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_named_are_there(page):
    text = (ROOT / page).read_text("utf-8")
    for script in re.findall(r"(?:python|pytest)[^\n`]*? ((?:examples|tests)/[\w/]+\.py)", text):
        assert (ROOT / script).exists(), script


def test_the_reading_order_names_every_module():
    modules = {path.name for path in (ROOT / "tinyft").glob("*.py")} - {"__init__.py", "version.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "tinyft").glob("*/__init__.py")}
    assert not {name for name in modules | folders if name not in tinyft.__doc__}
