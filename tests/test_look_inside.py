"""The script that draws what a model does with a prompt."""

from __future__ import annotations

import runpy

import pytest
from test_draw import data_of
from tiny import CONTEXT, EXAMPLES, TOKENIZER, example, in_process, save_tiny_model

pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install -e '.[examples]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [save_tiny_model(tmp_path_factory.mktemp(name), n_layer=layers) for name, layers in (("one", 1), ("two", 2))]


def test_it_leaves_two_pictures_and_a_page(folders, tmp_path):
    result = example("look_inside.py", "--raw", "A word", "--model", folders[1], "--compare", folders[0],
                     "--output-dir", tmp_path / "inside", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    said = result.stdout.splitlines()
    assert said[0].startswith(f"{len(TOKENIZER.encode('A word'))} tokens; likeliest next ones: ")
    assert said[1:] == [str(tmp_path / "inside" / name) for name in ("attention.png", "lens.png", "inside.html")]
    for name in ("attention.png", "lens.png"):
        assert (tmp_path / "inside" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    data = data_of(tmp_path / "inside" / "inside.html")
    assert "".join(data["tokens"]) == data["title"] == "A word"
    assert [model["name"] for model in data["models"]] == [str(folders[0]), str(folders[1])]
    assert [model["layers"] for model in data["models"]] == [1, 2]


def test_an_instruction_is_asked_in_the_models_style(folders, tmp_path):
    main = runpy.run_path(str(EXAMPLES / "look_inside.py"))["main"]
    main(["A word", "--model", str(folders[0]), "--prompt-style", "phi3", "--output-dir", str(tmp_path)])
    assert "".join(data_of(tmp_path / "inside.html")["tokens"]) == "<|user|>\nA word\n<|assistant|>\n"


@pytest.mark.parametrize("arguments, message", [
    (["A word", "--raw", "--prompt-style", "phi3"], "--prompt-style would do nothing"),
    ([""], "the prompt is empty"),
    (["A \udcff"], "the prompt is not UTF-8 text (character 3)"),
    (["word " * CONTEXT, "--raw"], f"the prompt makes {CONTEXT + 4} tokens, expected at most {CONTEXT}, the"),
    (["A word", "--compare", "nowhere"], "nowhere"),
], ids=["raw with a style", "empty", "not UTF-8", "too long", "no model to compare with"])
def test_what_cannot_be_drawn_is_said_in_one_line(folders, tmp_path, monkeypatch, capsys, arguments, message):
    arguments = [*arguments, "--model", folders[0], "--output-dir", tmp_path]
    said = in_process("look_inside.py", arguments, monkeypatch, capsys)
    assert said.startswith("error: ") and message in said and not list(tmp_path.iterdir())
