"""Read a model folder's tokenizer as transformers' AutoTokenizer does, and say what cannot be read in the same way.

A folder holds vocab.json and merges.txt, or tokenizer.json, which has both and says besides how text is cut
(`pretokenizer.py`); and in other files which tokens were added (`added_tokens.py`). What stands here was read from
transformers 5 and is compared with it, live, by tests.
"""

import json
import os
from pathlib import Path

import tiktoken

from .added_tokens import added_tokens, number, read_object
from .files import check_readable, read_json, read_text, replacing, to_json
from .pretokenizer import how_text_is_cut, named, steps_of
from .tokenizer import (
    BYTE_OF,
    AddedToken,
    Merges,
    Tokenizer,
    from_tiktoken,
    merges_for_tiktoken,
    to_bytes,
)
from .untrusted import MAX_ID, is_whole, shown

GPT2_VOCABULARY = 50257
# Finding how a token is merged takes the square of its length; for GPT-2's that is 50 on average.
LEAST_WORK, WORK_PER_MERGE = 3_000_000, 200
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja")


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a model folder: its files, or GPT-2's own where there are none and the vocabulary has its size.

    ValueError names the file and the setting that tinyft cannot follow, or that versions of transformers disagree on.

    >>> tokenizer = load_tokenizer("weights/tiny-world")
    >>> tokenizer.encode("The lemon")
    [278, 1390]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, expected one with a tokenizer: vocab.json and merges.txt, or "
                         "tokenizer.json")
    try:
        return _load(folder)
    except (KeyError, IndexError, TypeError, AttributeError) as error:  # JSON, but of another shape
        said = shown(str(error))[1:-1]
        raise ValueError(f"{folder}: tokenizer.json or tokenizer_config.json is not laid out as transformers writes it "
                         f"({type(error).__name__}: {said}); save the tokenizer again with save_pretrained") from None


def _load(folder: Path) -> Tokenizer:
    settings, config = read_object(folder / "tokenizer_config.json"), read_object(folder / "config.json")
    n_rows = config.get("vocab_size")
    if n_rows is not None and not is_whole(n_rows, 1):
        raise ValueError(f"{folder / 'config.json'}: vocab_size is {shown(n_rows)}, expected a number of tokens")
    if not any((folder / name).exists() for name in ("vocab.json", "merges.txt", "tokenizer.json")):
        return _gpts_own(folder, n_rows)
    there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    for name in there:
        check_readable(folder / name)
    files = {name: (folder / name).read_bytes() for name in there}
    whole = read_json(folder / "tokenizer.json") if "tokenizer.json" in files else None
    by_file = _follows_tokenizer_json(folder, settings, config, whole)
    vocab, merges, where = _vocabulary(folder, whole)
    _check_vocabulary(where, vocab, merges)
    if n_rows is not None and max(vocab.values()) >= n_rows:
        raise ValueError(f"{folder}: the tokenizer has {max(vocab.values()) + 1} tokens, the model's vocabulary only "
                         f"{n_rows} as config.json says; take the tokenizer's files from this model")
    ranks = merges_for_tiktoken(vocab, merges)
    if whole is not None:
        _check_model(where, whole["model"], vocab, ranks)
    pattern, prefix_space = how_text_is_cut(where, whole, by_file, settings)
    added, names, stated_end = added_tokens(folder, settings, whole, by_file)
    table = number(where, added, vocab)
    ends = _ends(folder, config)
    eot = _end_of_text(folder, names, table, vocab, ends, n_rows, stated_end)
    pad = read_object(folder / "generation_config.json").get("pad_token_id", config.get("pad_token_id"))
    declared = {} if settings.get("tokenizer_class") or not by_file else {"tokenizer_class": "PreTrainedTokenizerFast"}
    return Tokenizer(
        vocab, ranks, table, eot, files, special_names=names,
        in_config=declared | ({"pad_token_id": pad} if is_whole(pad, -1) else {}),
        stop_tokens=tuple(end for end in ends if n_rows is None or end < n_rows), pattern=pattern,
        prefix_space=prefix_space, bos_tokens=_ids_in_front(folder, settings, whole, names, table, vocab),
        chat_template=_chat_template(folder, settings), n_rows=n_rows,
    )


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
    """Write the tokenizer's files into a folder, and remove others of their names.

    >>> import tempfile
    >>> tokenizer = load_tokenizer("weights/tiny-world")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tokenizer(tokenizer, folder)
    ...     load_tokenizer(folder).encode("The lemon") == tokenizer.encode("The lemon")
    True
    """
    contents = tokenizer_files(tokenizer)
    for name in TOKENIZER_FILES:
        if name in contents:
            with replacing(Path(folder) / name) as beside:
                beside.write_bytes(contents[name])
        else:
            (Path(folder) / name).unlink(missing_ok=True)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that the tokenizer came from, byte for byte, and the chat template it has now.

    tokenizer_config.json is written anew only if it holds another chat template, which some readers would prefer.
    """
    contents = dict(tokenizer.files)
    settings = json.loads(contents.get("tokenizer_config.json", b"{}").decode("utf-8-sig"))
    inside = settings.pop("chat_template", None)
    said = contents["chat_template.jinja"].decode("utf-8-sig") if "chat_template.jinja" in contents else inside
    if tokenizer.chat_template is None or tokenizer.chat_template == _default_template(said):
        return contents
    contents["chat_template.jinja"] = tokenizer.chat_template.encode()
    if inside is not None:
        contents["tokenizer_config.json"] = to_json(settings).encode()
    return contents


def _gpts_own(folder: Path, n_rows: int | None) -> Tokenizer:
    if n_rows not in (None, GPT2_VOCABULARY):
        raise ValueError(f"{folder} has no tokenizer (vocab.json and merges.txt, or tokenizer.json), and its "
                         f"vocabulary of {n_rows} is not GPT-2's of {GPT2_VOCABULARY}; put its own files there")
    try:
        return from_tiktoken(tiktoken.get_encoding("gpt2"))
    except Exception as error:  # tiktoken passes through whatever its download raised
        raise ValueError(f"{folder} has no vocab.json and merges.txt, and GPT-2's own could not be downloaded "
                         f"({type(error).__name__}); put both files into the folder") from None


def _follows_tokenizer_json(folder: Path, settings: dict, config: dict, whole: dict | None) -> bool:
    """Whether text is cut as tokenizer.json says (a general class of tokenizer), or always GPT-2's way."""
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    where = folder / ("tokenizer_config.json" if settings.get("tokenizer_class") else "config.json")
    if settings.get("auto_map"):
        raise ValueError(f"{where}: auto_map asks for code that comes with the model, which tinyft does not run")
    if settings.get("split_special_tokens"):
        raise ValueError(f"{where}: split_special_tokens is true, so that special tokens in a text would be letters; "
                         "set it to false")
    kind = str(declared).removesuffix("Fast")
    if declared is None and not config.get("model_type") and whole is not None:
        return True
    if declared is None or kind == "GPT2Tokenizer":
        return False
    if kind not in ("PreTrainedTokenizer", "TokenizersBackend"):
        raise ValueError(f"{where}: tokenizer_class is {shown(declared)}, expected 'GPT2Tokenizer' or "
                         "'PreTrainedTokenizerFast'")
    if whole is None:
        raise ValueError(f"{where}: tokenizer_class is {declared!r}, which needs a tokenizer.json in that folder; for "
                         "vocab.json and merges.txt it is 'GPT2Tokenizer'")
    return True


def _vocabulary(folder: Path, whole: dict | None) -> tuple[dict[str, int], list[tuple[str, ...]], str]:
    """Ids of all tokens, the merges in their order, and the files they came from, for messages."""
    if whole is not None:
        path = folder / "tokenizer.json"
        try:
            kind, vocab, listed = whole["model"]["type"], whole["model"]["vocab"], whole["model"]["merges"]
            merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in listed]
        except (KeyError, TypeError, AttributeError):
            model = whole.get("model") if isinstance(whole, dict) else None
            kind = model.get("type", "missing") if isinstance(model, dict) else "missing"
            raise ValueError(f"{path}: the model's type is {shown(kind)}, expected 'BPE' with vocab and merges"
                             ) from None
        if kind != "BPE":
            raise ValueError(f"{path}: the model's type is {shown(kind)}, expected 'BPE'")
        return vocab, merges, str(path)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab_file, merges_file):
        if not path.exists():
            raise ValueError(f"{path} is missing; a tokenizer is vocab.json and merges.txt, both of one model")
    lines = [line.removesuffix("\r") for line in read_text(merges_file).split("\n")]
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return read_json(vocab_file), merges, f"{vocab_file} and {merges_file.name}"


def _check_vocabulary(where: str, vocab: dict[str, int], merges: list[tuple[str, ...]]) -> None:
    """ValueError unless vocabulary and merges fit together, of a byte-level BPE."""
    if not isinstance(vocab, dict) or not all(map(is_whole, vocab.values())):
        raise ValueError(f"{where}: expected an object that gives every token a number from 0 to {MAX_ID}")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(f"{where}: two tokens have the same number, so these files don't belong together; "
                         "take both from the same model")
    work = 0
    for merge in merges:
        if len(merge) != 2 or not all(isinstance(part, str) and part for part in merge):
            raise ValueError(f"{where}: ids and merges don't belong together (the merge "
                             f"{shown(' '.join(map(str, merge)))} is not of two tokens); take both from the same model")
        for token in (*merge, "".join(merge)):
            if token not in vocab:
                raise ValueError(f"{where}: ids and merges don't belong together ({shown(token)} has no number); "
                                 "take both from the same model")
            if not BYTE_OF.keys() >= set(token):
                raise ValueError(f"{where}: {shown(token)} is not written in bytes as GPT-2's tokens are; tinyft reads "
                                 "byte-level BPE only")
        work += (len(merge[0]) + len(merge[1])) ** 2
    if work > LEAST_WORK + WORK_PER_MERGE * len(merges):
        raise ValueError(f"{where}: the tokens are so long that it would take hours to merge them; is this a "
                         "tokenizer? Its longest has "
                         f"{max(len(''.join(merge)) for merge in merges)} bytes, GPT-2's has 128")
    if sum(symbol in vocab for symbol in BYTE_OF) < 2:
        raise ValueError(f"{where}: single bytes have no numbers; tinyft reads byte-level BPE only")


def _check_model(where: str, model: dict, vocab: dict[str, int], merges: Merges) -> None:
    """ValueError if the BPE of a tokenizer.json has settings under which it gives other ids."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"{where}: {name} of the model is {shown(model[name])}, only null is supported")
    if model.get("ignore_merges"):
        unmade = next((token for token in vocab
                       if BYTE_OF.keys() >= set(token) and to_bytes(token) not in merges.ranks), None)
        if unmade is not None:
            raise ValueError(f"{where}: ignore_merges of the model is true and merges don't lead to {shown(unmade)}; "
                             "only false is supported there")


def _ids_in_front(folder: Path, settings: dict, whole: dict | None, names: dict[str, str],
                  table: dict[AddedToken, int], vocab: dict[str, int]) -> tuple[int, ...]:
    """Ids that stand in front of every text. ValueError if some would follow it: no reply could."""
    ids = {token.content: id for token, id in table.items()}
    if whole is None:
        if settings.get("add_eos_token"):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: add_eos_token is true, so that a prompt would end "
                             "before its reply; set it to false")
        return (ids[names["bos_token"]],) if settings.get("add_bos_token") and "bos_token" in names else ()
    front: list[int] = []
    for step in steps_of(whole.get("post_processor"), "processors"):
        if step.get("type") == "ByteLevel":
            continue
        parts = step.get("single", []) if step.get("type") == "TemplateProcessing" else []
        places = [next(iter(part), None) for part in parts]
        if not parts or places.count("Sequence") != 1 or places[-1] != "Sequence":
            raise ValueError(f"{folder / 'tokenizer.json'}: post_processor {named(step)} puts tokens behind a text, so "
                             "that a prompt would end before its reply; only tokens in front are supported")
        for part in parts[:-1]:
            front += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    if len(front) > 8 or not all(is_whole(id) and (id in vocab.values() or id in table.values()) for id in front):
        raise ValueError(f"{folder / 'tokenizer.json'}: post_processor puts {shown(front)} in front of a text, which "
                         "are no ids of this tokenizer")
    return tuple(front)


def _ends(folder: Path, config: dict) -> list[int]:
    """Ids that end generation: those of generation_config.json, or else of config.json."""
    generation = read_object(folder / "generation_config.json")
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(map(is_whole, ends)):
        where = folder / ("generation_config.json" if "eos_token_id" in generation else "config.json")
        raise ValueError(f"{where}: eos_token_id is {shown(ends)}, expected an id or a list")
    return ends


def _end_of_text(folder: Path, names: dict[str, str], table: dict[AddedToken, int], vocab: dict[str, int],
                 ends: list[int], n_rows: int | None, stated: bool) -> int:
    """The id that ends a text: the tokenizer's, or else the model's.

    stated: whether a file names the tokenizer's. GPT-2's own name, assumed where none does, comes last if the
    vocabulary doesn't have it: it would be a token that nobody has trained.
    """
    ids = vocab | {token.content: id for token, id in table.items()}
    named = [ids[names["eos_token"]]] if "eos_token" in names else []
    known = set(ids.values())
    of_model = [end for end in ends if end in known]
    assumed = bool(named) and not stated and names["eos_token"] not in vocab
    candidates = of_model + named if assumed else named + of_model
    for id in candidates:
        if n_rows is None or id < n_rows:
            return id
    said = "there is no eos_token"
    if "eos_token" in names:
        said = f"{shown(names['eos_token'])} is beyond the model's {n_rows} rows"
    raise ValueError(f"{folder}: no token ends a text: {said} and config.json names none by eos_token_id; set "
                     "eos_token in tokenizer_config.json")


def _chat_template(folder: Path, settings: dict) -> str | None:
    """The folder's chat template: chat_template.jinja, or what tokenizer_config.json has."""
    other = folder / "additional_chat_templates" / "default.jinja"
    if other.exists():
        raise ValueError(f"{other} is a second chat template beside chat_template.jinja or tokenizer_config.json; keep "
                         "one of them, as chat_template.jinja")
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    return _default_template(settings.get("chat_template"))


def _default_template(template) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default", template)
    if template is not None and not isinstance(template, str):
        raise ValueError("tokenizer_config.json: chat_template is expected to be a text, or a list of templates by "
                         "name with one called default")
    return template
