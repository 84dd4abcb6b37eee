"""What tests/fuzz.py reads: for each format a folder as people have it, ways to damage it, and what reads it."""

import bz2
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mutations import (
    Mutator,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_safetensors,
    mutate_text,
    mutate_value,
    to_json,
)
from safetensors.numpy import save
from small import make_model, write_tokenizer

from tinyft import AdamW, load_tokenizer
from tinyft.checkpoint import load_model, save_model
from tinyft.data.entries import Turn
from tinyft.data.prompts import PROMPT_STYLES, encode_conversation, find_style
from tinyft.data.readers import read_with_account
from tinyft.data.report import describe, report_lines
from tinyft.inference.prompt_files import read_prompts
from tinyft.train import Progress

TEXT = "The cat <|endoftext|> sat\n\n on [PAD] the mat, 12345 Größe 🙂   end "
TURNS = (Turn("system", "Be brief."), Turn("user", "Hello.", "now"), Turn("assistant", "Hi."), Turn("user", "More?"))


@dataclass
class Format:
    """A folder that is read, and how.

    files: name -> content of the whole folder. damage: name -> what may be done to it, of which one is chosen at a
    time, now and then two. read: called with the folder. share: how many inputs of this format, beside the others.
    prepare: called once with the folder, for what no bytes describe.
    """

    files: dict[str, bytes]
    damage: dict[str, Mutator]
    read: Callable[[Path], object]
    share: int = 10
    prepare: Callable[[Path], None] = lambda folder: None

    def damaged(self, rng: random.Random) -> dict[str, bytes]:
        """Files that differ from the whole folder's."""
        names = rng.sample(list(self.damage), min(len(self.damage), 1 if rng.random() < 0.8 else 2))
        return {name: self._damage(name, rng) for name in names}

    def _damage(self, name: str, rng: random.Random) -> bytes:
        try:
            return self.damage[name](self.files[name], rng)
        except (TypeError, KeyError, IndexError, AttributeError):  # what was changed before is no longer changed so
            return mutate_bytes(self.files[name], rng)


def _contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, and of those in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- models

SHAPE = dict(vocab_size=9, n_positions=5, n_embd=4, n_layer=2, n_head=2)
CONFIG = {"model_type": "gpt2", **SHAPE, "n_inner": None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
          "tie_word_embeddings": True, "embd_pdrop": 0.1, "scale_attn_weights": True, "eos_token_id": 8}
WEIGHTS = {f"transformer.{name}": p.data for name, p in make_model(**SHAPE).named_parameters()}


def _model() -> Format:
    half = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    return Format({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": save(half | dict(list(
        WEIGHTS.items())[:9]), {"format": "pt"})}, {"model.safetensors": mutate_safetensors}, load_model)


def _config() -> Format:
    return Format({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": save(WEIGHTS)},
                  {"config.json": mutate_json}, load_model)


PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
ELSEWHERE = ["../outside/model.safetensors", "out/model.safetensors", "/dev/shm/model.safetensors", "..", ".",
             "/etc/passwd", "./" + PARTS[0], "..\\outside\\model.safetensors", "/dev/zero", "pipe.safetensors",
             PARTS[0] + "/x", "a" * 300 + ".safetensors", "x\0.safetensors", "inner/../" + PARTS[0],
             "file://" + PARTS[0],
             "loop.safetensors", "nothing.safetensors", "~/x.safetensors"]


def _index() -> Format:
    names = list(WEIGHTS)
    halves = [save({name: WEIGHTS[name] for name in names[i::2]}) for i in range(2)]
    index = {"metadata": {"total_size": 1}, "weight_map": {name: PARTS[i % 2] for i, name in enumerate(names)}}

    def other_places(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutate_json(content, rng)
        value = json.loads(content)
        for name in rng.sample(names, rng.choice([1, 1, 3, len(names)])):
            value["weight_map"][name] = rng.choice(ELSEWHERE)
        return to_json(value)

    def prepare(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "model.safetensors").write_bytes(save(WEIGHTS))
        (folder / "out").symlink_to(outside)
        (folder / "loop.safetensors").symlink_to("loop.safetensors")
        os.mkfifo(folder / "pipe.safetensors")

    return Format({"config.json": json.dumps(CONFIG).encode(), "model.safetensors.index.json": to_json(index),
                   **dict(zip(PARTS, halves, strict=True))},
                  {"model.safetensors.index.json": other_places, PARTS[0]: mutate_safetensors}, load_model, 6, prepare)


# ---- tokenizers


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids)
    tokenizer.spans(TEXT)


def _merges() -> list[tuple[str, str]]:
    return [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t"), ("c", "at"), ("Ġ", "cat"), ("i", "n"), ("Ġ", "Ġ")]


def _tokenizer(folder: Path) -> Format:
    vocab = write_tokenizer(folder, _merges())
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "add_bos_token": False,
                "pad_token": {"content": "[PAD]", "lstrip": True, "normalized": False, "special": True},
                "additional_special_tokens": ["<a>", "<b>"], "model_max_length": 1024,
                "chat_template": "{{ messages[0]['content'] }}"}
    files = _contents(folder) | {
        "config.json": to_json({"model_type": "gpt2", "vocab_size": len(vocab) + 9, "eos_token_id": len(vocab) - 1}),
        "generation_config.json": to_json({"eos_token_id": [len(vocab) - 1], "pad_token_id": 0}),
        "tokenizer_config.json": to_json(settings),
        "special_tokens_map.json": to_json({"bos_token": "<|endoftext|>", "unk_token": {"content": "<|endoftext|>"}}),
        "added_tokens.json": to_json({"[PAD]": len(vocab), "<a>": len(vocab) + 1})}
    return Format(files, {name: mutate_text if name == "merges.txt" else mutate_json for name in files},
                  _read_tokenizer, 12)


REGEXES = [r"\p{L}+|\s+|\S", r" ?[a-z]+|\S|\s+(?!\S)|\s", r"(a+)+b|\S|\s", r"((a{999}){999}){999}|\S|\s",
           "(" * 500 + ")" * 500, r"\s*\s*\s*\s*\s*x|\S|\s", r"[^\s\p{L}]{1,999}|\S|\s", "a{1,99999999999}",
           r"(?:a|aa|aaa|\p{L})+|\S|\s", "[", "a|", r"\p{N}{1,3}|\p{L}+(?!\S)|\s|\S"]


def _tokenizer_json(folder: Path) -> Format:
    vocab = write_tokenizer(folder, _merges())
    end = {"id": vocab["<|endoftext|>"], "content": "<|endoftext|>", "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": REGEXES[0]}, "behavior": "Isolated", "invert": False}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
             "post_processor": {"type": "TemplateProcessing", "single": [
                 {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                 "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [end["id"]], "tokens": []}}},
             "decoder": {"type": "ByteLevel"}, "model": {
                 "dropout": None, "unk_token": None, "ignore_merges": False, "type": "BPE", "vocab": vocab,
                 "merges": [" ".join(merge) for merge in _merges()]}}

    def damage(content: bytes, rng: random.Random) -> bytes:
        action = rng.random()
        if action < 0.15:
            return mutate_bytes(content, rng)
        value = json.loads(content)
        if action < 0.35:
            value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = rng.choice(REGEXES)
        else:
            part = rng.choice(["added_tokens", "pre_tokenizer", "post_processor", "model", "decoder"])
            value[part] = mutate_value(value[part], rng)
        return to_json(value)

    files = {"tokenizer.json": to_json(whole), "tokenizer_config.json": to_json(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})}
    return Format(files, {"tokenizer.json": damage, "tokenizer_config.json": mutate_json}, _read_tokenizer, 12)


# ---- chat templates

PIECES = ["{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m.content }}",
          "{% if m.role == 'user' %}", "{% endif %}", "{{ eos_token }}", "{% set x = 1 %}", "{{ x * 99999 }}",
          "{% macro f(n) %}{{ f(n) }}{% endmacro %}", "{{ f(1) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
          "{{ cycler.__init__.__globals__.os.system('touch canary') }}", "{{ '%99999999d' % 1 }}",
          "{{ 9 ** (9 ** 6) }}", "{{ 'x' * 999999999 }}", "{{ range(99999) | list }}", "{%", "%}", "{{", "}}", "{#",
          "{% include '/etc/passwd' %}", "{% import 'os' as o %}", "{{ raise_exception('no') }}", "{% generation %}",
          "{% endgeneration %}", "{{ m | attr('__class__') }}", "{{ 'a'.format.__globals__ }}", "{% break %}",
          "{{ messages | tojson(indent=99999) }}", "{{ '{0.__class__}'.format(1) }}",
          "{{ m.content | center(99999999) }}", "{{ namespace(a=1).a }}", "{{ dict(a=messages) }}",
          "{% filter upper %}", "{% endfilter %}", "{{ 1 / 0 }}", "\x00", "é🙂", "{{ strftime_now('%Y' * 9999) }}",
          "{{ messages[9**9] }}", "{{ self.__init__ }}", "{% raw %}", "{% set messages = [] %}"]
SLOW = ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ lipsum(n=99999) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% macro g(n) %}{% if n %}{{ g(n - 1) }}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(60) }}"]


def _template(tokenizer_files: dict[str, bytes], folder: Path) -> Format:
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    tokenizer = load_tokenizer(folder)
    template = PROMPT_STYLES["chatml"].template(tokenizer).replace("<|im_end|>", "<|endoftext|>").encode()

    def damage(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_text(content, rng)
        text = content.decode()
        marks = [i for i, character in enumerate(text) if character == "{"]
        for _ in range(rng.choice([1, 1, 2, 5])):
            at, piece = rng.choice(marks), rng.choice(SLOW if rng.random() < 0.005 else PIECES)
            text = text[:at] + piece + text[at + rng.choice([0, 0, len(piece), 30]) :]
        return text.encode()

    def read(folder: Path) -> None:
        style = find_style(tokenizer, str(folder / "chat_template.jinja"))
        encode_conversation(TURNS, style, tokenizer, reply_follows=True)

    return Format({"chat_template.jinja": template}, {"chat_template.jinja": damage}, read, 3)


# ---- data

ENTRIES = [{"instruction": f"Say {i}.", "input": "now" * (i % 2), "output": "yes " * i, "family": "a"}
           for i in range(1, 5)]
CHATS = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                       {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
         {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
         {"prompt": "p", "completion": "c", "history": [["q", "r"]], "system": "s"}]


def _read_entries(folder: Path) -> None:
    entries, account = read_with_account(folder / "data")
    report_lines(describe(account, entries))


def _instructions(content: bytes, mutator: Mutator, share: int = 8) -> Format:
    return Format({"data": content}, {"data": mutator}, _read_entries, share)


def _packed(content: bytes, rng: random.Random) -> bytes:
    """Damaged, then compressed, then now and then damaged again; or something small that becomes large."""
    text = mutate_json(content, rng) if rng.random() < 0.998 else b" " * rng.choice([10**6, 10**8])
    kind = rng.randrange(3)
    if kind == 2:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.json", text)
        packed = buffer.getvalue()
    else:
        packed = bz2.compress(text) if kind else gzip.compress(text, 1)
    return mutate_bytes(packed, rng) if rng.random() < 0.7 else packed


def _arrow() -> dict[str, Format]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return {}
    table, parquet, stream = pyarrow.Table.from_pylist(ENTRIES), io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    with pyarrow.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return {"parquet": _instructions(parquet.getvalue(), mutate_bytes, 4),
            "arrow": _instructions(stream.getvalue(), mutate_bytes, 4)}


def _csv() -> bytes:
    rows = ["instruction,input,output,family", *(f'"Say {i}, now",,"yes, {i}",a' for i in range(4))]
    return "\n".join(rows).encode()


def _prompts() -> Format:
    lines = ["Say it.", {"prompt": "p"}, {"instruction": "i", "input": "x", "system": "s"}, CHATS[0] | {"messages": [
        {"role": "user", "content": "u"}]}]
    return Format({"prompts.jsonl": b"\n".join(map(to_json, lines)) + b"\n"}, {"prompts.jsonl": mutate_lines},
                  lambda folder: read_prompts(folder / "prompts.jsonl"))


# ---- runs


def _metrics() -> Format:
    from tinyft.report import _events_until

    steps = [{"kind": "step", "step": i, "epoch": i / 9, "loss": 5.0, "tokens": 9, "processed": 9, "seconds": 0.1,
              "learning_rate": 1e-4, "grad_norm": 1.0} for i in range(1, 5)]
    lines = [*steps, {"kind": "evaluation", "step": 4, "epoch": 1.0, "loss": 4.0, "train_loss": None, "tokens": 36,
                      "improved": True, "stop": False}]
    return Format({"metrics.jsonl": b"\n".join(map(to_json, lines)) + b"\n"}, {"metrics.jsonl": mutate_lines},
                  lambda folder: _events_until(folder / "metrics.jsonl", Progress(step=4, evaluated_step=4)), 6)


def _state(folder: Path) -> Format:
    from tinyft.state import load_state, save_state

    model = make_model(**SHAPE | {"n_layer": 1})
    optimizer = AdamW(model)
    identity = {"seed": 1, "options": {"a": [1, 2]}}
    path = save_state(folder, optimizer, Progress(step=3), identity)

    def notes(content: bytes, rng: random.Random) -> bytes:
        """Notes that were changed by somebody who can count a checksum."""
        if rng.random() < 0.4:
            return mutate_safetensors(content, rng)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        said = to_json(mutate_value(json.loads(header["__metadata__"]["notes"]), rng)).decode("utf-8", "replace")
        header["__metadata__"] = {"notes": said, "checksum": str(zlib.crc32(said.encode()))}
        written = to_json(header)
        return len(written).to_bytes(8, "little") + written + content[8 + length :]

    return Format(_contents(folder), {str(path.relative_to(folder)): notes},
                  lambda folder: load_state(folder, optimizer, identity, say=lambda text: None))


def _adapter(folder: Path) -> Format:
    from tinyft.adapters import load_model_and_tokenizer, save_adapter
    from tinyft.lora import LoraConfig, add_lora

    with contextlib.suppress(ImportError):
        from huggingface_hub import snapshot_download  # noqa: F401 - it starts a program when it is imported
    write_tokenizer(folder / "tokenizer", [])
    tokenizer = load_tokenizer(folder / "tokenizer")
    model = make_model(**SHAPE | {"vocab_size": 257, "n_layer": 1})
    save_model(model, tokenizer, folder / "base")
    add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    save_adapter(model, tokenizer, folder / "adapter", str(folder / "base"))
    saved = _contents(folder / "adapter")
    kept = {f"base/{name}": content for name, content in _contents(folder / "base").items()}
    config = json.loads(saved["adapter_config.json"]) | {"base_model_name_or_path": "base"}
    files = saved | kept | {"adapter_config.json": to_json(config)}
    return Format(files, {"adapter_config.json": mutate_json, "adapter_model.safetensors": mutate_safetensors},
                  load_model_and_tokenizer, 6)


def make_formats(scratch: Path) -> dict[str, Format]:
    """All formats by name. scratch: a folder for what has to be written once to be known."""
    def room(name: str) -> Path:
        shutil.rmtree(scratch / name, ignore_errors=True)
        (scratch / name).mkdir(parents=True)
        return scratch / name

    tokenizer = _tokenizer(room("tokenizer"))
    lines = b"\n".join(map(to_json, [*ENTRIES, *CHATS]))
    columns = to_json({key: [entry[key] for entry in ENTRIES] for key in ENTRIES[0]})
    return {
        "safetensors": _model(), "config": _config(), "index": _index(), "tokenizer": tokenizer,
        "tokenizer.json": _tokenizer_json(room("whole")), "template": _template(tokenizer.files, room("template")),
        "json": _instructions(to_json(ENTRIES), mutate_json), "columns": _instructions(columns, mutate_json, 4),
        "jsonl": _instructions(lines, mutate_lines), "csv": _instructions(_csv(), mutate_text),
        "packed": _instructions(to_json(ENTRIES), _packed, 4), **_arrow(), "prompts": _prompts(),
        "metrics": _metrics(), "state": _state(room("state")), "adapter": _adapter(room("adapter")),
    }
