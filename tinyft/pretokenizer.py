"""How tokenizer.json says that text is cut into words, in a form that tiktoken takes; or why there is none.

Both engines cut by a regular expression, with backtracking, but they read some expressions differently, and the
tokenizers library can do much besides. So what is known to mean the same is taken, and nothing else.
"""

import re

from .tokenizer import PATTERN
from .untrusted import shown

# How tokenizers cuts text, and the same for tiktoken. Both search with backtracking, the first alternative first.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KNOWN_SPLITS = {
    GPT2_SPLIT: PATTERN,
    **{pattern: pattern for pattern in (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    )},
}
# Other patterns are taken if they are made of nothing but these, which mean the same in both engines: classes, plain
# characters, groups without a question mark, negative lookahead for space, and one quantifier at a time.
PLAIN_PATTERN = re.compile(r"(?:\\p\{(?:L|N|Lu|Ll|Lo|M|P|S|Z)\}|\\[sSrnt]|\(\?!\\[sS]\)|\(\?:|\((?!\?)|[)|\]]|\[\^?|"
                           r"(?:[?*+]|\{\d{1,3}(?:,\d{0,3})?\})(?![?*+{])|[a-zA-Z0-9 '\"!#%&,;:<>=@_~/-])+")


def how_text_is_cut(where: str, whole: dict | None, by_file: bool, settings: dict) -> tuple[str, bool]:
    """The pattern that cuts text into words, and whether a space is put in front of it."""
    if whole is None:
        return PATTERN, bool(settings.get("add_prefix_space", False))
    if whole.get("normalizer"):
        raise ValueError(f"{where}: normalizer {named(whole['normalizer'])} is not supported, only null: text must be "
                         "learned as it is written")
    steps = steps_of(whole.get("pre_tokenizer"), "pretokenizers")
    last = steps[-1] if steps else {}
    told = f"{where}: pre_tokenizer {named(whole.get('pre_tokenizer'))} is not supported"
    if last.get("type") != "ByteLevel" or len(steps) > 2:
        raise ValueError(f"{told}, expected ByteLevel, alone or after one Split")
    pattern = _split(told, steps[0]) if len(steps) == 2 else PATTERN
    if len(steps) == 2 and last.get("use_regex", True):
        raise ValueError(f"{told}: ByteLevel cuts once more (use_regex), which is supported alone only")
    if len(steps) == 1 and not last.get("use_regex", True):
        raise ValueError(f"{told}: with use_regex false nothing cuts text into words")
    if named(whole.get("decoder")) not in ("null", "ByteLevel"):
        raise ValueError(f"{where}: decoder {named(whole['decoder'])} is not supported, expected ByteLevel")
    if by_file:
        prefix_space = bool(last.get("add_prefix_space", True))
        if prefix_space and len(steps) == 2:
            raise ValueError(f"{told}: after a Split, add_prefix_space would put a space in front of every word")
        return pattern, prefix_space
    if pattern != PATTERN:
        raise ValueError(f"{told} by every version of transformers for a GPT2Tokenizer: name the class "
                         "PreTrainedTokenizerFast in tokenizer_config.json if text is to be cut in that way")
    return pattern, bool(settings.get("add_prefix_space", False))


def named(part) -> str:
    """What a part of tokenizer.json calls itself, for messages."""
    if part is None:
        return "null"
    kind = part.get("type", "?") if isinstance(part, dict) else part
    return kind if isinstance(kind, str) and kind.isalnum() and len(kind) <= 40 else shown(kind)


def steps_of(part: dict | None, name: str) -> list[dict]:
    """A pre-tokenizer or post-processor as a list of steps."""
    if not part:
        return []
    return list(part.get(name, [])) if part.get("type") == "Sequence" else [part]


def _split(told: str, step: dict) -> str:
    """The pattern of a Split for tiktoken, which drops what a pattern doesn't match; here that is a word of its own."""
    regex = (step.get("pattern") or {}).get("Regex")
    is_split = step.get("type") == "Split" and isinstance(regex, str)
    if not is_split or step.get("behavior") != "Isolated" or step.get("invert"):
        raise ValueError(f"{told}: {named(step)}, expected a Split by a Regex with behavior Isolated and invert false")
    if regex in KNOWN_SPLITS:
        return KNOWN_SPLITS[regex]
    if len(regex) > 1000 or not PLAIN_PATTERN.fullmatch(regex) or _repeats_repeats(regex) or _may_be_empty(regex):
        raise ValueError(f"{told}: the Regex {shown(regex, 200)} could mean something else here")
    return f"{regex}|(?:(?!{regex})[\\s\\S])+"


def _repeats_repeats(regex: str) -> bool:
    """Whether a group that is repeated repeats something itself: matching may take time without end then."""
    plain = re.sub(r"\\.|\[[^\]]*\]", "a", regex)  # a quantifier or bracket in a class is a character
    while (group := re.search(r"\([^()]*\)", plain)) is not None:
        inside = re.sub(r"^\(\?[:!]", "", group[0])
        repeats = re.search(r"[*+{?]", inside)
        if repeats and plain[group.end() : group.end() + 1] in ("*", "+", "{"):
            return True
        plain = plain[: group.start()] + ("a*" if repeats else "a") + plain[group.end() :]
    return False


def _may_be_empty(regex: str) -> bool:
    """Whether an expression of `PLAIN_PATTERN` matches nothing at all, which the engines treat differently."""
    try:
        return re.fullmatch(re.sub(r"\\p\{\w+\}", r"\\w", regex), "") is not None  # Python lacks \p{...}
    except (re.error, OverflowError, RecursionError):
        return True
