"""Cached decoding against the whole forward pass, the sampling rules, where generation ends, and streamed text."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CORPUS, NASTY_TEXTS, make_model, write_tokenizer

from tinyft import (
    GPT2Config,
    KVCache,
    decode_one_token,
    generate,
    load_tokenizer,
    no_grad,
    prefill,
    reply,
    sample,
    stream_text,
)

V = 8
LOGITS = np.log(np.array([0.02, 0.3, 0.05, 0.2, 0.01, 0.25, 0.07, 0.1]))
ORDER = [1, 5, 3, 7, 6, 2, 0, 4]


@pytest.fixture(scope="module")
def model():
    return make_model(dtype=np.float64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-bpe")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def draws(count=20000, seed=0, logits=LOGITS, **options):
    rng = np.random.default_rng(seed)
    return np.bincount([sample(logits, rng=rng, **options) for _ in range(count)], minlength=len(logits)) / count


def assert_near(shares, probabilities, count=20000):
    """Within 4.5 standard deviations, and exactly none where the probability is 0."""
    deviation = np.sqrt(probabilities * (1 - probabilities) / count)
    assert np.all(np.abs(shares - probabilities) <= 4.5 * deviation)


# ---- the cache


@pytest.mark.parametrize("shape", [{}, {"n_head": 1}, {"n_embd": 14, "n_head": 2, "n_inner": 9, "vocab_size": 61}])
@pytest.mark.parametrize("prompt_length", [1, 2, 7, 15])
def test_decoding_with_the_cache_is_the_whole_forward_pass(shape, prompt_length):
    model = make_model(seed=1, dtype=np.float64, **shape)
    ids = np.random.default_rng(prompt_length).integers(model.config.vocab_size, size=model.config.n_positions)
    with no_grad():
        whole = model(ids).data[0]
    cache = KVCache(model.config, np.float64)
    steps = [prefill(model, ids[:prompt_length], cache)]
    steps += [decode_one_token(model, int(token), cache) for token in ids[prompt_length:]]
    assert cache.length == len(ids)
    for step, expected in zip(steps, whole[prompt_length - 1 :], strict=True):
        np.testing.assert_allclose(step, expected, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_the_cache_in_float32():
    model = make_model(seed=1)
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=16)
    cache = KVCache(model.config)
    steps = [prefill(model, ids[:4], cache), *(decode_one_token(model, int(token), cache) for token in ids[4:])]
    assert all(step.dtype == np.float32 for step in steps)
    whole = model(ids).data[0]
    np.testing.assert_allclose(steps, whole[3:], rtol=0, atol=5e-6 * np.abs(whole).max())


def test_a_small_model_decodes_with_one_thread_and_gives_the_others_back():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here")
    model, seen, logits, before = make_model(seed=1), [], [], numba.get_num_threads()
    run = model.run_blocks
    model.run_blocks = lambda *args, **more: seen.append(numba.get_num_threads()) or run(*args, **more)
    assert KVCache(model.config).single_threaded_decode
    assert not KVCache(GPT2Config(n_positions=2)).single_threaded_decode
    for alone in (True, False):
        cache = KVCache(model.config)
        cache.single_threaded_decode = alone
        prefill(model, [1, 2, 3], cache)
        logits.append(decode_one_token(model, 4, cache))
        assert numba.get_num_threads() == before
    assert seen == [before, 1, before, before]
    np.testing.assert_array_equal(*logits)


def test_the_cache_refuses_what_does_not_fit(model):
    cache = KVCache(model.config, np.float64)
    with pytest.raises(ValueError, match="prefill: 0 tokens"):
        prefill(model, np.array([], np.int64), cache)
    prefill(model, np.arange(16), cache)
    with pytest.raises(ValueError, match="context of 16 tokens is full"):
        decode_one_token(model, 0, cache)
    with pytest.raises(ValueError, match="prefill: 1 tokens into a cache of 16"):
        prefill(model, np.array([1]), cache)


# ---- choosing a token


def test_temperature_0_is_the_likeliest():
    assert sample(LOGITS) == ORDER[0]
    assert sample(LOGITS, temperature=0, top_k=3, top_p=0.5) == ORDER[0]


def test_temperature_without_a_generator():
    with pytest.raises(ValueError, match="needs a random generator"):
        sample(LOGITS, temperature=1.0)


def test_draws_follow_the_probabilities():
    assert_near(draws(temperature=1.0), np.exp(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature):
    expected = np.exp(LOGITS) ** (1 / temperature)
    assert_near(draws(temperature=temperature), expected / expected.sum())


@pytest.mark.parametrize("k", [1, 2, 5, V, 3 * V])
def test_top_k_keeps_the_k_likeliest(k):
    expected = np.where(np.isin(np.arange(V), ORDER[:k]), np.exp(LOGITS), 0)
    assert_near(draws(5000, temperature=1.0, top_k=k), expected / expected.sum(), 5000)


# The cumulative probabilities are 0.30, 0.55, 0.75, 0.85, 0.92, 0.97, 0.99, 1.
@pytest.mark.parametrize("p, kept", [(1e-9, 1), (0.29, 1), (0.31, 2), (0.54, 2), (0.56, 3), (0.9, 5), (1.0, V)])
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    expected = np.where(np.isin(np.arange(V), ORDER[:kept]), np.exp(LOGITS), 0)
    assert_near(draws(5000, temperature=1.0, top_p=p), expected / expected.sum(), 5000)


def test_top_p_counts_within_top_k_and_after_temperature():
    # Temperature 0.5 squares: 0.09, 0.0625, 0.04 of the three likeliest; their shares are 0.468, 0.325, 0.208.
    expected = np.zeros(V)
    expected[ORDER[:2]] = 0.09, 0.0625
    assert_near(draws(5000, temperature=0.5, top_k=3, top_p=0.6), expected / expected.sum(), 5000)


def test_one_seed_one_sequence(model):
    def run(seed):
        options = dict(temperature=1.0, top_k=50, top_p=0.9, rng=np.random.default_rng(seed))
        return list(generate(model, [1, 2, 3], max_new_tokens=10, **options))

    assert run(0) == run(0)
    assert len({tuple(run(seed)) for seed in range(5)}) > 1


def test_logits_far_apart_do_not_overflow():
    logits = np.array([-1e30, 3e4, 2.9e4, -np.inf], np.float32)
    assert draws(100, logits=logits, temperature=0.01)[1] == 1
    assert draws(100, logits=logits, temperature=1.0, top_p=0.999)[1] == 1


def test_sampling_does_not_change_the_logits():
    logits = LOGITS.copy()
    sample(logits, temperature=0.7, top_k=3, top_p=0.9, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(logits, LOGITS)


# ---- generating


def greedy_without_cache(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(model(np.array(ids)).data[0, -1])))
    return ids[len(prompt) :]


@pytest.mark.parametrize("prompt", [[0], [5, 7, 11], list(range(12))])
def test_greedy_generation(model, prompt):
    expected = greedy_without_cache(model, prompt, 4)
    assert list(generate(model, prompt, max_new_tokens=4)) == expected
    for limits in ({"top_k": 1}, {"top_p": 1e-9}):
        options = dict(temperature=1.7, rng=np.random.default_rng(0), **limits)
        assert list(generate(model, prompt, max_new_tokens=4, **options)) == expected


def test_prompt_may_be_any_iterable(model):
    expected = list(generate(model, [3, 4], max_new_tokens=3))
    assert list(generate(model, iter((3, 4)), max_new_tokens=3)) == expected
    assert list(generate(model, np.array([3, 4], np.int32), max_new_tokens=3)) == expected


def test_it_ends_before_the_stop_token(model):
    def run(stop):
        options = dict(temperature=1.0, rng=np.random.default_rng(0), max_new_tokens=12)
        return list(generate(model, [1, 2, 3], stop=stop, **options))

    tokens = run(None)
    assert len(set(tokens)) > 3
    for stop in tokens:
        assert run(stop) == run(np.int64(stop)) == tokens[: tokens.index(stop)]
    for stops in ({tokens[5], tokens[3]}, (tokens[3], 340), [tokens[3], tokens[3]]):
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


def test_each_token_comes_as_soon_as_it_is_chosen(model, monkeypatch):
    calls = []
    monkeypatch.setattr("tinyft.inference.generate.decode_one_token",
                        lambda *args: calls.append(1) or decode_one_token(*args))
    tokens = generate(model, [1, 2, 3], max_new_tokens=3)
    for expected in (0, 1, 2):
        next(tokens)
        assert len(calls) == expected
    assert list(tokens) == [] and len(calls) == 2


@pytest.mark.parametrize("length", [0, 16, 17])
def test_a_prompt_that_is_empty_or_leaves_no_room(model, length):
    with pytest.raises(ValueError, match=f"prompt has {length} tokens, expected 1 to 15"):
        list(generate(model, [1] * length))


@pytest.mark.parametrize("token", [-1, 340])
def test_a_prompt_with_a_token_that_the_model_does_not_know(model, token):
    with pytest.raises(IndexError, match="expected 0 to 339"):
        list(generate(model, [1, token]))


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0},
                                     {"temperature": 1.0, "top_p": -0.1}, {"temperature": 1.0, "top_k": -1},
                                     {"temperature": float("nan")}])
def test_sampling_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(name for name in ("top_p", "top_k", "temperature") if name in options)):
        sample(LOGITS, rng=np.random.default_rng(0), **options)


def test_logits_that_are_no_numbers():
    with pytest.raises(ValueError):
        sample(np.full(V, np.nan), temperature=1.0, rng=np.random.default_rng(0))


# ---- streaming


def pieces(tokens, tokenizer):
    return list(stream_text(tokens, tokenizer))


@pytest.mark.parametrize("text", [*NASTY_TEXTS, CORPUS])
def test_streamed_text_is_the_text(tokenizer, text):
    parts = pieces(tokenizer.encode_ordinary(text), tokenizer)
    assert "".join(parts) == text
    assert "" not in parts
    assert "\ufffd" not in "".join(parts)


def test_a_character_waits_until_it_is_whole(tokenizer):
    tokens = tokenizer.encode_ordinary("aꙮb")
    assert len(tokens) == 5  # three bytes that are never merged
    assert pieces(tokens, tokenizer) == ["a", "ꙮ", "b"]
    assert pieces(tokens[:3], tokenizer) == ["a", "\ufffd"]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_streaming_any_tokens_is_decoding_them_all(tokenizer, data):
    tokens = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    assert "".join(stream_text(tokens, tokenizer)) == tokenizer.decode(tokens)


def test_tokens_that_only_the_model_has_are_left_out(tokenizer):
    a, b = tokenizer.encode_ordinary("a") + tokenizer.encode_ordinary("b")
    assert pieces([a, tokenizer.n_vocab, b, tokenizer.n_vocab + 5], tokenizer) == ["a", "b"]


def test_reply(model, tokenizer):
    prompt = "The cat sat"
    ids = tokenizer.encode_ordinary(prompt)
    tokens = list(generate(model, ids, max_new_tokens=8, stop=tokenizer.eot_token))
    known = [token for token in tokens if token < tokenizer.n_vocab]
    assert reply(model, tokenizer, prompt, max_new_tokens=8) == tokenizer.decode(known).strip()
