"""What is said of the public names, and the pages that speak of the tree."""

import ast
import builtins
import doctest
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
    assert not getattr(tinyft, name).__module__.startswith("tinyft.evaluation"), "setup.cfg leaves that folder out"


def unbound_names(source: str) -> set[str]:
    """Names that a program reads and binds nowhere."""
    read, bound = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return read - bound


@pytest.mark.parametrize("name", NAMES)
def test_an_example_needs_only_public_names(name):
    """doctest lends an example its module's names; who copies it from the page has only `from tinyft import *`."""
    examples = doctest.DocTestParser().get_examples(getattr(tinyft, name).__doc__)
    assert unbound_names("".join(example.source for example in examples)) <= set(tinyft.__all__)


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
