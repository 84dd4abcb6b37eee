"""The report on data before training: what it counts, and that it is silent about what is as it should be."""

import numpy as np
from tiny import TOKENIZER

from tinyft import Entry, InstructionSet, Turn
from tinyft.data.report import report_on
from tinyft.data.schemas import Account


def make_report(entries, account=None, **options):
    options = {"prompt_style": "phi3", "max_length": 64, "mask_prompt": True} | options
    data = InstructionSet(entries, TOKENIZER, **options)
    return report_on(account or Account(), entries, [data]), data


def test_it_says_no_more_than_is_needed():
    account = Account()
    account.schemas["Alpaca"] = 2
    report, data = make_report([Entry.single("a", "", "yes"), Entry.single("b", "", "no")], account)
    tokens = [len(example.ids) for example in data.examples]
    learned = len("yes") + len("no") + 2
    lines = report.lines()
    assert lines[0] == "2 entries read: 2 Alpaca"
    assert lines[1] == (f"{sum(tokens)} tokens, {sum(tokens) / 2:.0f} an entry on average; "
                        f"{learned / sum(tokens):.0%} are learned")
    assert all(" to " in line and "#" in line for line in lines[2:]) and len(lines) <= 4


def test_it_counts_what_is_not_as_it_should_be():
    account = Account()
    account.schemas.update({"Alpaca": 1200, "Dolly": 5})
    account.ignored.update({"text": 1200, "id": 3})
    account.changed["inputs that say <noinput>"] = 7
    entries = [Entry.single("a", "", "yes"), Entry.single("a", "", "yes"), Entry.single("a", "", "no"),
               Entry.single("b", "", "x<|endoftext|>"), Entry.single("c", "", ""), Entry.single("", "", "d"),
               Entry.single("x" * 70, "", "y"), Entry.single("d", "", "z" * 60)]
    report, _ = make_report(entries, account)
    text = "\n".join(report.lines())
    for line in ("1,205 entries read: 1,200 Alpaca, 5 Dolly", "keys ignored: 'text' in 1,200, 'id' in 3",
                 "7 inputs that say <noinput>", "1 replies end with an end of text that is written out",
                 "left out: 1 without a reply, 1 without an instruction, 1 with a prompt of more than 64 tokens",
                 "1 entries are there more than once", "1 prompts have several replies",
                 "1 entries cut at 64 tokens, so that the end of a reply is lost", "<- cut at 64"):
        assert line in text, text
    numbers = report.as_dict()
    assert numbers["left out"] == dict(report.dropped) and numbers["cut"] == 1 and numbers["repeated"] == 1
    assert all(type(numbers[name]) is int for name in ("tokens", "targets", "longest"))


def test_the_histogram_counts_every_example_once():
    rng = np.random.default_rng(0)
    entries = [Entry.single("a", "", "x" * int(n)) for n in rng.integers(1, 200, 300)]
    report, data = make_report(entries, max_length=1000)
    lines = report.histogram()
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines) == 300
    assert max(line.count("#") for line in lines) == 40 and len(lines) <= 9
    width = int(lines[1].split()[0]) - int(lines[0].split()[0])
    for line in lines:
        first, last, count = int(line.split()[0]), int(line.split()[2]), int(line.split()[-1])
        assert last - first + 1 == width
        assert count == sum(first <= len(example.ids) <= last for example in data.examples)


def test_all_tokens_but_the_first_are_targets_where_prompts_are_learned():
    entries = [Entry((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")))]
    masked, data = make_report(entries)
    learned, _ = make_report(entries, mask_prompt=False)
    assert masked.targets.tolist() == [4] and learned.targets.tolist() == [len(data.examples[0].ids) - 1]


def test_no_entries_at_all():
    report, _ = make_report([])
    assert report.lines() == ["0 entries read"] and report.as_dict()["tokens"] == 0
