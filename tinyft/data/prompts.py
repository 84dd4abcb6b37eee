"""The text around an instruction: what a model is asked with."""

from collections.abc import Callable

from .entries import Entry

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def _alpaca(entry: Entry, preamble: str) -> str:
    question = f"\n\n### Instruction:\n{entry.instruction}"
    if entry.input:
        question += f"\n\n### Input:\n{entry.input}"
    return f"{preamble}{question}\n\n### Response:\n"


def alpaca_prompt(entry: Entry) -> str:
    """Alpaca's form with one preamble, as in chapter 7 of "Build a Large Language Model (From Scratch)"."""
    return _alpaca(entry, PREAMBLE)


def stanford_prompt(entry: Entry) -> str:
    """Stanford's own: another preamble where there is an input."""
    return _alpaca(entry, PREAMBLE_WITH_INPUT if entry.input else PREAMBLE)


def phi3_prompt(entry: Entry) -> str:
    """Phi-3's form: two short marks instead of a preamble."""
    return f"<|user|>\n{entry.instruction}" + (f"\n{entry.input}" if entry.input else "") + "\n<|assistant|>\n"


PROMPT_STYLES: dict[str, Callable[[Entry], str]] = {
    "alpaca": alpaca_prompt, "stanford": stanford_prompt, "phi3": phi3_prompt,
}
