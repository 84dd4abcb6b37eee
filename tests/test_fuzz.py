"""Files of other people: read, or refused in one line; in bounded memory and time, and nothing outside of the folder.

`python tests/fuzz.py` reads many damaged files; a short form of it runs here. What it has found stands below, each with
its reason.
"""

import argparse
import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz import Fuzzer, Watch
from fuzz_formats import Format
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json, mutate_lines, mutate_safetensors, mutate_text
from safetensors.numpy import save_file
from small import assert_same_weights, make_model, weights_of, write_tokenizer
from tiny import TOKENIZER

from tinyft import Entry, GPT2Config, InstructionSet, Turn, checkpoint, load_model, load_tokenizer, read_with_account
from tinyft.data import arrow, chat_template, schemas
from tinyft.data.prompts import PROMPT_STYLES, find_style
from tinyft.inference.prompt_files import read_prompts
from tinyft.safetensors_file import read_header, read_tensors
from tinyft.untrusted import shown
from tinyft.weight_names import expected_shapes

ROOT = Path(__file__).resolve().parent.parent
SHAPE = dict(vocab_size=9, n_positions=5, n_embd=4, n_layer=2, n_head=2)
CONFIG = {"model_type": "gpt2", **SHAPE}


def refusal(read, *arguments) -> str:
    """The one printable line in which something is refused."""
    with pytest.raises(ValueError) as caught:
        read(*arguments)
    said = str(caught.value)
    assert type(caught.value) is ValueError and said.isprintable() and len(said) < 1000
    return said


def write_model(folder: Path, weights: dict | None = None, name: str = "model.safetensors", **config) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(weights if weights is not None else weights_of(make_model(**SHAPE)), folder / name)
    return folder


def write_header(path: Path, header, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# ---- the mutator


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and looks at memory as Linux has it")
def test_a_few_thousand_damaged_files(tmp_path):
    pytest.importorskip("jinja2")
    result = subprocess.run([sys.executable, ROOT / "tests" / "fuzz.py", "--inputs", "2000", "--seed", "14",
                             "--findings", tmp_path / "found", "--json", tmp_path / "table.json"],
                            capture_output=True, text=True, timeout=120, cwd=tmp_path,
                            env={**os.environ, "NUMBA_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    formats = json.loads((tmp_path / "table.json").read_text())["formats"]
    assert sum(account["inputs"] for account in formats.values()) == 2000 and len(formats) >= 14
    for name, account in formats.items():  # one that is always refused, or never, tests little
        assert account["inputs"] >= 90 and account["refused"] and account["accepted"], name


@pytest.fixture(scope="module")
def watch() -> Watch:
    """One for all tests: a hook stays for as long as the process."""
    made = Watch()
    sys.addaudithook(made)
    return made


def fuzz_of(tmp_path, read, watch) -> dict[str, int]:
    """What the mutator finds of a reader, in twenty inputs."""
    options = argparse.Namespace(seed=0, format=None, seconds=0.03, findings=tmp_path / "found")
    fuzzer = Fuzzer(options, {"x": Format({"x.json": b'{"a": 1}'}, {"x.json": mutate_json}, read)}, tmp_path)
    fuzzer.watch = watch
    fuzzer.batch("x", range(20))
    return fuzzer.accounts["x"].findings


def _raise(error: BaseException) -> None:
    raise error


def _burn() -> None:
    end = time.process_time() + 0.04
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("fault, found", [
    (lambda folder: None, None),
    (lambda folder: _raise(ValueError(f"{folder}/x.json: no")), None),
    (lambda folder: _raise(KeyError("x")), "KeyError"),
    (lambda folder: _raise(MemoryError()), "MemoryError"),
    (lambda folder: _raise(UnicodeDecodeError("utf-8", b"x", 0, 1, str(folder))), "UnicodeDecodeError"),
    (lambda folder: _raise(ValueError("no")), "names no file"),
    (lambda folder: _raise(ValueError(f"{folder}: a\nb")), "not one short line"),
    (lambda folder: _raise(ValueError(f"{folder}: {'x' * 9999}")), "not one short line"),
    (lambda folder: open("/etc/passwd").close(), "left the folder: opened /etc/passwd"),
    (lambda folder: open(folder / "../made").close(), "left the folder: opened"),
    (lambda folder: os.system("true"), "left the folder: os.system"),
    (lambda folder: _burn(), "slow: accepted"),
])
def test_the_mutator_tells_what_is_wrong(fault, found, tmp_path, watch):
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "made").write_text("")
    findings = fuzz_of(tmp_path, fault, watch)
    assert bool(findings) == (found is not None), findings
    for what, count in findings.items():
        assert what.startswith(found) and count == 20
        texts = [path.read_text() for path in (tmp_path / "found").rglob("finding.txt")]
        assert len(texts) == 3 and all("--format x --seed 0 --only" in text for text in texts)


def test_a_seed_and_a_number_give_the_same_input():
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    stored = len(text).to_bytes(8, "little") + text + b"\0" * 4
    for mutate in (mutate_bytes, mutate_json, mutate_lines, mutate_text, mutate_safetensors):
        content = stored if mutate is mutate_safetensors else text
        made = [[mutate(content, random.Random(seed)) for seed in range(50)] for _ in range(2)]
        assert made[0] == made[1] and len(set(made[0])) > 25, mutate


# ---- what is shown


@pytest.mark.parametrize("value", ["\x1b[31m", "a\nb", "\u202e", "\ud800", "x" * 10**6, [[1] * 10**5], {"a": "\n"},
                                   [10**5000], None, 1.5, "'", 'both \' and "'])
def test_values_are_shown_in_one_short_line(value):
    assert shown(value).isprintable() and len(shown(value)) <= 80


def test_values_that_are_nested_without_end_are_shown():
    value: list = []
    for _ in range(100_000):
        value = [value]
    assert shown(value).isprintable()
    while value:  # or Python's own way to free it would take as many calls
        value = value.pop()


# ---- model folders


def test_the_shapes_that_a_config_asks_for():
    for change in ({}, {"n_inner": 7}, {"tie_word_embeddings": False}, {"n_layer": 1}):
        model = make_model(**SHAPE | change)
        assert list(expected_shapes(model.config)) == [(name, p.shape) for name, p in model.named_parameters()]


@pytest.mark.parametrize("change, named", [
    ({"vocab_size": 2**31 - 1}, "wte.weight"), ({"n_positions": 2**31 - 1}, "wpe.weight"),
    ({"n_embd": 2**31 - 2}, "wte.weight"), ({"n_inner": 2**31 - 1}, "h.0.mlp.c_fc.weight"),
    ({"n_layer": 2**31 - 1}, "h.2.ln_1.weight"), ({"tie_word_embeddings": False}, "lm_head.weight"),
])
def test_a_config_that_asks_for_terabytes(change, named, tmp_path, monkeypatch):
    """It was a MemoryError, or minutes of work, before anything was compared with the file."""
    monkeypatch.setattr(checkpoint, "GPT2", lambda config: pytest.fail("memory was taken"))
    assert f"tensor '{named}' is" in refusal(load_model, write_model(tmp_path / "model", **change))


@pytest.mark.parametrize("change", [{"vocab_size": 2**31}, {"n_layer": 10**30}, {"n_embd": [4]},
                                    {"n_head": {"a": "\n" * 999}}, {"activation_function": "x" * 9999},
                                    {"n_inner": "4"}, {"layer_norm_epsilon": "a\n"}])
def test_values_of_a_config_that_are_none(change, tmp_path):
    """Numbers that no array has, and values that filled the screen."""
    assert f"{next(iter(change))} is" in refusal(load_model, write_model(tmp_path / "model", **change))


def test_a_number_of_too_many_digits(tmp_path):
    """Python's own limit was met without the file's name."""
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text('{"n_layer": ' + "1" * 5000 + "}")
    assert "config.json" in refusal(load_model, folder)


def sharded(folder: Path, names: dict | list) -> Path:
    write_model(folder, name="part.safetensors")
    names = names if isinstance(names, dict) else dict(enumerate(names))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


@pytest.mark.parametrize("name", [
    "../outside/model.safetensors", "/{outside}/model.safetensors", "out/model.safetensors",
    "inner/../part.safetensors", "./part.safetensors", "..", "", ".safetensors", "a\0.safetensors",
    "..\\outside\\model.safetensors", "C:model.safetensors", "a" * 300 + ".safetensors", "é.safetensors", "part.bin",
    1, None, ["part.safetensors"], {"a": 1}])
def test_an_index_names_files_of_its_folder_alone(name, tmp_path):
    outside = write_model(tmp_path / "outside")
    name = name.replace("/{outside}", str(outside)) if isinstance(name, str) else name
    folder = sharded(tmp_path / "model", [name])
    (folder / "out").symlink_to(outside)
    assert "is no name of a file in that folder" in refusal(load_model, folder)


def test_links_as_the_hubs_cache_makes_them(tmp_path):
    blob = write_model(tmp_path / "blobs") / "model.safetensors"
    for folder, link in ((sharded(tmp_path / "a", ["linked.safetensors"]), "linked.safetensors"),
                         (write_model(tmp_path / "b"), "model.safetensors")):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(os.path.relpath(blob, folder))
        assert_same_weights(load_model(folder), make_model(**SHAPE))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    folder = write_model(tmp_path / "model", vocab_size=340)
    write_tokenizer(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "is a device" in refusal(load_tokenizer if name == "vocab.json" else load_model, folder)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 10_000, "a." * 200])
def test_names_of_tensors(name, tmp_path):
    """They stand in messages, and were cut at each of their dots, again and again."""
    folder = write_model(tmp_path / "model", {name: np.zeros(1, np.float32)})
    assert "a tensor is called" in refusal(load_model, folder)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**63 - 1, 0], [0] * 40, [2**31, 2**31, 0]])
def test_a_tensor_of_nothing_with_endless_dimensions(shape, tmp_path):
    """The file is whole, since there are no numbers in it; NumPy raised OverflowError."""
    path = write_header(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    assert "has the shape" in refusal(read_tensors, path)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=9),
                   st.lists(st.integers(-1, 2**65), max_size=4),
                   st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
TENSOR = st.fixed_dictionaries({}, optional={
    "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F64", "BOOL", "F8_E4M3", "x", 1]),
    "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), VALUES),
    "data_offsets": st.one_of(st.tuples(st.integers(0, 70), st.integers(0, 70)), VALUES), "more": VALUES})
HEADER = st.dictionaries(st.one_of(st.text(max_size=9), st.just("__metadata__")), st.one_of(TENSOR, VALUES), max_size=3)


@given(header=st.one_of(HEADER, VALUES), data=st.binary(max_size=70))
@settings(max_examples=150)
def test_any_header_is_read_or_refused(header, data, tmp_path_factory):
    path = write_header(tmp_path_factory.getbasetemp() / "any.safetensors", header, data)
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        assert type(error) is ValueError and str(error).startswith(str(path)) and str(error).isprintable()
    else:
        assert {name: list(array.shape) for name, array in tensors.items()} == {
            name: tensor["shape"] for name, tensor in read_header(path).items()}
        assert sum(array.nbytes for array in tensors.values()) <= 2 * len(data)


NAMES = [*CONFIG, "n_inner", "hidden_size", "pruned_heads", "tie_word_embeddings", "activation_function", "resid_pdrop",
         "layer_norm_epsilon"]


@given(change=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
@settings(max_examples=100)
def test_any_config_is_read_or_refused(change, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any-config"
    if not folder.exists():
        write_model(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    try:
        model = load_model(folder)
    except ValueError as error:
        assert type(error) is ValueError and str(error).startswith(str(folder)) and str(error).isprintable()
    else:
        assert isinstance(model.config, GPT2Config) and model.n_parameters() == make_model(**SHAPE).n_parameters()


# ---- tokenizers


def tokenizer_folder(folder: Path, **files) -> dict[str, int]:
    """A tokenizer with changes: vocab={...}, merges=[...], or the contents of other files by name without .json."""
    vocab = write_tokenizer(folder, files.pop("merges", []))
    if "vocab" in files:
        (folder / "vocab.json").write_text(json.dumps(vocab | files.pop("vocab")))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return vocab


@pytest.mark.parametrize("id", [2**31, 2**32, 2**64, 10**30, 1.0, True, "1", None, -1])
def test_ids_that_are_none(id, tmp_path):
    """tiktoken counts in 32 bits and raised OverflowError."""
    tokenizer_folder(tmp_path, vocab={"<|x|>": id})
    assert "a number from 0 to 2147483647" in refusal(load_tokenizer, tmp_path)


@pytest.mark.parametrize("files, named", [
    ({"added_tokens": {"\ud800": 257}}, "unpaired surrogate"),  # UnicodeEncodeError
    ({"added_tokens": {"x" * 5000: 257}}, "has 5000 characters"),
    ({"added_tokens": {"[A]": "257"}}, "is '257', expected an integer"),
    ({"added_tokens": {"\x1b[31m": 300}}, "is said to be 300"),  # the escape was shown as it is
    ({"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}}, "tokens by their ids"),
    ({"config": {"eos_token_id": 10**30}}, "eos_token_id is"),
    ({"config": {"vocab_size": 10**30}}, "vocab_size is"),
])
def test_added_tokens_and_settings_that_are_none(files, named, tmp_path):
    tokenizer_folder(tmp_path, **files)
    assert named in refusal(load_tokenizer, tmp_path)


def test_many_added_tokens_take_no_longer_than_they_are_long(tmp_path):
    """The highest id was looked for anew for each of them."""
    count = 5_000
    tokenizer_folder(tmp_path, added_tokens={f"[{i}]": 257 + i for i in range(count)},
                     tokenizer_config={"additional_special_tokens": [f"<{i}>" for i in range(count)]})
    start = time.process_time()
    assert load_tokenizer(tmp_path).n_vocab == 257 + 2 * count
    assert time.process_time() - start < 3


def test_tokens_that_take_hours_to_merge(tmp_path):
    """Each is twice as long as the one before; to find its merges takes the square of its length."""
    merges, token = [], "a"
    for _ in range(16):
        merges.append((token, token))
        token += token
    tokenizer_folder(tmp_path, merges=merges)
    assert "hours to merge them" in refusal(load_tokenizer, tmp_path)


def whole_tokenizer(folder: Path, vocab: dict[str, int], regex: str = r"\S+|\s", **parts) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    whole = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
             "model": {"type": "BPE", "vocab": vocab, "merges": []}, **parts}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}))


@pytest.mark.parametrize("regex", [r"(a+)+b|\S|\s", r"(?:(?:a)?b)*c|\S|\s", r"((a{99}){99}){99}|\S|\s",
                                   r"a{1,99999999999}|\S|\s", "(" * 400 + "a" + ")" * 400 + r"|\S|\s", "a" * 1001, 1,
                                   [], None])
def test_expressions_that_match_without_end(regex, tmp_path):
    """Repetitions of repetitions, and sizes that Python's engine raised OverflowError for."""
    whole_tokenizer(tmp_path, tokenizer_folder(tmp_path), regex)
    said = refusal(load_tokenizer, tmp_path)
    assert "could mean something else here" in said or "expected a Split by a Regex" in said or "can't be used" in said


@pytest.mark.parametrize("single, ids", [([{"SpecialToken": {"id": "x"}}, {"Sequence": {}}], [10**9]),
                                         ([{"SpecialToken": {"id": "x"}}, {"Sequence": {}}], ["1"]),
                                         ([{"SpecialToken": {"id": "x"}}, {"Sequence": {}}], [1] * 99),
                                         ([{}, {"Sequence": {}}], [1])])
def test_ids_in_front_that_the_tokenizer_does_not_have(single, ids, tmp_path):
    """They reached the model; a part without anything in it raised StopIteration."""
    post = {"type": "TemplateProcessing", "single": single, "special_tokens": {"x": {"ids": ids}}}
    whole_tokenizer(tmp_path, tokenizer_folder(tmp_path), post_processor=post)
    refusal(load_tokenizer, tmp_path)


def test_signs_that_take_white_space_along_in_a_long_text(tmp_path):
    """All of the text before each was copied."""
    tokenizer_folder(tmp_path, tokenizer_config={"pad_token": {"content": "[P]", "lstrip": True, "rstrip": True}})
    tokenizer = load_tokenizer(tmp_path)
    start = time.process_time()
    assert len(tokenizer.encode("  [P] " * 50_000)) == 50_000
    assert time.process_time() - start < 5


def test_a_long_conversation(tmp_path):
    """Each of its tokens was compared with each of its replies."""
    entry = Entry((Turn("user", "u"), Turn("assistant", "a")) * 5_000)
    start = time.process_time()
    assert InstructionSet([entry], TOKENIZER, prompt_style="phi3", max_length=99).examples[0].learned.sum() == 10_000
    assert time.process_time() - start < 10


# ---- chat templates


@pytest.fixture
def process(monkeypatch):
    """A process for templates that is ended soon."""
    pytest.importorskip("jinja2")
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    made = chat_template.TemplateProcess()
    monkeypatch.setattr(chat_template, "_PROCESS", made)
    yield made
    made.stop()


LOOPS = ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
         "{% macro g(n) %}{{ g(n - 1) if n }}{{ g(n - 1) if n }}{% endmacro %}{{ g(60) }}",
         "{{ 9 ** (9 ** 9) }}"]  # which nothing within the process could interrupt
LARGE = ["{{ range(99999) | list }}", "{{ 'x' * 10 ** 10 }}", "{{ '%9999999999d' % 1 }}", "{{ [0] * 10 ** 9 }}",
         "{{ 'x' | center(10 ** 10) }}",
         "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "{{ '{:9999999999}'.format(1) }}",
         "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]
CODE = ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ (messages | attr('__class__')).mro() }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}", "{{ messages.append(1) }}", "{{ joiner.__call__.__globals__.os.getcwd() }}"]


def test_templates_without_end_are_ended(process, tmp_path):
    for template in LOOPS:
        start = time.monotonic()
        (tmp_path / "bad.jinja").write_text(template)
        assert "it takes too long" in refusal(find_style, TOKENIZER, str(tmp_path / "bad.jinja"))
        assert time.monotonic() - start < 10
    style = chat_template.JinjaStyle(PROMPT_STYLES["phi3"].template(TOKENIZER), TOKENIZER, "a chat template")
    assert style.pieces([Turn("user", "u")], reply_follows=True) == [("<|user|>\nu\n<|assistant|>\n", False)]


def test_templates_that_fill_the_memory(process, tmp_path):
    for template in LARGE:
        (tmp_path / "bad.jinja").write_text(template)
        assert "bad.jinja can't write down" in refusal(find_style, TOKENIZER, str(tmp_path / "bad.jinja"))


@pytest.mark.parametrize("template", CODE)
def test_templates_that_reach_for_more_than_their_values(template, process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jinja").write_text(template + "{{ raise_exception('it went on') }}")
    assert "it went on" not in refusal(find_style, TOKENIZER, str(tmp_path / "bad.jinja"))
    assert not list(tmp_path.rglob("canary"))


def test_a_module_beside_is_not_taken_for_jinja(process, tmp_path, monkeypatch):
    """Python puts the folder that it is started in before its own."""
    for name in ("jinja2", "json", "datetime", "signal"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(tmp_path)
    style = chat_template.JinjaStyle(PROMPT_STYLES["phi3"].template(TOKENIZER), TOKENIZER, "a chat template")
    assert style.pieces([Turn("user", "u")]) and not (tmp_path / "canary").exists()


def test_the_process_of_templates_is_started_again(process):
    style = chat_template.JinjaStyle(PROMPT_STYLES["phi3"].template(TOKENIZER), TOKENIZER, "a chat template")
    before = style.pieces([Turn("user", "u")])
    process._process.kill()
    process._process.wait()
    assert style.pieces([Turn("user", "u")]) == before


def test_templates_and_conversations_that_are_too_long(process):
    said = refusal(chat_template.JinjaStyle, "x" * (2 << 20), TOKENIZER, "a chat template")
    assert "has 2,097,152 characters" in said
    style = chat_template.JinjaStyle(PROMPT_STYLES["phi3"].template(TOKENIZER), TOKENIZER, "a chat template")
    assert "has 2,000 turns" in refusal(style.pieces, [Turn("user", "u")] * 2000)


# ---- data


def packed(kind: str, content: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.json", content)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_little_that_becomes_much(kind, tmp_path):
    """A few kilobytes filled the memory."""
    (tmp_path / "x").write_bytes(packed(kind, b" " * (70 << 20)))
    assert "bytes when it is not" in refusal(read_with_account, tmp_path / "x")
    (tmp_path / "x").write_bytes(packed(kind, b'[{"instruction": "a", "output": "b"}' + b" " * (10 << 20) + b"]"))
    assert len(read_with_account(tmp_path / "x")[0]) == 1


@pytest.mark.parametrize("content", [
    {"k" * 100_000: {str(i): [{}] for i in range(300)}},
    {"columns": [["k" * 100_000]], "data": [[0]] * 300}], ids=["path", "header"])
def test_a_long_key_that_is_not_copied(content, tmp_path):
    """It was, for each list below it and for each row: a megabyte became two gigabytes."""
    (tmp_path / "x").write_text(json.dumps(content))
    tracemalloc.start()
    refusal(read_with_account, tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_a_long_key_above_many_objects(tmp_path):
    """The path to each of them was put together anew."""
    (tmp_path / "x").write_text(json.dumps({"k" * (1 << 20): {str(i): {} for i in range(10_000)}}))
    start = time.process_time()
    refusal(read_with_account, tmp_path / "x")
    assert time.process_time() - start < 1


def arrow_tables():
    """Tables that are small as files and large as values, by name."""
    pyarrow = pytest.importorskip("pyarrow")
    large = pyarrow.array(["x" * (1 << 20)])
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(500, np.int32)), large)
    text = pyarrow.array(["a"])

    def one_list(items):
        return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(items)], pyarrow.int32()), items)

    return pyarrow, {
        "rows": pyarrow.table({"output": pyarrow.nulls(50_000_000)}),
        "texts": pyarrow.table({"output": repeated}),
        "nulls": pyarrow.table({"output": text, "x": pyarrow.array([[None] * 9], pyarrow.list_(pyarrow.null()))}),
        "fixed": pyarrow.table({"output": text, "x": pyarrow.array([[1] * 9], pyarrow.list_(pyarrow.int8(), 9))}),
        "views": pyarrow.table({"output": text.cast(pyarrow.string_view())}),
        "bits": pyarrow.table({"output": text, "x": one_list(np.zeros(3_000_000, bool))}),
        "nothing": pyarrow.table({"output": text, "x": one_list(
            pyarrow.StructArray.from_buffers(pyarrow.struct([]), 3_000_000, [None]))}),
    }


@pytest.mark.parametrize("name, said", [("rows", "rows in"), ("texts", "made to fill a memory"),
                                        ("nulls", "of the type"), ("fixed", "of the type"), ("views", "of the type"),
                                        ("nothing", "made to fill a memory")])
def test_tables_whose_values_are_not_in_the_file(name, said, tmp_path):
    """Any number of rows, or the same text again and again, take no room in such a file."""
    pyarrow, tables = arrow_tables()
    with pyarrow.ipc.new_file(tmp_path / "x", tables[name].schema) as writer:
        writer.write_table(tables[name])
    assert said in refusal(read_with_account, tmp_path / "x")


def test_a_parquet_file_that_repeats_a_bit(tmp_path):
    pyarrow, tables = arrow_tables()
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(tables["bits"], tmp_path / "x")
    assert "made to fill a memory" in refusal(read_with_account, tmp_path / "x")


def test_a_parquet_file_that_repeats_a_text(tmp_path):
    pyarrow, tables = arrow_tables()
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(tables["texts"], tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 3 << 20
    assert "made to fill a memory" in refusal(read_with_account, tmp_path / "x")
    entries = [{"instruction": "same", "output": str(i)} for i in range(1000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), tmp_path / "x")
    assert [entry.output for entry in read_with_account(tmp_path / "x")[0]] == [str(i) for i in range(1000)]


def test_a_table_of_many_columns(tmp_path):
    """Each name was compared with all before it."""
    (tmp_path / "x").write_text("instruction,output," + ",".join(map(str, range(60_000))) + "\na,b," + "," * 59_999)
    start = time.process_time()
    assert len(read_with_account(tmp_path / "x")[0]) == 1
    assert time.process_time() - start < 5


def test_a_parquet_file_of_one_long_text_is_not_even_unpacked(tmp_path):
    pyarrow, _ = arrow_tables()
    table = pyarrow.table({"output": ["a"], "instruction": ["b" * 80_000_000]})
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "x", compression="zstd", use_dictionary=False)
    before = pyarrow.total_allocated_bytes()
    assert "made to fill a memory" in refusal(read_with_account, tmp_path / "x")
    assert pyarrow.total_allocated_bytes() - before < 1 << 20 and (tmp_path / "x").stat().st_size < 10_000


def test_lists_of_a_table_that_are_read(tmp_path):
    pyarrow, _ = arrow_tables()
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    maps = pyarrow.array([[("a", 1)], None, []] * 100, pyarrow.map_(pyarrow.string(), pyarrow.int32()))
    table = pyarrow.table({"messages": [chat] * 300, "tags": [["a"], None, []] * 100, "counts": maps})
    with pyarrow.ipc.new_file(tmp_path / "arrow", table.schema) as writer:
        writer.write_table(table)
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "parquet")
    for name in ("arrow", "parquet"):
        assert [entry.output for entry in read_with_account(tmp_path / name)[0]] == ["a"] * 300
    parts = arrow._size(table.combine_chunks()["counts"].chunk(0)), sum(
        arrow._size(batch.column("counts")) for batch in table.to_batches(max_chunksize=7))
    assert parts[0] <= parts[1] < 1.5 * parts[0]  # not each time as large as all of them


def test_a_table_of_many_columns_and_rows(tmp_path):
    """Each name was compared with the known ones in each row, where there are more names than were remembered."""
    schemas.near_miss.cache_clear()
    (tmp_path / "x").write_text("instruction,output," + ",".join(map(str, range(5000))) + ("\na,b," + "," * 4999) * 3)
    assert len(read_with_account(tmp_path / "x")[0]) == 3
    assert schemas.near_miss.cache_info().misses == 5002


def test_prompts_with_line_ends_of_unicode_in_them(tmp_path):
    """JSON needs no escapes for them."""
    (tmp_path / "x.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\r\n\n"d"\n', encoding="utf-8", newline="")
    assert [line.text for line in read_prompts(tmp_path / "x.jsonl")] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize("line", [
    "[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"\\u001b[31m": 1}', '{"prompt": "\\ud800"}',
    json.dumps({"k" * 9999: 1}), json.dumps({"messages": [{"role": "x" * 9999}]})])
def test_prompts_that_are_none(line, tmp_path):
    """RecursionError; and keys that filled the screen or changed its colours."""
    (tmp_path / "x.jsonl").write_text(line)
    assert "x.jsonl, line 1" in refusal(read_prompts, tmp_path / "x.jsonl")


@pytest.mark.parametrize("value", [
    {"\x1b[31m" + "x" * 999: 1}, {"a\n": [1], "b": [1, 2]}, {"a\x1b": {"1": 2}, "b": {"3": 4}},
    [{"\x1binstruction": 1}], [{"messages": [{"role": "\x1b" * 999, "content": "x"}]}]])
def test_keys_are_shown_in_one_short_line(value, tmp_path):
    (tmp_path / "x").write_text(json.dumps(value))
    refusal(read_with_account, tmp_path / "x")
