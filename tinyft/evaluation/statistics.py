"""How sure a number is: intervals of means and shares, and how far two judges agree beyond chance."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

DRAWS_AT_A_TIME = 1 << 20  # values drawn at once, which bounds the memory


def bootstrap_interval(values: Sequence[float] | np.ndarray, rng: np.random.Generator, *, level: float = 0.95,
                       resamples: int = 10_000) -> tuple[float, float]:
    """The interval that holds the mean of `values` (N,) at a confidence level; (nan, nan) for no values.

    The values are drawn anew with replacement, N at a time; the interval is between percentiles of the means of those
    resamples (Efron and Tibshirani, "An Introduction to the Bootstrap", 13.3). Of two runs over the same items pass the
    paired differences: what makes an item hard for both is then no noise. ValueError unless values are finite.
    """
    values = np.asarray(values, np.float64)
    _check_level(level)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"bootstrap_interval: expected finite values (N,), got the shape {values.shape}"
                         + ("" if values.ndim != 1 else " with nan or infinity"))
    if resamples < 1:
        raise ValueError(f"bootstrap_interval: {resamples} resamples, expected at least 1")
    if not len(values):
        return math.nan, math.nan
    means, at_a_time = np.empty(resamples), max(1, DRAWS_AT_A_TIME // len(values))
    for begin in range(0, resamples, at_a_time):
        rows = min(at_a_time, resamples - begin)
        means[begin:begin + rows] = values[rng.integers(0, len(values), (rows, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(right: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, `right` of `n`, at a confidence level; (nan, nan) for n = 0.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927). Unlike the mean plus or minus
    two standard errors it stays within 0 and 1, and has a width where all or none are right. `right` may count halves.
    """
    _check_level(level)
    if n < 0 or not 0 <= right <= n:
        raise ValueError(f"wilson_interval: {right} of {n}, expected a number from 0 to n")
    if n == 0:
        return math.nan, math.nan
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / n
    middle = share + z * z / (2 * n)
    width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)
    return (0.0 if right == 0 else max(0.0, low)), (1.0 if right == n else min(1.0, high))  # without rounding errors


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable], *,
                 weights: Literal["linear", "quadratic"] | None = None,
                 labels: Sequence[Hashable] | None = None) -> float:
    """How far two judges agree on the same items beyond chance: 1 always, 0 as chance would have it, below 0 less.

    kappa = 1 - observed disagreement / disagreement expected of two who give labels as often but independently (Cohen,
    "A Coefficient of Agreement for Nominal Scales", 1960). `weights` counts a disagreement by the distance of the two
    labels in the order of `labels` (default: sorted), or by its square (Cohen, "Weighted kappa", 1968). nan where it is
    undefined: no items, or both judges always give one and the same label. ValueError for sequences of different
    length, or a label that isn't in `labels`.
    """
    if len(first) != len(second):
        raise ValueError(f"cohens_kappa: {len(first)} and {len(second)} labels, expected one of each judge for an item")
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"cohens_kappa: weights {weights!r}, expected None, 'linear' or 'quadratic'")
    if labels is None:
        labels = list({*first, *second})
        if weights is not None:
            labels = sorted(labels)
    places = {label: place for place, label in enumerate(labels)}
    if unknown := [label for label in [*first, *second] if label not in places]:
        raise ValueError(f"cohens_kappa: {unknown[0]!r} is not among the labels {list(labels)}")
    counts = np.zeros((len(places), len(places)))
    np.add.at(counts, ([places[label] for label in first], [places[label] for label in second]), 1)
    distance = np.abs(np.subtract.outer(np.arange(len(places)), np.arange(len(places)))).astype(np.float64)
    disagreement = {None: distance > 0, "linear": distance, "quadratic": distance**2}[weights]
    chance = np.outer(counts.sum(axis=1), counts.sum(axis=0))
    expected = (disagreement * chance).sum()
    return float(1 - (disagreement * counts).sum() * len(first) / expected) if expected else math.nan


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level of {level}, expected a number between 0 and 1, such as 0.95")
