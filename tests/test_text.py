"""Streamed text: whole characters only, and never anything of a stop string, however the text is cut into tokens."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CORPUS, NASTY_TEXTS, write_tokenizer

from tinyft import load_tokenizer
from tinyft.inference.text import TextStream


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-bpe")
    write_tokenizer(folder)
    return load_tokenizer(folder)


class Pieces:
    """A tokenizer whose tokens are given pieces of text or bytes."""

    def __init__(self, pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def decode_single_token_bytes(self, token):
        return self.pieces[token]


def stream(pieces, stop=()):
    """The stream, and what it gives out for each piece and at the end."""
    made = TextStream(Pieces(pieces), stop)
    given = [made.add(token) for token in range(len(pieces))]
    given.append(made.finish())
    assert made.text == "".join(given)
    return made, given


def run(tokens, tokenizer, stop=()):
    made = TextStream(tokenizer, stop)
    parts = [made.add(token) for token in tokens]
    return [part for part in (*parts, made.finish()) if part]


# ---- characters


@pytest.mark.parametrize("text", [*NASTY_TEXTS, CORPUS])
def test_streamed_text_is_the_text(tokenizer, text):
    parts = run(tokenizer.encode_ordinary(text), tokenizer)
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)


def test_a_character_waits_until_it_is_whole(tokenizer):
    tokens = tokenizer.encode_ordinary("aꙮb")
    assert len(tokens) == 5  # three bytes that are never merged
    made = TextStream(tokenizer)
    assert [made.add(token) for token in tokens] == ["a", "", "", "ꙮ", "b"]
    assert made.finish() == "" and made.text == "aꙮb"
    assert run(tokens[:3], tokenizer) == ["a", "\ufffd"]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_streaming_any_tokens_is_decoding_them_all(tokenizer, data):
    tokens = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    assert "".join(run(tokens, tokenizer)) == tokenizer.decode(tokens)


def test_tokens_that_only_the_model_has_are_left_out(tokenizer):
    a, b = tokenizer.encode_ordinary("a") + tokenizer.encode_ordinary("b")
    made = TextStream(tokenizer)
    assert [made.add(token) for token in (a, tokenizer.n_vocab, b, tokenizer.n_vocab + 5)] == ["a", "", "b", ""]


def test_without_stop_strings_nothing_is_held_back():
    made, given = stream(["\n", "Q", " ", "a\n\n"])
    assert given == ["\n", "Q", " ", "a\n\n", ""] and not made.stopped


# ---- stop strings


@pytest.mark.parametrize("pieces, stop, given", [
    (["ab", "END", "c"], ["END"], ["ab", "", "", ""]),
    (["ab", "cENDd", "e"], ["END"], ["ab", "c", "", ""]),
    (["aE", "N", "D", "b"], ["END"], ["a", "", "", "", ""]),  # in pieces
    (["aE", "N", "X", "b"], ["END"], ["a", "", "ENX", "b", ""]),  # it was none
    (["aE", "EN", "EN", "D"], ["END"], ["a", "E", "EN", "", ""]),  # it begins anew within its own beginning
    (["aE", "N"], ["END"], ["a", "", "EN"]),  # the end of the reply
    (["aaaab"], ["aab"], ["aa", ""]),
    (["a", "a", "a", "a", "b"], ["aab"], ["", "", "a", "a", "", ""]),
    (["x\n", "\ny"], ["\n\n"], ["x", "", ""]),
    (["one", "two"], ["two", "one"], ["", "", ""]),  # the first in the text, not in the list
    (["xabcy"], ["c", "ab"], ["x", ""]),
    (["xabc"], ["abc", "ab"], ["x", ""]),  # equal starts
    (["xab", "c"], ["abc", "ab"], ["x", "", ""]),
    (["xa", "b", "z"], ["abc", "a"], ["x", "", "", ""]),
    (["a", "b", "c"], ["c"], ["a", "b", "", ""]),
])
def test_what_is_given_out_when(pieces, stop, given):
    assert stream(pieces, stop)[1] == given


@pytest.mark.parametrize("rest, text, given", [("d", "x", ["x", "", ""]), ("e", "xa", ["x", "a", ""])])
def test_a_longer_stop_string_that_began_earlier_is_waited_for(rest, text, given):
    """After "xabc" there is "bc", but "abcd" may be there as well, from before it on."""
    made = TextStream(Pieces(["xabc", rest]), ["bc", "abcd"])
    assert made.add(0) == "x" and not made.stopped
    assert made.add(1) == given[1] and made.stopped
    assert made.finish() == "" and made.text == text
    made = TextStream(Pieces(["xabc"]), ["bc", "abcd"])
    assert (made.add(0), made.finish(), made.stopped, made.text) == ("x", "a", True, "xa")


def test_nothing_comes_after_a_stop_string():
    made = TextStream(Pieces(["abEND", "c", b"\xe2\x82"]), ["END"])
    assert not made.stopped
    assert made.add(0) == "ab" and made.stopped
    assert [made.add(1), made.add(2), made.finish(), made.finish()] == [""] * 4
    assert made.text == "ab" and made.stopped


def test_a_stop_string_that_spans_the_bytes_of_a_character():
    euro = "€".encode()
    made, given = stream(["1", euro[:1], euro[1:], "x", "2"], ["€x"])
    assert given == ["1", "", "", "", "", ""] and made.stopped
    made, given = stream(["1", euro[:1], euro[1:], "y", "2"], ["€x"])
    assert given == ["1", "", "", "€y", "2", ""] and not made.stopped
    made, given = stream(["1", b"a" + euro[:2]], ["a€"])
    assert given == ["1", "", "a\ufffd"] and not made.stopped


def test_a_stop_string_of_the_replacement_character_is_found_at_the_end():
    made, given = stream(["1", "€".encode()[:2]], ["\ufffd"])
    assert given == ["1", "", ""] and made.stopped


def test_finishing_twice_gives_nothing_twice():
    made, given = stream(["aE"], ["END"])
    assert given == ["a", "E"] and made.finish() == "" and made.text == "aE" and not made.stopped


def test_stop_strings_over_tokens(tokenizer):
    text = "The cat sat on the mat, and the other cat sat on the hat."
    tokens = tokenizer.encode_ordinary(text)
    for start in range(len(text)):
        for end in range(start + 1, min(start + 9, len(text)) + 1):
            stop = text[start:end]
            assert "".join(run(tokens, tokenizer, [stop])) == text[: text.find(stop)]


CHARACTERS = "ab€"
TEXTS = st.text(CHARACTERS, max_size=24)
STOPS = st.lists(st.text(CHARACTERS, min_size=1, max_size=5), max_size=3)


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, stop=STOPS, data=st.data())
def test_text_is_cut_at_the_first_stop_string_however_it_comes(text, stop, data):
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    match = re.search("|".join(map(re.escape, stop)), text) if stop else None
    made, _ = stream(pieces, stop)
    assert made.text == (text[: match.start()] if match else text)
    assert made.stopped == bool(match)


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, stop=STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(text, stop):
    made = TextStream(Pieces(list(text)), stop)
    for token in range(len(text)):
        made.add(token)
        if made.stopped:
            return
        held = text[len(made.text) : token + 1]
        read = text[: token + 1]
        longest = max((length for string in stop for length in range(len(string)) if read.endswith(string[:length])),
                      default=0)
        assert made.text + held == read and len(held) == longest


# ---- errors


def test_an_empty_stop_string():
    with pytest.raises(ValueError, match="stop has '' in it, expected texts of at least one character"):
        TextStream(Pieces([]), ["a", ""])


@pytest.mark.parametrize("wrong", [[b"a"], [3], ["a", None]])
def test_a_stop_string_that_is_no_text(wrong):
    with pytest.raises(ValueError, match="stop has .* in it, expected texts"):
        TextStream(Pieces([]), wrong)


def test_one_text_where_a_list_is_expected():
    with pytest.raises(ValueError, match=re.escape("stop is 'END', expected a list of texts; write ['END']")):
        TextStream(Pieces([]), "END")
