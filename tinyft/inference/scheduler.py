"""Many replies at once: requests join and leave a running batch (Yu et al., "Orca: A Distributed Serving System for
Transformer-Based Generative Models", 2022: continuous batching).

Each step of the engine takes one token of every reply that is being written, and as much of waiting prompts as there is
room for. A reply that ends leaves at once, and its place is taken in the next step.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from threading import RLock

import numpy as np

from ..kernels.cached_attention import BLOCK
from ..kernels.loss import losses_and_likeliest
from ..segments import common_prefix
from .cache import GRAIN, Beginnings, Cache, CachedSequence
from .engine import Engine, Span
from .sampling import GREEDY, NO_NUMBERS, Chooser, Sampling

# A prompt waits for another one's beginning to be computed if it saves so many tokens.
WORTH_WAITING = 2 * GRAIN
LOOKED_AT = 256  # that would gain by waiting, before those behind them have to wait as well


@dataclass(frozen=True)
class TokenLogprob:
    """The natural logarithm of a token's probability by the model itself, before temperature and penalties."""

    token: int
    logprob: float
    likeliest: int  # the token that the model would have chosen
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, and theirs


class Request:
    """One reply to make, and what has become of it."""

    def __init__(self, prompt: Sequence[int], *, max_new_tokens: int, ends: Collection[int] = (),
                 sampling: Sampling = GREEDY, rng: np.random.Generator | None = None,
                 top_logprobs: int | None = None, scored_from: int | None = None, alternatives: Sequence[int] = ()):
        """max_new_tokens: 0 for scores of the prompt alone. ends: tokens that end the reply, and don't belong to it.
        rng: for a temperature above 0. top_logprobs: None for no log-probabilities, or of how many of the likeliest
        tokens beside the chosen one. scored_from: also those of the prompt's tokens, from this one on. alternatives:
        tokens that are scored as well, in the place of the last one. ValueError where one of these makes no sense.
        """
        if sampling.temperature > 0 and rng is None:
            raise ValueError("Request: a temperature above 0 needs a random generator, such as "
                             "rng=numpy.random.default_rng(0)")
        ids = np.asarray(list(prompt))
        if len(ids) and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise ValueError(f"Request: the prompt is {ids.dtype} {ids.shape}, expected token ids")
        for name, value in (("max_new_tokens", max_new_tokens), ("top_logprobs", top_logprobs or 0),
                            ("scored_from", scored_from or 0)):
            if not isinstance(value, Integral) or value < 0:
                raise ValueError(f"Request: {name} is {value!r}, expected a whole number of at least 0")
        self.prompt = ids.astype(np.int64)
        self.max_new_tokens, self.ends, self.sampling, self.rng = max_new_tokens, frozenset(ends), sampling, rng
        self.top_logprobs, self.scored_from, self.alternatives = top_logprobs, scored_from, tuple(alternatives)
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.alternative_logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None  # "stop", "length", "cancelled" or "error"
        self.error = ""
        self.n_shared = 0  # tokens of the prompt that were in the cache already
        if scored_from == 0:
            self.prompt_logprobs.append(None)  # nothing comes before the first token

    @property
    def n_read(self) -> int:
        """How many tokens of the prompt are computed. What comes after the last one matters only for a reply."""
        return len(self.prompt) - (self.max_new_tokens == 0)

    @property
    def n_scored(self) -> int:
        """How many tokens of the prompt are scored; nothing comes before the first."""
        return 0 if self.scored_from is None else max(0, len(self.prompt) - max(1, self.scored_from))

    @property
    def may_share(self) -> int:
        """How many tokens of the prompt need not be computed, if they are in the cache.

        The token at i is predicted by what is known after the one at i - 1, which is computed, then.
        """
        return len(self.prompt) - max(1, self.n_scored) - (self.n_scored > 0)


@dataclass
class Counts:
    """Totals since the scheduler was made."""

    prompt_tokens: int = 0
    shared_tokens: int = 0  # of these, not computed
    new_tokens: int = 0
    steps: int = 0


class _Job:
    """A request with what it takes to carry it out."""

    def __init__(self, request: Request, vocab_size: int):
        prompt = request.prompt.tolist()
        self.request, self.sequence = request, CachedSequence(prompt)
        self.chooser = Chooser(request.sampling, prompt, request.ends, vocab_size, request.rng)
        self.in_step = 0  # how many tokens the step at hand computes of it

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be computed."""
        return max(0, self.request.n_read - self.sequence.computed)


class Scheduler:
    """Runs requests on an engine, which it has to itself; see `scheduler_of`. Threads that share it take turns."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.cache = Cache(engine)
        self.counts = Counts()
        self._waiting: OrderedDict[int, _Job] = OrderedDict()  # by the id of their requests
        self._running: list[_Job] = []
        self._lock = RLock()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._running)

    @property
    def n_running(self) -> int:
        """Requests that have a place in the batch."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """ValueError for a request whose prompt is empty, has unknown tokens, or leaves no room."""
        config, prompt = self.engine.config, request.prompt
        # The last token of a prompt that is only scored isn't read itself.
        room = config.n_positions + (-1 if request.max_new_tokens else 1)
        if not 1 <= len(prompt) <= room:
            raise ValueError(f"the prompt has {len(prompt)} tokens, expected 1 to {room} for this model's context of "
                             f"{config.n_positions}; shorten it")
        for what, tokens in (("the prompt has", prompt), ("alternatives have", np.array(request.alternatives, int))):
            wrong = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
            if len(wrong):
                raise ValueError(f"{what} the token {wrong[0]}, expected 0 to {config.vocab_size - 1}")
        beyond = [token for token in request.sampling.logit_bias if token >= config.vocab_size]
        if beyond:
            raise ValueError(f"logit_bias has the token {beyond[0]}, expected ids from 0 to {config.vocab_size - 1}")
        if self._blocks_for(request) > self.engine.n_blocks:
            raise ValueError(f"the prompt and its reply take {self._blocks_for(request)} blocks of the cache, which "
                             f"has {self.engine.n_blocks}; ask for fewer tokens, or make an Engine with more n_blocks")

    def submit(self, request: Request) -> None:
        """Line up a request; ValueError as for `check`."""
        self.check(request)
        if request.max_new_tokens == 0 and request.n_scored == 0:
            request.finish_reason = "length"  # there is nothing to compute
            return
        job = _Job(request, self.engine.config.vocab_size)
        with self._lock:
            self._waiting[id(request)] = job

    def cancel(self, request: Request) -> None:
        """End a request; its place is free at once."""
        with self._lock:
            if self._waiting.pop(id(request), None):
                request.finish_reason = "cancelled"
            for job in [job for job in self._running if job.request is request]:
                self._finish(job, "cancelled")

    def step(self) -> list[Request]:
        """One step of the engine -> the requests that got a token, or ended."""
        with self._lock:
            self._admit()
            jobs = self._share_out()
            return self._compute(jobs) if jobs else []

    def _compute(self, jobs: list[_Job]) -> list[Request]:
        """A step of the engine for those that take part."""
        spans = [self._span(job) for job in jobs]
        places = [(job, job.sequence.computed + job.in_step - span.keep + i)
                  for job, span in zip(jobs, spans, strict=True) for i in range(span.keep)]
        at_once = len(places) <= self.engine.max_rows
        hidden, logits = self.engine.step(spans, logits=at_once)
        self.counts.steps += 1
        for job in jobs:
            was_unread = job.unread
            job.sequence.computed += job.in_step
            if was_unread and not job.unread:
                self.cache.offer(job.sequence)
        changed = []
        for first in range(0, len(places), self.engine.max_rows):
            block = places[first : first + self.engine.max_rows]
            changed += self._note_results(block, logits if at_once else
                                          self.engine.logits(hidden[first : first + len(block)]))
        for job in jobs:
            if job.request.error and job.request.finish_reason is None:
                self._finish(job, "error")
                changed.append(job.request)
            elif job.request.max_new_tokens == 0 and not job.unread:
                self._finish(job, "length")
                changed.append(job.request)
        return changed

    # ---- who takes part

    def _blocks_for(self, request: Request) -> int:
        return -(-self._longest(request) // BLOCK)

    def _longest(self, request: Request) -> int:
        """How many tokens a sequence can have in the cache in the end."""
        return min(len(request.prompt) + request.max_new_tokens, self.engine.config.n_positions)

    def _admit(self) -> None:
        """Give those that wait a place, as long as there are places and blocks."""
        reading = Beginnings()  # prompts that are being read
        for job in self._running:
            if job.unread:
                reading.add(job.sequence, len(job.sequence.tokens))
        rows = sum(job.unread or 1 for job in self._running)
        put_off: list[_Job] = []
        while (self._waiting and len(self._running) < self.engine.max_rows and rows < self.engine.step_rows
               and len(put_off) < LOOKED_AT):
            _, job = self._waiting.popitem(last=False)
            if self._would_gain_by_waiting(job, reading):
                put_off.append(job)
                continue
            shared = self.cache.open(job.sequence, self._longest(job.request), job.request.may_share)
            if shared is None:
                put_off.append(job)
                break
            job.request.n_shared = shared
            self.counts.prompt_tokens += len(job.request.prompt)
            self.counts.shared_tokens += shared
            self._running.append(job)
            reading.add(job.sequence, len(job.sequence.tokens))
            rows += job.unread
        for job in reversed(put_off):
            self._waiting[id(job.request)] = job
            self._waiting.move_to_end(id(job.request), last=False)

    def _would_gain_by_waiting(self, job: _Job, reading: Beginnings) -> bool:
        """Whether a prompt that is being read will have much in common with this one that nobody has computed yet."""
        tokens, most = job.sequence.tokens, job.request.may_share
        other = reading.find(tokens[:most])
        if other is None:
            return False
        return min(most, common_prefix(tokens, other.tokens)) - self.cache.shared_with(tokens, most)[1] >= WORTH_WAITING

    def _share_out(self) -> list[_Job]:
        """Decide how many tokens of whom the next step computes: replies first, then prompts, which can be cut."""
        room = self.engine.step_rows - sum(not job.unread for job in self._running)
        for job in self._running:
            job.in_step = min(room, job.unread) if job.unread else 1
            room -= job.in_step if job.unread else 0
        return [job for job in self._running if job.in_step]

    def _span(self, job: _Job) -> Span:
        sequence, request = job.sequence, job.request
        end = sequence.computed + job.in_step
        keep = int(end >= request.n_read)
        if request.n_scored and job.unread:
            keep = max(keep, end - max(sequence.computed, request.may_share))
        return Span(np.asarray(sequence.tokens[sequence.computed : end]), sequence.computed, sequence.blocks, keep)

    # ---- what comes of it

    def _note_results(self, places: Sequence[tuple[_Job, int]], logits: np.ndarray) -> list[Request]:
        """Take note of what follows tokens, given as (job, position) -> the requests that got a token, or ended."""
        scored, alternatives, last = [], [], []
        for row, (job, position) in enumerate(places):
            following = job.request.prompt[position + 1 :]
            if len(following):
                scored.append((row, job.request, int(following[0])))
            if len(following) == 1:
                alternatives += [(row, job.request, token) for token in job.request.alternatives]
            if not len(following):
                last.append((row, job))
        for request, found in _described(logits, scored):
            request.prompt_logprobs.append(found)
            if math.isnan(found.logprob):
                request.error = NO_NUMBERS
        for request, found in _described(logits, alternatives):
            request.alternative_logprobs.append(found)
        likeliest = np.argmax(logits, axis=1) if last else []
        chosen = [(row, job, self._choose(job, logits[row], int(likeliest[row]))) for row, job in last]
        described = [(row, job.request, token) for row, job, token in chosen
                     if token is not None and job.request.top_logprobs is not None]
        for request, found in _described(logits, described):
            request.logprobs.append(found)
        for _, job, token in chosen:
            if token is not None:
                self._add(job, token)
        return [job.request for _, job in last]

    def _choose(self, job: _Job, logits: np.ndarray, likeliest: int) -> int | None:
        """The next token of a reply; None if it ends before that."""
        request = job.request
        try:
            if request.error:
                raise ValueError(request.error)
            plain = job.chooser.is_plain_greedy and np.isfinite(logits[likeliest])
            token = likeliest if plain else job.chooser.choose(logits)
        except ValueError as error:
            request.error = str(error)
            return self._finish(job, "error")
        return self._finish(job, "stop") if token in request.ends else token

    def _add(self, job: _Job, token: int) -> None:
        """One more token of a reply, which may be its last: a full context gives one that need not fit in itself."""
        request, sequence = job.request, job.sequence
        request.tokens.append(token)
        self.counts.new_tokens += 1
        if len(request.tokens) == request.max_new_tokens or sequence.computed == self.engine.config.n_positions:
            self._finish(job, "length")
        else:
            sequence.tokens.append(token)

    def _finish(self, job: _Job, reason: str) -> None:
        job.request.finish_reason = reason
        self._running.remove(job)
        self.cache.close(job.sequence)


def scheduler_of(engine: Engine) -> Scheduler:
    """The scheduler of an engine, one for all that ask."""
    if engine.scheduler is None:
        engine.scheduler = Scheduler(engine)
    return engine.scheduler


def _described(logits: np.ndarray, wanted: Sequence[tuple[int, Request, int]]) -> list[tuple[Request, TokenLogprob]]:
    """For (row, request, token) what there is to say of each token."""
    if not wanted:
        return []
    rows, requests, tokens = zip(*wanted, strict=True)
    if rows != tuple(range(len(logits))):  # a copy of so many numbers takes a while
        logits = logits[list(rows)]
    return list(zip(requests, describe(logits, tokens, [request.top_logprobs or 0 for request in requests]),
                    strict=True))


def describe(logits: np.ndarray, tokens: Sequence[int], n_top: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of one token a row, and of as many of the likeliest: (R, V), (R,), (R,)."""
    losses, likeliest = losses_and_likeliest(logits, np.asarray(tokens, np.int64))
    lowest = losses_and_likeliest(logits, np.maximum(likeliest, 0))[0] if any(n_top) else losses
    return [TokenLogprob(int(token), -float(losses[row]), int(likeliest[row]),
                         _top(logits[row], n_top[row], likeliest[row], -lowest[row]))
            for row, token in enumerate(tokens)]


def _top(logits: np.ndarray, n: int, likeliest: int, highest: np.ndarray) -> tuple[tuple[int, float], ...]:
    """The n likeliest tokens with their log-probabilities, the first of which is `highest`; of equal ones the first."""
    if n == 0:
        return ()
    least = np.partition(logits, -n)[-n] if n < len(logits) else logits.min()
    candidates = np.flatnonzero(logits >= least)
    order = candidates[np.argsort(-logits[candidates], kind="stable")][:n]
    return tuple((int(i), float((logits[i] - logits[likeliest]) + highest)) for i in order)
