"""The tiny world: true tables, consistent stories, reserved exercises, repeatable files."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))

import make_corpus  # noqa: E402
import make_instructions  # noqa: E402
import train_tokenizer  # noqa: E402
from tiny_world import sentences, stories, tables, worksheets  # noqa: E402
from tiny_world.corpus import TOPICS, documents, drill  # noqa: E402
from tiny_world.dice import Dice  # noqa: E402
from tiny_world.exercises import SHARES, wordings  # noqa: E402
from tiny_world.facts import all_facts, facts_by_relation  # noqa: E402
from tiny_world.grammar import NUMBER_WORDS, with_article  # noqa: E402
from tiny_world.instructions import FAMILIES, fact_item, phrasings, split_facts  # noqa: E402

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEST_SETS = ("test_items", "test_phrasings")


@pytest.fixture(scope="module")
def sample() -> str:
    """Two million characters of corpus, with another seed than the one that users get."""
    return "\n\n".join(documents(seed=1, characters=2_000_000))


@pytest.fixture(scope="module")
def shipped() -> str:
    """The first ten million characters of the corpus that the model in weights/ has read."""
    return "\n\n".join(documents(seed=0, characters=10_000_000))


@pytest.fixture(scope="module")
def sets() -> dict[str, list[dict[str, str]]]:
    """The committed instruction files."""
    names = ("train", *TEST_SETS)
    return {name: json.loads((EXAMPLES / "data" / f"{name}.json").read_text("utf-8")) for name in names}


def asked(example: dict[str, str]) -> tuple[str, str]:
    return example["instruction"], example["input"]


def family_of(example: dict[str, str]) -> str:
    """The name behind the group that it is counted in."""
    return example["family"].split("/")[1]


@pytest.mark.parametrize("path", sorted(tables.TABLES.glob("*.csv")), ids=lambda path: path.stem)
def test_tables_have_no_empty_cells_and_no_repeated_rows(path: Path) -> None:
    rows = [tuple(row.values()) for row in tables.rows(path.stem)]
    assert all(cell and cell == cell.strip() for row in rows for cell in row)
    if path.stem != "plots":  # a plot may do the same thing twice
        assert [row for row, count in Counter(rows).items() if count > 1] == []


@pytest.mark.parametrize("relation", facts_by_relation())
def test_every_question_has_one_answer_and_every_fact_twelve_wordings(relation: str) -> None:
    facts = facts_by_relation()[relation]
    assert len({fact.key for fact in facts}) == len(facts)
    for fact in facts:
        wordings_of_fact = {*fact.statements, *fact.questions}
        assert len(wordings_of_fact) >= 12
        assert not any("{" in text for text in fact.statements)


def test_there_are_about_as_many_facts_and_plots_as_promised() -> None:
    assert len(all_facts()) >= 1500
    assert len(stories.plots()) >= 40


def test_a_word_has_only_one_opposite() -> None:
    pairs = [(row["word"], row["opposite"]) for row in tables.rows("opposites")]
    assert max(Counter(word for pair in pairs for word in pair).values()) == 1


@pytest.mark.parametrize(
    ("word", "phrase"),
    [("apple", "an apple"), ("hour", "an hour"), ("uniform", "a uniform"), ("uncle", "an uncle")],
)
def test_article(word: str, phrase: str) -> None:
    assert with_article(word) == phrase


# Stories


class Ledger:
    """A second, plainer account of a story, kept from its list of events alone."""

    def __init__(self) -> None:
        self.place: dict[str, str] = {}
        self.owner: dict[str, str] = {}

    def record(self, verb: str, *arguments: str) -> None:
        if verb in ("at", "go"):
            person, self.place[person] = arguments[0], arguments[1]
        elif verb == "both":
            self.place[arguments[0]] = self.place[arguments[1]] = arguments[2]
        elif verb == "lies":
            self.place[arguments[0]] = arguments[1]
        elif verb in ("own", "take"):
            self.owner[arguments[1]] = arguments[0]
        elif verb in ("drop", "hide", "lose"):
            self.place[arguments[1]] = self.place[self.owner.pop(arguments[1])]
        elif verb in ("give", "give_new"):
            self.owner[arguments[2]] = arguments[1]
        elif verb == "meet":
            here = self.place.get(arguments[0], self.place.get(arguments[1], ""))
            self.place[arguments[0]] = self.place[arguments[1]] = here


@pytest.mark.parametrize("plot", stories.plots())
def test_questions_in_a_story_are_answered_as_things_stand_then(plot: str) -> None:
    dice = Dice(7)
    for _ in range(25):
        world = stories.tell_story(dice, plot)
        ledger, done = Ledger(), 0
        for at_event, wording, subject, answer in world.answers:
            for event in world.events[done:at_event]:
                ledger.record(*event)
            done = at_event
            known = ledger.owner if wording in ("who_has", "not_with") else ledger.place
            assert known[subject] == answer, " ".join(world.told)


def test_a_story_refuses_what_cannot_happen() -> None:
    world = stories.World(Dice(0), {"A": "Tom", "B": "Ann", "t": "ball", "p": "park"}, {"t": "red"})
    world.step("own", "A", "t")
    world.step("at", "A", "p")
    with pytest.raises(stories.PlotError, match="not in the same place"):
        world.step("give", "A", "B", "t")


# Corpus


def test_corpus_file_is_repeatable_and_about_as_large_as_asked(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.txt", "two.txt", "other.txt")]
    for path, seed in zip(paths, ("0", "0", "1"), strict=True):
        make_corpus.main(["--output", str(path), "--megabytes", "0.2", "--seed", seed])
    one, two, other = (path.read_bytes() for path in paths)
    assert one == two != other
    assert 200_000 <= len(one) < 205_000


def test_drills_dwell_on_their_topics() -> None:
    drilled, plain = ("\n\n".join(documents(2, 300_000, topics)) for topics in (["odd", "capital"], []))
    for word in ("odd one out", "capital"):
        assert drilled.count(word) > 3 * plain.count(word) > 0
    assert drilled.count("passive") < plain.count("passive")


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_can_be_drilled(topic: str) -> None:
    dice = Dice(1)
    pages = [drill(dice, [topic]) for _ in range(20)]
    assert len(set(pages)) == 20 and all(len(page.split("\n")) >= 4 for page in pages)


def test_corpus_says_nothing_of_instructions(sample: str) -> None:
    assert re.search(r"instruct|respon[sd]|###", sample, re.IGNORECASE) is None


def test_corpus_is_clean_plain_text(sample: str) -> None:
    assert sample.isascii()
    assert re.search(r"  | \n|\n |\n{3}|[{}|]", sample) is None
    assert re.search(r"[,;:][.,;:?!]|\.\.| [.,;:?!]", sample) is None
    for document in sample.split("\n\n"):
        assert document[0].isupper() or document[0].isdigit() or document[0] == '"'
        assert document.count('"') % 2 == 0, document


def test_articles_in_the_corpus_are_right(sample: str) -> None:
    wrong = set(re.findall(r"\b(?:a [aeiou]\w+|an [^aeiou\W]\w+)", sample))
    assert wrong <= {"an hour"}


def test_documents_are_of_a_useful_length(sample: str) -> None:
    lengths = sorted(len(document.split()) for document in sample.split("\n\n"))
    assert lengths[len(lengths) // 10] >= 60
    assert lengths[len(lengths) * 9 // 10] <= 250


@pytest.mark.parametrize("exercise", [name for name in SHARES if name != "remark"] + ["positive", "negative"])
def test_every_exercise_has_enough_wordings(exercise: str) -> None:
    assert len(set(wordings()[exercise])) >= (4 if exercise == "letters" else 7)


def test_worksheets_have_all_tasks() -> None:
    tasks = Counter(row["task"] for row in tables.rows("worksheets"))
    assert set(tasks) == {fact.relation for fact in all_facts()} | set(worksheets.GIVEN_AND_FOUND)
    assert set(worksheets.GIVEN_AND_FOUND) == set(worksheets.WORKSHEET_SHARES) == set(SHARES) - {"tense"}
    asked_in_tests = {family.relation for family in FAMILIES.values() if family.relation}
    assert all(tasks[task] >= 2 for task in asked_in_tests)


def is_odd_one(given: str, answer: str) -> bool:
    kinds = {row["noun"]: row["kind"] for row in tables.rows("nouns")}
    words = given.split(", ")
    return len({kinds[word] for word in words if word != answer}) == 1 != len({kinds[word] for word in words})


def is_passive_of(given: str, answer: str) -> bool:
    thing, participle, doer = re.fullmatch(r"(.+?) (?:was|were) (\w+) by (.+)\.", answer).groups()
    pasts = {row["past"] for row in tables.rows("verbs") if row["participle"] == participle}
    return given.lower() in {f"{doer} {past} {thing}.".lower() for past in pasts}


def says(passage: str, question: str, answer: str) -> bool:
    """Whether a passage has the sentence that gives this answer to this question."""
    for form, sentence in (("Who (.*)\\?", "{answer} {0}."), ("Where is (.*)\\?", "{0} is {lower}."),
                           ("What does (.*) have\\?", "{0} has {lower}.")):
        if match := re.fullmatch(form, question):
            return sentence.format(match[1], answer=answer, lower=answer.lower()) in passage
    return False


RIGHT = {
    "passive": is_passive_of,
    "negate": lambda given, answer: re.sub(r" not\b|(?<=can)not", "", answer) == given != answer,
    "repeat": lambda given, answer: given == answer,
    "echo": lambda given, answer: given == answer,
    "first": lambda given, answer: given.startswith(f"{answer} "),
    "last": lambda given, answer: given.endswith(f" {answer}."),
    "remark": lambda given, answer: any(word in given for word in sentences.words(answer)),
    "count": lambda given, answer: answer in (str(given.count(",") + 1), NUMBER_WORDS[given.count(",") + 1]),
    "sort": lambda given, answer: answer.split(", ") == sorted(given.split(", ")),
    "letters": lambda given, answer: answer.split(", ") == sorted(given.split(", ")),
    "odd": is_odd_one,
    "add": lambda given, answer: sum(map(int, given.split(" + "))) == int(answer),
    "sum": lambda given, answer: sum(map(int, given.split(" + "))) == int(answer),
    "capital": lambda given, answer: {"country": given, "capital": answer} in tables.rows("capitals"),
}


def ask_on_a_worksheet(task: str, layout: str, dice: Dice) -> tuple[str, str, str]:
    """What is given, the answer, and the record between marks that show where it stands."""
    text = "G<{given}> W<{whole}> Q<{question}> A<{answer}>"
    record = worksheets._record(dice, task, {"layout": layout, "text": text}, {})
    given, whole, question, answer = re.fullmatch(r"G<(.*)> W<(.*)> Q<(.*)> A<(.*)>", record).groups()
    return whole if layout == "whole" else f"{given} {question}" if layout == "given" else given, given, answer


@pytest.mark.parametrize("task", RIGHT)
def test_answers_on_worksheets_are_right(task: str) -> None:
    dice = Dice(5)
    for _ in range(100):
        _, given, answer = ask_on_a_worksheet(task, "label", dice)
        assert RIGHT[task](given, answer), (given, answer)


@pytest.mark.parametrize("layout", ["given", "label", "whole"])
def test_a_passage_on_a_worksheet_comes_with_its_question(layout: str) -> None:
    dice = Dice(5)
    for _ in range(100):
        shown, _, answer = ask_on_a_worksheet("passage", layout, dice)
        question = re.search(r"(Who|Where is|What does) [^?]*\?", shown)[0]
        assert says(shown, question, answer), (shown, answer)


def test_layouts_show_what_is_asked_and_end_with_the_answer() -> None:
    for row in tables.rows("layouts"):
        assert row["text"].rstrip('"').endswith("{answer}")
        assert "{whole}" in row["text"] if row["layout"] == "whole" else "{given}" in row["text"]
        assert ("{question}" in row["text"]) == (row["layout"] == "given")


# Instruction sets


def test_instruction_files_are_what_the_script_writes(tmp_path: Path) -> None:
    make_instructions.main(["--output", str(tmp_path), "--seed", "0"])
    for path in sorted(tmp_path.iterdir()):
        committed = EXAMPLES / "data" / path.name
        assert path.read_bytes() == committed.read_bytes()
        assert committed.stat().st_size < 700_000
    assert len(list(tmp_path.iterdir())) == 3


def test_sets_have_all_families_and_no_repeated_question(sets: dict[str, list[dict[str, str]]]) -> None:
    for name, size in (("train", 3000), ("test_items", 400), ("test_phrasings", 300)):
        assert abs(len(sets[name]) - size) <= size * 0.1
        assert {family_of(example) for example in sets[name]} == set(FAMILIES)
        assert all(example["output"] and example["instruction"] for example in sets[name])
    questions = [asked(example) for examples in sets.values() for example in examples]
    assert len(set(questions)) == len(questions)


def test_no_held_out_fact_is_in_the_tuning_set(sets: dict[str, list[dict[str, str]]]) -> None:
    tuned = {asked(example) for example in sets["train"]}
    for family in FAMILIES.values():
        if not family.relation:
            continue
        known, held_out = split_facts(family.relation, seed=0)
        assert not {(s["x"], s["y"]) for s in known} & {(s["x"], s["y"]) for s in held_out}
        names = [name for name, other in FAMILIES.items() if other.relation == family.relation]
        for name in names if family.answer != "{reversed}" else []:
            for split in ("train", "heldout"):
                for templates in phrasings(name, split):
                    for slots in held_out:
                        assert tuple(text.format(**slots) for text in templates) not in tuned


def test_both_orders_of_a_sum_are_one_item() -> None:
    by_key = {fact.key: fact for fact in facts_by_relation()["sum"]}
    assert fact_item(by_key["3 5"]) == fact_item(by_key["5 3"]) != fact_item(by_key["3 4"])


def test_held_out_phrasings_are_not_used_for_tuning_or_in_the_corpus(
    sample: str, sets: dict[str, list[dict[str, str]]]
) -> None:
    for name in FAMILIES:
        train, held_out = phrasings(name, "train"), phrasings(name, "heldout")
        assert len(held_out) == 2 and len(train) >= 4
        assert not {text for text, _ in train} & {text for text, _ in held_out}
    assert [example for example in sets["test_phrasings"] if example["instruction"] in sample] == []


def test_no_rule_input_of_a_test_stands_in_the_corpus(
    shipped: str, sets: dict[str, list[dict[str, str]]]
) -> None:
    rules = {name for name, family in FAMILIES.items() if family.draw} - {"story", "big_addition"}
    inputs = [
        example["input"] or example["instruction"].split(": ", 1)[-1]
        for name in TEST_SETS for example in sets[name] if family_of(example) in rules
    ]  # fmt: skip
    assert len(inputs) > 200
    found = [text for text in inputs if text in shipped]  # "cup, doll" may be found in "buttercup, doll"
    assert [text for text in found if re.search(rf"\b{re.escape(text)}(?!\w)", shipped)] == []


def sums_in(text: str) -> set[frozenset[int]]:
    """Pairs of numbers of two digits, near each other and before their sum; order does not matter."""
    told = re.finditer(r"\b(\d\d)\b(?=[^\d\n]{1,20}\b(\d\d)\b(.{0,40}))", text)
    return {frozenset((int(x), int(y))) for x, y, after in (match.groups() for match in told)
            if re.search(rf"\b{int(x) + int(y)}\b", after)}


def test_no_sum_of_a_test_is_told_or_tuned_in_either_order(shipped: str, sets: dict[str, list[dict[str, str]]]) -> None:
    of = {name: "\n".join(f"{' '.join(asked(example))} {example['output']}" for example in examples
                          if family_of(example) == "big_addition") for name, examples in sets.items()}
    asked_about = sums_in(of["test_items"]) | sums_in(of["test_phrasings"])
    assert len(asked_about) == 27 and len(sums_in(shipped)) > 1000 and len(sums_in(of["train"])) > 60
    assert asked_about & (sums_in(shipped) | sums_in(of["train"])) == set()


DRAWS = {
    "action": lambda dice, reserved: sentences.action(dice, reserved).active,
    "plain": lambda dice, reserved: sentences.plain_and_negated(dice, reserved)[0],
    "sentence": sentences.sentence,
    "remark": lambda dice, reserved: sentences.remark(dice, reserved)[0],
    "passage": lambda dice, reserved: sentences.passage(dice, reserved)[0],
    "words": lambda dice, reserved: ", ".join(sentences.word_list(dice, reserved)),
    "numbers": lambda dice, reserved: ", ".join(sentences.number_list(dice, reserved)),
    "odd": lambda dice, reserved: ", ".join(sentences.odd_one_out(dice, reserved)[0]),
    "sum": lambda dice, reserved: "{} + {}".format(*sentences.big_sum(dice, reserved)),
}


@pytest.mark.parametrize("matter", DRAWS)
def test_reserved_and_free_exercises_never_meet(matter: str) -> None:
    draw, dice = DRAWS[matter], Dice(3)
    assert not {draw(dice, True) for _ in range(300)} & {draw(dice, False) for _ in range(2000)}


# Tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, sample: str) -> Path:
    pytest.importorskip("tokenizers", reason="the tokenizers package learns the merges")
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = folder / "corpus.txt"
    corpus.write_text(sample[:600_000], encoding="utf-8")
    train_tokenizer.main(["--corpus", str(corpus), "--vocab-size", "1500", "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def encoding(tokenizer_folder: Path):  # noqa: ANN201 - the type belongs to an optional package
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken checks the files that were written")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # else it may read what another run left under this path
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(tokenizer_folder / "merges.txt"), str(tokenizer_folder / "vocab.json")
        )
    special = {train_tokenizer.END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("tiny", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def test_vocabulary_counts_bytes_merges_and_end_of_text(tokenizer_folder: Path) -> None:
    vocabulary = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))
    assert len(vocabulary) == 1500
    assert sorted(vocabulary.values()) == list(range(1500))
    assert vocabulary[train_tokenizer.END_OF_TEXT] == 1499
    assert vocabulary["!"] == 0 and vocabulary["\u0120"] == 220


def test_digits_and_line_ends_stay_alone(tokenizer_folder: Path) -> None:
    merges = (tokenizer_folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    assert not [merge for merge in merges if re.search(r"[0-9\u010a]", merge)]


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_and_has_the_same_ids(tokenizer_folder: Path, encoding, text: str) -> None:
    ids = encoding.encode_ordinary(text)
    assert encoding.decode(ids) == text
    assert ids == reference(tokenizer_folder).encode(text).ids


def test_corpus_gives_the_same_ids_as_the_tokenizers_package(
    tokenizer_folder: Path, encoding, sample: str
) -> None:
    text = sample[-100_000:]
    assert encoding.encode_ordinary(text) == reference(tokenizer_folder).encode(text).ids


def reference(folder: Path):  # noqa: ANN201 - the type belongs to an optional package
    """The same files read by the tokenizers package."""
    from tokenizers import ByteLevelBPETokenizer

    return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_a_text_that_is_too_short_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers", reason="the tokenizers package learns the merges")
    corpus = tmp_path / "short.txt"
    corpus.write_text("one two two", encoding="utf-8")
    train_tokenizer.main(["--corpus", str(corpus), "--vocab-size", "400", "--output", str(tmp_path)])
    assert re.search(r"gives only \d+ of 143 merges", capsys.readouterr().err)


# Messages


@pytest.mark.parametrize("main, arguments, advice", [
    (make_corpus.main, ["--output", "x", "--megabytes", "0"], "--megabytes: '0', expected a number above 0"),
    (make_corpus.main, ["--output", "no/such/folder/x"], "--output: no/such/folder/x: there is no folder"),
    (make_corpus.main, ["--output", "."], "--output: '.' is a folder, expected the name of a file"),
    (make_corpus.main, ["--output", "x", "--drill", "oddly"], "--drill: invalid choice: 'oddly'"),
    (make_instructions.main, ["--output", "x", "--seed", "-1"], "--seed: '-1', expected a whole number of at least 0"),
])
def test_bad_options(main, arguments, advice, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert advice in capsys.readouterr().err


def test_tokenizer_needs_a_text_and_room_for_all_bytes(tmp_path) -> None:
    with pytest.raises(ValueError, match="make it with"):
        train_tokenizer.main(["--corpus", str(tmp_path / "missing"), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="expected from 257"):
        train_tokenizer.main(["--corpus", "x", "--vocab-size", "9", "--output", str(tmp_path)])
    pytest.importorskip("tokenizers", reason="the tokenizers package learns the merges")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="latin1.txt: not UTF-8 text .byte 3 is 0xe9"):
        train_tokenizer.main(["--corpus", str(tmp_path / "latin1.txt"), "--output", str(tmp_path)])
