"""GPT-2's byte-level BPE through tiktoken, from a model folder and back into one."""

import itertools
import os
from pathlib import Path

import tiktoken

from .files import read_json, read_text, to_json, write_text

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts text before it merges bytes: contractions, words, numbers, signs, space.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def load_tokenizer(folder: str | os.PathLike) -> tiktoken.Encoding:
    """The tokenizer of a model folder: vocab.json and merges.txt, or tokenizer.json, or else GPT-2's own.

    ValueError if the files are not a byte-level BPE, or GPT-2's own cannot be had offline.
    """
    folder = Path(folder)
    vocab, merges, both = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    if not vocab.exists() and not merges.exists():
        return _from_tokenizer_json(both) if both.exists() else _gpt2_tokenizer(folder)
    for path in (vocab, merges):
        if not path.exists():
            raise ValueError(f"{path} is missing; a tokenizer is vocab.json and merges.txt, both of one model")
    lines = [line for line in read_text(merges).splitlines() if line and not line.startswith("#version")]
    return _encoding(folder.name, read_json(vocab), [tuple(line.split(" ")) for line in lines],
                     f"{vocab} and {merges.name}")


def _from_tokenizer_json(path: Path) -> tiktoken.Encoding:
    """The same from the one file that the tokenizers library writes."""
    content = read_json(path)
    try:
        kind = content["model"]["type"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        ids = content["model"]["vocab"] | added
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
                  for merge in content["model"]["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: expected a tokenizer of type BPE with vocab and merges") from None
    if kind != "BPE":
        raise ValueError(f"{path}: the tokenizer's type is {kind!r}, expected 'BPE'")
    return _encoding(path.parent.name, ids, merges, str(path))


def _encoding(name: str, ids: dict[str, int], merges: list[tuple[str, ...]], where: str) -> tiktoken.Encoding:
    """A tiktoken Encoding. tiktoken merges in the order of ids, so the merges' results must be in theirs."""
    if not isinstance(ids, dict) or not all(isinstance(i, int) and i >= 0 for i in ids.values()):
        raise ValueError(f"{where}: expected an object that gives every token a number")
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{where}: two tokens have the same number, so these files don't belong together; "
                         "take both from the same model")
    symbols = byte_symbols()
    results = ["".join(merge) for merge in merges]
    tokens = [*symbols.values(), *results]
    missing = next((token for token in tokens if token not in ids), None)
    order = [ids.get(token, -1) for token in results]
    if missing is not None or order != sorted(order) or any(len(merge) != 2 for merge in merges):
        what = f"'{missing}' has no number" if missing is not None else "the merges are not in the order of the ids"
        raise ValueError(f"{where}: ids and merges don't belong together ({what}); take both from the same model")
    if END_OF_TEXT not in ids:
        raise ValueError(f"{where}: {END_OF_TEXT} is missing, expected it as the token that ends a text")
    byte_of = {symbol: byte for byte, symbol in symbols.items()}
    ranks = {bytes(byte_of[symbol] for symbol in token): ids[token] for token in tokens}
    mergeable = set(tokens)
    special = {token: i for token, i in ids.items() if token not in mergeable}
    unmade = next((token for token in special if not (token.startswith("<") and token.endswith(">"))), None)
    if unmade is not None:
        raise ValueError(f"{where}: ids and merges don't belong together (no merge makes '{unmade}'); "
                         "take both, whole, from the same model")
    return tiktoken.Encoding(name or "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _gpt2_tokenizer(folder: Path) -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken hands on whatever its download raised
        raise ValueError(f"{folder} has no vocab.json and merges.txt, and GPT-2's own could not be downloaded "
                         f"({type(error).__name__}); put both files into the folder") from None


def byte_symbols() -> dict[int, str]:
    """How vocab.json spells each byte: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair that a token was merged from: merge its bytes by the ranks below its own until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def tokenizer_files(encoding: tiktoken.Encoding) -> dict[str, str]:
    """vocab.json, merges.txt and tokenizer_config.json as text, as transformers' GPT-2 tokenizer reads them."""
    ranks = encoding._mergeable_ranks  # tiktoken has no public way to list its tokens with their ranks
    symbols = byte_symbols()

    def spell(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [" ".join(map(spell, _last_merge(token, ranks))) for token in ordered if len(token) > 1]
    ids = {spell(token): ranks[token] for token in ordered} | encoding._special_tokens
    return {
        "vocab.json": to_json(ids),
        "merges.txt": "#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges),
        "tokenizer_config.json": to_json({
            "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
            "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
        }),
    }


def save_tokenizer(encoding: tiktoken.Encoding, folder: str | os.PathLike) -> None:
    """Write the files of `tokenizer_files` into a folder."""
    for name, text in tokenizer_files(encoding).items():
        write_text(Path(folder) / name, text)
