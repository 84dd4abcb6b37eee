"""Models by name: a folder, one of the hub, or one clear line. The hub's library is played by the tests."""

import sys
import types
from pathlib import Path

import pytest

from tinyft.hub import find_model


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's library, which notes what it was asked for and has one model."""
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        if repository == "nobody/nothing":
            raise OSError("no network,\nand many lines on why")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    (tmp_path / "model.safetensors").touch()
    return asked


def refusal(name) -> str:
    with pytest.raises(ValueError) as caught:
        find_model(name)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(name))
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path, hub):
    assert find_model(str(tmp_path)) == find_model(tmp_path) == tmp_path and hub == []


@pytest.mark.parametrize("name, repository", [
    ("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"),
    ("some-one/a.b_C-1", "some-one/a.b_C-1"),
])
def test_a_model_of_the_hub(tmp_path, hub, name, repository):
    assert find_model(name) == tmp_path
    (asked, patterns), = hub
    assert asked == repository
    assert {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.json",
            "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "chat_template.jinja", "generation_config.json"} <= set(patterns)
    assert not any(pattern.startswith("*") or pattern.endswith(".bin") for pattern in patterns)


@pytest.mark.parametrize("name", ["no-such-model", "./a/b", "../b", "a/b/c", "/tmp/nowhere", "owner/", "~/model",
                                  Path("nowhere")])
def test_what_is_no_name(hub, name):
    assert "neither a folder nor a model of the Hugging Face hub" in refusal(name) and hub == []


def test_no_network(hub):
    message = refusal("nobody/nothing")
    assert "no model that is in the cache or could be fetched" in message and "give a folder" in message


def test_no_safetensors(tmp_path, hub):
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights in safetensors" in refusal("some-one/old")


def test_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refusal("some-one/model")
