"""From prompts to replies: which tokens, where they end, in what order they come, and as text."""

import gc
import weakref

import numpy as np
import pytest
from small import make_model, write_tokenizer
from tiny import TOKENIZER, make_entries
from tiny import make_model as make_talker

from tinyft import Engine, Entry, Turn, ask, generate, load_tokenizer, no_grad, reply, reply_all
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt
from tinyft.inference.generate import MANY
from tinyft.inference.replies import reply_to_all, run_all
from tinyft.inference.scheduler import Request, scheduler_of


@pytest.fixture(scope="module")
def model():
    return make_model(dtype=np.float64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-bpe")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def writer(tokenizer):
    """A model that knows the tokenizer's tokens alone, and has room for a few words."""
    return make_model(seed=2, dtype=np.float64, vocab_size=tokenizer.n_vocab, n_positions=70)


def greedy_without_cache(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with no_grad():
            ids.append(int(np.argmax(model(np.array(ids)).data[0, -1])))
    return ids[len(prompt) :]


def steps_of(engine):
    """A list that grows with each step of the engine."""
    steps, step = [], engine.step
    engine.step = lambda *args, **more: steps.append(1) or step(*args, **more)
    return steps


# ---- generating


@pytest.mark.parametrize("prompt", [[0], [5, 7, 11], list(range(12))])
def test_greedy_generation(model, prompt):
    expected = greedy_without_cache(model, prompt, 4)
    assert list(generate(model, prompt, max_new_tokens=4)) == expected
    assert list(generate(Engine(model), prompt, max_new_tokens=4)) == expected
    for limits in ({"top_k": 1}, {"top_p": 1e-9}):
        options = dict(temperature=1.7, rng=np.random.default_rng(0), **limits)
        assert list(generate(model, prompt, max_new_tokens=4, **options)) == expected


def test_prompt_may_be_any_iterable(model):
    expected = list(generate(model, [3, 4], max_new_tokens=3))
    assert list(generate(model, iter((3, 4)), max_new_tokens=3)) == expected
    assert list(generate(model, np.array([3, 4], np.int32), max_new_tokens=3)) == expected


def test_one_seed_one_sequence(model):
    def run(seed):
        options = dict(temperature=1.0, top_k=50, top_p=0.9, rng=np.random.default_rng(seed))
        return list(generate(model, [1, 2, 3], max_new_tokens=10, **options))

    assert run(0) == run(0)
    assert len({tuple(run(seed)) for seed in range(5)}) > 1


def test_it_ends_before_the_stop_token(model):
    engine = Engine(model)

    def run(stop):
        options = dict(temperature=1.0, rng=np.random.default_rng(0), max_new_tokens=12)
        return list(generate(engine, [1, 2, 3], stop=stop, **options))

    tokens = run(None)
    assert len(set(tokens)) > 3
    for stop in tokens:
        assert run(stop) == run(np.int64(stop)) == tokens[: tokens.index(stop)]
    for stops in ({tokens[5], tokens[3]}, (tokens[3], 340), [tokens[3], tokens[3]], np.array([tokens[3]])):
        assert run(stops) == tokens[: min(tokens.index(stop) for stop in stops if stop in tokens)]
    assert run(()) == tokens


@pytest.mark.parametrize("count", [0, 1, 3])
def test_it_ends_after_max_new_tokens(model, count):
    assert len(list(generate(model, [1, 2, 3], max_new_tokens=count))) == count


@pytest.mark.parametrize("length", [1, 10, 15])
def test_it_ends_where_the_context_is_full(model, length):
    """The last token is chosen from a full context of n_positions and need not fit in itself."""
    prompt = list(range(length))
    tokens = list(generate(model, prompt, max_new_tokens=100))
    assert len(tokens) == 16 - length + 1
    assert tokens == greedy_without_cache(model, prompt, len(tokens))


def test_each_token_comes_as_soon_as_it_is_chosen(model):
    engine = Engine(model)
    steps = steps_of(engine)
    tokens = generate(engine, [1, 2, 3], max_new_tokens=3)
    for expected in (1, 2, 3):
        next(tokens)
        assert len(steps) == expected
    assert list(tokens) == [] and len(steps) == 3


def test_what_is_no_longer_asked_for_is_not_computed(model):
    engine = Engine(model)
    steps = steps_of(engine)
    tokens = generate(engine, [1, 2, 3], max_new_tokens=10)
    generate(engine, [4, 5], max_new_tokens=10)  # nobody asks for a token of this one
    next(tokens)
    tokens.close()
    assert scheduler_of(engine).idle and len(steps) == 1


def test_two_may_be_read_in_turn(model):
    """On one engine, also where only one has a place."""
    for max_rows in (1, 2):
        engine = Engine(model, max_rows=max_rows)
        pairs = list(zip(generate(engine, [1, 2, 3], max_new_tokens=6), generate(engine, [4, 5], max_new_tokens=6),
                         strict=True))
        assert [one for one, _ in pairs] == greedy_without_cache(model, [1, 2, 3], 6)
        assert [other for _, other in pairs] == greedy_without_cache(model, [4, 5], 6)


def test_weights_as_they_are_now():
    """An engine keeps those that it was made of, a model is asked as it is."""
    model = make_model(dtype=np.float64)
    engine, before = Engine(model), list(generate(model, [1, 2, 3], max_new_tokens=8))
    model.wte.weight.data[:] = model.wte.weight.data[::-1].copy()
    assert list(generate(engine, [1, 2, 3], max_new_tokens=8)) == before
    assert list(generate(model, [1, 2, 3], max_new_tokens=8)) == greedy_without_cache(model, [1, 2, 3], 8) != before


@pytest.mark.parametrize("length", [0, 16, 17])
def test_a_prompt_that_is_empty_or_leaves_no_room(model, length):
    """It is said at once, not where the first token is asked for."""
    with pytest.raises(ValueError, match=f"prompt has {length} tokens, expected 1 to 15"):
        generate(model, [1] * length)


@pytest.mark.parametrize("token", [-1, 340])
def test_a_prompt_with_a_token_that_the_model_does_not_know(model, token):
    with pytest.raises(ValueError, match=f"the prompt has the token {token}, expected 0 to 339"):
        generate(model, [1, token])


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0},
                                     {"top_k": -1}])
def test_sampling_options_that_make_no_sense(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(model, [1], **options)


def test_a_temperature_needs_a_generator(model):
    with pytest.raises(ValueError, match="needs a random generator"):
        list(generate(model, [1], temperature=1.0))


def test_weights_that_are_no_numbers():
    model = make_model(dtype=np.float64)
    model.ln_f.weight.data[3] = np.nan
    for options in ({}, {"temperature": 1.0, "rng": np.random.default_rng(0)}):
        with pytest.raises(ValueError, match="not finite numbers, so the weights can't be"):
            list(generate(model, [1, 2], **options))


# ---- replies


def expected_reply(writer, tokenizer, ids, count, stop=()):
    tokens = greedy_without_cache(writer, ids, min(count, writer.config.n_positions - len(ids) + 1))
    ends = [tokens.index(end) for end in (*tokenizer.stop_tokens, *stop) if end in tokens]
    return tokenizer.decode(tokens[: min(ends, default=None)])


def test_reply(writer, tokenizer):
    for prompt in ("The cat sat", " hats", "東京"):
        ids = tokenizer.encode_ordinary(prompt)
        expected = expected_reply(writer, tokenizer, ids, 8).strip()
        assert reply(writer, tokenizer, prompt, max_new_tokens=8) == expected
        assert reply(Engine(writer), tokenizer, ids, max_new_tokens=8) == expected


def test_tokens_that_only_the_model_has_are_left_out(model, tokenizer):
    tokens = list(generate(model, [1, 2, 3], max_new_tokens=12, stop=tokenizer.eot_token))
    known = [token for token in tokens if token < tokenizer.n_vocab]
    assert reply(model, tokenizer, [1, 2, 3], max_new_tokens=12) == tokenizer.decode(known).strip()


PROMPTS = ["The cat sat on", "The cat", " hats", "a", "The cat sat on the mat, and", "they sit!", "The cat"]


@pytest.mark.parametrize("max_rows", [None, 1, 3])
def test_many_replies_are_those_of_each(writer, tokenizer, max_rows):
    """In the order of the prompts, text and ids among each other, with a length for each."""
    asked = writer if max_rows is None else Engine(writer, max_rows=max_rows)
    prompts = [tokenizer.encode_ordinary(prompt) if i % 2 else prompt for i, prompt in enumerate(PROMPTS)]
    lengths = [9, 0, 5, 20, 1, 7, 60]
    expected = [expected_reply(writer, tokenizer, tokenizer.encode_ordinary(prompt), length).strip()
                for prompt, length in zip(PROMPTS, lengths, strict=True)]
    assert reply_all(asked, tokenizer, prompts, max_new_tokens=lengths) == expected
    assert len(set(expected)) > 4 and expected[1] == ""
    assert reply_all(asked, tokenizer, []) == []


def test_more_replies_than_are_written_at_once(writer, tokenizer):
    prompts = [[i % 50 + 1, i % 7 + 60] for i in range(MANY + 9)]
    replies = reply_all(writer, tokenizer, prompts, max_new_tokens=3)
    assert replies == [reply_all(writer, tokenizer, [prompt], max_new_tokens=3)[0] for prompt in prompts]


def test_a_reply_ends_before_stop_tokens_and_stop_strings(writer, tokenizer):
    ids = tokenizer.encode_ordinary("The cat sat")
    tokens = greedy_without_cache(writer, ids, 20)
    assert expected_reply(writer, tokenizer, ids, 20) == tokenizer.decode(tokens)
    got = reply(writer, tokenizer, ids, max_new_tokens=20, stop=[tokens[4], tokens[9]])
    assert got == expected_reply(writer, tokenizer, ids, 20, [tokens[4], tokens[9]]).strip()
    text = tokenizer.decode(tokens)
    for length in (1, 2, 3):
        string = text[7 : 7 + length]
        engine = Engine(writer)
        steps = steps_of(engine)
        assert reply(engine, tokenizer, ids, max_new_tokens=20, stop_strings=["\0never", string]) == text[
            : text.index(string)].strip()
        assert len(steps) < 20 and scheduler_of(engine).idle


def test_end_of_text_ends_a_reply(tokenizer):
    model = make_model(seed=2, vocab_size=tokenizer.n_vocab, n_positions=70)
    model.ln_f.weight.data[:] = 0  # what comes is the same after every token
    for wanted, expected in ((tokenizer.eot_token, ""), (tokenizer.encode_ordinary("a")[0], "aaaaa")):
        model.ln_f.bias.data[:] = 100 * model.wte.weight.data[wanted]
        model.wte.weight.data *= np.where(np.arange(tokenizer.n_vocab) == wanted, 9, 1)[:, None].astype(np.float32)
        assert reply(model, tokenizer, "The cat", max_new_tokens=5) == expected


def test_each_reply_draws_from_a_generator_of_its_own(writer, tokenizer):
    def run(prompts, seed=0, **options):
        return reply_all(writer, tokenizer, prompts, max_new_tokens=9, temperature=1.5, rng=np.random.default_rng(seed),
                         **options)

    replies = run(["The cat"] * 5)
    assert len(set(replies)) == 5 and run(["The cat"] * 5) == replies != run(["The cat"] * 5, seed=1)
    # What comes after them in the list, how long they are: nothing of it changes a reply.
    assert run(["The cat"] * 5 + ["a"])[:5] == replies
    assert run(["they sit!", "The cat"])[1] == replies[1]


def test_prompts_that_cannot_be_answered_are_named_before_any_is(writer, tokenizer):
    engine = Engine(writer)
    steps = steps_of(engine)
    with pytest.raises(ValueError, match="^prompt 2: the prompt has 70 tokens, expected 1 to 69"):
        reply_all(engine, tokenizer, ["a", [1] * 70, "b"])
    with pytest.raises(ValueError, match="^the prompt has 0 tokens"):
        reply(engine, tokenizer, "")
    with pytest.raises(ValueError, match="needs a random generator"):
        reply_all(engine, tokenizer, ["a", "b"], temperature=1.0)
    with pytest.raises(ValueError, match="expected a list of texts"):
        reply_all(engine, tokenizer, ["a", "b"], stop_strings="stop")
    with pytest.raises(ValueError, match="shorter|longer|length"):
        reply_all(engine, tokenizer, ["a", "b"], max_new_tokens=[1])
    assert steps == [] and scheduler_of(engine).idle


def test_an_error_ends_all_of_a_call_and_nothing_else(tokenizer):
    """What was asked before goes on; nothing of the call is left in the engine."""
    model = make_model(seed=2, dtype=np.float64, vocab_size=tokenizer.n_vocab, n_positions=70,
                       tie_word_embeddings=False)
    expected = list(generate(model, [1, 2, 3], max_new_tokens=20))
    bad = next(token for token in range(tokenizer.n_vocab) if token not in expected and token > 3)
    model.wte.weight.data[bad] = np.nan
    engine = Engine(model)
    tokens = generate(engine, [1, 2, 3], max_new_tokens=20)
    first = next(tokens)
    with pytest.raises(ValueError, match="not finite numbers"):
        reply_all(engine, tokenizer, [[1, 2], [3, bad], [1, 3]], max_new_tokens=30)
    assert scheduler_of(engine).n_running == 1 and scheduler_of(engine).n_waiting == 0
    assert [first, *tokens] == expected


def test_no_progress_is_shown_without_a_name(writer, tokenizer, capsys):
    reply_all(writer, tokenizer, ["a", "b"], max_new_tokens=2)
    assert capsys.readouterr().err == ""


def test_run_all_gives_each_as_soon_as_it_has_ended(writer, tokenizer):
    engine = Engine(writer, max_rows=2)
    requests = [Request([1, 2], max_new_tokens=count) for count in (12, 2, 6, 3)]
    seen = list(run_all(engine, tokenizer, requests))
    assert [number for number, _ in seen] == [1, 2, 3, 0]
    for number, text in seen:
        assert text == tokenizer.decode(greedy_without_cache(writer, [1, 2], requests[number].max_new_tokens))
    running = run_all(engine, tokenizer, [Request([1, 2], max_new_tokens=count) for count in (12, 2)])
    next(running)
    running.close()
    assert scheduler_of(engine).idle


def test_a_stop_string_is_a_reason_to_finish(writer, tokenizer):
    text = tokenizer.decode(greedy_without_cache(writer, [1, 2], 12))
    request = Request([1, 2], max_new_tokens=12)
    (number, got), = run_all(writer, tokenizer, [request], stop_strings=[text[5:7]])
    assert (number, got, request.finish_reason) == (0, text[: text.index(text[5:7])], "stop")


# ---- asking


@pytest.fixture(scope="module")
def talker():
    return make_talker(dtype=np.float64)


@pytest.mark.parametrize("style", [None, "alpaca", "phi3"])
def test_asking(talker, style):
    turns = (Turn("user", "Say word 1.", "now"),)
    ids = encode_prompt(turns, PROMPT_STYLES[style or "alpaca"], TOKENIZER)
    expected = reply(talker, TOKENIZER, ids, max_new_tokens=5)
    assert ask(talker, TOKENIZER, "Say word 1.", "now", prompt_style=style, max_new_tokens=5) == expected
    assert ask(Engine(talker), TOKENIZER, turns, prompt_style=style, max_new_tokens=5) == expected
    options = dict(max_new_tokens=5, temperature=1.0, top_k=9)
    assert (ask(talker, TOKENIZER, turns, prompt_style=style, rng=np.random.default_rng(0), **options)
            == reply(talker, TOKENIZER, ids, rng=np.random.default_rng(0), **options))


def test_asking_with_an_input_beside_a_conversation(talker):
    with pytest.raises(ValueError, match="put it into one of its turns"):
        ask(talker, TOKENIZER, (Turn("user", "Say it."),), "now")


def test_replies_to_entries(talker, capsys):
    entries, style = make_entries(5), PROMPT_STYLES["phi3"]
    entries.insert(2, Entry.single("x" * 200, "", "no"))
    replies = reply_to_all(talker, TOKENIZER, entries, style, "test", lambda entry: len(entry.output))
    line = "test: no reply to 1 of 6, whose prompts leave no room in the context of 128 tokens\n"
    assert capsys.readouterr().out == line
    for entry, text in zip(entries, replies, strict=True):
        ids = encode_prompt(entry.asked, style, TOKENIZER)
        assert text == ("" if len(ids) >= 128 else reply(talker, TOKENIZER, ids, max_new_tokens=len(entry.output)))


def test_the_copy_of_a_models_weights_is_gone_with_the_reply(monkeypatch):
    """Without waiting for the garbage collector: it is as large as the model."""
    made = []
    prepare = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *args, **more: made.append(weakref.ref(self))
                        or prepare(self, *args, **more))
    gc.disable()
    try:
        list(generate(make_model(), [1, 2], max_new_tokens=2))
        reply_all(make_model(), TOKENIZER, [[1, 2], [3]], max_new_tokens=2)
        assert len(made) == 2 and [engine() for engine in made] == [None, None]
    finally:
        gc.enable()
