"""OpenAI's protocol: replies, written down as the client expects them."""

import json
import math
import time
import uuid
from collections.abc import Iterable, Sequence

import numpy as np

from .protocol import APIError, Asked, Served
from .scheduler import Request, TokenLogprob
from .service import Piece, TextStarts


def make_requests(asked: Asked) -> list[Request]:
    """The requests for the scheduler: for each prompt in turn one for each candidate."""
    wants_scores = asked.echo and asked.logprobs is not None
    ranked = 0 if asked.candidates > asked.n else None  # log-probabilities that choose the best
    requests = []
    for prompt in asked.prompts:
        # A prompt's replies don't depend on what other prompts stand beside it.
        seeds = np.random.SeedSequence(None if asked.seed is None else asked.seed % 2**64).spawn(asked.candidates)
        requests += [Request(prompt, max_new_tokens=asked.max_tokens, ends=asked.ends, sampling=asked.sampling,
                             rng=np.random.default_rng(seed) if asked.sampling.temperature else None,
                             top_logprobs=ranked if asked.logprobs is None else asked.logprobs,
                             # One candidate's scores of the prompt do for all, unless each is sent as it comes.
                             scored_from=0 if wants_scores and (asked.stream or i == 0) else None)
                     for i, seed in enumerate(seeds)]
    return requests


class Writer:
    """Writes the replies to one request down: as one object, or as server-sent events while they come."""

    def __init__(self, asked: Asked, served: Served, requests: Sequence[Request]):
        self.asked, self.tokenizer, self.requests = asked, served.tokenizer, requests
        kind = ("chat.completion.chunk" if asked.stream else "chat.completion") if asked.chat else "text_completion"
        self.head = {"id": ("chatcmpl-" if asked.chat else "cmpl-") + uuid.uuid4().hex, "object": kind,
                     "created": int(time.time()), "model": served.name, "system_fingerprint": served.fingerprint}
        self._begun: set[int] = set()  # replies of which something has been written

    def whole(self, pieces: Iterable[Piece]) -> dict:
        """The answer with all replies, or the best."""
        joined = [Piece(i) for i in range(len(self.requests))]
        for piece in pieces:
            reply = joined[piece.index]
            reply.text += piece.text
            reply.logprobs += piece.logprobs
            reply.finish_reason = piece.finish_reason
        size = self.asked.candidates
        best = [index for first in range(0, len(joined), size)
                for index in sorted(range(first, first + size), key=self._badness)[: self.asked.n]]
        choices = [self._choice(joined[index], place) for place, index in enumerate(best)]
        return {**self.head, "choices": choices, "usage": self.usage()}

    def _badness(self, index: int) -> float:
        """Minus the mean log-probability of a reply's tokens, where the best are to be chosen."""
        scores = [scored.logprob for scored in self.requests[index].logprobs]
        if self.asked.candidates == self.asked.n:
            return 0.0
        return -sum(scores) / len(scores) if scores else math.inf

    def events(self, pieces: Iterable[Piece]) -> str:
        """Pieces as server-sent events."""
        return "".join(self._event([self._choice(piece, piece.index)]) for piece in pieces
                       if piece.text or piece.logprobs or piece.finish_reason)

    def last_events(self) -> str:
        """What ends a stream."""
        usage = self._event([], usage=self.usage()) if self.asked.include_usage else ""
        return usage + "data: [DONE]\n\n"

    def error_event(self, error: APIError) -> str:
        """What ends a stream that can't go on."""
        return f"data: {json.dumps(error.body())}\n\n"

    def _event(self, choices: list[dict], **more) -> str:
        if self.asked.include_usage:
            more = {"usage": None, **more}
        return f"data: {json.dumps({**self.head, 'choices': choices, **more}, separators=(',', ':'))}\n\n"

    def usage(self) -> dict:
        """How many tokens it took. Those of the prompt that needn't be read are `cached_tokens`."""
        size = self.asked.candidates
        read = sum(map(len, self.asked.prompts))
        shared = sum(min(request.n_shared for request in self.requests[first : first + size])
                     for first in range(0, len(self.requests), size))
        written = sum(len(request.tokens) for request in self.requests)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
                "prompt_tokens_details": {"cached_tokens": shared}}

    def _choice(self, piece: Piece, place: int) -> dict:
        """One choice: of a whole reply, or of a piece of one."""
        first = piece.index not in self._begun
        self._begun.add(piece.index)
        choice = {"index": place, "logprobs": None, "finish_reason": piece.finish_reason}
        if not self.asked.chat:
            return choice | self._completion(piece, with_prompt=first and self.asked.echo)
        role = {"role": "assistant"} if first else {}
        choice["delta" if self.asked.stream else "message"] = {**role, "content": piece.text}
        if self.asked.logprobs is not None:
            choice["logprobs"] = {"content": [self._chat_logprob(scored) for _, scored in piece.logprobs]}
        return choice

    def _chat_logprob(self, scored: TokenLogprob) -> dict:
        def named(token: int, logprob: float) -> dict:
            content = self.tokenizer.decode_single_token_bytes(token)
            return {"token": content.decode(errors="replace"), "logprob": logprob, "bytes": list(content)}

        return {**named(scored.token, scored.logprob), "top_logprobs": [named(*pair) for pair in scored.top]}

    def _completion(self, piece: Piece, with_prompt: bool) -> dict:
        request = self.requests[piece.index]
        ids = request.prompt.tolist()
        prompt = self.tokenizer.decode(ids) if self.asked.echo else ""
        text = prompt + piece.text if with_prompt else piece.text
        if self.asked.logprobs is None:
            return {"text": text}
        tokens = [(len(prompt) + start, one.token, one) for start, one in piece.logprobs]
        if with_prompt:
            starts = TextStarts(self.tokenizer)
            scorer = piece.index if self.asked.stream else piece.index - piece.index % self.asked.candidates
            scores = self.requests[scorer].prompt_logprobs
            tokens = [*((starts.add(token), token, one) for token, one in zip(ids, scores, strict=True)), *tokens]
        return {"text": text, "logprobs": {
            "tokens": [self._name(token) for _, token, _ in tokens],
            "token_logprobs": [one and one.logprob for _, _, one in tokens],
            "top_logprobs": [one and {self._name(token): logprob
                                      for token, logprob in (*one.top, (one.token, one.logprob))}
                             for _, _, one in tokens],
            "text_offset": [start for start, _, _ in tokens],
        }}

    def _name(self, token: int) -> str:
        """A token as text; one that is a part of a character as OpenAI spells it."""
        content = self.tokenizer.decode_single_token_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
