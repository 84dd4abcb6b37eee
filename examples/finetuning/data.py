"""The data of a run: read, split, and made into token ids."""

from collections import Counter
from pathlib import Path

from tinyft import InstructionSet, parse_columns, read_entries, read_with_account, split
from tinyft.data.report import describe

DATA = Path(__file__).resolve().parent.parent / "data"


def read_all(options, rng):
    """Entries of --data with an account of them; of these training, validation and test, as {title: entries}."""
    columns = parse_columns(options.columns) if options.columns else {}
    test_paths = options.test_data
    if options.data is None and not test_paths:
        test_paths = [DATA / "test_items.json", DATA / "test_phrasings.json"]
    entries, account = read_with_account(options.data or DATA / "train.json", columns, options.max_entries)
    test_share = 0.0 if test_paths else options.test_share
    training, validation, test = split(entries, train=options.train_share, test=test_share,
                                       rng=None if options.in_file_order else rng)
    if not test_paths:
        return entries, account, training, validation, {"test entries": test}
    tests = {}
    for path in test_paths:
        name = Path(path).stem.replace("_", " ")
        tests[name if name not in tests else str(path)] = read_entries(path, columns, options.max_entries)
    return entries, account, training, validation, tests


def facts_of(entries, account, sets) -> dict:
    """What is reported of the data: how it was read, and what became of it as tokens."""
    examples = [example for data in sets for example in data.examples]
    targets = [int(example.learned[1:].sum()) if sets[0].mask_prompt else len(example.ids) - 1 for example in examples]
    return describe(account, entries, [len(example.ids) - 1 for example in examples], targets,
                    max_length=sets[0].max_length, cut=sum(data.cut for data in sets),
                    end_markers=sum(data.end_markers for data in sets),
                    dropped=sum((data.reasons for data in sets), Counter()))


def record(entry) -> dict:
    """An entry as replies.json has it: Alpaca's keys, or messages where there are more turns."""
    if [turn.role for turn in entry.turns] == ["user", "assistant"]:
        fields = {"instruction": entry.instruction, "input": entry.input, "output": entry.output}
    else:
        fields = {"messages": [{"role": turn.role, "content": turn.content}
                               | ({"input": turn.input} if turn.input else {}) for turn in entry.turns]}
    return fields | ({"family": entry.family} if entry.family else {})


def make_sets(options, style, tokenizer, context: int, training, validation) -> tuple[InstructionSet, InstructionSet]:
    """Training and validation entries as token ids; ValueError if there is nothing to train on."""
    how = dict(prompt_style=style, mask_prompt=options.mask_prompt, max_length=options.max_length or context,
               end_marker=options.end_marker)
    sets = tuple(InstructionSet(entries, tokenizer, **how) for entries in (training, validation))
    if not len(sets[0]):
        why = ", ".join(f"{n} {reason}" for reason, n in sets[0].reasons.items())
        raise ValueError(f"{', '.join(options.data or [str(DATA / 'train.json')])}: no entry to train on; of "
                         f"{len(training)} in the training share " + (f"there are {why}" if why else "none is left")
                         + "; give more entries, or a larger --train-share or --max-length")
    return sets
