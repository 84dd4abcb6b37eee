"""Forms of entries, told by their keys; values; files and data sets; what becomes of each entry."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_containers import ENTRY, FILLED, TEXT, TOM, refusal, write
from tiny import ROOT

from tinyft import Entry, Turn, read_entries
from tinyft.data import hub
from tinyft.data.readers import read_with_account
from tinyft.data.schemas import near_miss, parse_columns

CASES = ROOT.parent / "shared" / "cases"


def test_an_entry_answers_for_its_last_round():
    turns = (Turn("system", "Be short."), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c", "d"),
             Turn("assistant", "e"), Turn("user", "f"))
    entry = Entry(turns, "x")
    assert (entry.system, entry.instruction, entry.input, entry.output) == ("Be short.", "c", "d", "e")
    assert entry.asked == turns[:4]
    entry = Entry((Turn("assistant", "a"),))
    assert (entry.system, entry.instruction, entry.input, entry.output) == ("", "", "", "a")
    assert Entry((Turn("user", "a"),)).output == Entry(()).output == ""
    assert entry.asked == () and Entry((Turn("user", "a"),)).asked == (Turn("user", "a"),)


# ---- forms

HELLO = [Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Bye"), Turn("assistant", "Bye.")]
SHORT = Turn("system", "Be short.")
FORMS = {  # form: (what a file holds, turns)
    "Alpaca": ({"instruction": "a", "input": "b", "output": "c"}, [Turn("user", "a", "b"), Turn("assistant", "c")]),
    "Dolly": ({"instruction": "a", "context": "b", "response": "c"}, [Turn("user", "a", "b"), Turn("assistant", "c")]),
    "prompt/completion": ({"prompt": "a", "completion": " c"}, [Turn("user", "a"), Turn("assistant", " c")]),
    "prompt/response": ({"prompt": "a", "response": "c"}, [Turn("user", "a"), Turn("assistant", "c")]),
    "question/answer": ({"question": "a", "answer": "c"}, [Turn("user", "a"), Turn("assistant", "c")]),
    "query/response": ({"query": "a", "response": "c"}, [Turn("user", "a"), Turn("assistant", "c")]),
    "question/response": ({"system_prompt": "Be short.", "question": "a", "response": "c"},
                          [SHORT, Turn("user", "a"), Turn("assistant", "c")]),
}


def messages(turns, role="role", content="content", **names):
    return [{role: names.get(turn.role, turn.role), content: turn.content} for turn in turns]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_turn(tmp_path, form):
    item, turns = FORMS[form]
    entries, account = read_with_account(write(tmp_path, [item]))
    assert entries == [Entry(tuple(turns))]
    assert account.schemas == {form: 1} and not account.ignored and not account.dropped and not account.changed


CHATS = {
    "OpenAI": {"messages": messages([SHORT, *HELLO])},
    "developer": {"messages": messages([SHORT, *HELLO], system="developer")},
    "parts": {"messages": [{"role": turn.role, "content": [{"type": "text", "text": turn.content[:1]},
                                                           {"type": "text", "text": turn.content[1:]}]}
                           for turn in [SHORT, *HELLO]]},
    "ShareGPT": {"conversations": messages([SHORT, *HELLO], "from", "value", user="human", assistant="gpt")},
    "ShareGPT, other names": {"conversations": messages([SHORT, *HELLO], "from", "value")},
    "roles in conversations": {"conversations": messages([SHORT, *HELLO])},
    "system beside": {"system": "Be short.", "conversations": messages(HELLO, "from", "value", user="human")},
    "TRL": {"prompt": messages([SHORT, *HELLO[:3]]), "completion": messages(HELLO[3:])},
    "TRL, longer completion": {"prompt": messages([SHORT, *HELLO[:1]]), "completion": messages(HELLO[1:])},
    "history": {"system": "Be short.", "instruction": "Bye", "output": "Bye.", "history": [["Hi", "Hello."]]},
    "null beside": {"instruction": None, "output": None, "messages": messages([SHORT, *HELLO])},
}


@pytest.mark.parametrize("kind", CHATS)
def test_forms_of_several_turns(tmp_path, kind):
    entries, account = read_with_account(write(tmp_path, [CHATS[kind]] * 2))
    assert entries == [Entry((SHORT, *HELLO))] * 2
    assert not account.ignored and not account.dropped and not account.changed


ROLE_NAMES = {"role": {}, "from": {"user": "human", "assistant": "gpt"}}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=5), FILLED,
       st.sampled_from([("messages", "role", "content"), ("conversations", "from", "value")]))
def test_any_conversation_comes_back(tmp_path, turns, last, form):
    turns = [*turns, Turn("assistant", last)]
    item = {form[0]: messages(turns, form[1], form[2], **ROLE_NAMES[form[1]])}
    assert read_entries(write(tmp_path, item)) == [Entry(tuple(turns))]


def test_turns_stay_as_they_are_up_to_the_last_reply(tmp_path):
    turns = [Turn("assistant", "Hi."), Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")]
    after = [Turn("user", "d"), Turn("assistant", " ")]
    entries, account = read_with_account(write(tmp_path, [{"messages": messages(turns + after)}]))
    assert entries == [Entry(tuple(turns))]
    assert account.changed == {"turns after the last reply left out": 1}


def test_a_completion_of_replies_alone(tmp_path):
    item = {"prompt": messages(HELLO[:1]), "completion": messages([HELLO[1], HELLO[3]])}
    assert read_entries(write(tmp_path, [item])) == [Entry((HELLO[0], HELLO[1], HELLO[3]))]


def test_forms_may_be_mixed(tmp_path):
    raw = [item for item, _ in FORMS.values()] + [CHATS["OpenAI"], CHATS["TRL"]]
    entries, account = read_with_account(write(tmp_path, raw))
    assert len(entries) == len(raw)
    assert account.schemas == {form: 1 for form in FORMS} | {"messages": 1, "prompt/completion": 2}


def test_ignored_keys_are_counted(tmp_path):
    raw = [{**ENTRY, "text": "Below is", "prompt": "Below is"}, {**ENTRY, "category": "qa", "text": None},
           {"messages": [{"role": "user", "content": "a", "name": "Eve"}, {"role": "assistant", "content": "b"}],
            "prompt": "a", "id": 3}]
    entries, account = read_with_account(write(tmp_path, raw))
    assert entries == [TOM, TOM, Entry.single("a", "", "b")]
    assert account.ignored == {"text": 2, "prompt": 2, "category": 1, "name (of messages)": 1, "id": 1}


@pytest.mark.parametrize("key, known", [
    ("Input", "input"), ("input : ", "input"), (" input", "input"), ("INPUT:", "input"),
    ("inputs", "input"), ("inptu", "input"), ("ouput", "output"), ("outputs", "output"), ("Output", "output"),
    ("instructions", "instruction"), ("instuction", "instruction"), ("Response", "response"), ("message", "messages"),
    ("Conversations", "conversations"),
    ("contexts", "context"), ("reponse", "response"), ("question ", "question"), ("family:", "family"),
])
def test_near_misses_are_refused_with_the_remedy(tmp_path, key, known):
    assert near_miss(key) == known
    message = refusal(write(tmp_path, [ENTRY, {**ENTRY, key: "x"}]))
    assert "entry 2" in message and repr(key) in message and f"rename it to '{known}'" in message
    assert read_entries(write(tmp_path, [{**ENTRY, key: "x"}]), {"instruction": "instruction"}) == [TOM]


@pytest.mark.parametrize("key", ["text", "id", "category", "content", "source", "input_length", "output_tokens",
                                 "topic", "prompt_id", "", "chosen", "type", "model", "lang", "question_id"])
def test_other_keys_are_no_near_misses(key):
    assert near_miss(key) is None


@pytest.mark.parametrize("item, said", [
    ({"instruction": "x"}, ["'output' is missing"]),
    ({"output": "x"}, ["'instruction' is missing"]),
    ({"prompt": "x", "reply": "y"}, ["'completion' is missing", "'prompt', 'reply'", "--columns output=reply"]),
    ({"ask": "a", "reply": "b"}, ["'ask', 'reply'", "--columns instruction=ask,output=reply"]),
    ({"chat": messages(HELLO), "id": "x"}, ["'chat', 'id'", "--columns messages=chat"]),
    ({}, ["its keys are none"]),
    ({**ENTRY, "context": "x"}, ["'input' and 'context' could each be the input", "--columns"]),
    ({**ENTRY, "question": "x"}, ["'instruction' and 'question'", "--columns"]),
    ({**ENTRY, "answer": "x"}, ["'output' and 'answer'", "--columns"]),
    ({"messages": "x"}, ["'messages' is a string", "expected a list of messages"]),
    ({"messages": ["x"]}, ["message 1 is a string"]),
    ({"messages": [{"role": "user"}]}, ["message 1", "'content' is missing"]),
    ({"messages": [{"role": "tool", "content": "5"}]}, ["message 1", "'tool'", "tools cannot be learned"]),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, ["message 1", "tools"]),
    ({"messages": [{"role": "king", "content": "x"}]}, ["'king'", "expected system, user or assistant"]),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["'image_url'", "parts of text"]),
    ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, ["'weight' 0"]),
    ({"system": "a", "messages": [{"role": "system", "content": "b"}, {"role": "assistant", "content": "c"}]},
     ["a system turn in 'messages' and one more in 'system'", "remove one"]),
    ({**ENTRY, "history": [["a"]]}, ["'history'", "[question, reply]"]),
    ({**ENTRY, "history": "a"}, ["'history' is a string"]),
    ({**ENTRY, "instruction": ["x"]}, ["'instruction' is a list, expected text"]),
    ({**ENTRY, "input": {}}, ["'input' is an object, expected text"]),
    ({**ENTRY, "output": True}, ["'output' is true or false, expected text"]),
    ({**ENTRY, "family": ["x"]}, ["'family' is a list, expected text"]),
    ({**ENTRY, "output": "a\ud83d"}, ["'output'", "unpaired surrogate"]),
])
def test_entries_that_are_refused(tmp_path, item, said):
    message = refusal(write(tmp_path, [ENTRY, item]))
    assert [part for part in ["data.json, entry 2", *said] if part not in message] == [], message


@pytest.mark.parametrize("json_value, text", [
    ("2", "2"), ("-0", "-0"), ("2.0", "2.0"), ("1e5", "1e5"), ("0.10", "0.10"), ("9" * 5000, "9" * 5000), ("null", ""),
    ("NaN", ""), ('"  "', ""), ('"<noinput>"', ""), ('" <NoInput>\\n"', ""), ('"N/A"', "N/A"), ('"a "', "a "),
])
def test_values_of_an_input(tmp_path, json_value, text):
    content = f'[{{"instruction": "a", "input": {json_value}, "output": "b"}}]'.encode()
    assert read_entries(write(tmp_path, content)) == [Entry.single("a", text, "b")]


def test_numbers_and_nothing_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"instruction": ["a", "b", "c"], "input": [1.5, None, float("nan")], "output": [2**60, 7, 8]})
    parquet.write_table(table, tmp_path / "data")
    assert read_entries(tmp_path / "data") == [Entry.single("a", "1.5", str(2**60)), Entry.single("b", "", "7"),
                                               Entry.single("c", "", "8")]


def test_what_cannot_be_learned_is_dropped_and_counted(tmp_path):
    raw = [ENTRY, {**ENTRY, "output": ""}, {**ENTRY, "output": None}, {**ENTRY, "instruction": " ", "input": ""},
           {"messages": messages(HELLO[:1])}, {"messages": []}, {"messages": None, "system": "x"},
           {**ENTRY, "input": "<noinput>"}]
    entries, account = read_with_account(write(tmp_path, raw))
    assert entries == [TOM, Entry.single("Name it.", "", "Tom")]
    assert account.dropped == {"no reply to learn": 5, "nothing is asked": 1}
    assert account.changed == {"<noinput> read as no input": 1}
    assert "no entry to train on: no reply to learn (1)" in refusal(write(tmp_path, raw[1:2]))


# ---- a mapping of one's own


def test_columns(tmp_path):
    raw = [{"ask": "a", "reply": "b", "more": "c", "group": "g", "prompt": "no", "Input": "no"},
           {"ask": "d", "reply": "e"}]
    columns = parse_columns("instruction=ask,output=reply,input=more,family=group")
    assert columns == {"instruction": "ask", "output": "reply", "input": "more", "family": "group"}
    entries, account = read_with_account(write(tmp_path, raw), columns)
    assert entries == [Entry.single("a", "c", "b", "g"), Entry.single("d", "", "e")]
    assert account.ignored == {"prompt": 1, "Input": 1}
    content = json.dumps({"ask": {"0": "a"}, "reply": {"0": "b"}}).encode()
    assert read_entries(write(tmp_path, content), {"instruction": "ask", "output": "reply"}) == [
        Entry.single("a", "", "b")]
    assert read_entries(write(tmp_path, [{"chat": messages(HELLO)}]), {"messages": "chat"}) == [Entry(tuple(HELLO))]
    assert read_entries(write(tmp_path, [{"instruction": "a", "reply": "b"}]), {"output": "reply"}) == [
        Entry.single("a", "", "b")]


def test_columns_must_be_there(tmp_path):
    message = refusal(write(tmp_path, [{"ask": "a", "reply": "b"}]), {"instruction": "ask", "output": "answers"})
    assert "no entry has the key 'answers'" in message and "'ask', 'reply'" in message


@pytest.mark.parametrize("text, said", [
    ("", "NAME=KEY"), ("instruction", "NAME=KEY"), ("instruction=", "NAME=KEY"), ("ask=instruction", "no 'ask'"),
    ("output=a,output=b", "twice"), ("instruction=a,output=a", "two columns"), ("messages=a,output=b", "conversation"),
])
def test_columns_that_mean_nothing(text, said):
    with pytest.raises(ValueError, match=said):
        parse_columns(text)


# ---- files and data sets


def test_several_files_and_patterns(tmp_path):
    first, second = write(tmp_path, [ENTRY], "1.json"), write(tmp_path, [FORMS["Dolly"][0]], "2.json")
    both = [TOM, Entry.single("a", "b", "c")]
    entries, account = read_with_account([second, first])
    assert entries == both[::-1] and account.files == [str(second), str(first)]
    assert read_entries(str(tmp_path / "*.json")) == both
    assert read_entries([first, str(tmp_path / "?.json")]) == both
    assert "no file matches" in refusal(str(tmp_path / "*.csv"))
    assert "no file" in refusal([])


def test_missing_file_and_folder(tmp_path):
    assert "none.json is missing; expected a JSON list" in refusal(tmp_path / "none.json")
    write(tmp_path, [ENTRY], "a.json")
    message = refusal(tmp_path)
    assert f"{tmp_path} is a folder, expected a JSON or JSONL file" in message and "'a.json'" in message


class Hub:
    """A stand-in for huggingface_hub with one data set."""

    def __init__(self, folder, files):
        self.folder, self.files = folder, files

    def HfApi(self):
        return self

    def dataset_info(self, repository, timeout):
        if repository != "owner/name":
            raise OSError("404\nnot found")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.files])

    def hf_hub_download(self, repository, file, repo_type):
        return str(write(self.folder, [{**ENTRY, "output": file}], file.replace("/", "-")))


def test_data_set_of_the_hub(tmp_path, monkeypatch):
    files = ["README.md", "data/train-00000-of-00002.json", "data/train-00001-of-00002.json", "data/test.json"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path, files))
    assert [entry.output for entry in read_entries("owner/name")] == files[1:3]
    assert [entry.output for entry in read_entries("owner/name:test")] == files[3:]
    assert "no files of the split 'validation'" in refusal("owner/name:validation")
    assert "did not list" in refusal("owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refusal("owner/name")
    assert "is missing; expected" in refusal("owner/name.json")


@pytest.mark.parametrize("listed, split, chosen", [
    (["a.json"], "", ["a.json"]),
    (["dataset_infos.json", ".hidden.json", "a.jsonl", "a.md"], "", ["a.jsonl"]),
    (["train.parquet", "train.csv"], "", ["train.parquet"]),
    (["train.json", "dev.json"], "validation", ["dev.json"]),
    (["all.json", "eval/all.json"], "", ["all.json"]),
    (["a.json", "b.json"], "", None),
    (["en/train.json", "fr/train.json"], "", None),
    (["test.json"], "", None),
    (["a.py"], "", None),
])
def test_files_of_a_data_set(listed, split, chosen):
    if chosen is None:
        with pytest.raises(ValueError, match="^owner/name: "):
            hub.choose_files(listed, "owner/name", split)
    else:
        assert hub.choose_files(listed, "owner/name", split) == chosen


# ---- inputs after public reports


@pytest.mark.skipif(not CASES.exists(), reason="needs the cases beside this repository")
@pytest.mark.parametrize("case, outcome", [
    ("01-eos-in-output/data.json", 12), ("02-keys-ignored/Input-capital.json", "'Input'"),
    ("02-keys-ignored/input-colon.json", "'input : '"), ("02-keys-ignored/system-history.json", 12),
    ("03-not-text/bool.json", "true or false"), ("03-not-text/input-number.json", 12), ("03-not-text/nan.json", 12),
    ("03-not-text/list.json", "a list"), ("03-not-text/null-output.json", 11), ("03-not-text/number.json", 12),
    ("03-not-text/object.json", "an object"), ("04-containers/columns.json", 12),
    ("04-containers/concatenated.json", 12), ("04-containers/data-key.json", 12), ("04-containers/data.csv", 12),
    ("04-containers/data.json.gz", 12), ("04-containers/jsonl-named.json", 12), ("05-schemas/dolly.jsonl", 12),
    ("05-schemas/messages.jsonl", 12), ("05-schemas/noinput.json", 12), ("05-schemas/prompt-completion.jsonl", 12),
])
def test_cases_from_the_field(case, outcome):
    if isinstance(outcome, int):
        assert len(read_entries(CASES / case)) == outcome
    else:
        assert outcome in refusal(CASES / case)


def test_an_empty_reply_between_turns_is_counted(tmp_path):
    turns = [Turn("user", "a"), Turn("assistant", " "), Turn("user", "b"), Turn("assistant", "c")]
    entries, account = read_with_account(write(tmp_path, [{"messages": messages(turns)}]))
    assert entries == [Entry(tuple(turns))]
    assert account.changed == {"an empty reply between turns, learned as an end at once": 1}


def test_the_first_entries_of_each_file(tmp_path):
    first, second = (write(tmp_path, [{**ENTRY, "output": f"{name}{i}"} for i in range(5)], f"{name}.json")
                     for name in "ab")
    entries, account = read_with_account([first, second], max_entries=2)
    assert [entry.output for entry in entries] == ["a0", "a1", "b0", "b1"] and account.schemas == {"Alpaca": 4}
