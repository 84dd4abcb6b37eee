"""The samples in the form of evaluation tasks: as their maker makes them, right, balanced, and read by lm-eval."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyft.files import read_json_lines

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))

import make_samples  # noqa: E402
from task_samples import written  # noqa: E402
from task_samples.files import make_files  # noqa: E402
from task_samples.pairs import RELATIONS  # noqa: E402
from task_samples.questions import UNCLEAR, WRONG, mmlu  # noqa: E402
from task_samples.reading import scene  # noqa: E402
from task_samples.shape import placed, spread  # noqa: E402
from tiny_world.dice import Dice  # noqa: E402
from tiny_world.facts import facts_by_relation  # noqa: E402
from tiny_world.instructions import phrasings, split_facts  # noqa: E402
from tiny_world.reserve import is_reserved  # noqa: E402
from tiny_world.sentences import nouns_by_kind  # noqa: E402
from tiny_world.tables import plurals, rows, words  # noqa: E402

SAMPLES = EXAMPLES / "evaluation" / "samples"
GLUE, SUPER_GLUE, MMLU, BIG_BENCH = "nyu-mll/glue", "aps/super_glue", "cais/mmlu", "hails/bigbench"
SUBJECTS = ("elementary_mathematics", "formal_logic", "global_facts", "high_school_geography")

# lm-eval's task, the file that it asks about, and how many items that has.
TASKS = {
    **{f"mmlu_{subject}": (f"{MMLU}/{subject}/test", 10) for subject in SUBJECTS},
    **{task: (f"{GLUE}/{task}/validation", 10) for task in ("cola", "mrpc", "qnli", "qqp", "sst2", "wnli")},
    "mnli": (f"{GLUE}/mnli/validation_matched", 9), "mnli_mismatch": (f"{GLUE}/mnli/validation_mismatched", 6),
    "rte": (f"{GLUE}/rte/validation", 8),
    "boolq": (f"{SUPER_GLUE}/boolq/validation", 10), "cb": (f"{SUPER_GLUE}/cb/validation", 9),
    "copa": (f"{SUPER_GLUE}/copa/validation", 8), "multirc": (f"{SUPER_GLUE}/multirc/validation", 10),
    "record": (f"{SUPER_GLUE}/record/validation", 9), "sglue_rte": (f"{SUPER_GLUE}/rte/validation", 8),
    "wic": (f"{SUPER_GLUE}/wic/validation", 8), "wsc": (f"{SUPER_GLUE}/wsc.fixed/validation", 10),
    "bigbench_odd_one_out_multiple_choice": (f"{BIG_BENCH}/odd_one_out_zero_shot/default", 8),
    "bigbench_strategyqa_multiple_choice": (f"{BIG_BENCH}/strategyqa_zero_shot/default", 10),
    "bigbench_simple_arithmetic_json_generate_until": (f"{BIG_BENCH}/simple_arithmetic_json_zero_shot/default", 10),
    "bigbench_linguistic_mappings_generate_until": (f"{BIG_BENCH}/linguistic_mappings_zero_shot/default", 10),
    **{f"bbh_fewshot_{task}": (f"SaylorTwift/bbh/{task}/test", 8)
       for task in ("boolean_expressions", "object_counting", "web_of_lies")},
    "squadv2": ("lighteval/squad_v2/validation", 12),
    "squad_completion": ("hazyresearch/based-squad/default/validation", 9),
    "triviaqa": ("mandarjoshi/trivia_qa/rc.nocontext/validation", 12),
    "humaneval": ("openai/openai_humaneval/test", 4),
    "hellaswag": ("Rowan/hellaswag/validation", 8),
    "lambada_openai": ("EleutherAI/lambada_openai/default/test", 12),
    "wikitext": ("EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test", 4),
}  # fmt: skip


def _file(path: Path) -> Path:
    return path.with_name(f"{path.name}.jsonl")


def shipped(name: str) -> list[dict]:
    return [row for _, row in read_json_lines(_file(SAMPLES / name))]


def shots(name: str) -> list[dict]:
    """The examples that lm-eval takes for prompts, from a file beside that of the items; none without such a file."""
    beside = [(SAMPLES / name).with_name(split) for split in ("dev", "train")]
    return next((shipped(path.relative_to(SAMPLES).as_posix()) for path in beside if _file(path).exists()), [])


def splits(address: str) -> list[list[dict]]:
    return [shipped(path.relative_to(SAMPLES).with_suffix("").as_posix())
            for path in sorted((SAMPLES / address).glob("*.jsonl"))]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jsonl")}


# ---- the files


def test_what_ships_is_what_the_script_writes(tmp_path, capsys):
    make_samples.main(["--output", str(tmp_path), "--seed", "0"])
    assert contents(tmp_path) == contents(SAMPLES)
    assert "12  EleutherAI/lambada_openai/default/test" in capsys.readouterr().err


def test_every_file_belongs_to_a_task_and_is_as_long_as_the_readme_says():
    files = contents(SAMPLES)
    assert sum(map(len, files.values())) < 300_000
    folders = {str(Path(name).parent) for name, _ in TASKS.values()}
    assert {str(Path(name).parent) for name in files} == folders
    readme = (SAMPLES / "README.md").read_text("utf-8")
    for task, (name, count) in TASKS.items():
        assert len(shipped(name)) == count, task
        assert f"| `{task}` | `{name}` | {count} | {len(shots(name)) or '–'} |" in readme


def test_there_are_enough_examples_for_five_of_them_in_a_prompt():
    without = {task for task, (name, _) in TASKS.items() if not shots(name)}
    assert {task.split("_")[0] for task in without} == {"bigbench", "bbh", "squad", "humaneval", "lambada"}
    for task in TASKS.keys() - without:  # where there is no split named test, lm-eval draws one more than it shows
        assert len(shots(TASKS[task][0])) >= (5 if task.startswith("mmlu") else 6), task


def test_rows_of_a_file_have_the_same_keys_and_no_row_comes_twice():
    for name in contents(SAMPLES):
        found = shipped(name.removesuffix(".jsonl"))
        assert len({tuple(row) for row in found}) == 1, name
        matter = [json.dumps({key: row[key] for key in row if key not in ("idx", "id", "ind")}) for row in found]
        assert len(set(matter)) == len(matter), name


def test_another_seed_gives_other_samples():
    one, other = make_files(1), make_files(2)
    assert one.keys() == other.keys() and all(len(one[name]) == len(other[name]) for name in one)
    assert one[f"{MMLU}/high_school_geography/test"] != other[f"{MMLU}/high_school_geography/test"]


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 5))
def test_right_answers_are_spread_evenly(seed, count, positions):
    counts = Counter(spread(Dice(seed), count, positions))
    assert sum(counts.values()) == count and set(counts) <= set(range(positions))
    assert max(counts.values()) - min(counts[place] for place in range(positions)) <= 1


@given(st.integers(0, 3))
def test_placed_puts_the_right_answer_in_its_position(position):
    answers = placed("right", ["a", "b", "c"], position)
    assert answers.index("right") == position and sorted(answers) == ["a", "b", "c", "right"]


# ---- right answers: balanced, and right

LABELS = {"cola": 2, "mrpc": 2, "qnli": 2, "qqp": 2, "rte": 2, "sst2": 2, "wnli": 2, "mnli": 3}
SUPER_LABELS = {"boolq": 2, "cb": 3, "copa": 2, "multirc": 2, "rte": 2, "wic": 2, "wsc.fixed": 2}


@pytest.mark.parametrize(("address", "labels"), [(f"{GLUE}/{task}", labels) for task, labels in LABELS.items()]
                         + [(f"{SUPER_GLUE}/{task}", labels) for task, labels in SUPER_LABELS.items()])  # fmt: skip
def test_labels_are_as_frequent_as_each_other(address, labels):
    for found in splits(address):
        counts = Counter(row["label"] for row in found)
        assert set(counts) == set(range(labels)) and len(set(counts.values())) == 1, counts


def test_right_choices_are_spread_over_the_positions():
    for subject in SUBJECTS:
        for found in splits(f"{MMLU}/{subject}"):
            counts = Counter(row["answer"] for row in found)
            assert sorted(counts) == [0, 1, 2, 3] and max(counts.values()) - min(counts.values()) <= 1
    for found in splits("Rowan/hellaswag"):
        counts = Counter(row["label"] for row in found)
        assert sorted(counts) == ["0", "1", "2", "3"] and max(counts.values()) - min(counts.values()) <= 1
    for task, places in (("odd_one_out", 4), ("strategyqa", 2)):
        found = shipped(f"{BIG_BENCH}/{task}_zero_shot/default")
        counts = Counter(row["multiple_choice_scores"].index(1) for row in found)
        assert len(counts) == places and len(set(counts.values())) == 1
        for row in found:
            right = [row["targets"][0].split(".")[0] == choice for choice in row["multiple_choice_targets"]]
            assert row["multiple_choice_scores"] == right and sum(right) == 1
    for found in splits(f"{SUPER_GLUE}/record"):
        counts = Counter(sorted(row["entities"]).index(*row["answers"]) for row in found)
        assert sorted(counts) == [0, 1, 2] and len(set(counts.values())) == 1


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_facts_are_right_and_no_wrong_choice_is_true(seed):
    made = mmlu(Dice(seed), seed)
    assert all(len(set(row["choices"])) == 4 for found in made.values() for row in found)
    for row in made[f"{MMLU}/high_school_geography/test"] + made[f"{MMLU}/high_school_geography/dev"]:
        country = next(found for found in rows("capitals") if row["question"].endswith(f"of {found['country']}?"))
        assert row["choices"][row["answer"]] == country["capital"]
    for row in made[f"{MMLU}/elementary_mathematics/test"] + made[f"{MMLU}/elementary_mathematics/dev"]:
        assert [int(choice) == sum(map(int, re.findall(r"\d+", row["question"]))) for choice in row["choices"]] == [
            place == row["answer"] for place in range(4)]  # fmt: skip
    for row in made[f"{MMLU}/global_facts/test"] + made[f"{MMLU}/global_facts/dev"]:
        assert [_is_true(row["question"], choice) for choice in row["choices"]] == [
            place == row["answer"] for place in range(4)]  # fmt: skip
    for row in made[f"{MMLU}/formal_logic/test"] + made[f"{MMLU}/formal_logic/dev"]:
        plain = row["question"].split('"')[1]
        assert [choice.replace("cannot", "can").replace(" not ", " ") == plain and choice != plain
                for choice in row["choices"]] == [place == row["answer"] for place in range(4)]  # fmt: skip


def _is_true(question: str, answer: str) -> bool:
    """Whether a table holds the fact that an animal has this young, this sound or this home."""
    animals = {row["animal"] for name in ("young", "sounds", "homes") for row in rows(name)}
    animal = next(word for word in re.findall(r"\w+", question)[::-1] if word in animals)
    if answer.startswith("It "):
        return any((row["animal"], row["sounds"]) == (animal, answer[3:]) for row in rows("sounds"))
    if answer.startswith("In "):
        return any((row["animal"], row["home"]) == (animal, answer[3:]) for row in rows("homes"))
    return any((row["animal"], row["baby"]) == (animal, answer.split()[-1]) for row in rows("young"))


def test_wrong_answers_about_animals_are_right_for_few_of_them():
    for relation, column in (("young", "baby"), ("sound", "sound"), ("home", "home")):
        table = rows(relation if relation == "young" else f"{relation}s")
        counts = Counter(row[column] for row in table if row["animal"] not in UNCLEAR)
        assert all(1 <= counts[word] <= 3 for word in WRONG[relation]), counts


def test_items_to_test_with_ask_for_held_out_facts_and_shots_for_others():
    held_out, tuned = ({slots["x"] for slots in split_facts("capital", 0)[part]} for part in (1, 0))
    for address, test, shots in ((f"{MMLU}/high_school_geography", "test", "dev"),
                                 ("mandarjoshi/trivia_qa/rc.nocontext", "validation", "train")):  # fmt: skip
        for split, known in ((test, held_out), (shots, tuned)):
            asked = {match[1] for row in shipped(f"{address}/{split}")
                     if (match := re.search(r"capital of (.*)\?", row["question"]))}  # fmt: skip
            assert asked and asked <= known
    sums = {(slots["x"], slots["y"]) for slots in split_facts("sum", 0)[1]}
    for row in shipped(f"{BIG_BENCH}/simple_arithmetic_json_zero_shot/default"):
        assert tuple(re.findall(r"\d+", row["inputs"])) in sums


def test_no_question_to_test_with_is_in_the_tuning_set():
    tuning = {f"{entry['instruction']} {entry['input']}".strip()
              for entry in json.loads((EXAMPLES / "data" / "train.json").read_text("utf-8"))}  # fmt: skip
    for name, _ in TASKS.values():
        for row in shipped(name):
            said = {row.get(key) for key in ("question", "inputs", "sentence", "sentence1", "question1", "question2")}
            assert not said & tuning


def test_puzzles_are_right():
    for row in shipped("SaylorTwift/bbh/boolean_expressions/test"):
        assert row["target"] == str(eval(row["input"].removesuffix(" is")))
    number = {"a": 1, "an": 1, "two": 2, "three": 3}
    single = {plural: noun for noun, plural in plurals().items()}
    for row in shipped("SaylorTwift/bbh/object_counting/test"):
        told, asked = re.fullmatch(r"I have (.*)\. How many (\w+)s do I have\?", row["input"]).groups()
        counts = [(number[count], single.get(noun, noun)) for count, noun in re.findall(r"(\w+) (\w+)(?:,|$)", told)]
        assert len(counts) == told.count(",") + 1
        assert row["target"] == str(sum(count for count, noun in counts if noun in nouns_by_kind()[asked]))
    for row in shipped("SaylorTwift/bbh/web_of_lies/test"):
        truth: dict[str, bool] = {}
        for sentence in row["input"].removeprefix("Question: ").split(". ")[:-1]:
            *said, what = re.fullmatch(r"(?:(\w+) says )?(\w+) (tells the truth|lies)", sentence).groups()
            claims = what != "lies"
            if said[0]:
                truth[said[0]] = truth[said[1]] == claims
            else:
                truth[said[1]] = claims
        asked = re.search(r"Does (\w+) tell the truth\?$", row["input"])[1]
        assert row["target"] == ("Yes" if truth[asked] else "No")
    targets = {name: Counter(row["target"] for row in shipped(f"SaylorTwift/bbh/{name}/test"))
               for name in ("boolean_expressions", "web_of_lies")}  # fmt: skip
    assert targets == {"boolean_expressions": {"True": 4, "False": 4}, "web_of_lies": {"Yes": 4, "No": 4}}


def test_odd_ones_are_of_another_kind():
    kind_of = {noun: kind for kind, nouns in nouns_by_kind().items() for noun in nouns}
    for row in shipped(f"{BIG_BENCH}/odd_one_out_zero_shot/default"):
        kinds = Counter(kind_of[word] for word in row["multiple_choice_targets"])
        assert sorted(kinds.values()) == [1, 3] and kinds[kind_of[row["targets"][0]]] == 1


def test_labels_of_pairs_are_right():
    known = [(relation, fact) for relation in RELATIONS for fact in facts_by_relation()[relation]]
    asked = {text.format(**fact.slots): (relation, fact.key)
             for relation, fact in known for text, _ in phrasings(relation, "train")}  # fmt: skip
    told = {text: (relation, fact.key) for relation, fact in known for text in fact.statements}
    for row in (row for found in splits(f"{GLUE}/qnli") for row in found):
        assert row["label"] == (asked[row["question"]] != told[row["sentence"]])
    for row in (row for found in splits(f"{GLUE}/qqp") for row in found):
        assert row["label"] == (asked[row["question1"]] == asked[row["question2"]])
        assert row["question1"] != row["question2"]
    for row in (row for found in splits(f"{GLUE}/sst2") for row in found):
        for label, feeling in enumerate(("negative", "positive")):
            said = any(re.search(rf"\b{word}\b", row["sentence"]) for word in words(feeling))
            assert said == (row["label"] == label)
    for row in (row for found in splits(f"{GLUE}/mrpc") for row in found):
        done_to, subject = re.fullmatch(r"(.*) was \w+ by (.*)\.", row["sentence2"]).groups()
        active = row["sentence1"].lower()
        assert active.startswith(subject.lower()) and row["label"] == active.endswith(f" {done_to.lower()}.")


def test_sentences_to_test_with_are_reserved():
    for split, reserved in (("validation", True), ("train", False)):
        assert all(is_reserved(row["sentence1"]) == reserved for row in shipped(f"{GLUE}/mrpc/{split}"))
    for split, reserved in (("test", True), ("dev", False)):
        found = shipped(f"{MMLU}/formal_logic/{split}")
        assert all(is_reserved(row["question"].split('"')[1]) == reserved for row in found)


# ---- texts


def _told(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Where everybody is, and what they have."""
    where = dict(re.findall(r"(\w+) is ([a-z ]+)\.", text))
    return where, dict(re.findall(r"(\w+) has (the \w+)\.", text))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans())
def test_a_scene_says_two_things_of_each_person(seed, reserved):
    found = scene(Dice(seed), reserved)
    where, has = _told(found.text)
    assert where == dict(zip(found.people, found.places, strict=True))
    assert has == {name: f"the {thing}" for name, thing in zip(found.people, found.things, strict=True)}
    assert len(set(where.values())) == len(set(has.values())) == len(where) == 3
    assert is_reserved(found.text) == reserved


def _reply(text: str, question: str) -> str:
    """The answer to a question of SQuAD's or MultiRC's, or nothing."""
    where, has = _told(text)
    if match := re.fullmatch(r"What does (\w+) have\?", question):
        return has.get(match[1], "")
    if match := re.fullmatch(r"Where is (\w+)\?", question):
        return where.get(match[1], "")
    of = {what: name for name, what in [*has.items(), *where.items()]}
    return of.get(re.fullmatch(r"Who (?:has|is) (.*)\?", question)[1], "")


def test_answers_stand_in_the_text():
    for found in splits("lighteval/squad_v2"):
        for row in found:
            texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
            assert "".join(texts) == _reply(row["context"], row["question"]) and len(texts) == len(starts)
            assert all(row["context"][start:].startswith(text) for text, start in zip(texts, starts, strict=True))
        assert sum(not row["answers"]["text"] for row in found) * 3 == len(found)
        assert {row["question"].split()[0] for row in found if row["answers"]["text"]} >= {"What", "Where"}
    for row in shipped("hazyresearch/based-squad/default/validation"):
        name, verb = row["text"].split()[-2:]
        assert row["value"] == _told(row["context"])[verb == "has"][name]
    for row in (row for found in splits(f"{SUPER_GLUE}/multirc") for row in found):
        assert row["label"] == (_reply(row["paragraph"], row["question"]).lower() == row["answer"].lower())
    for row in (row for found in splits(f"{SUPER_GLUE}/boolq") for row in found):
        where, has = _told(row["passage"])
        verb, name, rest = row["question"].split(" ", 2)
        said = where[name] == rest if verb == "is" else f"have {has[name]}" == rest
        assert row["label"] == said
    for row in (row for found in splits(f"{SUPER_GLUE}/record") for row in found):
        place = re.fullmatch(r"The person (.*) is @placeholder", row["query"])[1]
        assert _told(row["passage"].split("\n")[0])[0][row["answers"][0]] == place
        assert sorted(row["entities"]) == sorted(_told(row["passage"])[0])


def test_trivia_answers_are_among_their_aliases():
    for row in (row for found in splits("mandarjoshi/trivia_qa/rc.nocontext") for row in found):
        answer = row["answer"]
        assert answer["value"] in answer["aliases"] and len(set(answer["aliases"])) == len(answer["aliases"])
        assert answer["normalized_aliases"] == [alias.lower() for alias in answer["aliases"]]
        assert "capital" in row["question"] or _is_true(row["question"], answer["value"])


def test_the_last_word_of_a_little_story_was_told_before():
    for row in shipped("EleutherAI/lambada_openai/default/test"):
        *before, last = row["text"].split(" ")
        assert last.isalpha() and last in {word.strip(".,") for word in before}


# ---- written by hand


def test_places_of_words_are_right():
    for row in (row for found in splits(f"{SUPER_GLUE}/wic") for row in found):
        for number in "12":
            assert row[f"sentence{number}"][row[f"start{number}"] : row[f"end{number}"]] == row["word"]
    for row in (row for found in splits(f"{SUPER_GLUE}/wsc.fixed") for row in found):
        for number in "12":
            span = row[f"span{number}_text"].split()
            words = row["text"].split()[row[f"span{number}_index"] :][: len(span)]
            assert [word.strip(".,") for word in words] == span


def test_pronouns_sense_tables_and_endings_are_whole():
    for text, pronoun, right, wrong, said in written.PRONOUNS:
        assert re.findall(r"\w+", text).count(pronoun) == 1 and right.lower() in text.lower() and right != wrong
        assert wrong.lower() in text.lower() and said.count("{}") == 1
    for word, *texts in written.SENSES:
        assert all(re.findall(r"\w+", text).count(word) == 1 for text in texts) and len(set(texts)) == 3
    for good, bad in written.SENTENCES:
        assert sorted(re.findall(r"\w+", good.lower())) == sorted(re.findall(r"\w+", bad.lower())) and good != bad
    for *_, right, wrong in written.ENDINGS:
        assert len({right, *wrong}) == 4


def test_functions_pass_their_checks_and_do_nothing_without_a_body():
    for row in shipped("openai/openai_humaneval/test"):
        for body, passes in ((row["canonical_solution"], True), ("    return None\n", False)):
            scope: dict = {}
            exec(row["prompt"] + body + row["test"], scope)
            if passes:
                scope["check"](scope[row["entry_point"]])
            else:
                with pytest.raises(AssertionError):
                    scope["check"](scope[row["entry_point"]])
        call, value = re.search(r">>> (.*)\n    (.*)\n", row["prompt"]).groups()
        exec(row["prompt"] + row["canonical_solution"], scope)
        assert repr(eval(call, scope)) == value


# ---- lm-eval


@pytest.fixture(scope="module")
def manager(request, tmp_path_factory):
    """lm-eval's task manager, whose data sets are the samples and whose hub is out of reach."""
    reason = "lm-eval is not installed: pip install -e '.[evaluate]'"
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("HF_HUB_OFFLINE", "1")
    # lm-eval imports a package named evaluate, and a script of that name must not stand before it.
    patch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != EXAMPLES])
    if Path(getattr(sys.modules.get("evaluate"), "__file__", "")).parent == EXAMPLES:
        patch.delitem(sys.modules, "evaluate")
    if importlib.util.find_spec("transformers") and not importlib.util.find_spec("transformers.data.metrics"):
        for name in ("metrics", "metrics.squad_metrics"):  # ReCoRD imports it; transformers 5 has it no more
            patch.setitem(sys.modules, f"transformers.data.{name}", ModuleType(f"transformers.data.{name}"))
    tasks = pytest.importorskip("lm_eval.tasks", reason=reason)
    datasets = pytest.importorskip("datasets", reason=reason)
    evaluate = pytest.importorskip("evaluate", reason=reason)

    load, cache = datasets.load_dataset, str(tmp_path_factory.mktemp("datasets"))

    def load_dataset(path, name=None, **_):
        files = {file.stem: str(file) for file in (SAMPLES / path / (name or "")).glob("*.jsonl")}
        return load("json", data_files=files, cache_dir=cache)

    class Metric:
        def compute(self, **_):
            return {}

    patch.setattr(datasets, "load_dataset", load_dataset)
    patch.setattr(evaluate, "load", lambda *_, **__: Metric())
    return tasks.TaskManager()


@pytest.mark.harness
@pytest.mark.parametrize("task", TASKS)
def test_lm_eval_reads_them(manager, task):
    name, count = TASKS[task]
    loaded = manager.load(task)
    found = (loaded["tasks"] if "tasks" in loaded else loaded)[task]
    if shots(name) and task != "squadv2":  # whose examples lm-eval 0.4.13 cannot put into a prompt
        found.set_config("num_fewshot", 5)
    found.build_all_requests(limit=None, rank=0, world_size=1)
    assert len(found.eval_docs) == count
    assert {instance.doc_id for instance in found.instances} == set(range(count))
    for doc in found.eval_docs:
        assert found.doc_to_target(doc) not in (None, "", [])
