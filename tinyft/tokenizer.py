"""Text to token ids and back, for one model folder: exactly as transformers does it, or not at all.

GPT-2 cuts text into words with a regular expression and merges the bytes of each word by byte pair encoding (BPE); both
are tiktoken's work here. Around it stands what a model folder may ask for besides: added tokens that are looked for in
the text first (`<|endoftext|>`, `[PAD]`, `<row>`), a space in front, an id in front of every text. `tokenizer_files.py`
reads all that from the folder.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import tiktoken

from .files import one_line, to_json

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts text before it merges bytes: contractions, words, numbers, signs, space.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# Unicode's White_Space; Python's own \s has four control characters more.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPACES = re.compile(f"[{SPACE}]+")
# What words are made of, asked of the same engine as the tokenizers library asks: Python may know another Unicode.
WORD_CHARACTERS = tiktoken.Encoding("word characters", pat_str=r"\w", special_tokens={},
                                    mergeable_ranks={bytes([byte]): byte for byte in range(256)})
ABSENT = -1  # stands for a byte that the vocabulary has no token for


@dataclass(frozen=True)
class AddedToken:
    """A text that is one token wherever it stands, under the names that tokenizer.json uses.

    single_word: only where no word goes on at either side. lstrip, rstrip: takes the white space beside it along.
    normalized: looked for in what the tokens that are not `normalized` leave over. special: a sign, not text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


class _Finder:
    """Cuts a text at the added tokens in it: of those that begin at one place, the longest counts."""

    def __init__(self, tokens: dict[AddedToken, int]):
        self.tokens = {token.content: (token, id) for token, id in tokens.items()}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))

    def cut(self, text: str) -> list[tuple[str | int, int, int]]:
        """Ids of tokens, and the pieces of text between them, each with where it begins and ends."""
        if not self.tokens:
            return [(text, 0, len(text))] if text else []
        pieces, done = [], 0
        for match in self.pattern.finditer(text):
            (token, id), start, end = self.tokens[match[0]], match.start(), match.end()
            if token.single_word and (_is_word(text[max(0, start - 1) : start]) or _is_word(text[end : end + 1])):
                continue
            if token.lstrip:
                while start > done and SPACES.match(text, start - 1):
                    start -= 1
            if token.rstrip:
                end = SPACES.match(text, end).end() if SPACES.match(text, end) else end
            if done < start:
                pieces.append((text[done:start], done, start))
            if start < end:  # else the token before it has taken it all along, as white space
                pieces.append((id, start, end))
            done = end
        return [*pieces, (text[done:], done, len(text))] if done < len(text) else pieces


def _is_word(character: str) -> bool:
    return bool(WORD_CHARACTERS.encode_ordinary(character))  # what the pattern doesn't match is dropped


@dataclass(frozen=True)
class Merges:
    """A vocabulary and its merges in the form that tiktoken takes.

    tiktoken joins two neighbours wherever their bytes together are a token, the one with the lowest rank first.
    The tokenizers library joins pairs that the merges list, in the list's order. They agree if a token's rank is
    the place of the one merge that can ever complete it, and tokens that no merges reach are left out: see `merges`.

    ranks: bytes to rank. ids: rank to id. in_order: whether ranks are the ids.
    """

    ranks: dict[bytes, int]
    ids: list[int]
    in_order: bool


def byte_symbols() -> dict[int, str]:
    """How vocab.json spells each byte: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_OF = {symbol: byte for byte, symbol in byte_symbols().items()}


def _last_merge(token: str, place_of: Callable[[tuple[str, str]], int | None]) -> tuple[str, str] | None:
    """The pair that a token is merged from when its symbols are merged in order; None where they don't get there.

    place_of: the place in that order of merging two neighbours, None where they don't merge.
    """
    parts = list(token)
    while len(parts) > 1:
        first, at = None, 0
        for i, pair in enumerate(pairwise(parts)):
            place = place_of(pair)
            if place is not None and (first is None or place < first):
                first, at = place, i
        if first is None:
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None


def merges_for_tiktoken(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Merges:
    """Ranks with which tiktoken gives the ids that listed merges give, whatever their order.

    What happens to a stretch of text whose ends stay token borders does not depend on what stands around it. So two
    neighbours that could be joined to `token` can only be the pair that `_last_merge` finds for it alone: if that
    pair is listed, its place is the token's rank, and if there is none, the token never comes about.
    """
    places = {pair: place for place, pair in enumerate(merges)}  # of a pair that is listed twice the last place counts
    by_place = {}
    for token in {left + right for left, right in merges}:
        pair = _last_merge(token, places.get)
        if pair is not None:
            by_place[places[pair]] = token
    tokens = [*BYTE_OF, *(by_place[place] for place in sorted(by_place))]
    ids = [vocab.get(token, ABSENT) for token in tokens]
    if ABSENT not in ids and ids[256:] == sorted(ids[256:]):  # ids do as ranks; the order of single bytes is no matter
        return Merges({to_bytes(token): id for token, id in zip(tokens, ids, strict=True)}, [], True)
    return Merges({to_bytes(token): rank for rank, token in enumerate(tokens)}, ids, False)


def to_bytes(token: str) -> bytes:
    """The bytes that a token of vocab.json stands for."""
    return bytes([BYTE_OF[symbol] for symbol in token])


@dataclass(repr=False, eq=False)
class Tokenizer:
    """The tokenizer of a model folder; `load_tokenizer` makes one. Methods are named as in tiktoken.

    eot_token: the id that ends a text, learned at the end of every reply. stop_tokens: where generation ends, with
    that one. bos_tokens: ids that stand in front of every text (mostly none). n_vocab: the highest id and one.
    n_rows: ids that the model has rows for; added tokens may lie beyond them as long as no text has them. files: the
    files it was read from, by name, to be saved as they are. chat_template: what the folder says about how its model is
    asked, in Jinja, as transformers reads it. in_config: what config.json must say for these files to be read so again.
    """

    vocab: dict[str, int]
    merges: Merges
    added: dict[AddedToken, int]
    eot_token: int
    files: dict[str, bytes]
    stop_tokens: tuple[int, ...] = ()
    bos_tokens: tuple[int, ...] = ()
    special_names: dict[str, str] = field(default_factory=dict)  # "pad_token" -> "[PAD]", and its like
    pattern: str = PATTERN
    prefix_space: bool = False
    chat_template: str | None = None
    in_config: dict[str, str | int] = field(default_factory=dict)
    n_rows: int | None = None

    def __post_init__(self):
        try:
            self._bpe = tiktoken.Encoding("tinyft", pat_str=self.pattern, mergeable_ranks=self.merges.ranks,
                                          special_tokens={})
        except ValueError as error:  # an expression that its engine can't take
            raise ValueError(f"tokenizer.json: the pre_tokenizer's Regex can't be used ({one_line(error)})") from None
        self._raw = _Finder({token: id for token, id in self.added.items() if not token.normalized})
        self._rest = _Finder({token: id for token, id in self.added.items() if token.normalized})
        self._bytes = {id: _spelled(token) for token, id in self.vocab.items()}
        self._bytes |= {id: token.content.encode() for token, id in self.added.items()}
        self.added_ids = {token.content: id for token, id in self.added.items()}
        self.n_vocab = max(self._bytes) + 1
        if self.eot_token not in self.stop_tokens:
            self.stop_tokens = (self.eot_token, *self.stop_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """The ids that transformers' `tokenizer(text)` gives. add_special_tokens: with `bos_tokens` in front.

        continues: the text goes on from another, so that no space is put in front of it. ValueError where transformers
        would drop a character, or give an id that the model has no row for.
        """
        ids = list(self.bos_tokens) if add_special_tokens else []
        for i, (part, _, _) in enumerate(self._parts(text)):
            space = self.prefix_space and not (continues and i == 0)
            ids += [part] if isinstance(part, int) else self._ordinary(part, space)
        if self.n_rows is not None and self.added and max(ids, default=0) >= self.n_rows:
            raise ValueError(f"the text has {self.decode([max(ids)])!r} in it, whose id {max(ids)} is beyond the "
                             f"model's {self.n_rows} rows; remove it from the text or from the tokenizer's tokens")
        return ids

    def _parts(self, text: str) -> list[tuple[str | int, int, int]]:
        """Ids of added tokens, and the text between them, with places."""
        parts = []
        for piece, start, end in self._raw.cut(text):
            parts += ([(piece, start, end)] if isinstance(piece, int) else
                      [(part, start + first, start + last) for part, first, last in self._rest.cut(piece)])
        return parts

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the tokens of `encode(text, add_special_tokens=False)` begin and end, in bytes of the text in UTF-8."""
        spans, at, done = [], 0, 0  # bytes, characters
        for part, start, end in self._parts(text):
            at, done = at + len(text[done:start].encode()), start
            if isinstance(part, int):
                spans.append((at, at + len(text[start:end].encode())))
                continue
            begin = at - (self.prefix_space and not part.startswith(" "))
            for id in self._ordinary(part, self.prefix_space):
                spans.append((begin, begin + len(self._bytes[id])))
                begin += len(self._bytes[id])
        return spans

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which added tokens are letters like any others, without `bos_tokens`."""
        return self._ordinary(text, self.prefix_space)

    def _ordinary(self, text: str, prefix_space: bool) -> list[int]:
        if prefix_space and text and not text.startswith(" "):
            text = " " + text
        try:
            ranks = self._bpe.encode_ordinary(text)
        except BaseException as error:  # tiktoken's panic, an overflow in its search, is not an Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the tokenizer's regular expression gives up on a text of {len(text)} characters that "
                             f"begins with {text[:20]!r}: it is too much for it without a break; shorten it") from None
        if self.pattern != PATTERN and self._bpe.decode_bytes(ranks) != text.encode():
            raise ValueError(f"the pre_tokenizer's regular expression passes over characters of {text[:40]!r}; tinyft "
                             "can't follow it there")
        if self.merges.in_order:
            return ranks
        ids = [self.merges.ids[rank] for rank in ranks]
        if ABSENT in ids:
            byte = next(iter(self._bpe.decode_single_token_bytes(ranks[ids.index(ABSENT)])))
            raise ValueError(f"the text has the byte {byte:#04x} in it, which this vocabulary has no token for "
                             f"({text[:40]!r}); remove that character or take a tokenizer with all 256 bytes")
        return ids

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none where no token has that id."""
        return self._bytes.get(token, b"")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of many tokens."""
        return b"".join(map(self.decode_single_token_bytes, tokens)).decode("utf-8", errors="replace")

    def behind(self, token: str, text: str) -> str:
        """What an added token leaves of the text behind it: all, or all but the white space that it takes along."""
        strips = any(added.content == token and added.rstrip for added in self.added)
        return re.sub(f"\\A[{SPACE}]+", "", text) if strips else text

    def token_id(self, text: str) -> int | None:
        """The id of an added token by its text, or None."""
        return self.added_ids.get(text)


def _spelled(token: str) -> bytes:
    """The bytes that an entry of vocab.json stands for; other spellings than the byte symbols stand for themselves."""
    try:
        return to_bytes(token)
    except KeyError:
        return token.encode("utf-8", errors="replace")


def from_tiktoken(encoding: tiktoken.Encoding) -> Tokenizer:
    """A tokenizer, with the files that describe it, from one of tiktoken's encodings of GPT-2's kind."""
    ranks, symbols = encoding._mergeable_ranks, byte_symbols()  # there is no public way to list tokens with ranks

    def spell(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    vocab = {spell(token): ranks[token] for token in sorted(ranks, key=ranks.__getitem__)}
    by_rank = sorted((token for token in vocab if len(token) > 1), key=vocab.__getitem__)
    merges = [_last_merge(token, lambda pair: vocab.get(pair[0] + pair[1])) for token in by_rank]
    vocab |= encoding._special_tokens
    added = {AddedToken(content): id for content, id in encoding._special_tokens.items()}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    files = {
        "vocab.json": to_json(vocab).encode(),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)).encode(),
        "tokenizer_config.json": to_json({"tokenizer_class": "GPT2Tokenizer", **names}).encode(),
    }
    return Tokenizer(vocab, merges_for_tiktoken(vocab, merges), added, encoding.eot_token, files, special_names=names)
