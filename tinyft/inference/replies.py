"""The text side of generation: asked in words, answered in words."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from ..data.entries import Turn
from ..data.prompts import Style, encode_prompt, end_of_reply, find_style
from ..gpt2 import GPT2
from ..tokenizer import Tokenizer
from .generate import generate


def stream_text(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens as they come. A character whose bytes are spread over tokens waits until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        text = decoder.decode(tokenizer.decode_single_token_bytes(token))
        if text:
            yield text
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def reply(model: GPT2, tokenizer: Tokenizer, prompt: str | Sequence[int], *, stop: Iterable[int] = (),
          **options) -> str:
    """The whole reply to a prompt, text or ids, without surrounding space; options as for `generate`.

    Ends before any of the tokenizer's `stop_tokens`, and of those in `stop`.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    tokens = generate(model, ids, stop=(*tokenizer.stop_tokens, *stop), **options)
    return "".join(stream_text(tokens, tokenizer)).strip()


def ask(model: GPT2, tokenizer: Tokenizer, instruction: str | Sequence[Turn], input: str = "", *,
        prompt_style: str | Style | None = None, **options) -> str:
    """The reply to an instruction, or to a conversation; options as for `generate`.

    prompt_style: how it is written down; by default as the tokenizer's chat template says, or Alpaca's way without one.
    """
    if input and not isinstance(instruction, str):
        raise ValueError("ask: there is an input beside a conversation; put it into one of its turns")
    turns = (Turn("user", instruction, input),) if isinstance(instruction, str) else instruction
    style = find_style(tokenizer, prompt_style)
    return reply(model, tokenizer, encode_prompt(turns, style, tokenizer),
                 stop=(end_of_reply(style, tokenizer)[1],), **options)
