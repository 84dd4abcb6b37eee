"""A tiny GPT-2, its tokenizer, entries and a way to run the example scripts, for the tests."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import tiktoken

from tinyft import GPT2, Entry, GPT2Config, InstructionSet, save_model
from tinyft.tokenizer import PATTERN, Tokenizer, from_tiktoken

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CONTEXT = 128
END_OF_TEXT = "<|endoftext|>"
WORDS = (" is an instruction that describes a task Write response appropriately completes the request Instruction "
         "Input Response word").split()


def make_tokenizer() -> Tokenizer:
    """The 256 bytes in GPT-2's order, merges for the words of the prompts, and end-of-text."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    tokens = [bytes([byte]) for byte in printable + [byte for byte in range(256) if byte not in printable]]
    tokens += [b"##", b"###"]
    for word in WORDS:  # " i", " is", ...: every merge adds a letter to a beginning with a space
        for end in range(1, len(word) + 1):
            token = (" " + word[:end]).encode()
            if token not in tokens:
                tokens.append(token)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return from_tiktoken(tiktoken.Encoding("tiny", pat_str=PATTERN, mergeable_ranks=ranks,
                                           special_tokens={END_OF_TEXT: len(ranks)}))


TOKENIZER = make_tokenizer()


def make_model(seed: int = 0, dtype=np.float32, **changes) -> GPT2:
    """A GPT-2 with 2 layers of 16 channels and weights large enough to tell tokens apart."""
    shape = dict(vocab_size=TOKENIZER.n_vocab, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2) | changes
    model = GPT2(GPT2Config(**shape), np.random.default_rng(seed), dtype)
    rng = np.random.default_rng(seed + 1)
    for _, parameter in model.named_parameters():
        parameter.data += 0.1 * rng.standard_normal(parameter.shape).astype(dtype)
    return model


def make_entries(count: int, seed: int = 0) -> list[Entry]:
    """Entries with and without input and replies of uneven length."""
    rng = np.random.default_rng(seed)
    return [Entry.single(f"Say word {i}.", "now" if i % 3 == 0 else "", "ab"[i % 2] * int(rng.integers(1, 9)))
            for i in range(count)]


def make_set(entries: list[Entry], **options) -> InstructionSet:
    """Short prompts, so that little of the time goes into them."""
    return InstructionSet(entries, TOKENIZER, **{"prompt_style": "phi3", "max_length": CONTEXT, **options})


def save_tiny_model(folder: Path, **changes) -> Path:
    """A model folder that the examples can load."""
    save_model(make_model(**changes), TOKENIZER, folder)
    return folder


def write_entries(path: Path, entries: list[Entry]) -> Path:
    """Entries as an Alpaca JSON file."""
    path.write_text(json.dumps([{"instruction": e.instruction, "input": e.input, "output": e.output}
                                for e in entries]), encoding="utf-8")
    return path


def weights(model: GPT2) -> dict[str, np.ndarray]:
    """Copies of all weights by name."""
    return {name: parameter.data.copy() for name, parameter in model.named_parameters()}


def gradients(model: GPT2) -> dict[str, np.ndarray]:
    """Copies of all gradients by name; the model forgets them."""
    grads = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return grads


def assert_all_close(actual: dict, expected: dict, **tolerance) -> None:
    """Two dictionaries of arrays, name by name."""
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], err_msg=name, **tolerance)


def example(script: str, *arguments, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess:
    """Run a script of examples/ as a user would, but without the network."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "no-hub-cache"),
                    "PYTHONIOENCODING": "utf-8", "NUMBA_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(EXAMPLES / script), *map(str, arguments)], cwd=cwd, env=environment,
                          input=stdin, capture_output=True, encoding="utf-8", timeout=120)


def error_line(result: subprocess.CompletedProcess) -> str:
    """The one line that a failed script leaves on stderr."""
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert len(errors) == 1 and errors[0].startswith("error: ") and lines[-1] == errors[0], result.stderr
    return errors[0]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny arrays gain nothing from a second thread, and lose much where it has to be waited for."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


def in_process(script: str, arguments, monkeypatch, capsys) -> str:
    """Run a script here, where importing tinyft costs nothing; what it exits with."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return caught.value.code
