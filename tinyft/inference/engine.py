"""The engine: prepared weights, a cache of keys and values allocated once, and one compiled call for a step."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numba import get_num_threads, set_num_threads

from ..adapters import load_unmerged
from ..gpt2 import GPT2
from ..kernels.cached_attention import BLOCK
from ..kernels.jit import VECTOR_BYTES
from ..kernels.packing import TILE_ROWS, TILE_VECTORS
from ..kernels.panels import DEPTH
from ..kernels.whole_model import Rows, Scratch, run_head, run_model
from ..safetensors_file import forget_pages
from ..tokenizer import Tokenizer
from .weights import bytes_of, prepare, shape_of

# A step of fewer multiply-adds than this is too little work to share: waking another thread costs as much as it helps,
# and far more where another program keeps that thread waiting.
SHARED_WORK = 8_000_000
CACHE_BYTES = 4 << 30  # of keys and values at most, unless n_blocks says otherwise


@dataclass
class Span:
    """New tokens of one sequence, for a step."""

    ids: np.ndarray  # (n,), the new tokens
    before: int  # how many of its tokens are in the cache
    blocks: Sequence[int]  # where the sequence stands in the cache, new tokens included
    keep: int = 1  # of how many of its last new tokens the result is wanted


class Engine:
    """Runs a GPT-2 that isn't trained any more.

    It computes new tokens of many sequences at once, whose keys and values it keeps in blocks of BLOCK tokens. Which
    blocks belong to whom is the caller's business.

    >>> from tinyft import Engine, load_model_and_tokenizer, reply
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> engine = Engine(model, weights="int8")
    >>> reply(engine, tokenizer, "The capital of France is", max_new_tokens=5)
    'Paris.'
    """

    def __init__(self, model: GPT2, *, weights: str = "float32", max_rows: int = 64, step_rows: int = 512,
                 n_blocks: int | None = None, done_with: Callable[[np.ndarray], None] | None = None):
        """weights: how they are kept, "float32", "bfloat16" or "int8". max_rows: sequences at once. step_rows: tokens
        in a step. n_blocks: of the cache; by default enough for max_rows sequences of full length and one that is
        finished, up to CACHE_BYTES, and memory is only taken by those that are used. done_with: see `prepare`.
        """
        for name, value in (("max_rows", max_rows), ("step_rows", step_rows), ("n_blocks", n_blocks or 1)):
            if value < 1:
                raise ValueError(f"Engine: {name} is {value}, expected at least 1")
        step_rows = max(step_rows, max_rows)
        self.config, self.kept_as = model.config, weights
        self.weights = prepare(model, weights, done_with)
        self.weight_bytes = bytes_of(self.weights)
        self.shape = shape_of(model.config)
        self.max_rows, self.step_rows = max_rows, step_rows
        config, dtype = model.config, self.weights.plain.dtype
        width = TILE_VECTORS * VECTOR_BYTES // dtype.itemsize
        size = config.n_embd // config.n_head
        self.blocks_per_sequence = -(-config.n_positions // BLOCK)
        key, value = BLOCK * size, BLOCK * -(-size // width) * width  # elements that a block has for a head
        block_bytes = config.n_layer * config.n_head * (key + value) * dtype.itemsize
        enough, most = (max_rows + 1) * self.blocks_per_sequence, CACHE_BYTES // block_bytes
        self.n_blocks = n_blocks or max(min(enough, most), 2 * self.blocks_per_sequence)
        self.keys = np.zeros((config.n_layer, self.n_blocks, config.n_head, key), dtype)
        self.values = np.zeros((config.n_layer, self.n_blocks, config.n_head, value), dtype)
        self.threads = get_num_threads()
        self.scheduler = None  # see `scheduler_of`
        self.scratch = self._make_scratch(width, size)

    def _make_scratch(self, width: int, size: int) -> Scratch:
        """Room for step_rows tokens; width: elements of a panel, size: of a head."""
        rows, narrow, inner = self.step_rows, self.shape.n_embd, self.shape.n_inner
        padded = rows + TILE_ROWS  # the last group of rows may be filled up
        longest = -(-self.config.n_positions // width) * width

        def room(*shape: int) -> np.ndarray:
            return np.zeros(shape, self.keys.dtype)

        return Scratch(
            x=room(rows * narrow), wide=room(rows * max(3 * narrow, inner)), narrow=room(rows * narrow),
            # Packing spills up to a vector over the end of each group.
            packed=room(padded * max(inner, narrow) + -(-padded // TILE_ROWS) * width),
            own=room(self.threads, padded * width + DEPTH * width),
            packed_own=room(self.threads, TILE_ROWS * max(longest, size) + 2 * width),
            scores=room(self.threads, TILE_ROWS * longest))

    def step(self, spans: Sequence[Span], logits: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Compute new tokens -> hidden (K, C) and logits (K, V) after the tokens to keep, span after span.

        logits: whether they are wanted; without, (0, V). ValueError for spans that the engine has no room for.
        """
        for span in spans:
            self._check(span)
        ids = np.concatenate([span.ids for span in spans]).astype(np.int64)
        counts = [len(span.ids) for span in spans]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if starts[-1] > self.step_rows or ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"Engine.step: {starts[-1]} tokens from {ids.min()} to {ids.max()}, expected at most "
                             f"{self.step_rows} from 0 to {self.config.vocab_size - 1}")
        tables = np.zeros((len(spans), self.blocks_per_sequence), np.int64)
        for table, span in zip(tables, spans, strict=True):
            table[: len(span.blocks)] = span.blocks
        keep = np.concatenate([np.arange(end - span.keep, end) for span, end in zip(spans, starts[1:], strict=True)])
        before = np.array([span.before for span in spans], np.int64)
        hidden = np.empty((len(keep), self.config.n_embd), self.keys.dtype)
        result = np.empty((len(keep) if logits else 0, self.config.vocab_size), self.keys.dtype)
        with self._threads_for(len(ids)) as threads:
            run_model(self.shape, self.weights, Rows(ids, starts, before, tables, keep), self.keys, self.values,
                      hidden.reshape(-1), result.reshape(-1), self.scratch, threads)
        return hidden, result

    def _check(self, span: Span) -> None:
        """What compiled code would take for granted."""
        end, blocks = span.before + len(span.ids), span.blocks
        if not (len(span.ids) and 0 <= span.before and end <= self.config.n_positions):
            raise ValueError(f"Engine.step: {len(span.ids)} tokens after {span.before}, expected at least one and at "
                             f"most {self.config.n_positions} in all")
        if len(blocks) * BLOCK < end or len(blocks) > self.blocks_per_sequence:
            raise ValueError(f"Engine.step: {len(blocks)} blocks for {end} tokens, expected {-(-end // BLOCK)} to "
                             f"{self.blocks_per_sequence}")
        if not 0 <= min(blocks) <= max(blocks) < self.n_blocks:
            raise ValueError(f"Engine.step: blocks {min(blocks)} to {max(blocks)}, expected 0 to {self.n_blocks - 1}")
        if not 0 <= span.keep <= len(span.ids):
            raise ValueError(f"Engine.step: keep is {span.keep}, expected 0 to {len(span.ids)}, the new tokens")

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The output layer: (K, C) of `step` -> (K, V)."""
        result = np.empty((len(hidden), self.config.vocab_size), hidden.dtype)
        for first in range(0, len(hidden), self.step_rows):
            some = slice(first, first + self.step_rows)
            with self._threads_for(len(hidden[some])) as threads:
                run_head(self.shape, self.weights, hidden[some].reshape(-1), len(hidden[some]),
                         result[some].reshape(-1), self.scratch, threads)
        return result

    @contextmanager
    def _threads_for(self, rows: int) -> Iterator[int]:
        """How many threads work on so many rows; no others are woken."""
        before = get_num_threads()
        shape = self.shape
        block = shape.n_embd * (4 * shape.n_embd + 2 * shape.n_inner)
        work = rows * (shape.n_layer * block + shape.n_embd * shape.vocab_size)
        threads = min(before, self.threads) if work >= SHARED_WORK else 1
        set_num_threads(threads)
        try:
            yield threads
        finally:
            set_num_threads(before)


def load_engine(folder: str | os.PathLike, *, weights: str = "float32", base_model: str | os.PathLike | None = None,
                **options) -> tuple[Engine, Tokenizer]:
    """An engine and the tokenizer from a model folder or an adapter's; options as for `Engine`.

    base_model, errors: as for `adapters.load_unmerged`. The weights' file is read through a map of it, and each part
    is given back when it has been copied.

    >>> from tinyft import load_engine, reply
    >>> engine, tokenizer = load_engine("weights/tiny-world", weights="bfloat16")
    >>> reply(engine, tokenizer, "The capital of Spain is", max_new_tokens=4)
    'Madrid.'
    """
    model, tokenizer = load_unmerged(folder, base_model)
    return Engine(model, weights=weights, done_with=forget_pages, **options), tokenizer
