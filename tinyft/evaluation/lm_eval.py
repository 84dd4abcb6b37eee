"""EleutherAI's lm-evaluation-harness on tinyft's engine (pip install 'tinyft[evaluate]').

The harness decides what is asked and how it is scored; here its three questions are answered: how likely a continuation
is, how likely a whole text is, and what a model writes until a stop string comes.
"""

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..data.entries import Turn
from ..data.prompts import Style, conversation_text, end_of_reply, find_style
from ..inference.engine import Engine
from ..inference.replies import run_all
from ..inference.sampling import Sampling
from ..inference.scheduler import Request
from ..inference.scores import score_each
from ..tokenizer import Tokenizer
from .known_answers import KnownAnswers

# For an engine that scores: more rows share the output layer's weights, and more blocks than these, which take 0.6 GB
# with GPT-2 124M, make it hardly faster.
ENGINE = {"max_rows": 256, "n_blocks": 256}
DEFAULT_MAX_GEN_TOKS = 256  # as with the harness' own models, where a task says nothing
LEAST_ROOM = 4  # a reply gets at least 1 / LEAST_ROOM of the context, if it asks for that
WITHOUT_EFFECT = ("use_cache", "num_beams", "num_return_sequences")  # on the text, unless they are a number above 1
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass
class Notes:
    """What a task's items had done to them to fit into the context."""

    asked: int = 0  # requests
    cut: int = 0  # of them, that lost tokens on the left
    lost_tokens: int = 0
    unscored: int = 0  # continuations longer than the context, whose beginnings are not scored
    short: int = 0  # replies that the end of the context ended, before they had the length that they may have


class TinyftLM(TemplateLM):
    """A model folder's engine and tokenizer as the harness wants to talk to them.

    prompt_style: for chat templates (default: the tokenizer's). known: answers of an earlier, interrupted run. seed:
    for tasks that draw their replies. notes: by task, what had to be cut.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, name: str = "tinyft",
                 prompt_style: str | Style | None = None, known: KnownAnswers | None = None, seed: int = 0):
        super().__init__()
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.style = find_style(tokenizer, prompt_style)
        self.max_length = engine.config.n_positions
        self.known = known or KnownAnswers()
        self.notes: dict[str, Notes] = defaultdict(Notes)
        self.seed = seed

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eot_token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self.tokenizer.bos_tokens[0] if self.tokenizer.bos_tokens else self.tokenizer.eot_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Text -> ids. None for add_special_tokens: as the tokenizer does by itself, but never a second time."""
        if add_special_tokens is None:
            front = self.tokenizer.decode(self.tokenizer.bos_tokens)
            add_special_tokens = not (front and string.startswith(front))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A context and its continuation as ids; they are encoded together, and spaces between belong to the latter."""
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    # ---- how likely

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log p(token), whether each token is the likeliest) of each continuation after its context."""
        pairs = [self._fitted(*self._pair(*request.args), request.task_name) for request in requests]
        return self._scored(pairs, "likelihoods")

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, of any length: each token once, with all before it that fits."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            self.notes[request.task_name].asked += 1
            for window in get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id,
                                                    self.max_length, context_len=1):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._scored(pairs, "windows"), strict=True):
            totals[owner] += logprob
        return totals

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        return self._scored([self._fitted(context, continuation, "") for _, context, continuation in requests], "")

    def _fitted(self, context: list[int], continuation: list[int], task: str | None) -> tuple[list[int], list[int]]:
        """What is left if both together may have one token more than the model sees, since the last one isn't read."""
        notes, most = self.notes[task or ""], self.max_length + 1
        notes.asked += 1
        too_many = len(context) + len(continuation) - most
        if too_many <= 0:
            return context, continuation
        notes.cut += 1
        notes.lost_tokens += too_many
        if len(continuation) >= most:
            notes.unscored += 1
            return continuation[-most:][:1], continuation[-most:][1:]
        return context[too_many:], continuation

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]], what: str) -> list[tuple[float, bool]]:
        keys = [_key("likelihood", pair) for pair in pairs]
        found = {key: self.known.get(key) for key in dict.fromkeys(keys)}
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if found[key] is None}
        names = list(missing)
        for number, scores in score_each(self.engine, list(missing.values()), what=self._titled(what)):
            answer = [sum(score.logprob for score in scores), all(score.token == score.likeliest for score in scores)]
            found[names[number]] = answer
            self.known.put(names[number], answer)
        return [(float(found[key][0]), bool(found[key][1])) for key in keys]

    # ---- what is written

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to a stop string, the end of the text or max_gen_toks."""
        times: Counter = Counter()  # of the same question, where a task wants several replies to it
        plans, keys = [], []
        for request in requests:
            which = request.task_name or "", int(request.doc_id or 0), request.idx
            plans.append(_Plan.of(request, self, (*which, times[which])))
            keys.append(_key("text", plans[-1].identity()))
            times[which] += 1
        found = {key: self.known.get(key) for key in dict.fromkeys(keys)}
        missing = {key: plan for key, plan in zip(keys, plans, strict=True) if found[key] is None}
        for some in _alike(missing):
            running = [missing[key].request() for key in some]
            for number, text in run_all(self.engine, self.tokenizer, running, stop_strings=missing[some[0]].stop,
                                        what=self._titled("replies")):
                request = running[number]
                found[some[number]] = [text, len(request.tokens), request.finish_reason]
                self.known.put(some[number], found[some[number]])
        for request, key, plan in zip(requests, keys, plans, strict=True):
            _, length, reason = found[key]
            self.notes[request.task_name].short += reason == "length" and length < plan.wanted
        return [found[key][0] for key in keys]

    def _titled(self, what: str) -> str:
        return f"{self.name}: {what}" if what else ""

    # ---- conversations

    @property
    def tokenizer_name(self) -> str:
        """What the harness calls the tokenizer in its own caches."""
        return f"{self.name} {self.chat_template()}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that `apply_chat_template` follows, to be noted with the results."""
        return self.style.template(self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, in the model's own prompt style."""
        turns = [Turn(message["role"], message["content"]) for message in chat_history]
        return conversation_text(turns, self.style, self.tokenizer, reply_follows=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What is noted of the model with the results."""
        return {"model": self.name, "model_dtype": self.engine.kept_as, "max_length": self.max_length}


@dataclass
class _Plan:
    """A reply to write. draw: what its random numbers come from, if it is drawn."""

    prompt: list[int]
    room: int  # tokens that it gets
    wanted: int  # tokens that the task would allow
    stop: tuple[str, ...]
    ends: tuple[int, ...]
    sampling: Sampling
    draw: tuple[int, ...] = ()

    @classmethod
    def of(cls, instance: Instance, model: TinyftLM, which: tuple[str, int, int, int]) -> "_Plan":
        """which: the task, its item, the request of that, and how often it was made before."""
        context, options = instance.args
        options = normalize_gen_kwargs(options, DEFAULT_MAX_GEN_TOKS)
        wanted, stop = options.pop("max_gen_toks"), handle_stop_sequences(options.pop("until", None), eos=None)
        sampling = _sampling(options, instance.task_name)
        prompt = model.tok_encode(context) or [model.prefix_token_id]
        # The prompt is kept whole if the reply still gets a fair part of the context, and loses its beginning if not.
        most = model.max_length - min(wanted, model.max_length // LEAST_ROOM)
        notes = model.notes[instance.task_name]
        notes.asked += 1
        notes.cut += len(prompt) > most
        notes.lost_tokens += max(0, len(prompt) - most)
        prompt = prompt[-most:]
        _, end = end_of_reply(model.style, model.tokenizer)
        draw = (model.seed, zlib.crc32(which[0].encode()), *which[1:]) if sampling.temperature else ()
        return cls(prompt, min(wanted, model.max_length - len(prompt)), wanted, tuple(filter(None, stop)),
                   tuple(dict.fromkeys((*model.tokenizer.stop_tokens, end))), sampling, draw)

    def identity(self) -> list:
        """All that its text depends on, but for the model."""
        return [self.prompt, self.room, self.stop, self.ends, asdict(self.sampling), self.draw]

    def request(self) -> Request:
        return Request(self.prompt, max_new_tokens=self.room, ends=self.ends, sampling=self.sampling,
                       rng=np.random.default_rng(self.draw) if self.draw else None)


def _sampling(options: dict[str, Any], task: str | None) -> Sampling:
    """How tokens are chosen, from what a task says; ValueError for what isn't understood and would change the text."""
    draws = options.pop("do_sample", False)
    options = {name: value for name, value in options.items()
               if name not in WITHOUT_EFFECT or value not in (1, True, None, False)}
    unknown = sorted(set(options) - set(SAMPLING))
    if unknown:
        raise ValueError(f"{task}: its generation_kwargs have {', '.join(unknown)}, expected until, max_gen_toks, "
                         f"do_sample or {', '.join(SAMPLING)}; a task of one's own can leave it out")
    if isinstance(options.get("top_k"), float) and options["top_k"].is_integer():
        options["top_k"] = int(options["top_k"])
    options["top_k"] = options.get("top_k") or None  # 0 is no limit, as in transformers
    try:
        if not draws:
            return Sampling(repetition_penalty=options.get("repetition_penalty", 1.0))
        return Sampling(**{"temperature": 1.0, **options})
    except ValueError as error:
        raise ValueError(f"{task}: its generation_kwargs can't be followed: {error}") from None


def _alike(plans: dict[str, _Plan]) -> Iterator[list[str]]:
    """The keys of those with equal stop strings together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, plan in plans.items():
        groups.setdefault(plan.stop, []).append(key)
    yield from groups.values()


def _key(kind: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([kind, value]).encode()).hexdigest()
