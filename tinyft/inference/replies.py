"""The text side of generation: asked in words, answered in words."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral

import numpy as np

from ..data.entries import Entry, Turn
from ..data.prompts import Style, encode_prompt, end_of_reply, find_style
from ..gpt2 import GPT2
from ..tokenizer import Tokenizer
from .engine import Engine
from .generate import carry_out, scheduler_for
from .sampling import Sampling
from .scheduler import Request
from .text import TextStream


def run_all(model: Engine | GPT2, tokenizer: Tokenizer, requests: Sequence[Request], *,
            stop_strings: Sequence[str] = (), what: str = "") -> Iterator[tuple[int, str]]:
    """Carry out requests together -> (its number, the text of its reply) of each as soon as it has ended.

    stop_strings: texts that end a reply. what: progress is shown under this name, if there is one.
    ValueError names the request that can't be carried out; none is, then.
    """
    scheduler = scheduler_for(model, len(requests))
    texts, read = [TextStream(tokenizer, stop_strings) for _ in requests], [0] * len(requests)
    for number in carry_out(scheduler, requests, what=what):
        request, text = requests[number], texts[number]
        for token in request.tokens[read[number] :]:
            text.add(token)
        read[number] = len(request.tokens)
        if text.stopped:
            scheduler.cancel(request)
            request.finish_reason = "stop"
        if request.finish_reason:
            text.finish()
            yield number, text.text


def generators_for(rng: np.random.Generator | None, count: int) -> list[np.random.Generator | None]:
    """A generator for each of several replies, which don't draw in a certain order; for one, rng itself."""
    return [rng] * count if rng is None or count == 1 else rng.spawn(count)


def reply_all(model: Engine | GPT2, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]], *,
              max_new_tokens: int | Sequence[int] = 200, stop: Iterable[int] = (), stop_strings: Sequence[str] = (),
              rng: np.random.Generator | None = None, what: str = "", **sampling) -> list[str]:
    """The replies to many prompts, text or ids, without surrounding space. They are written together.

    max_new_tokens: for all of them, or for each. A reply ends before any of the tokenizer's `stop_tokens`, of those in
    `stop`, and of the texts in stop_strings. rng: several replies draw from generators of their own that come from it.
    what: progress is shown under this name, if there is one. sampling: as for `Sampling`; greedy by default.

    >>> from tinyft import load_engine, reply_all
    >>> engine, tokenizer = load_engine("weights/tiny-world")
    >>> prompts = ["The capital of France is", "The capital of Spain is"]
    >>> reply_all(engine, tokenizer, prompts, max_new_tokens=10, stop_strings=["."])
    ['Paris', 'Madrid']
    """
    if isinstance(prompts, str):
        raise ValueError("reply_all: prompts is one text, expected a list; write [prompt], or use reply")
    lengths = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, Integral) else max_new_tokens
    settings, ends = Sampling(**sampling), frozenset((*tokenizer.stop_tokens, *stop))
    generators = generators_for(rng, len(prompts))
    requests = [Request(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, max_new_tokens=length,
                        ends=ends, sampling=settings, rng=generator)
                for prompt, length, generator in zip(prompts, lengths, generators, strict=True)]
    texts = dict(run_all(model, tokenizer, requests, stop_strings=stop_strings, what=what))
    return [texts[number].strip() for number in range(len(requests))]


def reply(model: Engine | GPT2, tokenizer: Tokenizer, prompt: str | Sequence[int], **options) -> str:
    """The whole reply to one prompt, text or ids, without surrounding space; options as for `reply_all`.

    >>> from tinyft import load_engine, reply
    >>> engine, tokenizer = load_engine("weights/tiny-world")
    >>> reply(engine, tokenizer, "The young of a cow is", max_new_tokens=10, stop_strings=["."])
    'called a calf'
    """
    return reply_all(model, tokenizer, [prompt], **options)[0]


def ask(model: Engine | GPT2, tokenizer: Tokenizer, instruction: str | Sequence[Turn], input: str = "", *,
        prompt_style: str | Style | None = None, **options) -> str:
    """The reply to an instruction, or to a conversation; options as for `reply_all`.

    prompt_style: how it is written down; by default as the tokenizer's chat template says, or Alpaca's way without one.

    >>> from tinyft import ask, load_engine
    >>> engine, tokenizer = load_engine("weights/tiny-world")
    >>> len(ask(engine, tokenizer, "What is the capital of France?", max_new_tokens=8)) > 0  # tune it first
    True
    """
    if input and not isinstance(instruction, str):
        raise ValueError("ask: there is an input beside a conversation; put it into one of its turns")
    turns = (Turn("user", instruction, input),) if isinstance(instruction, str) else instruction
    style = find_style(tokenizer, prompt_style)
    return reply(model, tokenizer, encode_prompt(turns, style, tokenizer),
                 stop=(end_of_reply(style, tokenizer)[1],), **options)


def reply_to_all(model: Engine | GPT2, tokenizer: Tokenizer, entries: Sequence[Entry], style: Style, what: str,
                 limit: Callable[[Entry], int]) -> list[str]:
    """A greedy reply of at most limit(entry) tokens to what each entry asks, with progress under the name `what`.

    No reply, "", where the prompt leaves no room in the context; a line says how many those are.
    """
    context = model.config.n_positions
    prompts = [encode_prompt(entry.asked, style, tokenizer) for entry in entries]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < context]
    replies = [""] * len(entries)
    found = reply_all(model, tokenizer, [prompts[i] for i in fitting], what=what,
                      max_new_tokens=[limit(entries[i]) for i in fitting], stop=(end_of_reply(style, tokenizer)[1],))
    for i, text in zip(fitting, found, strict=True):
        replies[i] = text
    if len(fitting) < len(entries):
        print(f"{what}: no reply to {len(entries) - len(fitting)} of {len(entries)}, whose prompts leave no room in "
              f"the context of {context} tokens")
    return replies
