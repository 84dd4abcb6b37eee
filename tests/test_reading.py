"""Data as people have them: any container, any known schema, and one clear error for the rest."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyft import Entry, Turn, read_data, read_entries
from tinyft.data.hub import choose_files
from tinyft.data.schemas import parse_columns
from tinyft.files import write_json

ENTRY = {"instruction": "Name it.", "input": "a cat", "output": "Tom"}
ITEMS = [{"instruction": "Name it.", "input": "a cat", "output": "Tom"},
         {"instruction": "Größe?", "input": "", "output": "ä\u2028b\n\"c\", d"},
         {"instruction": "x", "input": "", "output": "y"}]
WANTED = [Entry.single("Name it.", "a cat", "Tom"), Entry.single("Größe?", "", "ä\u2028b\n\"c\", d"),
          Entry.single("x", "", "y")]


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refusal(path, columns=None) -> str:
    with pytest.raises(ValueError) as caught:
        read_data(path, columns)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(items, delimiter=",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(items[0])
    writer.writerows([item[key] for key in items[0]] for item in items)
    return out.getvalue()


# ---- containers

LINES = [json.dumps(item, ensure_ascii=False) for item in ITEMS]
CONTAINERS = {
    "a list": json.dumps(ITEMS),
    "a list with a BOM": "\ufeff" + json.dumps(ITEMS),
    "lines": "\n".join(LINES),
    "lines of Windows with blank ones": "\r\n\r\n".join(LINES) + "\r\n",
    "one after the other": "".join(json.dumps(item, indent=2) for item in ITEMS),
    "lists one after the other": json.dumps(ITEMS[:1]) + "\n" + json.dumps(ITEMS[1:]),
    "data": json.dumps({"version": 1, "data": ITEMS, "license": ["MIT"]}),
    "another wrapper": json.dumps({"anything": ITEMS}),
    "a wrapper in a wrapper": json.dumps({"result": {"items": ITEMS}}),
    "rows of the hub's viewer": json.dumps({"features": [], "rows": [{"row_idx": i, "row": item} for i, item in
                                                                    enumerate(ITEMS)]}),
    "columns": json.dumps({key: [item[key] for item in ITEMS] for key in ENTRY}),
    "pandas, columns": json.dumps({key: {str(i): item[key] for i, item in enumerate(ITEMS)} for key in ENTRY}),
    "pandas, index": json.dumps({str(i): item for i, item in enumerate(ITEMS)}),
    "pandas, split": json.dumps({"columns": list(ENTRY), "index": [0, 1, 2],
                                 "data": [list(item.values()) for item in ITEMS]}),
    "commas": table(ITEMS), "tabs": table(ITEMS, "\t"), "semicolons": table(ITEMS, ";"), "bars": table(ITEMS, "|"),
    "commas with a BOM": "\ufeff" + table(ITEMS),
}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.csv", "data"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_are_known_by_their_content(kind, name, tmp_path):
    assert read_entries(write(tmp_path, CONTAINERS[kind].encode(), name)) == WANTED


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kind", ["a list", "lines", "commas"])
def test_compressed(kind, pack, tmp_path):
    assert read_entries(write(tmp_path, pack(CONTAINERS[kind].encode()), "data.json.packed")) == WANTED


def test_utf_16_with_its_mark(tmp_path):
    assert read_entries(write(tmp_path, CONTAINERS["a list"].encode("utf-16"))) == WANTED


def test_one_object_is_one_entry(tmp_path):
    assert read_entries(write(tmp_path, ENTRY)) == WANTED[:1]


def test_several_files(tmp_path):
    one, other = write(tmp_path, ITEMS[:1]), write(tmp_path, CONTAINERS["commas"].encode(), "other.csv")
    assert read_entries([one, str(other)]) == WANTED[:1] + WANTED


def test_parquet_and_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install '.[hub]')")
    content = pyarrow.Table.from_pylist([*ITEMS, {"instruction": "n", "input": None, "output": "1"}])
    pyarrow.parquet.write_table(content, tmp_path / "data.parquet")
    with pyarrow.ipc.new_file(tmp_path / "data.arrow", content.schema) as writer:
        writer.write_table(content)
    for name in ("data.parquet", "data.arrow"):
        assert read_entries(tmp_path / name) == [*WANTED, Entry.single("n", "", "1")]
    broken = (tmp_path / "data.parquet").read_bytes()[:-20]
    assert "not a whole Parquet or Arrow file" in refusal(write(tmp_path, broken, "broken.parquet"))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyft.data.containers.pyarrow", None)
    assert "needs pyarrow: pip install pyarrow" in refusal(write(tmp_path, b"PAR1....PAR1"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), min_size=1, max_size=12).filter(
    str.strip)


@settings(deadline=None, max_examples=80)
@given(items=st.lists(st.fixed_dictionaries({"instruction": TEXTS, "input": TEXTS, "output": TEXTS}), min_size=1,
                      max_size=4).filter(lambda items: all(item["input"].strip() != "<noinput>" for item in items)),
       how=st.sampled_from(["list", "lines", "data", "columns", "csv", "tsv", "gz"]))
def test_any_entries_survive_any_container(items, how, tmp_path_factory):
    wanted = [Entry.single(**item) for item in items]
    content = {
        "list": json.dumps(items, ensure_ascii=False), "lines": "\n".join(map(json.dumps, items)),
        "data": json.dumps({"data": items}),
        "columns": json.dumps({key: [item[key] for item in items] for key in ENTRY}),
        "csv": table(items), "tsv": table(items, "\t"), "gz": json.dumps(items),
    }[how].encode()
    path = tmp_path_factory.mktemp("any") / "data"
    path.write_bytes(gzip.compress(content) if how == "gz" else content)
    assert read_entries(path) == wanted


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=40) | st.sampled_from(sorted(CONTAINERS.values())).flatmap(
    lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text)),
                           st.text("[]{}\",:;\n\t \\x0n", max_size=3)).map(
                               lambda cut: (text[: cut[0]] + cut[2] + text[cut[1]:]).encode())))
def test_whatever_a_file_holds_the_error_is_one_line(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "data.json"
    path.write_bytes(content)
    try:
        read_data(path)
    except ValueError as error:
        assert type(error) is ValueError and str(error).startswith(str(path)) and "\n" not in str(error)


# ---- schemas

CONVERSATION = (Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", "1"), Turn("user", "Two?"),
                Turn("assistant", "2"))
MESSAGES = [{"role": turn.role, "content": turn.content} for turn in CONVERSATION]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}.get(turn.role, turn.role), "value": turn.content}
            for turn in CONVERSATION]
SCHEMAS = {
    "Alpaca": (ENTRY, WANTED[0].turns),
    "Alpaca with system and history": (
        {**ENTRY, "input": "", "system": "Be brief.", "history": [["One?", "1"]], "instruction": "Two?", "output": "2"},
        CONVERSATION),
    "Dolly": ({"instruction": "Name it.", "context": "a cat", "response": "Tom"}, WANTED[0].turns),
    "prompt/completion": ({"prompt": "x", "completion": " y"}, (Turn("user", "x"), Turn("assistant", " y"))),
    "prompt/completion of messages": ({"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}, CONVERSATION),
    "question/answer": ({"question": "x", "answer": "y", "context": "c"},
                        (Turn("user", "x", "c"), Turn("assistant", "y"))),
    "query/response": ({"query": "x", "response": "y"}, (Turn("user", "x"), Turn("assistant", "y"))),
    "question/response": ({"system_prompt": "Be brief.", "question": "x", "response": "y"},
                          (Turn("system", "Be brief."), Turn("user", "x"), Turn("assistant", "y"))),
    "messages": ({"messages": MESSAGES}, CONVERSATION),
    "messages of parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                                                                     {"type": "text", "text": "b"}]},
                                        {"role": "assistant", "content": "c"}]},
                          (Turn("user", "ab"), Turn("assistant", "c"))),
    "a list of messages": (MESSAGES, CONVERSATION),
    "ShareGPT": ({"conversations": SHAREGPT}, CONVERSATION),
    "ShareGPT with a system prompt beside": ({"conversations": SHAREGPT[1:], "system": "Be brief."}, CONVERSATION),
    "ShareGPT with OpenAI's names": ({"conversations": MESSAGES}, CONVERSATION),
    "a developer": ({"messages": [{"role": "developer", "content": "Be brief."}, *MESSAGES[1:]]}, CONVERSATION),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(name, tmp_path):
    item, turns = SCHEMAS[name]
    reading = read_data(write(tmp_path, [item, item]))
    assert reading.entries == [Entry(turns), Entry(turns)]
    assert not reading.account.ignored and not reading.account.changed
    (schema, count), = reading.account.schemas.items()
    assert name.startswith(schema) or schema == "messages" and count == 2 or name == "ShareGPT"


def test_schemas_may_be_mixed_and_are_counted(tmp_path):
    reading = read_data(write(tmp_path, [ENTRY, {"messages": MESSAGES}, ENTRY]))
    assert reading.account.schemas == {"Alpaca": 2, "messages": 1}


def test_keys_that_are_ignored_are_counted(tmp_path):
    items = [{**ENTRY, "text": "x", "id": 5}, {**ENTRY, "text": "x"},
             {"messages": [{**message, "name": "Tom"} for message in MESSAGES], "prompt": "x"}]
    assert read_data(write(tmp_path, {"data": items, "version": 2})).account.ignored == {
        "text": 2, "id": 1, "message name": 5, "prompt": 1, "version (beside the entries)": 1}


@pytest.mark.parametrize("key, meant", [
    ("Input", "input"), ("input : ", "input"), ("inputs", "input"), ("_input", "input"), ("inptu", "input"),
    ("imput", "input"), ("nput", "input"), ("Context", "context"), ("systemPrompt", "system_prompt"),
    ("histroy", "history"), ("ouput", "output"),
])
def test_a_near_miss_of_a_key_is_an_error_with_the_remedy(key, meant, tmp_path):
    message = refusal(write(tmp_path, [ENTRY, {"instruction": "x", "response" if meant == "output" else "output": "y",
                                               key: "z"}]))
    assert f"entry 2: the key '{key}' is not known, but '{meant}' is; rename it" in message
    if meant in ("input", "output"):
        assert f"--columns {meant}='{key}'" in message


@pytest.mark.parametrize("key", ["content", "text", "id", "source", "category", "out", "in", "answer_id", "Inputs "])
def test_other_keys_are_no_near_misses(key, tmp_path):
    assert read_entries(write(tmp_path, [{**ENTRY, key: "z"}])) == WANTED[:1]


def test_keys_that_stand_twice_are_refused(tmp_path):
    text = b'[{"instruction": "x", "output": "y"}, {"instruction": "x", "output": "y", "output": "z"}]'
    assert "entry 2: the key 'output' stands twice" in refusal(write(tmp_path, text))
    text = b'{"messages": [{"role": "user", "content": "x", "role": "assistant"}]}'
    assert "messages[0] has the key 'role' twice" in refusal(write(tmp_path, text))
    assert "the key 'data' stands twice" in refusal(write(tmp_path, b'{"data": [], "data": []}'))
    assert "the column 'output' stands twice" in refusal(write(tmp_path, b"instruction,output,output\na,b,c\n"))


def test_a_mapping_of_ones_own(tmp_path):
    items = [{"ask": "Name it.", "about": "a cat", "reply": "Tom", "id": 1}, {"ask": "x", "reply": "y"}]
    columns = parse_columns("instruction=ask,input=about,output=reply")
    reading = read_data(write(tmp_path, items), columns)
    assert reading.entries == [WANTED[0], WANTED[2]]
    assert reading.account.ignored == {"id": 1}
    assert read_entries(write(tmp_path, [{"Instruction ": "x", "output": "y"}]),
                        {"instruction": "Instruction "}) == WANTED[2:]
    assert read_entries(write(tmp_path, [{"instruction": "old", "new": "x", "output": "y"}]), {"instruction": "new"}) \
        == WANTED[2:]
    assert read_entries(write(tmp_path, [{"chat": MESSAGES}]), {"messages": "chat"}) == [Entry(CONVERSATION)]
    assert read_entries(write(tmp_path, table([{"q": "x", "a": "y"}]).encode()),
                        {"instruction": "q", "output": "a"}) == WANTED[2:]


def test_a_mapping_of_keys_that_are_not_there(tmp_path):
    message = refusal(write(tmp_path, [{"ask": "x", "reply": "y"}]), {"instruction": "question", "output": "reply"})
    assert "no entry has the key 'question' of --columns instruction=question; there are ask, reply" in message
    assert "'output' is missing" in refusal(write(tmp_path, [{"ask": "x", "reply": "y"}, {"ask": "x"}]),
                                            {"instruction": "ask", "output": "reply"})


@pytest.mark.parametrize("text", ["instruction", "ask=x", "instruction=", "instruction=a,instruction=b", ""])
def test_columns_that_say_nothing(text):
    with pytest.raises(ValueError, match="--columns"):
        parse_columns(text)


# ---- values


@pytest.mark.parametrize("spelled, text", [
    ("2", "2"), ("2.0", "2.0"), ("-1e5", "-1e5"), ("12345678901234567890", "12345678901234567890"), ("0.1", "0.1"),
    ("null", ""), ("NaN", ""), ("Infinity", "Infinity"),
])
def test_numbers_are_their_digits_and_nothing_is_nothing(spelled, text, tmp_path):
    path = write(tmp_path, f'[{{"instruction": "x", "input": {spelled}, "output": {spelled}}}]'.encode())
    assert read_entries(path) == [Entry.single("x", text, text)]
    changed = {"numbers in 'input' read as their digits": 1, "numbers in 'output' read as their digits": 1}
    assert read_data(path).account.changed == (changed if text else {})


@pytest.mark.parametrize("given", ["<noinput>", " <noinput>\n", "", "  \n", None])
def test_inputs_that_are_none(given, tmp_path):
    path = write(tmp_path, [{**ENTRY, "input": given}])
    assert read_entries(path) == [Entry.single("Name it.", "", "Tom")]
    assert sum(read_data(path).account.changed.values()) == ("noinput" in str(given))


@pytest.mark.parametrize("name", ["instruction", "input", "output", "family"])
@pytest.mark.parametrize("value, kind", [(True, "true or false"), (["x"], "a list"), ({"x": 1}, "an object")])
def test_values_that_are_no_text(name, value, kind, tmp_path):
    message = refusal(write(tmp_path, [ENTRY, {**ENTRY, name: value}]))
    assert f"entry 2: '{name}' is {kind}, expected text" in message


@pytest.mark.parametrize("message, said", [
    ("x", "is a string, expected an object"), ({}, "has no 'from'; its keys are none"),
    ({"role": "user"}, "has no 'content'"), ({"role": "tool", "content": "x"}, "has the role 'tool'"),
    ({"from": "observation", "value": "x"}, "the role 'observation'"),
    ({"role": "assistant", "content": None, "tool_calls": [{}]}, "calls of tools"),
    ({"role": "assistant", "content": "x", "weight": 0}, "has the weight 0"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "a part that is no text (image_url)"),
    ({"role": "user", "content": {"x": 1}}, "is an object, expected text"),
])
def test_messages_that_cannot_be_learned(message, said, tmp_path):
    text = refusal(write(tmp_path, [{"messages": [MESSAGES[0], message]}]))
    assert "entry 1: " in text and "messages[1]" in text and said in text


def test_turns_that_no_reply_follows_are_left_out_and_counted(tmp_path):
    reading = read_data(write(tmp_path, [{"messages": [*MESSAGES, {"role": "user", "content": "Three?"}]}]))
    assert reading.entries == [Entry(CONVERSATION)]
    assert reading.account.changed == {"conversations cut behind their last reply": 1}


def test_lone_surrogate_is_refused(tmp_path):
    path = write(tmp_path, rb'[{"instruction": "x", "output": "y"}, {"instruction": "x", "output": "a\ud83d"}]')
    assert "entry 2: 'output' has an unpaired surrogate" in refusal(path)


def test_an_entry_tells_what_was_asked_last():
    entry = Entry(CONVERSATION)
    assert (entry.system, entry.instruction, entry.input, entry.output) == ("Be brief.", "Two?", "", "2")
    assert (Entry(()).instruction, Entry(()).output, Entry(()).system) == ("", "", "")


def test_entries_can_be_written_again(tmp_path):
    entries = read_entries(write(tmp_path, [ENTRY]))
    write_json(tmp_path / "replies.json", [entry.output for entry in entries])


# ---- what is no data

BAD_FILES = {
    "not JSON": (b'[\n  {"instruction": }]', ["line 2, column 19", "not JSON"]),
    "cut off": (b'[{"instruction": "x", "output": "y"}', ["line 1, column 37", "not JSON"]),
    "nothing in it": (b"", ["no entries"]),
    "blank": (b" \n\n", ["no entries"]),
    "a string": ("x", ["a string", "expected a list of objects"]),
    "a number": (3, ["a number", "expected a list of objects"]),
    "entry is a string": ([ENTRY, "x"], ["entry 2", "a string", "expected an object", "'instruction'"]),
    "entry is a number": ([ENTRY, 3], ["entry 2", "a number", "expected an object"]),
    "entry is a list": ([ENTRY, ENTRY, []], ["entry 3", "a list", "expected an object"]),
    "no output": ([ENTRY, {"instruction": "x"}], ["entry 2", "'output' is missing", "its keys are 'instruction'",
                                                  "--columns output=KEY"]),
    "no instruction": ([{"output": "x"}], ["entry 1", "'instruction' is missing"]),
    "unknown keys": ([{"ask": "x", "reply": "y"}], ["entry 1", "no known keys", "'ask', 'reply'",
                                                    "--columns instruction=KEY,output=KEY"]),
    "several lists": ({"train": [ENTRY], "test": [ENTRY]}, ["'train' (1), 'test' (1)", "a file of its own"]),
    "columns of different lengths": ({"instruction": ["x"], "output": ["x", "y"]}, ["'instruction' 1, 'output' 2"]),
    "not UTF-8": ('[{"instruction": "Gr\xf6\xdfe", "output": "y"}]'.encode("latin-1"),
                  ["not UTF-8", "byte 20", "0xf6", "save it as UTF-8"]),
    "empty list": ([], ["no entries"]),
    "a line is broken": (b'{"instruction": "x", "output": "y"}\n\n{"instruction"}\n',
                         ["line 3, column 15", "not JSON"]),
    "prose": (b"Once upon a time\nthere was a cat.\n", ["neither JSON nor a table", "'Once upon a time"]),
    "a row too long": (b"instruction,output\na,b\nc,d,e\n", ["line 3: 3 cells, expected 2"]),
    "a quote without end": (b'instruction,output\na,"b\n', ["not a table", "line"]),
    "HTML": (b"<!doctype html><html></html>", ["an HTML page", "fetch the file again"]),
    "a zip": (b"PK\x03\x04...", ["a zip archive"]),
    "zstandard": (b"\x28\xb5\x2f\xfd...", ["zstd -d"]),
    "half of a gzip": (gzip.compress(b"[" + b"x" * 1000)[:20], ["compressed, but broken"]),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid x\n", ["git lfs pull"]),
    "deep": (b"[" * 100_000, ["nested too deeply"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(tmp_path, kind):
    content, said = BAD_FILES[kind]
    path = write(tmp_path, content)
    message = refusal(path)
    assert [part for part in [str(path), *said] if part not in message] == [], message


def test_missing_file_and_folder(tmp_path):
    assert re.search(r"none\.json is missing; expected a file of instructions", refusal(tmp_path / "none.json"))
    assert f"{tmp_path} is a folder, expected a file of instructions" in refusal(tmp_path)


# ---- the hub


@pytest.mark.parametrize("files, split, chosen", [
    (["README.md", "data.jsonl"], "train", ["data.jsonl"]),
    (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"], "train",
     ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
    (["train.json", "train.parquet", "test.json"], "train", ["train.json"]),
    (["train.json", "test.json"], "test", ["test.json"]),
    (["dataset_infos.json", "alpaca.json"], "train", ["alpaca.json"]),
])
def test_which_files_of_a_data_set(files, split, chosen):
    assert choose_files("a/b", files, split) == chosen


@pytest.mark.parametrize("files, split, said", [(["README.md"], "train", "there are none"),
                                                (["test.json"], "train", "there are test.json"),
                                                (["a/train.json", "b/train.json"], "train", "several sets")])
def test_a_data_set_without_such_files(files, split, said):
    with pytest.raises(ValueError, match=said):
        choose_files("a/b", files, split)


def test_a_data_set_without_network_is_one_clear_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install '.[hub]')")

    def offline(*_, **__):
        raise ConnectionError("no route to host\nat all")

    monkeypatch.setattr(hub.HfApi, "list_repo_files", offline)
    message = refusal("tatsu-lab/alpaca")
    assert "tatsu-lab/alpaca is no file, and no data set that could be fetched" in message
    assert "ConnectionError" in message
