"""How likely texts are, against the model that the engine is made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_model

from tinyft import Engine, no_grad
from tinyft.inference import scores as scores_module
from tinyft.inference.scores import log_probabilities, log_probabilities_of_all, score_each

CONTEXT = 40
MODEL = make_model(seed=5, n_positions=CONTEXT)
ENGINE = Engine(MODEL, max_rows=3)
V = MODEL.config.vocab_size


def expected(prompt, continuation):
    """(log-probabilities, likeliest tokens) from a whole pass without the last token, which nothing follows."""
    ids = [*prompt, *continuation]
    with no_grad():
        logits = MODEL(np.array(ids[:-1])).data[0, len(prompt) - 1 :].astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return [row[token] for row, token in zip(logits, continuation, strict=True)], logits.argmax(axis=1).tolist()


def assert_right(found, prompt, continuation):
    if not continuation:
        assert found == []
        return
    logprobs, likeliest = expected(prompt, continuation)
    np.testing.assert_allclose([score.logprob for score in found], logprobs, atol=2e-5)
    assert [score.likeliest for score in found] == likeliest
    assert [score.token for score in found] == list(continuation)


tokens = st.integers(0, V - 1)
PAIRS = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=5), st.lists(tokens, max_size=3)), min_size=1,
                 max_size=9)


@settings(max_examples=40)
@given(PAIRS, st.lists(tokens, min_size=1, max_size=4), st.integers(0, 20))
def test_pairs_in_any_order(pairs, choices, length):
    """Some of them choices of one question, which differ in the last token."""
    question = [1] * (length + 1)
    pairs = [*pairs, *((question, [2, choice]) for choice in choices), *((question, [choice]) for choice in choices)]
    for (prompt, continuation), found in zip(pairs, log_probabilities_of_all(ENGINE, pairs), strict=True):
        assert_right(found, prompt, continuation)


def test_choices_that_differ_in_their_last_token_cost_one_pass(monkeypatch):
    submitted = []

    def carry_out(scheduler, requests, **options):
        submitted.extend(requests)
        return original(scheduler, requests, **options)

    original = scores_module.carry_out
    monkeypatch.setattr(scores_module, "carry_out", carry_out)
    pairs = [([1, 2, 3], [choice]) for choice in (4, 5, 6, 4)] + [([1, 2], [3, 4])]
    steps = ENGINE.scheduler.counts.prompt_tokens if ENGINE.scheduler else 0
    log_probabilities_of_all(ENGINE, pairs)
    assert len(submitted) == 2, "the same tokens, but another place from which on they are scored"
    assert ENGINE.scheduler.counts.prompt_tokens - steps == 8


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1])
@pytest.mark.parametrize("n_scored", [1, 7, CONTEXT - 2])
def test_a_whole_context_and_the_token_after_it(length, n_scored, rng):
    ids = rng.integers(V, size=length).tolist()
    prompt, continuation = ids[:-n_scored], ids[-n_scored:]
    assert_right(log_probabilities(Engine(MODEL), prompt, continuation), prompt, continuation)


def test_each_is_told_as_soon_as_it_is_known():
    pairs = [([1] * 30, [2, 3]), ([4], [5]), ([6] * 20, [7])]
    assert sorted(dict(score_each(ENGINE, pairs))) == [0, 1, 2]
    some = score_each(ENGINE, pairs)
    next(some)
    some.close()
    assert ENGINE.scheduler.idle, "what nobody asks for any more is cancelled"


@pytest.mark.parametrize("pairs, words", [
    ([([1], [2]), ([], [2])], "pair 2 has no prompt"),
    ([([1], [2]), ([1] * CONTEXT, [2]), ([1] * CONTEXT, [2, 3])],
     f"pair 3: the prompt has {CONTEXT + 2} tokens, expected 1 to {CONTEXT + 1}"),
    ([([1], [2]), ([1], [V])], f"the token {V}, expected 0 to {V - 1}"),
])
def test_pairs_that_cannot_be_scored(pairs, words):
    with pytest.raises(ValueError, match=words):
        log_probabilities_of_all(ENGINE, pairs)
    assert ENGINE.scheduler.idle
