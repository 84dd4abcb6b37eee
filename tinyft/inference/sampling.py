"""Which token comes next: the model's logits, changed as a reply's settings say, then the likeliest token or a draw."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NO_NUMBERS = "the logits are not finite numbers, so the weights can't be; save or download the model again"
INT = (int, np.integer)
NUMBER = (*INT, float, np.floating)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ValueError names a setting that makes no sense.

    They work one after the other, in this order, which is that of transformers:

    logit_bias: what is added to a token's logit; -inf forbids the token.
    repetition_penalty: logits of tokens in prompt or reply are divided by it, and multiplied where they are below 0, so
    that all get less likely (Keskar et al., "CTRL", 2019, section 4.1, which only divides).
    presence_penalty, frequency_penalty: taken from the logits of the reply's tokens, once, and as often as a token is
    in the reply (OpenAI's API reference). Only here the order is vLLM's: transformers has neither.
    min_new_tokens: before the reply has so many, no token is chosen that ends it.
    temperature: what logits are divided by. 0 takes the likeliest, of several the one with the lowest id; what follows
    is left out then.
    top_k: only the likeliest so many are left (Fan et al., 2018), and those as likely as the last of them.
    top_p: only the fewest that together have this probability are left (Holtzman et al., 2020, section 3.1); of equally
    likely ones those with the lowest ids.
    min_p: only those are left that are at least this share as likely as the likeliest (Nguyen et al., 2024).

    >>> Sampling(temperature=0.8, top_k=40).top_k
    40
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id
    min_new_tokens: int = 0

    def __post_init__(self):
        self._check("temperature", NUMBER, "a finite number of at least 0", lambda value: value >= 0)
        self._check("top_k", INT, "an int of at least 1, or None for no limit", lambda value: value >= 1)
        self._check("top_p", NUMBER, "a share above 0, at most 1, or None for no limit", lambda value: 0 < value <= 1)
        self._check("min_p", NUMBER, "a share from 0 to 1, or None for no limit", lambda value: 0 <= value <= 1)
        self._check("repetition_penalty", NUMBER, "a finite number above 0; 1 is no penalty", lambda value: value > 0)
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, NUMBER, "a finite number; 0 is no penalty", lambda value: True)
        self._check("min_new_tokens", INT, "an int of at least 0", lambda value: value >= 0)
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"Sampling: logit_bias is {self.logit_bias!r}, expected a mapping of token ids to numbers")
        for token, bias in self.logit_bias.items():
            if not _is(token, INT) or token < 0:
                raise ValueError(f"Sampling: logit_bias has the key {token!r}, expected a token id of at least 0")
            if not (_is(bias, NUMBER) and (_is_finite(bias) or bias == -math.inf)):
                raise ValueError(f"Sampling: logit_bias of token {token} is {bias!r}, expected a finite number, or "
                                 "-inf to forbid the token")

    def _check(self, name: str, kind: tuple[type, ...], expected: str, fits: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is None and name in ("top_k", "top_p", "min_p"):
            return
        if not (_is(value, kind) and (kind is INT or _is_finite(value)) and fits(value)):
            raise ValueError(f"Sampling: {name} is {value!r}, expected {expected}")


def _is(value: Any, kind: tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


GREEDY = Sampling()


class Chooser:
    """Chooses the tokens of one reply.

    prompt: the tokens that the reply follows. ends: tokens that end it; those beyond the vocabulary can't come and
    don't matter. rng: where the temperature is above 0; one number is drawn for each token. ValueError if it is
    missing, or the prompt or logit_bias has an id beyond vocab_size.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], ends: Collection[int], vocab_size: int,
                 rng: np.random.Generator | None):
        if sampling.temperature > 0 and rng is None:
            raise ValueError("Chooser: a temperature above 0 needs a random generator (rng)")
        for ids, what in ((sampling.logit_bias, "logit_bias"), (prompt, "the prompt")):
            beyond = [id for id in ids if not 0 <= id < vocab_size]
            if beyond:
                raise ValueError(f"Chooser: {what} has the token {beyond[0]}, expected ids from 0 to {vocab_size - 1}; "
                                 "is it made with this model's tokenizer?")
        bias = {id: value for id, value in sampling.logit_bias.items() if value != 0}
        self.sampling, self.vocab_size, self.rng = sampling, vocab_size, rng
        self._biased, self._bias = np.array(list(bias), np.intp), np.array(list(bias.values()), np.float64)
        self._ends = np.array([id for id in ends if 0 <= id < vocab_size], np.intp)
        self._seen = set(map(int, prompt))
        self._reply = Counter()
        self._owed = sampling.min_new_tokens if len(self._ends) else 0  # tokens still to come before one that ends it

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the argmax of the raw logits is the next choice, and all those after it.

        Once true it stays true, whatever is chosen: tokens that are chosen elsewhere from then on need not be told.
        """
        sampling = self.sampling
        return (sampling.temperature == 0 and not len(self._biased) and sampling.repetition_penalty == 1
                and sampling.presence_penalty == 0 and sampling.frequency_penalty == 0 and not self._owed)

    def choose(self, logits: np.ndarray) -> int:
        """The next token by its logits (V,), float32 or float64. It counts as part of the reply from now on.

        ValueError if the logits are no numbers, or no token is left.
        """
        scores = self._scores(logits)
        if self.sampling.temperature == 0:
            token = int(np.argmax(scores))
        else:
            ids, weights = self._draw_from(scores)
            sums = np.cumsum(weights, out=weights)
            # random() is below 1 by a rounding unit at least, so that the product is below the last sum.
            token = int(ids[np.searchsorted(sums, self.rng.random() * sums[-1], side="right")])
        self._seen.add(token)
        self._reply[token] += 1
        self._owed = max(0, self._owed - 1)
        return token

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `choose` would draw from: token ids (N,), ascending, and their probabilities (N,), all above 0."""
        scores = self._scores(logits)
        if self.sampling.temperature == 0:
            return np.array([np.argmax(scores)]), np.ones(1)
        ids, weights = self._draw_from(scores)
        probabilities = weights / weights.sum()
        possible = np.flatnonzero(probabilities)
        return ids[possible], probabilities[possible]

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        """Logits (V,) after bias, penalties and minimum length, in float64; the greatest is finite."""
        if logits.shape != (self.vocab_size,):
            raise ValueError(f"choose: the logits are {logits.shape}, expected ({self.vocab_size},)")
        if not np.isfinite(logits.max()):
            raise ValueError(NO_NUMBERS)
        scores, sampling = logits.astype(np.float64), self.sampling
        with np.errstate(over="ignore", invalid="ignore"):
            scores[self._biased] += self._bias
            if sampling.repetition_penalty != 1:
                seen = np.fromiter(self._seen, np.intp, len(self._seen))
                before, penalty = scores[seen], sampling.repetition_penalty
                scores[seen] = np.where(before < 0, before * penalty, before / penalty)
            if sampling.presence_penalty or sampling.frequency_penalty:
                tokens = np.fromiter(self._reply, np.intp, len(self._reply))
                counts = np.fromiter(self._reply.values(), np.float64, len(self._reply))
                scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if self._owed:
            scores[self._ends] = -np.inf
        best = scores.max()
        if best == -np.inf:
            raise ValueError("choose: no token is left, logit_bias and min_new_tokens forbid all that the logits "
                             "allow; leave one")
        if not np.isfinite(best):
            raise ValueError("choose: a logit is beyond float64 after logit_bias and penalties; use smaller ones")
        return scores

    def _draw_from(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (N,), ascending, and their probabilities (N,) as shares of the greatest; overwrites scores (V,)."""
        sampling = self.sampling
        with np.errstate(over="ignore", under="ignore"):
            scores -= scores.max()  # first, so that the greatest can't overflow
            scores /= sampling.temperature
            ids = np.arange(len(scores))
            if sampling.top_k is not None and sampling.top_k < len(scores):
                place = len(scores) - int(sampling.top_k)
                ids = np.flatnonzero(scores >= np.partition(scores, place)[place])
                scores = scores[ids]
            weights = np.exp(scores, out=scores)
        if sampling.top_p is not None and sampling.top_p < 1:
            kept = _nucleus(weights, sampling.top_p)
            ids, weights = ids[kept], weights[kept]
        if sampling.min_p is not None:
            kept = weights >= sampling.min_p  # the greatest weight is 1
            ids, weights = ids[kept], weights[kept]
        return ids, weights


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Where the fewest of weights (N,) are that sum up to top_p of them all, the heaviest first."""
    total = weights.sum()
    # Only these need sorting: all that are lighter don't weigh 1 - top_p together (llama2.c's sample_topp).
    descending = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    count = min(1 + np.searchsorted(np.cumsum(descending), top_p * total), len(descending))
    lightest = descending[count - 1]
    kept = weights > lightest
    kept[np.flatnonzero(weights == lightest)[: count - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)
