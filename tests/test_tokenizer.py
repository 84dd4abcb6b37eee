"""GPT-2's byte-level BPE: from a model folder, back into one, and through text of every kind."""

import json

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    CORPUS,
    GPT2_TOKENIZER,
    NASTY_TEXTS,
    WHY_NO_GPT2_TOKENIZER,
    byte_symbols,
    learn_merges,
    write_tokenizer,
)

from tinyft import load_tokenizer, save_tokenizer
from tinyft.tokenizer import END_OF_TEXT

needs_gpt2 = pytest.mark.skipif(not (GPT2_TOKENIZER / "vocab.json").exists(), reason=WHY_NO_GPT2_TOKENIZER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-bpe")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(GPT2_TOKENIZER)


def read(folder):
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    return vocab, (folder / "merges.txt").read_text("utf-8").splitlines()


def encode_by_the_book(text: str, merges, vocab) -> list[int]:
    """Merge the pair that was learned first, wherever it stands, until none is left; for one word."""
    parts = [byte_symbols()[byte] for byte in text.encode()]
    for left, right in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                parts[i : i + 2] = [left + right]
            i += 1
    return [vocab[part] for part in parts]


def test_a_small_bpe(folder, tokenizer):
    vocab, _ = read(folder)
    assert tokenizer.n_vocab == len(vocab)
    assert tokenizer.eot_token == vocab[END_OF_TEXT]
    assert len(tokenizer.encode_ordinary(CORPUS)) < 0.7 * len(CORPUS.encode())


@pytest.mark.parametrize("word", ["cat", " the", " that", "東京", " приветы", " hat", "Größe", "thehatsat"])
def test_merges_apply_in_their_order(folder, tokenizer, word):
    vocab, _ = read(folder)
    assert tokenizer.encode_ordinary(word) == encode_by_the_book(word, learn_merges(), vocab)


def test_text_is_cut_as_gpt2_cuts_it(tokenizer):
    """Merges never cross a word's border: contractions, one leading space, digits, signs, runs of space."""
    pieces = ["it", "'s", " the", "   ", " cat", "'ll", " 12", " +=", "\n\n", "x", "!?", " \n", " "]
    text = "".join(pieces)
    assert tokenizer.encode_ordinary(text) == [token for piece in pieces for token in tokenizer.encode_ordinary(piece)]


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_nasty_texts_survive(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@settings(deadline=None, max_examples=150)
@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_end_of_text_inside_text_is_data(tokenizer):
    ids = tokenizer.encode_ordinary(f"a{END_OF_TEXT}b")
    assert tokenizer.eot_token not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert tokenizer.decode([tokenizer.eot_token]) == END_OF_TEXT


def test_round_trip(folder, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    assert read(tmp_path) == read(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
    again = load_tokenizer(tmp_path)
    for text in NASTY_TEXTS:
        assert again.encode_ordinary(text) == tokenizer.encode_ordinary(text)


def test_round_trip_without_any_merge(tmp_path):
    vocab = write_tokenizer(tmp_path / "bytes", merges=[])
    save_tokenizer(load_tokenizer(tmp_path / "bytes"), tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == vocab
    assert load_tokenizer(tmp_path).encode_ordinary("cat") == [vocab["c"], vocab["a"], vocab["t"]]


@needs_gpt2
def test_round_trip_of_gpt2(gpt2, tmp_path):
    save_tokenizer(gpt2, tmp_path)
    assert read(tmp_path) == read(GPT2_TOKENIZER)


@needs_gpt2
def test_gpt2_has_its_known_ids(gpt2):
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    assert gpt2.encode_ordinary("Hello world") == [15496, 995]
    assert gpt2.encode_ordinary("Every effort moves you") == [6109, 3626, 6100, 345]


@needs_gpt2
@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_any_text_survives_gpt2(gpt2, text):
    assert gpt2.decode(gpt2.encode_ordinary(text)) == text


def test_a_folder_that_changed_is_read_anew(tmp_path):
    """The same path, another tokenizer: what was read before must not be kept anywhere."""
    for count in (10, 20):
        vocab = write_tokenizer(tmp_path, learn_merges(count=count))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.n_vocab == len(vocab)
        assert tokenizer.encode_ordinary(" the") == encode_by_the_book(" the", learn_merges(count=count), vocab)
        assert len(tokenizer.merges.ranks) == 256 + count


def test_relative_paths_of_two_places_are_not_mixed_up(tmp_path, monkeypatch):
    for place, count in (("one", 10), ("two", 20)):
        write_tokenizer(tmp_path / place / "model", learn_merges(count=count))
        monkeypatch.chdir(tmp_path / place)
        assert len(load_tokenizer("model").merges.ranks) == 256 + count


@pytest.mark.parametrize("ending", ["\r\n", "no newline at the end"])
def test_line_ends_of_merges_do_not_matter(tmp_path, ending):
    vocab = write_tokenizer(tmp_path)
    text = (tmp_path / "merges.txt").read_text("utf-8")
    text = text.replace("\n", "\r\n") if ending == "\r\n" else text.rstrip("\n")
    (tmp_path / "merges.txt").write_bytes(text.encode())
    assert load_tokenizer(tmp_path).n_vocab == len(vocab)


def test_neither_file_means_gpt2(tmp_path, monkeypatch):
    asked = []
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256}
    gpt2 = tiktoken.Encoding("small", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 257})
    monkeypatch.setattr("tinyft.tokenizer_files.tiktoken.get_encoding", lambda name: asked.append(name) or gpt2)
    assert load_tokenizer(tmp_path).encode(f"the{END_OF_TEXT}") == [256, ord("e"), 257]
    assert asked == ["gpt2"]


def test_neither_file_and_no_network(tmp_path, monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("tinyft.tokenizer_files.tiktoken.get_encoding", offline)
    with pytest.raises(ValueError, match="no vocab.json and merges.txt.*ConnectionError.*put both files") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def refusal(folder) -> str:
    """What load_tokenizer says about a folder, one line that names it."""
    with pytest.raises(ValueError) as caught:
        load_tokenizer(folder)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_of_the_two_is_missing(tmp_path, missing):
    write_tokenizer(tmp_path)
    (tmp_path / missing).unlink()
    assert f"{missing} is missing" in refusal(tmp_path)


def test_files_of_two_models(tmp_path):
    write_tokenizer(tmp_path, learn_merges(count=30))
    merges = (tmp_path / "merges.txt").read_bytes()
    write_tokenizer(tmp_path, learn_merges(CORPUS.upper(), count=30))
    (tmp_path / "merges.txt").write_bytes(merges)
    assert "don't belong together" in refusal(tmp_path)


@pytest.mark.parametrize("broken", ["a b c\n", "cat\n", "ЖЖ ЖЖ\n"])
def test_merges_with_a_broken_line(tmp_path, broken):
    write_tokenizer(tmp_path)
    with open(tmp_path / "merges.txt", "a", encoding="utf-8") as file:
        file.write(broken)
    assert "merges.txt" in refusal(tmp_path)


@pytest.mark.parametrize("content", [[], "vocab", 3, None, {"a": "b"}, {"a": None}, {"a": 1.5}])
def test_vocab_is_no_object_of_numbers(tmp_path, content):
    write_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(content), "utf-8")
    assert "expected an object that gives every token a number" in refusal(tmp_path)


def test_vocab_is_not_json(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("<html>404</html>", "utf-8")
    assert "line 1, column 1: not JSON" in refusal(tmp_path)


def test_vocab_is_not_utf8(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_bytes('{"ö": 1}'.encode("latin-1"))
    assert "vocab.json: not UTF-8" in refusal(tmp_path)


def test_merges_are_not_utf8(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe a\n")
    assert "merges.txt" in refusal(tmp_path)


def test_two_tokens_with_one_id(tmp_path):
    vocab = write_tokenizer(tmp_path)
    vocab["b"] = vocab["a"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    assert "don't belong together" in refusal(tmp_path)


def test_end_of_text_with_the_id_of_another_token(tmp_path):
    vocab = write_tokenizer(tmp_path)
    vocab[END_OF_TEXT] = vocab["a"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    assert "vocab.json" in refusal(tmp_path)
