"""Instruction data: prompts, tokens, masks, padding, splits."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import write_tokenizer
from tiny import CONTEXT, END_OF_TEXT, ROOT, TOKENIZER, make_entries, make_set

from tinyft import Entry, InstructionSet, Turn, collate, load_tokenizer, read_entries, split
from tinyft.data.instructions import Example, encode, show_mask
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt

CHAPTER_7_DATA = ROOT.parent / "shared" / "data" / "instruction-data.json"
EOT = TOKENIZER.eot_token


# ---- collate


def chapter_7_collate(items, prompt_lengths, pad, max_length=None, mask_prompt=False):
    """Chapter 7's custom_collate_fn in plain lists, except that padding is known by its position."""
    longest = max(len(item) + 1 for item in items)
    all_inputs, all_targets = [], []
    for item, prompt_length in zip(items, prompt_lengths, strict=True):
        padded = list(item) + [pad]
        padded += [pad] * (longest - len(padded))
        inputs, targets = padded[:-1], padded[1:]
        first_pad = len(item) - 1  # where the appended end-of-text stands among the targets
        for position in range(first_pad + 1, len(targets)):
            targets[position] = -100
        if mask_prompt:
            masked = max(0, prompt_length - 1)
            targets[:masked] = [-100] * masked
        if max_length is not None:
            inputs, targets = inputs[:max_length], targets[:max_length]
        all_inputs.append(inputs)
        all_targets.append(targets)
    return all_inputs, all_targets


def example(ids, prompt_length: int, end: int) -> Example:
    """An example whose reply begins at `prompt_length`, with its end."""
    return Example(np.array([*ids, end]), np.arange(len(ids) + 1) >= prompt_length)


@st.composite
def rows(draw):
    """Rows of few different ids, so that the end-of-text (0) is often among them."""
    items = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5))
    return items, [draw(st.integers(0, len(item))) for item in items]


@settings(max_examples=300, deadline=None)
@given(rows(), st.none() | st.integers(1, 14), st.booleans())
def test_collate_is_chapter_7s(rows, max_length, mask_prompt):
    items, prompt_lengths = rows
    examples = [example(item, n, 0) for item, n in zip(items, prompt_lengths, strict=True)]
    inputs, targets = collate(examples, 0, max_length=max_length, mask_prompt=mask_prompt)
    wanted_inputs, wanted_targets = chapter_7_collate(items, prompt_lengths, 0, max_length, mask_prompt)
    assert inputs.tolist() == wanted_inputs
    assert targets.tolist() == wanted_targets


def test_collate_of_the_books_example():
    items = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    inputs, targets = collate([example(item, 1, 50256) for item in items], 50256)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    assert targets.tolist() == [[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]]


def test_end_of_text_within_a_reply_is_learned():
    _, targets = collate([example([1, 2, 9, 3, 9], 2, 9), example(range(1, 8), 2, 9)], 9, mask_prompt=True)
    assert targets[0].tolist() == [-100, 9, 3, 9, 9, -100, -100]


def test_collate_does_not_change_its_examples():
    one = example([1, 2, 3], 2, 9)
    inputs, targets = collate([one], 9, mask_prompt=True)
    inputs[:], targets[:] = 0, 0
    assert one.ids.tolist() == [1, 2, 3, 9] and one.learned.tolist() == [False, False, True, True]


def test_several_replies_are_learned_and_what_is_between_them_is_not():
    one = Example(np.array([5, 6, 7, 9, 5, 8, 9]), np.array([False, False, True, True, False, True, True]))
    inputs, targets = collate([one], 9, mask_prompt=True)
    assert inputs.tolist() == [[5, 6, 7, 9, 5, 8]] and targets.tolist() == [[-100, 7, 9, -100, 8, 9]]
    assert collate([one], 9)[1].tolist() == [[6, 7, 9, 5, 8, 9]]


# ---- prompts and tokens

PREAMBLE = ("Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n")
WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
              "Write a response that appropriately completes the request.\n\n")
QUESTION, QUESTION_AND_INPUT = "### Instruction:\nName it.", "### Instruction:\nName it.\n\n### Input:\na cat"
ANSWER = "\n\n### Response:\n"


@pytest.mark.parametrize("style, given_input, text", [
    ("alpaca", "", PREAMBLE + QUESTION + ANSWER),
    ("alpaca", "a cat", PREAMBLE + QUESTION_AND_INPUT + ANSWER),
    ("stanford", "", PREAMBLE + QUESTION + ANSWER),
    ("stanford", "a cat", WITH_INPUT + QUESTION_AND_INPUT + ANSWER),
    ("phi3", "", "<|user|>\nName it.\n<|assistant|>\n"),
    ("phi3", "a cat", "<|user|>\nName it.\na cat\n<|assistant|>\n"),
])
def test_prompt_text(style, given_input, text):
    assert PROMPT_STYLES[style].pieces(Entry.single("Name it.", given_input, "Tom").turns)[0] == (text, False)


def parts(example: Example) -> tuple[list[int], list[int]]:
    """Ids that are not learned and ids that are, of an example with one reply at its end."""
    return example.ids[~example.learned].tolist(), example.ids[example.learned].tolist()


@pytest.mark.parametrize("style", ["alpaca", "stanford", "phi3"])
def test_prompt_and_reply_are_encoded_apart(style):
    example = encode(Entry.single("Say", "", " word"), PROMPT_STYLES[style], TOKENIZER)
    prompt, reply = parts(example)
    assert prompt == encode_prompt((Turn("user", "Say"),), PROMPT_STYLES[style], TOKENIZER)
    assert reply == [*TOKENIZER.encode_ordinary(" word"), EOT]
    assert example.ids.tolist() == prompt + reply


def test_reply_does_not_merge_with_the_prompt():
    prompt, reply = parts(encode(Entry.single("Say", "", "\n\n### two"), PROMPT_STYLES["alpaca"], TOKENIZER))
    assert TOKENIZER.decode(prompt).endswith("### Response:\n")
    assert TOKENIZER.decode(reply) == f"\n\n### two{END_OF_TEXT}"


@pytest.mark.parametrize("entry", [
    Entry.single(f"Say {END_OF_TEXT}", "", "a"), Entry.single("Say", END_OF_TEXT, "a"),
    Entry.single("Say", "", f"a{END_OF_TEXT}b"),
])
def test_end_of_text_in_an_entry_is_one_token(entry):
    """As transformers reads it; as letters it would never be learned as what it is."""
    ids = encode(entry, PROMPT_STYLES["alpaca"], TOKENIZER).ids
    assert (ids == EOT).sum() == 2 and ids[-1] == EOT
    assert END_OF_TEXT not in TOKENIZER.decode(ids[ids != EOT].tolist())


# ---- ends of text that are written out


@pytest.mark.parametrize("output, left", [("yes<|endoftext|>", "yes"), ("yes <|endoftext|>\n", "yes"), ("yes", "yes"),
                                          ("yes<|endoftext|><|endoftext|> ", "yes"),
                                          ("a<|endoftext|>b", "a<|endoftext|>b"),
                                          ("<|endoftext|>yes", "<|endoftext|>yes"), ("yes \n", "yes \n")])
def test_a_written_end_is_stripped_and_counted(output, left):
    data = make_set([Entry.single("a", "", output), Entry.single("b", "", "no")])
    _, reply = parts(data.examples[0])
    assert reply == [*TOKENIZER.encode(left), EOT]
    assert data.end_markers == ("<|" in output)


def test_a_written_end_may_be_kept_as_the_token_or_refused():
    entries = [Entry.single("a", "", "no"), Entry.single("a", "", "yes<|endoftext|>")]
    data = make_set(entries, end_marker="keep")
    assert parts(data.examples[1])[1] == [*TOKENIZER.encode("yes"), EOT, EOT] and data.end_markers == 1
    with pytest.raises(ValueError, match=r"asks 'a' has an end of text .*'yes<\|endoftext\|>'.*--end-marker strip"):
        make_set(entries, end_marker="refuse")
    with pytest.raises(ValueError, match="end_marker is 'drop', expected one of strip, keep, refuse"):
        make_set(entries, end_marker="drop")


@pytest.mark.parametrize("end_marker", ["strip", "keep"])
def test_a_marker_that_is_no_token_is_never_learned_letter_by_letter(end_marker, tmp_path):
    vocab = write_tokenizer(tmp_path)
    vocab = {("</s>" if token == END_OF_TEXT else token): id for token, id in vocab.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_id(END_OF_TEXT) is None
    data = InstructionSet([Entry.single("a", "", f"red{END_OF_TEXT}blue{END_OF_TEXT}")], tokenizer, max_length=500,
                          end_marker=end_marker)
    _, reply = parts(data.examples[0])
    assert tokenizer.decode(reply) == "red</s>blue</s>" + "</s>" * (end_marker == "keep")
    assert reply.count(vocab["</s>"]) == 2 + (end_marker == "keep") and data.end_markers == 1


def test_nothing_but_a_written_end_is_an_empty_reply():
    assert make_set([Entry.single("a", "", "<|endoftext|>"), Entry.single("a", "", "x")]).dropped == [0]


# ---- InstructionSet


def test_entries_without_a_target_are_dropped_and_counted():
    entries = [Entry.single(*texts) for texts in (("a", "", "yes"), ("a", "", ""), ("a" * 60, "", "yes"),
                                                  ("a", "", " \n"), ("b", "", "yes"))]
    data = make_set(entries, max_length=40, mask_prompt=True)
    assert data.dropped == [1, 2, 3]
    assert data.reasons == {"without a reply": 2, "with a prompt of more than 40 tokens": 1}
    assert len(data) == 2
    assert [TOKENIZER.decode(parts(example)[1]) for example in data.examples] == [f"yes{END_OF_TEXT}"] * 2


@pytest.mark.parametrize("room, dropped", [(-1, [0]), (0, []), (1, [])])
def test_a_kept_entry_has_a_target(room, dropped):
    entry = Entry.single("a", "", "yes")
    length = len(parts(encode(entry, PROMPT_STYLES["phi3"], TOKENIZER))[0])
    data = make_set([entry], max_length=length + room, mask_prompt=True)
    assert data.dropped == dropped
    if not dropped:
        inputs, targets = data.collate([0])
        assert inputs.shape == targets.shape == (1, length + room)
        assert (targets != -100).sum() == room + 1


def test_set_collates_with_its_own_options():
    data = make_set(make_entries(7), max_length=38, mask_prompt=True)
    assert len(data) == 7
    inputs, targets = data.collate(np.array([4, 1, 6]))
    examples = [data.examples[i] for i in (4, 1, 6)]
    wanted = chapter_7_collate([e.ids[:-1].tolist() for e in examples], [len(parts(e)[0]) for e in examples], EOT, 38,
                               True)
    assert (inputs.tolist(), targets.tolist()) == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 9), st.none() | st.integers(0, 5))
def test_batches_hold_every_index_once(count, batch_size, seed):
    data = make_set(make_entries(90)[:count])
    batches = data.batches(batch_size, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // batch_size)
    assert max(map(len, batches)) <= batch_size
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    if seed is None:
        assert np.concatenate(batches).tolist() == list(range(count))


def test_batches_have_rows_of_similar_length():
    rng = np.random.default_rng(0)
    data = make_set([Entry.single("a", "", "x" * int(n)) for n in rng.integers(1, 60, 512)])
    lengths = np.array([len(example.ids) for example in data.examples])

    def padding(batches):
        return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in batches) / lengths.sum()

    batches = data.batches(8, np.random.default_rng(1))
    assert padding(batches) < 0.05 < 0.3 < padding(data.batches(8))
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5  # but short ones don't all come first


def test_batches_depend_on_the_generator_only():
    data = make_set(make_entries(40))

    def order(rng):
        return [batch.tolist() for batch in data.batches(4, rng)]

    assert order(np.random.default_rng(5)) == order(np.random.default_rng(5))
    assert order(np.random.default_rng(5)) != order(np.random.default_rng(6))
    rng = np.random.default_rng(5)
    assert order(rng) != order(rng)  # the next epoch


# ---- split


def test_split_in_file_order():
    entries = make_entries(100)
    training, validation, test = split(entries)
    assert (training, test, validation) == (entries[:85], entries[85:95], entries[95:])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.floats(0.01, 0.99), st.floats(0, 0.99), st.none() | st.integers(0, 9))
def test_split_is_disjoint_and_complete(count, train, test, seed):
    entries = [Entry.single(str(i), "", "") for i in range(count)]
    rng = None if seed is None else np.random.default_rng(seed)
    if train + test > 1:
        with pytest.raises(ValueError, match="add up to at most 1"):
            split(entries, train=train, test=test, rng=rng)
        return
    parts = split(entries, train=train, test=test, rng=rng)
    assert [len(parts[0]), len(parts[2])] == [int(count * train), int(count * test)]
    assert sorted(int(entry.instruction) for part in parts for entry in part) == list(range(count))


def test_split_by_seed():
    entries = make_entries(60)
    first, again, other = (split(entries, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first != split(entries)


@pytest.mark.parametrize("shares", [dict(train=0), dict(train=1.0), dict(test=-0.1), dict(train=0.6, test=0.5),
                                    dict(train=float("nan"))])
def test_split_refuses_impossible_shares(shares):
    with pytest.raises(ValueError, match="split: a train share of .*expected shares"):
        split(make_entries(10), **shares)


@pytest.mark.parametrize("percent", range(1, 100))
def test_split_takes_shares_that_add_up_to_one(percent):
    split(make_entries(3), train=percent / 100, test=(100 - percent) / 100)


@pytest.mark.skipif(not CHAPTER_7_DATA.exists(), reason="chapter 7's instruction-data.json is not beside the project")
def test_chapter_7s_data():
    entries = read_entries(CHAPTER_7_DATA)
    assert len(entries) == 1100
    training, validation, test = split(entries)
    assert (len(training), len(validation), len(test)) == (935, 55, 110)
    assert training == entries[:935] and test == entries[935:1045] and validation == entries[1045:]


# ---- fingerprints


def test_a_fingerprint_tells_sets_apart_that_are_learned_differently():
    """The same ids all in all, in other rows or with other masks: a run must not go on with another set."""
    def of(*entries, **options):
        return make_set(list(entries), **options).fingerprint()

    one, other = Entry.single("a", "", "bc"), Entry.single("ab", "", "c")
    assert of(one) == of(Entry.single("a", "", "bc"))
    assert len({of(one), of(other), of(one, other), of(other, one), of(one, mask_prompt=True), of(one, max_length=40),
                of(one, prompt_style="alpaca")}) == 7
    ids, parts = np.arange(8), [(3, 5), (5, 3), (4, 4)]
    prints = set()
    for n, m in parts:
        data = make_set([])
        data.examples = [Example(ids[:n], np.ones(n, bool)), Example(ids[n : n + m], np.ones(m, bool))]
        prints.add(data.fingerprint())
    assert len(prints) == 3


# ---- show_mask

PIECE = re.compile(r"\x1b\[(\d+)m(.*?)\x1b\[0m", re.DOTALL)


@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("max_length", [CONTEXT, 35])
def test_show_mask_colours_exactly_the_learned_tokens(mask_prompt, max_length):
    entry = Entry.single("Say word", "", " yes word it is")
    data = make_set([entry], mask_prompt=mask_prompt, max_length=max_length)
    inputs, targets = data.collate([0])
    text = show_mask(inputs[0], targets[0], TOKENIZER)
    pieces = PIECE.findall(text)
    assert PIECE.sub("", text) == ""
    ids = data.examples[0].ids.tolist()[: max_length + 1]
    prompt_length = len(parts(data.examples[0])[0]) if mask_prompt else 1
    wanted = [(colour, TOKENIZER.decode(part).replace("\n", "\\n\n"))
              for colour, part in (("90", ids[:prompt_length]), ("32", ids[prompt_length:])) if part]
    assert pieces == wanted


def test_show_mask_of_a_padded_row():
    data = make_set([Entry.single("a", "", "yes"), Entry.single("a", "", "y" * 20)], mask_prompt=True)
    inputs, targets = data.collate([0, 1])
    pieces = PIECE.findall(show_mask(inputs[0], targets[0], TOKENIZER))
    green = [text for colour, text in pieces if colour == "32"]
    assert green == ["yes" + END_OF_TEXT]
    assert {colour for colour, _ in pieces} == {"32", "90"}


def test_show_mask_keeps_characters_that_several_tokens_share():
    data = make_set([Entry.single("ö", "", "猫")], mask_prompt=True)
    inputs, targets = data.collate([0])
    text = re.sub(r"\x1b\[\d+m", "", show_mask(inputs[0], targets[0], TOKENIZER))
    assert "ö" in text and "猫" in text
