"""GPT-2's byte-level BPE through tiktoken, from a model folder and back into one."""

import os
from contextlib import contextmanager
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from .files import read_json, write_json, write_text

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts text before it merges bytes: contractions, words, numbers, signs, space.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def load_tokenizer(folder: str | os.PathLike) -> tiktoken.Encoding:
    """The tokenizer of a model folder: its vocab.json and merges.txt, or GPT-2's own if it has neither.

    ValueError if the files don't belong together, or GPT-2's own cannot be had offline.
    """
    vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
    if not vocab.exists() and not merges.exists():
        return _gpt2_tokenizer(folder)
    for path in (vocab, merges):
        if not path.exists():
            raise ValueError(f"{path} is missing; a tokenizer is vocab.json and merges.txt, both of one model")
    ids = read_json(vocab)
    if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
        raise ValueError(f"{vocab}: expected an object that gives every token a number")
    try:
        with _no_tiktoken_cache():
            ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(vocab))
    except (AssertionError, ValueError, KeyError, IndexError):
        raise ValueError(f"{merges} and {vocab} don't belong together: tokens must be the 256 bytes in GPT-2's "
                         "order, then the merges in theirs; take both from the same model") from None
    special = {END_OF_TEXT: ids.get(END_OF_TEXT, len(ranks))}
    return tiktoken.Encoding(Path(folder).name or "gpt2", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens=special)


@contextmanager
def _no_tiktoken_cache():
    """tiktoken caches what it reads by path, local files too, and would never see that one has changed."""
    name = "TIKTOKEN_CACHE_DIR"
    before, os.environ[name] = os.environ.get(name), ""
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _gpt2_tokenizer(folder: str | os.PathLike) -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken hands on whatever its download raised
        raise ValueError(f"{folder} has no vocab.json and merges.txt, and GPT-2's own could not be downloaded "
                         f"({type(error).__name__}); put both files into the folder") from None


def _byte_symbols() -> dict[int, str]:
    """How vocab.json spells each byte: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair that a token was merged from: merge its bytes by the ranks below its own until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def save_tokenizer(encoding: tiktoken.Encoding, folder: str | os.PathLike) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, as transformers' GPT-2 tokenizer reads them."""
    ranks = encoding._mergeable_ranks  # tiktoken has no public way to list its tokens with their ranks
    symbols = _byte_symbols()

    def spell(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [" ".join(map(spell, _last_merge(token, ranks))) for token in ordered if len(token) > 1]
    folder = Path(folder)
    write_json(folder / "vocab.json", {spell(token): ranks[token] for token in ordered}
               | {END_OF_TEXT: encoding.eot_token})
    write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
    })
