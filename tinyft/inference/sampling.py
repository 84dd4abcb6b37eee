"""Which token comes next: a choice by logits."""

import math

import numpy as np


def sample(logits: np.ndarray, *, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
           rng: np.random.Generator | None = None) -> int:
    """Choose a token by its logits (V,).

    temperature 0: the likeliest. Otherwise a draw from softmax(logits / temperature), limited to the top_k
    likeliest tokens, and to the fewest that together have probability top_p (Holtzman et al., 2020).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"sample: temperature is {temperature}, expected a number of at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample: top_k is {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"sample: top_p is {top_p}, expected a share above 0 and at most 1")
    if not np.isfinite(logits.max(initial=-np.inf)):
        raise ValueError("sample: the logits are not finite numbers; are the model's weights?")
    if temperature == 0:
        return int(np.argmax(logits))
    if rng is None:
        raise ValueError("sample: a temperature above 0 needs a random generator (rng)")
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-scaled, kind="stable")[:top_k]
    probabilities = np.exp(scaled[order])
    probabilities /= probabilities.sum()
    if top_p is not None:
        before = np.cumsum(probabilities) - probabilities
        order, probabilities = order[before < top_p], probabilities[before < top_p]
        probabilities /= probabilities.sum()
    return int(rng.choice(order, p=probabilities))
