"""Which tokens were added to a vocabulary, and their ids: from the files in which transformers has kept that.

These are `added_tokens` of tokenizer.json, `added_tokens_decoder` of tokenizer_config.json, and the older
added_tokens.json and special_tokens_map.json. They overlap, and which of them counts depends on which are there.
"""

from pathlib import Path

from .files import read_json
from .tokenizer import END_OF_TEXT, AddedToken
from .untrusted import MAX_ID, is_whole, shown

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LONGEST = 1000  # characters of an added token


def read_object(path: Path) -> dict:
    """A JSON object, empty where there is no such file."""
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def added_tokens(folder: Path, settings: dict, whole: dict | None, by_file: bool):
    """Added tokens in the order in which transformers adds them, each (token, id that a file states or None), the names
    of special ones, {"eos_token": "<|endoftext|>", ...}, and whether a file names the end.
    """
    stated: dict[int, AddedToken] = {}
    backend: list[tuple[AddedToken, int | None]] = []
    for entry in (whole or {}).get("added_tokens", []):
        backend.append((_token(folder / "tokenizer.json", entry), entry.get("id")))
    names = dict(settings)
    if "added_tokens_decoder" in settings:
        for id, entry in _numbered(folder, settings["added_tokens_decoder"]):
            stated[id] = _token(folder / "tokenizer_config.json", entry)
    else:
        mapped = read_object(folder / "special_tokens_map.json")
        if (here := _extra(names)) and (there := _extra(mapped)) and here != there:
            raise ValueError(f"{folder}: tokenizer_config.json and special_tokens_map.json list other additional "
                             f"tokens ({shown(here)} and {shown(there)}), so that their ids aren't clear; let them say "
                             "the same")
        names |= mapped
        # Of the map's tokens without a name only those under their newer key count as special in added_tokens.json.
        newer = _extra({"extra_special_tokens": mapped.get("extra_special_tokens")})
        listed = {_content(value)
                  for value in [*(names.get(name, "") for name in TOKEN_NAMES), *_extra(settings), *newer]}
        for content, id in read_object(folder / "added_tokens.json").items():
            special = content in listed
            stated[id] = AddedToken(content, special=special, normalized=not special)
        stated |= {id: token for token, id in backend}
    stated_end = "eos_token" in names
    if not by_file:
        names = dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT) | names
    tokens = list(backend) if by_file else []
    tokens += [(stated[id], id) for id in sorted(stated)]
    known, listed_here = {token.content for token, _ in tokens}, set()
    stated_end = stated_end or END_OF_TEXT in known
    for value in _special_values(folder, names):  # a text may be named twice, with other flags: then the last counts
        token = _token("tokenizer_config.json", value) if isinstance(value, dict) else AddedToken(_content(value))
        if token.content not in known and token not in listed_here:
            tokens.append((token, None))
            listed_here.add(token)
    return tokens, _named_tokens(names), stated_end


def _named_tokens(names: dict) -> dict[str, str]:
    """All special tokens that have names, as chat templates know them."""
    named = {name: _content(value) for name, value in names.items()
             if name in TOKEN_NAMES and value or name.endswith("_token") and isinstance(value, str)}
    extra = names.get("extra_special_tokens")
    return named | ({name: _content(value) for name, value in extra.items()} if isinstance(extra, dict) else {})


def _numbered(folder: Path, decoder) -> list[tuple[int, dict]]:
    if not isinstance(decoder, dict) or not all(id.isdecimal() and len(id) <= 10 for id in decoder):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is to be an object of tokens by "
                         "their ids")
    return [(int(id), entry) for id, entry in decoder.items()]


def _special_values(folder: Path, names: dict) -> list:
    """What stands under the names of special tokens, named ones first: texts or objects."""
    for name in TOKEN_NAMES:
        if not isinstance(names.get(name) or "", (str, dict)):
            raise ValueError(f"{folder}: {name} of tokenizer_config.json or special_tokens_map.json is "
                             f"{shown(names[name])}, expected a text")
    values = [names[name] for name in TOKEN_NAMES if names.get(name)]
    values += [value for name, value in names.items()
               if name.endswith("_token") and name not in TOKEN_NAMES and isinstance(value, str)]
    return values + _extra(names)


def _extra(names: dict) -> list:
    """Special tokens that have no name of their own."""
    extra = names.get("extra_special_tokens") or names.get("additional_special_tokens") or []
    return list(extra.values()) if isinstance(extra, dict) else list(extra)


def _content(value) -> str:
    return value.get("content", "") if isinstance(value, dict) else str(value)


def _token(where, entry: dict) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ValueError(f"{where}: the added token {shown(entry)} is no object with a text as 'content'")
    special = bool(entry.get("special", False))
    flags = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(entry["content"], special=special, normalized=bool(entry.get("normalized", not special)), **flags)


def number(where: str, tokens: list, vocab: dict[str, int]) -> dict[AddedToken, int]:
    """Ids of added tokens, given as the tokenizers library gives them: a known text keeps its id, others follow.

    ValueError where a file states another id than that, for then its embedding is another row than the one meant.
    """
    ids: dict[str, int] = {}
    latest: dict[str, AddedToken] = {}
    highest, following = max(vocab.values()), len(vocab)
    for token, stated in tokens:
        if not token.content:
            continue
        _check_added(where, token, stated)
        id = ids.get(token.content, vocab.get(token.content))
        if id is None and highest >= len(vocab):
            raise ValueError(f"{where}: the added token {shown(token.content)} is not in the vocabulary, whose ids "
                             f"have a gap ({len(vocab)} tokens, ids up to {highest}), so that no number is safe for "
                             "it; add it to the vocabulary")
        if id is None:
            id = following
        if stated is not None and stated != id:
            raise ValueError(f"{where}: the added token {shown(token.content)} is said to be {stated}, but "
                             f"transformers counts on and gives it {id}; a token between is missing, or the "
                             "vocabulary has a gap")
        following = max(following, id + 1)
        ids[token.content], latest[token.content] = id, token
    taken = {id: token for token, id in vocab.items()}
    for content, id in ids.items():
        if taken.get(id, content) != content:
            raise ValueError(f"{where}: the added token {shown(content)} gets the id {id}, which {shown(taken[id])} "
                             "has already; the vocabulary has a gap")
    return {latest[content]: id for content, id in ids.items()}


def _check_added(where: str, token: AddedToken, stated) -> None:
    """ValueError for a text that is none, or is too long to be a sign, and for an id that is none."""
    try:
        token.content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the added token {shown(token.content)} has an unpaired surrogate in it, which is "
                         "no character; remove the token") from None
    if len(token.content) > LONGEST:
        raise ValueError(f"{where}: the added token {shown(token.content)} has {len(token.content)} characters, "
                         f"expected at most {LONGEST}; remove the token")
    if stated is not None and not is_whole(stated):
        raise ValueError(f"{where}: the id of the added token {shown(token.content)} is {shown(stated)}, expected an "
                         f"integer from 0 to {MAX_ID}")
