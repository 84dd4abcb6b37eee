"""Choosing the next token: every rule and all of them together against a reference in plain Python, draws, errors."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinyft.inference.sampling import Chooser, Sampling

V = 8
LOGITS = np.log(np.array([0.02, 0.3, 0.05, 0.2, 0.01, 0.25, 0.07, 0.1]))
ORDER = [1, 5, 3, 7, 6, 2, 0, 4]
NEAREST_TO_ONE = 1 - 2**-53  # the greatest number that a generator draws


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def chooser(prompt=(), ends=(), vocab_size=V, rng=None, reply=(), **options):
    """A chooser whose reply has already got the tokens of `reply`."""
    made = Chooser(Sampling(**options), prompt, ends, vocab_size, rng or Fixed())
    for token in reply:
        follow(made, token)
    return made


def follow(made, token):
    """Have a chooser choose a token, whatever its settings: logits 1e6 above the others outweigh them."""
    rng, made.rng = made.rng, Fixed(0.5)
    logits = np.zeros(made.vocab_size)
    logits[token] = 1e6
    assert made.choose(logits) == token
    made.rng = rng


def distribution(made, logits=LOGITS):
    """Probabilities (V,) of the next token."""
    ids, probabilities = made.probabilities(logits)
    assert np.all(np.diff(ids) > 0) and np.all(probabilities > 0)
    whole = np.zeros(len(logits))
    whole[ids] = probabilities
    return whole


def assert_near(shares, probabilities, count):
    """Within 4.5 standard deviations, and exactly none where the probability is 0."""
    deviation = np.sqrt(probabilities * (1 - probabilities) / count)
    assert np.all(np.abs(shares - probabilities) <= 4.5 * deviation)


def only(kept, logits=LOGITS):
    """The probabilities of these tokens among themselves."""
    expected = np.where(np.isin(np.arange(len(logits)), kept), np.exp(logits), 0)
    return expected / expected.sum()


# ---- the reference: one step after the other, token by token


def changed_logits(logits, options, prompt, reply, ends):
    """Bias, penalties, minimum length."""
    scores = [float(logit) for logit in logits]
    for token in range(len(scores)):
        scores[token] += options.get("logit_bias", {}).get(token, 0.0)
        if token in [*prompt, *reply]:
            penalty = options.get("repetition_penalty", 1.0)
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        if token in reply:
            scores[token] -= options.get("presence_penalty", 0.0)
            scores[token] -= list(reply).count(token) * options.get("frequency_penalty", 0.0)
        if token in ends and len(reply) < options.get("min_new_tokens", 0):
            scores[token] = -math.inf
    return scores


def shares_of(scores, kept):
    best = max(scores[token] for token in kept)
    weights = {token: math.exp(scores[token] - best) for token in kept}
    return {token: weight / math.fsum(weights.values()) for token, weight in weights.items()}


def limited(scores, temperature=1.0, top_k=None, top_p=None, min_p=None, **_):
    """Probabilities after the limits, and how near two numbers came that are compared and not the same."""
    scores = [score / temperature for score in scores]
    margin = min([1.0, *(low - high for high, low in itertools.pairwise(sorted({-score for score in scores})))])
    kept = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if top_k is not None:
        kept = [token for token in kept if sum(other > scores[token] for other in scores) < top_k]
    if top_p is not None and top_p < 1:
        shares, before, left = shares_of(scores, kept), 0.0, []
        for token in kept:
            margin = min(margin, abs(before - top_p))
            if before < top_p:
                left.append(token)
            before += shares[token]
        kept = left
    if min_p is not None:
        shares = shares_of(scores, kept)
        bound = min_p * max(shares.values())
        margin = min([margin, *(abs(share - bound) for share in shares.values() if share != bound)])
        kept = [token for token in kept if shares[token] >= bound]
    shares = shares_of(scores, kept)
    return np.array([shares.get(token, 0.0) for token in range(len(scores))]), margin


TOKENS = st.integers(0, V - 1)
QUARTERS = st.integers(-16, 16).map(lambda number: number / 4)  # coarse, so that there are ties
SETTINGS = {
    "temperature": st.floats(0.1, 3), "top_k": st.none() | st.integers(1, V + 2),
    "top_p": st.none() | st.floats(0.01, 1), "min_p": st.none() | st.floats(0, 1),
    "repetition_penalty": st.floats(0.5, 2), "presence_penalty": QUARTERS, "frequency_penalty": QUARTERS,
    "logit_bias": st.dictionaries(TOKENS, QUARTERS | st.just(-math.inf), max_size=3),
    "min_new_tokens": st.integers(0, 4),
}
CASES = dict(
    logits=st.lists(QUARTERS | st.floats(-5, 5, width=32) | st.just(-math.inf), min_size=V, max_size=V),
    prompt=st.lists(TOKENS, max_size=4), reply=st.lists(TOKENS, max_size=4), ends=st.sets(TOKENS, max_size=2),
    dtype=st.sampled_from([np.float32, np.float64]),
)


def check_against_the_reference(options, logits, prompt, reply, ends, dtype):
    scores = changed_logits(logits, options, prompt, reply, ends)
    assume(max(logits) > -math.inf and max(scores) > -math.inf)
    # `follow` chooses an end token only once it may be chosen.
    assume(not any(token in ends for token in reply[: options.get("min_new_tokens", 0)]))
    assume(all(options.get("logit_bias", {}).get(token) != -math.inf for token in reply))
    made = chooser(prompt, ends, reply=reply, **options)
    logits = np.array(logits, dtype)
    logits.flags.writeable = False
    if options.get("temperature", 0.0) == 0:
        assert distribution(made, logits)[np.argmax(scores)] == 1
        assert made.choose(logits) == np.argmax(scores)
        return
    expected, margin = limited(scores, **options)
    assume(margin > 1e-9)
    actual = distribution(made, logits)
    np.testing.assert_array_equal(actual > 0, expected > 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "temperature"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_each_setting_is_the_reference(name, temperature, data):
    options = {"temperature": temperature, name: data.draw(SETTINGS[name])}
    check_against_the_reference(options, **data.draw(st.fixed_dictionaries(CASES)))


@settings(deadline=None, max_examples=300)
@given(options=st.fixed_dictionaries({}, optional=SETTINGS), case=st.fixed_dictionaries(CASES))
def test_all_settings_together_are_the_reference(options, case):
    check_against_the_reference(options, **case)


# ---- each rule by hand


def test_temperature_0_is_the_likeliest():
    assert chooser().choose(LOGITS) == ORDER[0]
    assert chooser(temperature=0, top_k=3, top_p=0.5, min_p=0.9).choose(LOGITS) == ORDER[0]


def test_of_equally_likely_ones_the_lowest_id_is_chosen():
    assert chooser().choose(np.array([0.0, 3.0, 1.0, 3.0, 3.0, 0.0, 0.0, 0.0])) == 1
    assert chooser(logit_bias={6: 2.0, 4: 2.0}).choose(np.zeros(V, np.float32)) == 4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_sharpens_and_flattens(temperature):
    expected = np.exp(LOGITS) ** (1 / temperature)
    np.testing.assert_allclose(distribution(chooser(temperature=temperature)), expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, V, 3 * V])
def test_top_k_keeps_the_k_likeliest(k):
    np.testing.assert_allclose(distribution(chooser(temperature=1.0, top_k=k)), only(ORDER[:k]), rtol=1e-12)


def test_all_that_are_as_likely_as_the_last_of_top_k_stay():
    logits = np.array([2.0, 1.0, 1.0, 0.0, 1.0, -np.inf, -np.inf, 0.5])
    for k, kept in ((1, [0]), (2, [0, 1, 2, 4]), (4, [0, 1, 2, 4]), (5, [0, 1, 2, 4, 7]), (7, [0, 1, 2, 3, 4, 7])):
        expected = only(kept, logits)
        np.testing.assert_allclose(distribution(chooser(temperature=1.0, top_k=k), logits), expected, rtol=1e-12)


# The cumulative probabilities are 0.30, 0.55, 0.75, 0.85, 0.92, 0.97, 0.99, 1.
@pytest.mark.parametrize("p, kept", [(1e-9, 1), (1e-300, 1), (0.29, 1), (0.31, 2), (0.54, 2), (0.56, 3), (0.9, 5),
                                     (0.995, V), (1.0, V), (1, V)])
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    np.testing.assert_allclose(distribution(chooser(temperature=1.0, top_p=p)), only(ORDER[:kept]), rtol=1e-12)


@pytest.mark.parametrize("p, kept", [(1e-300, 1), (1e-17, 1), (0.125, 1), (0.126, 2), (0.5, 4), (0.75, 6), (0.76, 7),
                                     (1 - 2**-53, V)])
def test_of_equally_likely_ones_top_p_keeps_those_with_the_lowest_ids(p, kept):
    """Eighths are exact, so that a sum that is p exactly is enough."""
    expected = np.where(np.arange(V) < kept, 1 / kept, 0)
    np.testing.assert_allclose(distribution(chooser(temperature=1.0, top_p=p), np.full(V, 3.0)), expected, rtol=1e-12)


def test_top_p_cuts_within_a_tie_that_has_likelier_ones_above_it():
    logits = np.log(np.array([0.125, 0.25, 0.125, 0.25, 0.125, 0.0625, 0.0625, 1e-9]))
    np.testing.assert_allclose(distribution(chooser(temperature=1.0, top_p=0.7), logits), only([0, 1, 2, 3], logits))


def test_top_p_counts_within_top_k_and_after_temperature():
    # Temperature 0.5 squares: 0.09, 0.0625, 0.04 of the three likeliest; their shares are 0.468, 0.325, 0.208.
    expected = np.zeros(V)
    expected[ORDER[:2]] = 0.09, 0.0625
    made = chooser(temperature=0.5, top_k=3, top_p=0.6)
    np.testing.assert_allclose(distribution(made), expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("p, kept", [(0, V), (0.03, V), (0.04, 7), (0.3, 4), (0.34, 3), (0.8, 2), (0.9, 1), (1, 1)])
def test_min_p_is_a_share_of_the_likeliest(p, kept):
    np.testing.assert_allclose(distribution(chooser(temperature=1.0, min_p=p)), only(ORDER[:kept]), rtol=1e-12)


def test_min_p_1_keeps_all_that_are_likeliest():
    logits = np.array([1.0, 2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(distribution(chooser(temperature=0.3, min_p=1.0), logits), only([1, 2, 4], logits))


def test_min_p_after_temperature():
    # 0.25 / 0.3 is 0.83, its square 0.69
    assert np.count_nonzero(distribution(chooser(temperature=1.0, min_p=0.75))) == 2
    assert np.count_nonzero(distribution(chooser(temperature=0.5, min_p=0.75))) == 1


SCORES = np.array([4.0, 3.0, -1.0, -2.0, 0.0, 1.0, 2.0, -3.0])


def assert_scores(made, expected):
    """Compared by the distribution at temperature 1, which is the softmax of the scores."""
    assert made.sampling.temperature == 1
    np.testing.assert_allclose(distribution(made, SCORES), np.exp(expected) / np.exp(expected).sum(), rtol=1e-12)


def test_repetition_penalty_moves_logits_down_whatever_their_sign_and_once_only():
    made = chooser(prompt=[0, 2, 0], reply=[2, 7, 4], temperature=1.0, repetition_penalty=2.0)
    assert_scores(made, [2.0, 3.0, -2.0, -2.0, 0.0, 1.0, 2.0, -6.0])


def test_presence_penalty_counts_a_token_of_the_reply_once():
    made = chooser(prompt=[0, 1], reply=[1, 3, 3, 3], temperature=1.0, presence_penalty=0.5)
    assert_scores(made, [4.0, 2.5, -1.0, -2.5, 0.0, 1.0, 2.0, -3.0])


def test_frequency_penalty_counts_every_time_that_a_token_is_in_the_reply():
    made = chooser(prompt=[0, 1, 1], reply=[1, 3, 3, 3], temperature=1.0, frequency_penalty=0.5)
    assert_scores(made, [4.0, 2.5, -1.0, -3.5, 0.0, 1.0, 2.0, -3.0])
    made = chooser(reply=[5, 5], temperature=1.0, frequency_penalty=-1.0, presence_penalty=-0.5)
    assert_scores(made, [4.0, 3.0, -1.0, -2.0, 0.0, 3.5, 2.0, -3.0])


def test_bias_comes_before_the_repetition_penalty_and_the_other_penalties_after_it():
    # (4 - 6) * 2 = -4 where the bias comes first, and (4 - 6) / 2 where it comes last; then 1 off.
    made = chooser(reply=[0], temperature=1.0, repetition_penalty=2.0, logit_bias={0: -6.0}, presence_penalty=1.0)
    assert_scores(made, [-5.0, *SCORES[1:]])


def test_bias_forbids_a_token():
    assert chooser(logit_bias={1: -math.inf}).choose(LOGITS) == ORDER[1]
    assert distribution(chooser(temperature=1.0, logit_bias={1: -math.inf}))[1] == 0


def test_the_penalties_count_what_is_chosen():
    made = chooser(frequency_penalty=1.5)
    assert [made.choose(SCORES) for _ in range(7)] == [0, 1, 0, 6, 1, 0, 5]


@pytest.mark.parametrize("ends", [[0, 1], {1, 0}, (1, 0, V, 99, -1), np.array([0, 1])])
def test_a_reply_does_not_end_before_it_has_min_new_tokens(ends):
    made = chooser(ends=ends, min_new_tokens=2)
    assert [made.choose(SCORES) for _ in range(4)] == [6, 6, 0, 0]
    assert chooser(ends=ends, min_new_tokens=2).choose(np.arange(8.0)) == 7


def test_the_likeliest_is_chosen_alone_only_where_nothing_has_a_say():
    assert chooser().is_plain_greedy
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"logit_bias": {2: 0.0}}, {"min_new_tokens": 5}):
        assert chooser(**options).is_plain_greedy
    for options in ({"temperature": 0.1}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1},
                    {"frequency_penalty": -0.1}, {"logit_bias": {2: 0.1}}, {"logit_bias": {2: 0.0, 3: -math.inf}}):
        made = chooser(**options)
        for _ in range(3):
            assert not made.is_plain_greedy
            follow(made, 5)
    made = chooser(ends=[1], min_new_tokens=2)
    for expected in (False, False, True, True):
        assert made.is_plain_greedy == expected
        follow(made, 5)
    assert chooser(ends=[V], min_new_tokens=2).is_plain_greedy


@settings(deadline=None, max_examples=200)
@given(options=st.fixed_dictionaries({}, optional=SETTINGS), case=st.fixed_dictionaries(CASES))
def test_where_the_choice_is_plain_greedy_it_is_the_argmax(options, case):
    made = chooser(case["prompt"], case["ends"], rng=np.random.default_rng(0), **{**options, "temperature": 0.0})
    for _ in range(6):
        logits = np.array(case["logits"], case["dtype"])
        assume(logits.max() > -np.inf)
        plain = made.is_plain_greedy
        try:
            token = made.choose(logits)
        except ValueError:
            assert not plain
            return
        assert token == np.argmax(logits) or not plain
        assert made.is_plain_greedy or not plain


# ---- drawing


def test_draws_follow_the_probabilities():
    count = 20000
    for options in ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}):
        made = chooser(rng=np.random.default_rng(0), **options)
        shares = np.bincount([made.choose(LOGITS) for _ in range(count)], minlength=V) / count
        expected = distribution(made)
        assert_near(shares, expected, count)
        with pytest.raises(AssertionError):
            assert_near(shares, distribution(chooser(**{**options, "temperature": 0.85})), count)


@settings(deadline=None, max_examples=200)
@given(options=st.fixed_dictionaries({}, optional=SETTINGS), case=st.fixed_dictionaries(CASES),
       number=st.floats(0, NEAREST_TO_ONE))
def test_a_number_falls_into_the_slice_of_its_token(options, case, number):
    options = {**options, "temperature": options.get("temperature", 1.0)}
    logits = np.array(case["logits"])
    assume(logits.max() > -np.inf)
    assume(max(changed_logits(logits, options, case["prompt"], (), case["ends"])) > -math.inf)
    made = chooser(case["prompt"], case["ends"], rng=Fixed(number), **options)
    ends_at = np.cumsum(distribution(made, logits))
    token = made.choose(logits)
    assert ends_at[token] - number > -1e-12
    assert token == 0 or ends_at[token - 1] - number < 1e-12
    assert not made.rng.numbers  # one number for one token


@pytest.mark.parametrize("number", [0.0, 5e-324, NEAREST_TO_ONE])
def test_no_number_draws_a_token_that_has_no_probability(number):
    logits = np.array([-np.inf, -np.inf, 1.0, -np.inf, 2.0, -1e9, -np.inf, -np.inf])
    for options in ({}, {"top_k": 3}, {"top_k": 6}, {"top_p": 0.99}, {"min_p": 0.0}):
        assert chooser(rng=Fixed(number), temperature=1.0, **options).choose(logits) == (4 if number > 0.5 else 2)


def test_the_numbers_at_the_borders_of_a_token():
    logits = np.log(np.array([0.25, 0.25, 0.125, 0.125, 0.125, 0.0625, 0.03125, 0.03125]))
    for number, token in ((0.0, 0), (0.2499, 0), (0.2501, 1), (0.4999, 1), (0.5001, 2), (0.6251, 3), (0.9686, 6),
                          (0.9688, 7), (NEAREST_TO_ONE, 7)):
        assert chooser(rng=Fixed(number), temperature=1.0).choose(logits) == token


def test_one_seed_one_reply():
    def run(seed):
        made = chooser(rng=np.random.default_rng(seed), temperature=1.0, top_p=0.95, repetition_penalty=1.2)
        return [made.choose(LOGITS) for _ in range(20)]

    assert run(0) == run(0)
    assert len({tuple(run(seed)) for seed in range(5)}) == 5


def test_probabilities_do_not_count_as_a_choice():
    made = chooser(temperature=1.0, frequency_penalty=1.0, min_new_tokens=1, ends=[1], rng=Fixed(0.5))
    first = distribution(made)
    np.testing.assert_array_equal(distribution(made), first)
    made.choose(LOGITS)
    assert np.any(distribution(made) != first)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.01},
                                     {"temperature": 1.0}, {"repetition_penalty": 2.0, "logit_bias": {3: 1.0}}])
def test_choosing_does_not_change_the_logits(options, dtype):
    logits = LOGITS.astype(dtype)
    made = chooser(prompt=[1, 2], rng=np.random.default_rng(0), **options)
    made.probabilities(logits)
    made.choose(logits)
    np.testing.assert_array_equal(logits, LOGITS.astype(dtype))


def test_logits_far_apart_do_not_overflow():
    logits = np.array([-1e30, 3e4, 2.9e4, -np.inf], np.float32)
    for options in ({"temperature": 0.01}, {"temperature": 5e-324}, {"temperature": 1.0, "top_p": 0.999}):
        np.testing.assert_array_equal(distribution(chooser(vocab_size=4, **options), logits), [0, 1, 0, 0])
    extremes = np.array([-1e308, 1e308])
    np.testing.assert_array_equal(distribution(chooser(vocab_size=2, temperature=1e-3), extremes), [0, 1])
    np.testing.assert_array_equal(distribution(chooser(vocab_size=2, temperature=1e300), LOGITS[:2]), [0.5, 0.5])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 8), top_p=st.floats(0.01, 0.9999),
       top_k=st.none() | st.integers(1, 3000), dtype=st.sampled_from([np.float32, np.float64]))
def test_limits_of_a_large_vocabulary(seed, spread, top_p, top_k, dtype):
    logits = (spread * np.random.default_rng(seed).standard_normal(3000)).astype(dtype)
    ids, probabilities = chooser(vocab_size=3000, temperature=1.0, top_k=top_k, top_p=top_p).probabilities(logits)
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:top_k]  # ties at top_k are as good as none
    shares = np.exp(logits[order].astype(np.float64) - logits.max())
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    assume(np.abs(before - top_p).min() > 1e-9 and (spread > 1e-3 or spread == 0 and top_k is None))
    assume(top_k is None or len(set(logits[order])) == len(order))
    np.testing.assert_array_equal(ids, np.sort(order[before < top_p]))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_top_p_just_below_1_and_sums_that_rounding_leaves_below_it(seed):
    logits = 4 * np.random.default_rng(seed).standard_normal(3000)
    ids, _ = chooser(vocab_size=3000, temperature=1.0, top_p=NEAREST_TO_ONE).probabilities(logits)
    assert distribution(chooser(vocab_size=3000, temperature=1.0), logits)[ids].sum() > 1 - 1e-12


def test_what_needs_no_sorting_does_not_sort(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("sorted")

    logits = np.random.default_rng(0).standard_normal(50257).astype(np.float32)
    for name in ("sort", "argsort", "lexsort", "argpartition"):
        monkeypatch.setattr(np, name, fail)
    with pytest.raises(AssertionError, match="sorted"):
        chooser(vocab_size=50257, temperature=1.0, top_p=0.9).probabilities(logits)
    chooser(vocab_size=50257, temperature=1.0, top_k=50, min_p=0.1).probabilities(logits)
    monkeypatch.setattr(np, "partition", fail)
    for options in ({}, {"top_p": 1.0}, {"min_p": 0.05}, {"top_k": 50257}, {"repetition_penalty": 1.2}):
        made = chooser(vocab_size=50257, rng=Fixed(0.3), temperature=0.9, **options)
        made.choose(logits)


# ---- errors


WRONG = [("temperature", value) for value in (-0.1, math.inf, math.nan, True, None, "1", 10**400, 1j, np.bool_(True),
                                          np.float32(math.inf), np.float32(math.nan))]
WRONG += [("top_k", value) for value in (0, -1, 1.0, True, math.nan, "5")]
WRONG += [("top_p", value) for value in (0, 0.0, -0.1, 1.01, math.nan, True, "0.9")]
WRONG += [("min_p", value) for value in (-0.1, 1.01, math.nan, math.inf, False)]
WRONG += [("repetition_penalty", value) for value in (0, -1.0, math.inf, math.nan, True, None)]
WRONG += [(name, value) for name in ("presence_penalty", "frequency_penalty")
          for value in (math.inf, -math.inf, math.nan, True, None, "0")]
WRONG += [("min_new_tokens", value) for value in (-1, 1.0, True, None)]
WRONG += [("logit_bias", value) for value in (None, [(1, 2.0)], {1.0: 2.0}, {True: 2.0}, {"1": 2.0}, {-1: 2.0},
                                              {1: math.nan}, {1: math.inf}, {1: None}, {1: True}, {1: "2"})]


@pytest.mark.parametrize("name, value", WRONG)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=rf"^Sampling: {name} .*expected ") as error:
        Sampling(**{name: value})
    assert "\n" not in str(error.value)


def test_numpy_numbers_are_numbers():
    options = dict(temperature=np.float32(0.5), top_k=np.uint8(3), top_p=np.float64(0.9), min_p=np.float32(0.01),
                   repetition_penalty=np.float32(1.5), min_new_tokens=np.int64(2))
    plain = {name: value.item() for name, value in options.items()}
    ours = distribution(chooser(prompt=np.array([5]), ends=[1], logit_bias={np.int64(3): np.float32(1)}, **options))
    theirs = distribution(chooser(prompt=[5], ends=[1], logit_bias={3: 1.0}, **plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert type(chooser().choose(LOGITS)) is int


def test_top_k_0_names_the_remedy():
    with pytest.raises(ValueError, match="top_k is 0, expected an int of at least 1, or None for no limit"):
        Sampling(top_k=0)


def test_temperature_without_a_generator():
    with pytest.raises(ValueError, match="Chooser: a temperature above 0 needs a random generator"):
        Chooser(Sampling(temperature=1.0), [1], [], V, None)
    assert Chooser(Sampling(), [1], [], V, None).choose(LOGITS) == 1


@pytest.mark.parametrize("options, what", [
    ({"logit_bias": {V: 1.0}}, "logit_bias"), ({"logit_bias": {V: 0.0}}, "logit_bias"),
    ({"prompt": [1, V]}, "the prompt"), ({"prompt": [-1]}, "the prompt")])
def test_ids_beyond_the_vocabulary(options, what):
    with pytest.raises(ValueError, match=rf"Chooser: {what} has the token (8|-1), expected ids from 0 to 7; "):
        chooser(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("place", [0, 3, V - 1])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.nan])
def test_logits_that_are_no_numbers(place, wrong, temperature, dtype):
    logits = LOGITS.astype(dtype)
    logits[place] = wrong
    made = chooser(temperature=temperature, rng=Fixed(0.5))
    for ask in (made.choose, made.probabilities):
        with pytest.raises(ValueError, match="the logits are not finite numbers, so the weights can't be"):
            ask(logits)


def test_logits_of_minus_infinity_are_fine_as_long_as_one_is_finite():
    logits = np.full(V, -np.inf)
    with pytest.raises(ValueError, match="not finite"):
        chooser().choose(logits)
    logits[6] = -3.0
    assert chooser().choose(logits) == 6
    assert chooser(temperature=1.0, rng=Fixed(0.999), top_k=4, top_p=0.5).choose(logits) == 6
    assert chooser(prompt=[0, 6], repetition_penalty=1.3, logit_bias={2: 9.0}).choose(logits) == 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", [
    {"logit_bias": dict.fromkeys(range(V), -math.inf)}, {"ends": range(V), "min_new_tokens": 1},
    {"logit_bias": dict.fromkeys(range(6), -math.inf), "ends": [6, 7], "min_new_tokens": 1}])
def test_settings_that_leave_no_token(options, temperature):
    made = chooser(temperature=temperature, rng=Fixed(0.5), **options)
    for ask in (made.choose, made.probabilities):
        with pytest.raises(ValueError, match="choose: no token is left, logit_bias and min_new_tokens forbid all"):
            ask(LOGITS)


def test_a_bias_on_all_tokens_is_no_bias():
    made = chooser(temperature=1.0, logit_bias=dict.fromkeys(range(V), -100.0))
    np.testing.assert_allclose(distribution(made), np.exp(LOGITS), rtol=1e-12)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1e-308}, {"frequency_penalty": -1.7e308},
                                     {"repetition_penalty": 1e-308, "presence_penalty": 1e308,
                                      "frequency_penalty": 1e308}])
def test_settings_that_lead_beyond_float64(options):
    made = Chooser(Sampling(**options), [], [], V, None)
    made._reply.update([1, 1])
    made._seen.add(1)
    with pytest.raises(ValueError, match="a logit is beyond float64 after logit_bias and penalties; use smaller ones"):
        made.choose(LOGITS + 10)


@pytest.mark.parametrize("shape", [(V - 1,), (1, V), ()])
def test_logits_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"choose: the logits are \(.*\), expected \(8,\)"):
        chooser().choose(np.zeros(shape))
