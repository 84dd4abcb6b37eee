"""How likely a text is by the model: of a continuation, token by token, and of a long text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..gpt2 import GPT2
from .engine import Engine
from .generate import carry_out, scheduler_for
from .scheduler import Request, TokenLogprob


def score_each(model: Engine | GPT2, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, top: int = 0,
               what: str = "") -> Iterator[tuple[int, list[TokenLogprob]]]:
    """(number of a pair, what `log_probabilities` gives for it), as soon as each is known; see below."""
    groups: dict[tuple, list[int]] = {}  # of pairs that differ in their last token alone, which cost one pass
    for number, (prompt, continuation) in enumerate(pairs):
        if not len(prompt):
            raise ValueError(f"log_probabilities: pair {number + 1} has no prompt, expected at least one token, such "
                             "as the end-of-text token")
        groups.setdefault((len(prompt), len(continuation) > 0, (*prompt, *continuation[:-1])), []).append(number)
    members, requests = list(groups.values()), []
    for first, *others in members:
        prompt, continuation = pairs[first]
        requests.append(Request([*prompt, *continuation], max_new_tokens=0, top_logprobs=top, scored_from=len(prompt),
                                alternatives=[pairs[other][1][-1] for other in others if len(continuation)]))
    scheduler = scheduler_for(model, len(requests))
    for request, (first, *_) in zip(requests, members, strict=True):
        try:
            scheduler.check(request)
        except ValueError as error:
            raise ValueError(str(error) if len(pairs) == 1 else f"pair {first + 1}: {error}") from None
    for index in carry_out(scheduler, requests, what=what, unit="text"):
        request = requests[index]
        first, *others = members[index]
        yield first, request.prompt_logprobs
        for other, last in zip(others, request.alternative_logprobs or [None] * len(others), strict=True):
            yield other, [*request.prompt_logprobs[:-1], last] if last else []


def log_probabilities_of_all(model: Engine | GPT2, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *,
                             top: int = 0, what: str = "") -> list[list[TokenLogprob]]:
    """For pairs of a prompt and its continuation, as token ids, what `log_probabilities` gives for each.

    What prompts have in common is computed once, and only the places before a token of a continuation meet the
    vocabulary. A pair may have one token more than the context. top: how many of the likeliest tokens to list at each.
    what: progress is shown under this name. ValueError names the pair that has no prompt (give it the end-of-text
    token), or that the context is too short for.
    """
    found = dict(score_each(model, pairs, top=top, what=what))
    return [found[number] for number in range(len(pairs))]


def log_probabilities(model: Engine | GPT2, prompt: Sequence[int], continuation: Sequence[int], *,
                      top: int = 0) -> list[TokenLogprob]:
    """log p(token | all before it) for each token of a continuation, and which token would have been the likeliest."""
    return log_probabilities_of_all(model, [(prompt, continuation)], top=top)[0]


@dataclass(frozen=True)
class TextScore:
    """The sum of log-probabilities of some tokens, and which tokens the model would have chosen at each place."""

    log_probability: float
    likeliest: np.ndarray  # (n_tokens,)

    @property
    def n_tokens(self) -> int:
        """How many tokens were scored."""
        return len(self.likeliest)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN if no token was scored."""
        return math.exp(-self.log_probability / self.n_tokens) if self.n_tokens else math.nan


def windows(n_tokens: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Windows (first, scored_from, end) over a text, so that each token but the first is scored once.

    A window scores what the one before has not, with at least `overlap` tokens before it where there are so many.
    """
    if not 1 <= overlap < window:
        raise ValueError(f"windows: overlap is {overlap}, expected 1 to {window - 1} for windows of {window} tokens")
    found, scored = [], 1
    while scored < n_tokens:
        first = 0 if scored == 1 else scored - overlap
        end = min(n_tokens, first + window)
        found.append((first, scored, end))
        scored = end
    return found


def score_text(model: Engine | GPT2, tokens: Sequence[int], *, window: int | None = None, overlap: int | None = None,
               what: str = "") -> TextScore:
    """Score a text of any length, all but its first token, by windows of the model's context.

    window: tokens that the model sees at once (default: its context). overlap: how many before the first that a window
    scores (default: half of it).
    """
    window = window or model.config.n_positions
    parts = windows(len(tokens), window, max(1, window // 2) if overlap is None else overlap)
    pairs = [(tokens[first:scored], tokens[scored:end]) for first, scored, end in parts]
    found = [score for scores in log_probabilities_of_all(model, pairs, what=what) for score in scores]
    return TextScore(math.fsum(score.logprob for score in found),
                     np.array([score.likeliest for score in found], np.int64))
