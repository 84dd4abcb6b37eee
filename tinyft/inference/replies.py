"""The text side of generation: asked in words, answered in words."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..data.entries import Entry, Turn
from ..data.prompts import Style, encode_prompt, end_of_reply, find_style
from ..gpt2 import GPT2
from ..progress import progress
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


def reply_to_all(model: GPT2, tokenizer: Tokenizer, entries: Sequence[Entry], style: Style, what: str,
                 limit: Callable[[Entry], int]) -> list[str]:
    """A greedy reply of at most limit(entry) tokens to what each entry asks, with progress under the name `what`.

    No reply, "", where the prompt leaves no room in the context; a line says how many those are.
    """
    replies, too_long = [], 0
    for entry in progress(entries, what, unit="reply"):
        prompt = encode_prompt(entry.asked, style, tokenizer)
        if len(prompt) < model.config.n_positions:
            replies.append(reply(model, tokenizer, prompt, stop=(end_of_reply(style, tokenizer)[1],),
                                 max_new_tokens=limit(entry)))
        else:
            too_long += 1
            replies.append("")
    if too_long:
        print(f"{what}: no reply to {too_long} of {len(entries)}, whose prompts leave no room in the context of "
              f"{model.config.n_positions} tokens")
    return replies
