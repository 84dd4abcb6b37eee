"""Intervals and agreement, beside what is known of them."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft.evaluation.statistics import bootstrap_interval, cohens_kappa, wilson_interval

LABELS = ("wrong", "half", "right")
finite = st.floats(-1e6, 1e6)
pairs_of_labels = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), max_size=30)


# ---- bootstrap


def test_bootstrap_is_as_wide_as_the_theory_says(rng):
    values = rng.normal(50, 10, 400)
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    half = NormalDist().inv_cdf(0.975) * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    low, high = bootstrap_interval(values, np.random.default_rng(1), level=0.5)
    assert (high - low) / 2 == pytest.approx(NormalDist().inv_cdf(0.75) * values.std() / 20, rel=0.05)


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(rng.exponential(1.0, 50), rng, level=0.8, resamples=300) for _ in range(400)]
    assert 0.72 < np.mean([low <= 1.0 <= high for low, high in intervals]) < 0.84


@given(st.lists(finite, min_size=1, max_size=40), st.integers(0, 5))
def test_bootstrap_stays_within_the_values(values, seed):
    low, high = bootstrap_interval(values, np.random.default_rng(seed), resamples=50)
    assert min(values) - 1e-6 <= low <= high <= max(values) + 1e-6
    assert (low, high) == bootstrap_interval(np.array(values), np.random.default_rng(seed), resamples=50)


def test_bootstrap_of_many_values_draws_as_many_resamples(monkeypatch):
    monkeypatch.setattr("tinyft.evaluation.statistics.DRAWS_AT_A_TIME", 64)
    low, high = bootstrap_interval(np.arange(50.0), np.random.default_rng(0), resamples=501)
    assert 19 < low < 22 and 27 < high < 30


def test_bootstrap_of_nothing_and_of_one():
    assert all(map(math.isnan, bootstrap_interval([], np.random.default_rng(0))))
    assert bootstrap_interval([7.0], np.random.default_rng(0)) == (7.0, 7.0)


@pytest.mark.parametrize("values, options, said", [
    ([1.0, math.nan], {}, "finite"), ([math.inf], {}, "finite"), ([[1.0], [2.0]], {}, r"\(2, 1\)"),
    ([1.0], {"level": 1.0}, "level"), ([1.0], {"level": 0.0}, "level"), ([1.0], {"resamples": 0}, "resamples"),
])
def test_bootstrap_refuses(values, options, said):
    with pytest.raises(ValueError, match=said):
        bootstrap_interval(values, np.random.default_rng(0), **options)


# ---- Wilson


def test_wilson_solves_its_equation():
    """The ends are where the share is z standard errors away, with the error that the end itself implies."""
    for right, n, level in ((5, 10, 0.95), (81, 263, 0.95), (1, 29, 0.9), (3.5, 7, 0.5)):
        z = NormalDist().inv_cdf((1 + level) / 2)
        for end in wilson_interval(right, n, level=level):
            assert abs(right / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts):
    right, n = counts
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1 and low < high
    mirrored = wilson_interval(n - right, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_of_none_and_all():
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert all(map(math.isnan, wilson_interval(0, 0)))


@pytest.mark.parametrize("right, n", [(-1, 3), (4, 3), (0, -1), (math.nan, 3)])
def test_wilson_refuses(right, n):
    with pytest.raises(ValueError, match="expected a number from 0 to n"):
        wilson_interval(right, n)


# ---- kappa


def test_kappa_by_hand():
    first, second = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(first, second) == pytest.approx((0.7 - 0.5) / 0.5)


def test_weights_forgive_neighbours():
    near = cohens_kappa(["wrong", "half", "right"], ["half", "half", "right"], weights="linear", labels=LABELS)
    far = cohens_kappa(["wrong", "half", "right"], ["right", "half", "right"], weights="linear", labels=LABELS)
    assert far < near
    by_name = cohens_kappa(["wrong", "half", "right"], ["half", "half", "right"], weights="linear")
    assert by_name != near  # in the order of the alphabet half stands before right and wrong


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@given(pairs=pairs_of_labels)
def test_kappa_as_scikit_learn_has_it(weights, pairs):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    ours = cohens_kappa(first, second, weights=weights, labels=LABELS)
    used = {*first, *second}
    if len(used) < 2:
        assert math.isnan(ours)
        return
    theirs = metrics.cohen_kappa_score(first, second, weights=weights, labels=list(LABELS))
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


@given(pairs_of_labels)
def test_kappa_is_symmetric_and_at_most_one(pairs):
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    for weights in (None, "linear", "quadratic"):
        kappa = cohens_kappa(first, second, weights=weights, labels=LABELS)
        assert kappa == pytest.approx(cohens_kappa(second, first, weights=weights, labels=LABELS), nan_ok=True)
        assert math.isnan(kappa) or -1 - 1e-12 <= kappa <= 1
        assert math.isnan(cohens_kappa(first, first)) or cohens_kappa(first, first) == 1


def test_kappa_is_undefined_without_a_choice():
    assert math.isnan(cohens_kappa([], []))
    assert math.isnan(cohens_kappa(["a", "a"], ["a", "a"]))
    assert cohens_kappa(["a", "a"], ["a", "b"]) == 0


@pytest.mark.parametrize("options, said", [
    ({"first": ["a"], "second": []}, "1 and 0 labels"), ({"labels": ["b"]}, "'a' is not among"),
    ({"weights": "cubic"}, "cubic"), ({"first": [None], "second": [0], "labels": [0]}, "None is not among"),
])
def test_kappa_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        cohens_kappa(**{"first": ["a"], "second": ["a"], **options})
