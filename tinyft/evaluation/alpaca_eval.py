"""AlpacaEval: a model's answers to its instructions, as a file that the package alpaca_eval ranks (Li et al. 2023).

alpaca_eval compares such a file with another model's answers to the same instructions, and has a judge say which is
better. The instructions are the data set tatsu-lab/alpaca_eval's alpaca_eval.json.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from ..data.entries import Turn
from ..data.prompts import Style, encode_prompt, end_of_reply, find_style
from ..files import check_replaceable, read_json, write_json
from ..gpt2 import GPT2
from ..inference.engine import Engine
from ..inference.replies import run_all
from ..inference.scheduler import Request
from ..tokenizer import Tokenizer


class Written(NamedTuple):
    """How many answers were written, and what ails them: cut at the length allowed or the end of the context, empty
    though the model was asked, or never asked since the prompt leaves no room in the context."""

    answers: int
    cut: int
    empty: int
    not_asked: int

    def __str__(self) -> str:
        ails = [(self.cut, "cut, since they reached their longest or filled the context"), (self.empty, "empty"),
                (self.not_asked, "empty, since their prompts leave no room in the context")]
        told = [f"{count} {what}" for count, what in ails if count]
        return f"{self.answers} answers" + (", of which " + ", ".join(told) if told else "")


def read_instructions(path: str | os.PathLike) -> list[dict[str, str]]:
    """The instructions of an evaluation set, dicts of instruction and dataset, from a JSON list of objects with these.

    Other keys, such as another model's output, are left out; a model_outputs.json serves as well. ValueError names the
    entry that is none.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: expected a JSON list of objects with "instruction" and "dataset", as AlpacaEval\'s '
                         "alpaca_eval.json is")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("instruction"), str) or not entry["instruction"]:
            raise ValueError(f'{path}, entry {number}: expected an object with a text "instruction"')
        if not isinstance(entry.get("dataset", ""), str):
            raise ValueError(f'{path}, entry {number}: "dataset" is {entry["dataset"]!r}, expected a text')
    return [{"instruction": entry["instruction"], "dataset": entry.get("dataset", "")} for entry in entries]


def output_rows(entries: Sequence[dict[str, str]], outputs: Sequence[str], generator: str) -> list[dict[str, str]]:
    """Rows of a model_outputs.json. generator: the model's name, which alpaca_eval ranks; ValueError without."""
    if not generator.strip():
        raise ValueError("AlpacaEval needs a name for the model, by which its leaderboard calls it")
    return [{"dataset": entry["dataset"], "instruction": entry["instruction"], "output": output, "generator": generator}
            for entry, output in zip(entries, outputs, strict=True)]


def write_outputs(model: Engine | GPT2, tokenizer: Tokenizer, entries: Sequence[dict[str, str]],
                  path: str | os.PathLike, generator: str, *, max_new_tokens: int = 512, limit: int | None = None,
                  prompt_style: str | Style | None = None, what: str = "AlpacaEval") -> Written:
    """Answer the instructions greedily and write them to `path`, as alpaca_eval reads it.

    entries: from `read_instructions`; only the first `limit`, if it is given. generator: the model's name.
    prompt_style: how the model is asked; by default as its folder says. An answer ends at the latest after
    max_new_tokens, or where the context is full. what: progress is shown under this name, if there is one.
    """
    entries = entries[:limit]
    output_rows((), (), generator)
    check_replaceable(path)
    style = find_style(tokenizer, prompt_style)
    prompts = [encode_prompt((Turn("user", entry["instruction"]),), style, tokenizer) for entry in entries]
    context = model.config.n_positions
    ends = (*tokenizer.stop_tokens, end_of_reply(style, tokenizer)[1])
    asked = {number: Request(prompt, max_new_tokens=min(max_new_tokens, context - len(prompt)), ends=ends)
             for number, prompt in enumerate(prompts) if len(prompt) < context}
    numbers, outputs = list(asked), [""] * len(entries)
    for place, text in run_all(model, tokenizer, list(asked.values()), what=what) if asked else ():
        outputs[numbers[place]] = text.strip()
    write_json(path, output_rows(entries, outputs, generator))
    return Written(answers=len(entries), cut=sum(request.finish_reason == "length" for request in asked.values()),
                   empty=sum(not outputs[number] for number in numbers), not_asked=len(entries) - len(asked))
