"""From a reply's tokens to its text, piece by piece, and where a stop string ends it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from ..tokenizer import Tokenizer


class TextStream:
    """Decodes one reply as its tokens come: never half a character, never a stop string or the beginning of one.

    stop: texts that end the reply; the first to begin counts. However the text is cut into tokens, what is given out is
    all before that place. Where a longer stop string that began earlier may still come, that is waited for.

    text: all that has been given out. stopped: whether a stop string has been found.
    ValueError for a stop string that is empty or no text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if isinstance(stop, str):
            raise ValueError(f"stop is {stop!r}, expected a list of texts; write [{stop!r}]")
        for string in stop:
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop has {string!r} in it, expected texts of at least one character")
        self.text, self.stopped = "", False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._longest = max(map(len, self._stop), default=1) - 1  # beginning of a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but not given out

    def add(self, token: int) -> str:
        """One more token -> the text that is certain now, often "". Nothing after a stop string."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._tokenizer.decode_single_token_bytes(token))
        found, pending = self._find(), self._beginning()
        self.stopped = found <= pending and found < len(self._held)
        return self._give(min(found, pending))

    def finish(self) -> str:
        """No more tokens -> what was held back and is no stop string; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        found = self._find()
        self.stopped = found < len(self._held)
        return self._give(found)

    def _find(self) -> int:
        """Where the first stop string in the held text begins; its length if there is none."""
        places = [self._held.find(string) for string in self._stop]
        return min((place for place in places if place >= 0), default=len(self._held))

    def _beginning(self) -> int:
        """Where the longest end of the held text begins that a stop string begins with; its length if there is none."""
        length = len(self._held)
        starts = range(max(0, length - self._longest), length)
        return next((start for start in starts if any(string.startswith(self._held[start:]) for string in self._stop)),
                    length)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        self.text += given
        return given


def stream_text(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens as they come. A character whose bytes are spread over tokens waits until it is whole.

    >>> from tinyft import load_tokenizer, stream_text
    >>> tokenizer = load_tokenizer("weights/tiny-world")
    >>> list(stream_text(tokenizer.encode("The dog is here."), tokenizer))
    ['The', ' dog', ' is', ' here', '.']
    """
    text = TextStream(tokenizer)
    for token in tokens:
        if piece := text.add(token):
            yield piece
    if rest := text.finish():
        yield rest
