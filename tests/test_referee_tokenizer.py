"""Tokenizers of random settings: tinyft gives the ids that transformers gives, or refuses; never other ids.

Needs transformers: pip install '.[referees]'.
"""

import json
import logging

import numpy as np
import pytest
from small import CORPUS, NASTY_TEXTS, byte_symbols, learn_merges

from tinyft import load_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[referees]')")
pytestmark = pytest.mark.referee

SPECIALS = ["<|endoftext|>", "[PAD]", "<row>", "<|im_end|>", "</s>", "<s>", "cat", " the", "\n\n", "at", "é", "<",
            "東京"]
SPLITS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\p{N}{1,2}|\p{L}+", r" ?[a-z]+", r"\s+|\S+", r"[^\s]+", r"\p{L}++", r"(?i:straße)", r"\w+",
]


def chance(rng: np.random.Generator, p: float) -> bool:
    return bool(rng.random() < p)


def random_text(rng: np.random.Generator) -> str:
    """Pieces of text, special tokens and any characters that Unicode has."""
    parts = []
    for _ in range(rng.integers(1, 8)):
        kind = rng.integers(6)
        if kind == 0:
            parts.append(str(rng.choice(SPECIALS)))
        elif kind == 1:
            start = int(rng.integers(len(CORPUS)))
            parts.append(CORPUS[start : start + int(rng.integers(1, 30))])
        elif kind == 2:
            parts.append(" \n\t\r\u00a0"[int(rng.integers(5))] * int(rng.integers(1, 4)))
        elif kind == 3:
            parts.append(str(rng.choice(NASTY_TEXTS)))
        elif kind == 4:
            parts.append("".join(chr(c) for c in rng.integers(32, 0x250, 4)))
        else:
            code = int(rng.choice([0x300, 0x2000, 0x3000, 0xFFFF, 0x1F600])) + int(rng.integers(-300, 300))
            parts.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(parts)


class Folder:
    """One random tokenizer as files."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.files = rng, {}
        self.vocabulary()
        whole = chance(rng, 0.6)
        self.added()
        if whole:
            self.tokenizer_json()
        else:
            self.files["vocab.json"] = self.vocab
            self.files["merges.txt"] = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in self.merges)
        config = {"model_type": "gpt2", "vocab_size": 700}
        if chance(rng, 0.3):
            config["eos_token_id"] = int(rng.integers(0, 350))
        if self.class_in_config:
            config["tokenizer_class"] = self.class_in_config
        self.files["config.json"] = config

    def vocabulary(self):
        rng = self.rng
        merges = learn_merges()
        if chance(rng, 0.3):
            merges = merges[: rng.integers(0, 80)]
        tokens = [*byte_symbols().values(), *(a + b for a, b in merges)]
        if chance(rng, 0.3):
            merges = [merges[i] for i in rng.permutation(len(merges))]
        if chance(rng, 0.2):  # a merge by hand that others make, and a token that no merge makes
            a, b, c = (tokens[int(rng.integers(min(256, len(tokens) - 1), len(tokens)))] for _ in range(3))
            merges.insert(int(rng.integers(len(merges) + 1)), (a, b))
            tokens += [token for token in (a + b, b + c) if token not in tokens]
        self.specials = [str(s) for s in rng.choice(SPECIALS, rng.integers(1, 5), replace=False)]
        if chance(rng, 0.7) and "<|endoftext|>" not in self.specials:
            self.specials.append("<|endoftext|>")
        inside = self.specials[:1] if chance(rng, 0.6) else []
        tokens = (inside + tokens) if chance(rng, 0.3) else tokens + [t for t in inside if t not in tokens]
        self.vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        if chance(rng, 0.1):
            self.vocab = {token: i + (i > 300) for token, i in self.vocab.items()}
        if chance(rng, 0.1):
            used = {part for merge in merges for part in merge}
            for symbol in rng.choice(list(byte_symbols().values()), 5):
                if symbol not in used:
                    self.vocab.pop(symbol, None)
        self.merges = merges

    def flags(self, content):
        rng = self.rng
        special = chance(rng, 0.6)
        token = {"content": content, "special": special, "normalized": chance(rng, 0.3)}
        return token | {name: chance(rng, 0.15) for name in ("single_word", "lstrip", "rstrip")}

    def added(self):
        rng = self.rng
        ids, following = {}, len(self.vocab)
        for content in self.specials:
            if content in self.vocab:
                ids[content] = self.vocab[content]
            else:
                ids[content] = following + chance(rng, 0.02)
                following = ids[content] + 1
        self.tokens = {id: self.flags(content) for content, id in ids.items()}
        settings = {}
        kind = rng.integers(5)
        if kind == 0:
            settings["tokenizer_class"] = str(rng.choice(["GPT2Tokenizer", "GPT2TokenizerFast"]))
        elif kind < 3:
            settings["tokenizer_class"] = str(rng.choice(["PreTrainedTokenizerFast", "TokenizersBackend"]))
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            if chance(rng, 0.4):
                content = str(rng.choice([*self.specials, "<new>"] if chance(rng, 0.2) else self.specials))
                settings[name] = content
                if chance(rng, 0.2):
                    settings[name] = {"__type": "AddedToken"} | self.flags(content)
        if chance(rng, 0.2):
            settings["add_prefix_space"] = chance(rng, 0.7)
        if chance(rng, 0.2):
            settings["add_bos_token"] = chance(rng, 0.7)
        if chance(rng, 0.05):
            settings["add_eos_token"] = True
        if chance(rng, 0.2):
            settings["additional_special_tokens"] = [str(s) for s in self.specials[:2]]
        layout = rng.integers(4)
        if layout == 0:
            settings["added_tokens_decoder"] = {str(id): token for id, token in self.tokens.items()}
        if layout == 1:
            self.files["added_tokens.json"] = {token["content"]: id for id, token in self.tokens.items()}
        if layout in (1, 2):
            self.files["special_tokens_map.json"] = {
                name: settings.pop(name) for name in list(settings) if name.endswith("_token") and chance(rng, 0.7)
                and not name.startswith("add_")}
        if chance(rng, 0.1):
            settings["image_token"] = str(rng.choice(self.specials))
        if "special_tokens_map.json" in self.files and chance(rng, 0.3):
            self.files["special_tokens_map.json"]["additional_special_tokens"] = [str(s) for s in self.specials[::-2]]
        self.class_in_config = settings.pop("tokenizer_class", None) if chance(rng, 0.15) else None
        if chance(rng, 0.85):
            self.files["tokenizer_config.json"] = settings
        self.settings = settings

    def tokenizer_json(self):
        rng = self.rng
        byte_level = {"type": "ByteLevel", "add_prefix_space": chance(rng, 0.2), "trim_offsets": True,
                      "use_regex": True}
        pre_tokenizer = byte_level
        if chance(rng, 0.35):
            split = {"type": "Split", "pattern": {"Regex": str(rng.choice(SPLITS))}, "behavior": "Isolated",
                     "invert": False}
            if chance(rng, 0.2):
                split["behavior"] = str(rng.choice(["Removed", "MergedWithPrevious", "Contiguous"]))
            steps = [split, byte_level | {"use_regex": chance(rng, 0.1)}]
            if chance(rng, 0.2):
                steps = [{"type": "Digits", "individual_digits": chance(rng, 0.5)}, byte_level]
            pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
        normalizer = None
        if chance(rng, 0.1):
            normalizer = {"type": str(rng.choice(["NFC", "NFKC", "Lowercase", "NFD"]))}
        post = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        if chance(rng, 0.3):
            id, token = next(iter(self.tokens.items()))
            front = {"SpecialToken": {"id": token["content"], "type_id": 0}}
            text = {"Sequence": {"id": "A", "type_id": 0}}
            single = [front, text] if chance(rng, 0.7) else [text, front]
            named = {"id": token["content"], "ids": [id], "tokens": [token["content"]]}
            post = {"type": "TemplateProcessing", "single": single,
                    "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {token["content"]: named}}
        as_pairs = chance(rng, 0.5)
        model = {"type": "BPE", "dropout": None, "unk_token": None, "end_of_word_suffix": None, "fuse_unk": False,
                 "continuing_subword_prefix": "" if chance(rng, 0.3) else None, "byte_fallback": False,
                 "ignore_merges": chance(rng, 0.1), "vocab": self.vocab,
                 "merges": [[a, b] if as_pairs else f"{a} {b}" for a, b in self.merges]}
        if chance(rng, 0.03):
            model["dropout"] = 0.5
        tokens = [{"id": id, **token} for id, token in sorted(self.tokens.items())] if chance(rng, 0.9) else []
        self.files["tokenizer.json"] = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": post if chance(rng, 0.7) else None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": model}

    def write(self, folder):
        for name, content in self.files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_bytes(text.encode())
        return folder


@pytest.mark.parametrize("seed", range(10))
def test_the_ids_of_transformers_or_a_refusal(seed, tmp_path):
    logging.disable(logging.WARNING)
    equal = read = 0
    for case in range(60):
        rng = np.random.default_rng([seed, case])
        folder = tmp_path / str(case)
        folder.mkdir()
        made = Folder(rng)
        made.write(folder)
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception:  # the tokenizers library raises bare Exceptions
            continue
        try:
            ours = load_tokenizer(folder)
        except ValueError:
            continue
        read += 1
        for text in [random_text(rng) for _ in range(12)] + ["", "The cat", " The cat sat<row> on "]:
            for whole in (True, False):
                try:
                    got = ours.encode(text, add_special_tokens=whole)
                except ValueError:
                    continue
                wanted = theirs(text, add_special_tokens=whole)["input_ids"]
                assert got == wanted, (folder, text, whole, {k: v for k, v in made.files.items() if k not in
                                                            ("tokenizer.json", "vocab.json", "merges.txt")})
                equal += 1
        if theirs.eos_token_id is not None and theirs.eos_token_id < 700:  # an invented one may give way to the model's
            assert ours.eot_token in (theirs.eos_token_id, made.files["config.json"].get("eos_token_id"))
            assert ours.eot_token == theirs.eos_token_id or theirs.eos_token_id not in made.vocab.values()
    assert equal > 300 and read > 15
