"""The thread that owns engine and scheduler, and how its tokens get to an event loop.

The scheduler makes one token for each running request in a step. After a step the thread hands all that came of it to
the event loop in one call, so that a server has little work per token, and reads what has been asked meanwhile.
"""

import asyncio
import codecs
import math
import os
import threading
import traceback
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numba

from ..tokenizer import Tokenizer
from .scheduler import Request, Scheduler, TokenLogprob
from .text import TextStream

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@dataclass(frozen=True)
class Limits:
    """What a client may ask for. queue: replies that may wait. seconds: for one request, waiting included."""

    queue: int = 256
    body_bytes: int = 2_000_000
    seconds: float = 600.0


@dataclass
class Piece:
    """What has been added to one reply.

    index: of the reply in its answer. logprobs: tokens whose text has been given out, each with the place in the reply
    where its text begins; only where log-probabilities are asked for. finish_reason: None until the last piece, then
    "stop" or "length".
    """

    index: int
    text: str = ""
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    finish_reason: str | None = None


class TextStarts:
    """Where in a text each of its tokens begins, counted in characters that are whole by then."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._length = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> int:
        """The place of the next token."""
        start = self._length
        self._length += len(self._decoder.decode(self._tokenizer.decode_single_token_bytes(token)))
        return start


class _Reply:
    """One request on its way through the scheduler; the thread's alone."""

    def __init__(self, answer: "Answer", index: int, request: Request, tokenizer: Tokenizer, stop: Sequence[str],
                 logprobs: bool):
        self.answer, self.index, self.request = answer, index, request
        self.text = TextStream(tokenizer, stop)
        self.n_seen = self.n_given = 0  # tokens decoded; those whose log-probabilities have been given out
        self.starts: list[int] = []
        self._count = TextStarts(tokenizer) if logprobs else None

    def advance(self) -> Piece:
        """What the last step has added. The last piece has a reason; where that is a stop string, only it knows."""
        piece, request = Piece(self.index), self.request
        for token in request.tokens[self.n_seen :]:
            piece.text += self.text.add(token)
            if self._count is not None:
                self.starts.append(self._count.add(token))
        self.n_seen = len(request.tokens)
        if request.finish_reason and not self.text.stopped:
            piece.text += self.text.finish()
        piece.finish_reason = "stop" if self.text.stopped else request.finish_reason
        all_given = piece.finish_reason and not self.text.stopped
        given = len(self.starts) if all_given else bisect_left(self.starts, len(self.text.text))
        piece.logprobs = [(self.starts[i], request.logprobs[i]) for i in range(self.n_given, given)]
        self.n_given = max(self.n_given, given)
        return piece


class Answer:
    """The replies to some requests, as the event loop gets them: `async for pieces in answer`.

    Each round gives all pieces that have come since the last. What `end` is given is raised there.
    """

    def __init__(self, service: "Service", requests: Sequence[Request]):
        self.requests, self.n_unfinished = requests, len(requests)
        self._service, self._pieces, self._come = service, [], asyncio.Event()
        self._error: Exception | None = None

    @property
    def running(self) -> bool:
        """Whether more is to come."""
        return self.n_unfinished > 0 and self._error is None

    def end(self, error: Exception) -> None:
        """Give up: the rows are free for others, and whoever reads the pieces gets the error."""
        if self.running:
            self._error = error
            self._come.set()
            self._service.give_up(self)

    def add(self, piece: Piece) -> None:
        """A piece that has come."""
        self._pieces.append(piece)
        self.n_unfinished -= piece.finish_reason is not None
        self._come.set()

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> list[Piece]:
        if not self.n_unfinished and not self._pieces:
            raise StopAsyncIteration
        await self._come.wait()
        if self._error is not None:
            raise self._error
        self._come.clear()
        pieces, self._pieces = self._pieces, []
        return pieces


class Service:
    """Runs a scheduler in a thread of its own. All methods are for the thread of the event loop.

    n_open: replies that have been asked for and are not finished. failure: what the scheduler has raised, after which
    nothing more is answered; on_failure is called then.
    """

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer, on_failure: Callable[[], None] = lambda: None):
        self.scheduler, self.tokenizer, self.on_failure = scheduler, tokenizer, on_failure
        self.n_open, self.failure = 0, ""
        self._replies: dict[int, _Reply] = {}  # by the id() of their requests
        self._new: list[_Reply] = []
        self._open: set[Answer] = set()  # the event loop's
        self._given_up: list[Answer] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(numba.get_num_threads(),), name="engine", daemon=True)

    def start(self) -> None:
        """Begin, with the running event loop as the one to report to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End the thread after the step that it is in."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def ask(self, requests: Sequence[Request], stop: Sequence[str] = (), *, logprobs: bool = False) -> Answer:
        """Queue requests. stop: texts that end a reply. logprobs: whether the pieces are to have log-probabilities.

        RuntimeError once the scheduler has failed.
        """
        if self.failure:
            raise RuntimeError(self.failure)
        answer = Answer(self, requests)
        self._open.add(answer)
        replies = [_Reply(answer, i, request, self.tokenizer, stop, logprobs) for i, request in enumerate(requests)]
        self.n_open += len(requests)
        with self._changed:
            self._new += replies
            self._changed.notify()
        return answer

    def give_up(self, answer: Answer) -> None:
        """Free the rows of an answer that nobody waits for."""
        self.n_open -= answer.n_unfinished
        self._open.discard(answer)
        with self._changed:
            self._given_up.append(answer)
            self._changed.notify()

    # ---- in the thread

    def _run(self, threads: int) -> None:
        numba.set_num_threads(threads)  # which counts for one thread of Python only
        try:
            while self._read_orders():
                stepped = dict.fromkeys(self._replies[id(request)] for request in self.scheduler.step()
                                        if id(request) in self._replies)
                if stepped:
                    self._loop.call_soon_threadsafe(self._deliver, [(r.answer, self._advance(r)) for r in stepped])
        except Exception as error:
            traceback.print_exc()
            self._loop.call_soon_threadsafe(self._fail, f"the engine failed: {type(error).__name__}: {error}")

    def _read_orders(self) -> bool:
        """Wait until there is something to do, and take in what is new; False when it is time to end."""
        with self._changed:
            while self.scheduler.idle and not (self._new or self._given_up or self._closing):
                self._changed.wait()
            new, self._new = self._new, []
            given_up, self._given_up = self._given_up, []
        for reply in new:
            try:
                self.scheduler.submit(reply.request)
            except ValueError as error:
                self._loop.call_soon_threadsafe(reply.answer.end, error)
                continue
            self._replies[id(reply.request)] = reply
            if reply.request.finish_reason:  # there was nothing to compute
                self._loop.call_soon_threadsafe(self._deliver, [(reply.answer, self._advance(reply))])
        for request in (request for answer in given_up for request in answer.requests):
            if self._replies.pop(id(request), None):
                self.scheduler.cancel(request)
        return not self._closing

    def _advance(self, reply: _Reply) -> Piece:
        piece = reply.advance()
        if piece.finish_reason:
            del self._replies[id(reply.request)]
            if reply.request.finish_reason is None:
                self.scheduler.cancel(reply.request)
        return piece

    # ---- back in the event loop

    def _deliver(self, pieces: list[tuple[Answer, Piece]]) -> None:
        for answer, piece in pieces:
            if not answer.running:
                continue
            if piece.finish_reason == "error":
                answer.end(RuntimeError(answer.requests[piece.index].error))
            else:
                answer.add(piece)
                self.n_open -= piece.finish_reason is not None
                if not answer.n_unfinished:
                    self._open.discard(answer)

    def _fail(self, message: str) -> None:
        self.failure = message
        for answer in list(self._open):
            answer.end(RuntimeError(message))
        self.on_failure()


# ---- what Prometheus reads


class Histogram:
    """Counts of durations, as Prometheus wants them."""

    def __init__(self, buckets: tuple[float, ...]):
        self.buckets, self.counts, self.sum = (*buckets, math.inf), [0] * (len(buckets) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.sum += seconds
        self.counts[next(i for i, bucket in enumerate(self.buckets) if seconds <= bucket)] += 1

    @property
    def mean(self) -> float:
        """0 without any."""
        return self.sum / max(1, sum(self.counts))

    def lines(self, name: str) -> list[str]:
        """The text form."""
        total, lines = 0, []
        for bucket, count in zip(self.buckets, self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{"+Inf" if bucket == math.inf else f"{bucket:g}"}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """How a server does. statuses: how many requests to a path ended with an HTTP status."""

    def __init__(self):
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.first_token_seconds, self.request_seconds = Histogram(FIRST_TOKEN_BUCKETS), Histogram(REQUEST_BUCKETS)

    def text(self, service: Service) -> str:
        """All in Prometheus' text form."""
        scheduler, counts = service.scheduler, service.scheduler.counts
        metrics = [
            ("tinyft_requests_total", "counter", "requests by path and status (499: the client went away)",
             [f'tinyft_requests_total{{path="{path}",status="{status}"}} {count}'
              for (path, status), count in sorted(self.statuses.items())]),
            ("tinyft_prompt_tokens_total", "counter", "tokens of prompts", counts.prompt_tokens),
            ("tinyft_shared_tokens_total", "counter", "of these not computed, since another request had",
             counts.shared_tokens),
            ("tinyft_new_tokens_total", "counter", "tokens of replies", counts.new_tokens),
            ("tinyft_steps_total", "counter", "steps of the engine", counts.steps),
            ("tinyft_replies_running", "gauge", "replies that have a row in the batch", scheduler.n_running),
            ("tinyft_replies_waiting", "gauge", "replies that wait for a row", scheduler.n_waiting),
            ("tinyft_replies_open", "gauge", "replies that clients wait for", service.n_open),
            ("tinyft_first_token_seconds", "histogram", "from a request to its first token",
             self.first_token_seconds.lines("tinyft_first_token_seconds")),
            ("tinyft_request_seconds", "histogram", "from a request to the end of its answer",
             self.request_seconds.lines("tinyft_request_seconds")),
            ("process_resident_memory_bytes", "gauge", "memory that the process holds", _resident_bytes()),
        ]
        lines = []
        for name, kind, help, values in metrics:
            values = values if isinstance(values, list) else [f"{name} {values}"]
            lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *values]
        return "\n".join(lines) + "\n"


def _resident_bytes() -> int:
    """0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
