"""Folders as people have them: added tokens, ends, pre-tokenizers; read as transformers reads them, or refused by name.

test_referee_tokenizer.py compares with transformers itself; here the ids are worked out by hand.
"""

import json
import time
from itertools import pairwise

import pytest
from small import byte_symbols, learn_merges, make_model, write_tokenizer
from test_tokenizer import encode_by_the_book, refusal

from tinyft import load_tokenizer, save_model, save_tokenizer
from tinyft.tokenizer_files import TOKENIZER_FILES

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_whole(folder, *, tokens=(), tokenizer_class="PreTrainedTokenizerFast", model=None, **parts) -> dict[str, int]:
    """A tokenizer.json with these added tokens and parts; returns the vocabulary with the tokens' ids."""
    vocab = write_tokenizer(folder)
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    ids = vocab | {token["content"]: len(vocab) + i for i, token in enumerate(tokens)}
    added = [{"content": "<|endoftext|>", "special": True}, *tokens]
    write_json(folder / "tokenizer.json", {
        "added_tokens": [{"id": ids[token["content"]], **token} for token in added], "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges} | (model or {})} | parts)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class, "eos_token": "<|endoftext|>"})
    return ids


def spell(vocab, text: str) -> list[int]:
    """The ids of a text without merges, byte by byte."""
    return [vocab[byte_symbols()[byte]] for byte in text.encode()]


# ---- added tokens


@pytest.mark.parametrize("where", ["tokenizer.json", "added_tokens_decoder", "added_tokens.json",
                                   "special_tokens_map.json", "tokenizer_config.json"])
def test_added_tokens_of_every_file_are_found(where, tmp_path):
    if where == "tokenizer.json":
        vocab = write_whole(tmp_path, tokens=[{"content": "[PAD]"}, {"content": "<row>"}])
    else:
        vocab = write_tokenizer(tmp_path)
        ids = {"[PAD]": len(vocab), "<row>": len(vocab) + 1}
        vocab |= ids
        if where == "added_tokens_decoder":
            write_json(tmp_path / "tokenizer_config.json",
                       {"added_tokens_decoder": {str(id): {"content": content} for content, id in ids.items()}})
        elif where == "added_tokens.json":
            write_json(tmp_path / where, ids)
        elif where == "special_tokens_map.json":
            write_json(tmp_path / where, {"pad_token": "[PAD]", "additional_special_tokens": ["<row>"]})
        else:
            write_json(tmp_path / where, {"pad_token": "[PAD]", "additional_special_tokens": ["<row>"]})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("q<row>[PAD]q") == [vocab["q"], vocab["<row>"], vocab["[PAD]"], vocab["q"]]
    assert tokenizer.decode([vocab["<row>"]]) == "<row>"
    assert vocab["<row>"] not in tokenizer.encode_ordinary("<row>")


@pytest.mark.parametrize("flags, text, expected", [
    ({}, "q <row> q", ["q", "Ġ", "<row>", "Ġ", "q"]),
    ({"lstrip": True}, "q \t<row> q", ["q", "<row>", "Ġ", "q"]),
    ({"rstrip": True}, "q <row> \u2003q", ["q", "Ġ", "<row>", "q"]),
    ({"single_word": True}, "q<row>", ["q", "<", "r", "o", "w", ">"]),
    ({"single_word": True}, "q-<row>", ["q", "-", "<row>"]),
    ({"single_word": True}, "<row>_", ["<", "r", "o", "w", ">", "_"]),
    ({"lstrip": True, "rstrip": True}, "<row> <row>q", ["<row>", "<row>", "q"]),
])
def test_the_flags_of_an_added_token(flags, text, expected, tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "<row>", "normalized": False, **flags}])
    names = {id: token for token, id in vocab.items()}
    assert [names[id] for id in load_tokenizer(tmp_path).encode(text)] == expected


def test_of_two_added_tokens_at_one_place_the_longer_counts(tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "<|"}, {"content": "<|im_end|>"}])
    assert load_tokenizer(tmp_path).encode("<|im_end|><|") == [vocab["<|im_end|>"], vocab["<|"]]


def test_an_added_token_may_lie_beyond_the_models_rows_until_a_text_has_it(tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "[PAD]"}])
    write_json(tmp_path / "config.json", {"vocab_size": vocab["[PAD]"]})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("q") == [vocab["q"]]
    with pytest.raises(ValueError, match=r"'\[PAD\]' in it, whose id \d+ is beyond the model's \d+ rows; remove it"):
        tokenizer.encode("q[PAD]")


# ---- ends


def test_the_end_is_the_eos_token_of_the_configuration(tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "<|im_end|>"}])
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    write_json(tmp_path / "config.json", {"eos_token_id": vocab["<|endoftext|>"]})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eot_token == vocab["<|im_end|>"]
    assert set(tokenizer.stop_tokens) == {vocab["<|im_end|>"], vocab["<|endoftext|>"]}


def test_the_end_is_the_models_where_the_tokenizer_names_none(tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "</s>"}])
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(tmp_path / "config.json", {"eos_token_id": vocab["</s>"]})
    assert load_tokenizer(tmp_path).eot_token == vocab["</s>"]


def test_generation_config_may_list_several_ends(tmp_path):
    vocab = write_whole(tmp_path, tokens=[{"content": "</s>"}])
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [vocab["</s>"], vocab["q"]]})
    write_json(tmp_path / "config.json", {"eos_token_id": vocab["x"]})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.stop_tokens == (vocab["<|endoftext|>"], vocab["</s>"], vocab["q"])
    assert tokenizer.eot_token == vocab["<|endoftext|>"]


def test_no_end_at_all_is_refused(tmp_path):
    write_whole(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert "no token ends a text" in refusal(tmp_path)


@pytest.mark.parametrize("ends", ["<|endoftext|>", [1, "x"], -1, 1.5, True])
def test_ends_that_are_no_ids(ends, tmp_path):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
    assert "eos_token_id is" in refusal(tmp_path)


# ---- what stands around a text


def test_a_space_in_front(tmp_path):
    vocab = write_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"add_prefix_space": True})
    tokenizer = load_tokenizer(tmp_path)
    the = encode_by_the_book(" the", learn_merges(), vocab)
    assert tokenizer.encode("the") == tokenizer.encode(" the") == the
    assert tokenizer.encode("the", continues=True) == encode_by_the_book("the", learn_merges(), vocab)
    assert tokenizer.encode("<|endoftext|>the", continues=True) == [vocab["<|endoftext|>"], *the]


@pytest.mark.parametrize("how", ["post_processor", "add_bos_token"])
def test_a_bos_in_front(how, tmp_path):
    vocab = write_whole(tmp_path) if how == "post_processor" else write_tokenizer(tmp_path)
    end = vocab["<|endoftext|>"]
    if how == "post_processor":
        whole = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
        whole["post_processor"] = {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"x": {"id": "x", "ids": [end], "tokens": ["<|endoftext|>"]}}}
        write_json(tmp_path / "tokenizer.json", whole)
    else:
        write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("q") == [end, vocab["q"]]
    assert tokenizer.encode("q", add_special_tokens=False) == [vocab["q"]]


# ---- merges and ids


def test_merges_in_another_order_than_the_ids(tmp_path):
    merges = learn_merges()
    vocab = write_tokenizer(tmp_path, merges)
    shuffled = [merges[i * 37 % len(merges)] for i in range(len(merges))]
    assert sorted(shuffled) == sorted(merges) and shuffled != merges
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in shuffled), "utf-8")
    tokenizer, places = load_tokenizer(tmp_path), {pair: place for place, pair in enumerate(shuffled)}
    for word in ("cat", " the", " that", "東京", " приветы", "thehatsat"):
        parts = [byte_symbols()[byte] for byte in word.encode()]
        while (best := min((places.get(pair, 999), i) for i, pair in enumerate(pairwise([*parts, ""])))) < (999, 0):
            parts[best[1] : best[1] + 2] = ["".join(parts[best[1] : best[1] + 2])]
        assert tokenizer.encode(word) == [vocab[part] for part in parts]


def test_a_token_that_no_merge_makes_is_never_used(tmp_path):
    merges = learn_merges(count=10)
    vocab = write_tokenizer(tmp_path, merges)
    vocab["cats"] = len(vocab)
    write_json(tmp_path / "vocab.json", vocab)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("cats") == encode_by_the_book("cats", merges, vocab)
    assert tokenizer.decode([vocab["cats"]]) == "cats"


def test_a_merge_by_hand_that_is_never_reached(tmp_path):
    """"he" joins first, so that the pair ("t", "h") is gone before "th" could become "the" with "e"."""
    merges = [("h", "e"), ("t", "h"), ("th", "e")]
    vocab = write_tokenizer(tmp_path, merges)
    assert load_tokenizer(tmp_path).encode("the") == [vocab["t"], vocab["he"]]
    assert load_tokenizer(tmp_path).encode("thx") == [vocab["th"], vocab["x"]]


def test_a_gap_in_the_ids(tmp_path):
    vocab = write_tokenizer(tmp_path)
    vocab = {token: id + 5 * (id > 300) for token, id in vocab.items()}
    write_json(tmp_path / "vocab.json", vocab)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<|endoftext|> the") == [vocab["<|endoftext|>"],
                                                     *encode_by_the_book(" the", learn_merges(), vocab)]
    assert tokenizer.decode([303]) == "" and tokenizer.n_vocab == max(vocab.values()) + 1


def test_a_gap_leaves_no_safe_number_for_a_new_token(tmp_path):
    vocab = write_tokenizer(tmp_path)
    write_json(tmp_path / "vocab.json", {token: id + 5 * (id > 300) for token, id in vocab.items()})
    write_json(tmp_path / "tokenizer_config.json", {"pad_token": "[PAD]"})
    assert "'[PAD]' is not in the vocabulary, whose ids have a gap" in refusal(tmp_path)


def test_an_added_token_with_an_id_that_it_would_not_get(tmp_path):
    vocab = write_tokenizer(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"[PAD]": len(vocab) + 3})
    assert "'[PAD]' is said to be" in refusal(tmp_path)


def test_a_vocabulary_without_all_bytes(tmp_path):
    vocab = write_tokenizer(tmp_path, merges=[])
    del vocab["q"]
    write_json(tmp_path / "vocab.json", vocab)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("x") == [vocab["x"]]
    with pytest.raises(ValueError, match="the byte 0x71 in it, which this vocabulary has no token for"):
        tokenizer.encode("quick")


def test_another_vocabulary_without_files_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "gpt2", "vocab_size": 52000})
    assert "vocabulary of 52000 is not GPT-2's of 50257" in refusal(tmp_path)


# ---- what cannot be followed


@pytest.mark.parametrize("parts, named", [
    ({"normalizer": {"type": "NFC"}}, "normalizer NFC"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "normalizer Sequence"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
    ({"pre_tokenizer": None}, "pre_tokenizer null"),
    ({"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}}, "use_regex"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}}, "Digits"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
        BYTE_LEVEL | {"use_regex": False}]}}, "could mean something else"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False},
        BYTE_LEVEL | {"use_regex": False}]}}, "behavior Isolated"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [
        {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "x"}}], "special_tokens": {}}}, "post_processor"),
    ({"decoder": {"type": "WordPiece"}}, "decoder WordPiece"),
    ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
    ({"model": {"dropout": 0.1}}, "dropout"),
    ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
])
def test_settings_that_give_other_ids_are_refused_by_name(parts, named, tmp_path):
    write_whole(tmp_path, **parts)
    assert named in refusal(tmp_path)


@pytest.mark.parametrize("settings, named", [
    ({"tokenizer_class": "LlamaTokenizer"}, "LlamaTokenizer"),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, "needs a tokenizer.json"),
    ({"add_eos_token": True}, "add_eos_token"),
    ({"split_special_tokens": True}, "split_special_tokens"),
    ({"auto_map": {"AutoTokenizer": ["mine.py", None]}}, "auto_map"),
    ([], "expected a JSON object"),
    ({"added_tokens_decoder": {"x": {"content": "[PAD]"}}}, "added_tokens_decoder"),
    ({"added_tokens_decoder": {"5": "[PAD]"}}, "[PAD]"),
    ({"added_tokens_decoder": []}, "added_tokens_decoder"),
    ({"eos_token": 5}, "eos_token"),
    ({"pad_token": ["x"]}, "pad_token"),
])
def test_configurations_that_cannot_be_followed(settings, named, tmp_path):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", settings)
    assert named in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"model": 3}', '{"model": {"type": "BPE"}}', "", "{",
                                     '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
                                     '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}}'])
def test_a_tokenizer_json_that_is_none(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in refusal(tmp_path)


def test_a_split_that_says_what_gpt2_does(tmp_path):
    split = {"type": "Split", "pattern": {"Regex": GPT2_SPLIT}, "behavior": "Isolated", "invert": False}
    vocab = write_whole(tmp_path / "a", pre_tokenizer={"type": "Sequence", "pretokenizers": [
        split, BYTE_LEVEL | {"use_regex": False}]})
    write_tokenizer(tmp_path / "b")
    for text in ("the cat's hat", "  the\n\n cat", "It's 12!"):
        assert load_tokenizer(tmp_path / "a").encode(text) == load_tokenizer(tmp_path / "b").encode(text)
    assert vocab


# ---- long texts, and back to disk


@pytest.mark.parametrize("text", [" " * 1_000_000, "a" * 300_000, "\n" * 300_000])
def test_a_text_without_end_is_encoded_or_refused_in_one_line(text, tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    try:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    except ValueError as error:
        assert "too much for the tokenizer" in str(error) and "\n" not in str(error)


def test_files_go_back_byte_for_byte(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    write_whole(source, tokens=[{"content": "[PAD]"}])
    (source / "special_tokens_map.json").write_bytes(b'{"pad_token":\r\n "[PAD]"}')
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    target.mkdir()
    (target / "vocab.json").write_text("of another model")
    save_tokenizer(load_tokenizer(source), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()}
    assert {path.name for path in target.iterdir()} <= set(TOKENIZER_FILES)


# ---- what the folder that is saved must say


def test_the_class_that_config_json_names_is_said_again(tmp_path):
    """Else the saved folder would be cut as GPT-2 cuts, whatever its tokenizer.json says."""
    write_whole(tmp_path / "source", pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True})
    write_json(tmp_path / "source" / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    write_json(tmp_path / "source" / "config.json",
               {"model_type": "gpt2", "tokenizer_class": "PreTrainedTokenizerFast"})
    tokenizer = load_tokenizer(tmp_path / "source")
    assert tokenizer.prefix_space
    save_model(make_model(), tokenizer, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.prefix_space and again.encode("the cat") == tokenizer.encode("the cat")


def test_an_assumed_end_that_nobody_trained_gives_way_to_the_models(tmp_path):
    vocab = write_tokenizer(tmp_path)
    vocab = {("</s>" if token == "<|endoftext|>" else token): id for token, id in vocab.items()}
    write_json(tmp_path / "vocab.json", vocab)
    write_json(tmp_path / "config.json", {"vocab_size": len(vocab) + 32, "eos_token_id": vocab["</s>"]})
    assert load_tokenizer(tmp_path).eot_token == vocab["</s>"]


@pytest.mark.parametrize("regex", [r"^[a-z ]+|\S|\s", r"\p{L}*|\s", r"a?+|\S|\s+", "a|b|", r"\p{L}{2}{2}|\S|\s",
                                   r"(?i:\p{Lu})+|\S|\s", r"(?=a)|\S|\s+", r"(?<=a)b|\S|\s", r"\s*|\S+"])
def test_expressions_that_two_engines_read_differently_are_refused(regex, tmp_path):
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    steps = [split, BYTE_LEVEL | {"use_regex": False}]
    write_whole(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert "could mean something else" in refusal(tmp_path)


def test_named_tokens_are_numbered_before_those_without_a_name(tmp_path):
    vocab = write_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"additional_special_tokens": ["<a>"], "image_token": "<b>"})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.token_id("<b>"), tokenizer.token_id("<a>")) == (len(vocab), len(vocab) + 1)


def test_two_files_that_list_other_tokens_are_refused(tmp_path):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"additional_special_tokens": ["<a>"]})
    write_json(tmp_path / "special_tokens_map.json", {"additional_special_tokens": ["<b>"]})
    assert "list other additional tokens" in refusal(tmp_path)


def test_many_ids_that_end_generation(tmp_path):
    """Each was looked for among all ids of the vocabulary."""
    vocab = write_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {"vocab_size": len(vocab)})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": list(range(10**6))})
    start = time.process_time()
    assert load_tokenizer(tmp_path).stop_tokens == tuple(range(len(vocab)))
    assert time.process_time() - start < 2
