"""Blocks of the cache: whose they are, what sequences share, and that none gets lost, against a simple model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinyft.inference.cache import GRAIN, Beginnings, Cache, CachedSequence
from tinyft.kernels.cached_attention import BLOCK
from tinyft.segments import common_prefix

# Long enough for several blocks, over two tokens, and alike for a while: runs of one token.
TOKENS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, BLOCK + 3)), min_size=1, max_size=4).map(
    lambda runs: [token for token, count in runs for _ in range(count)])


class Pages:
    """An engine's cache, which has for each token a number that stands for all tokens up to it."""

    def __init__(self, n_blocks, blocks_per_sequence=4):
        self.n_blocks, self.blocks_per_sequence = n_blocks, blocks_per_sequence
        self.keys = np.zeros((2, n_blocks, 1, BLOCK), np.int64)
        self.values = np.zeros((2, n_blocks, 1, BLOCK), np.int64)

    def compute(self, sequence, count):
        """As a step does: put away what belongs to the next `count` tokens."""
        for i in range(sequence.computed, sequence.computed + count):
            at = sequence.blocks[i // BLOCK], 0, i % BLOCK
            self.keys[(slice(None), *at)] = hash(tuple(sequence.tokens[: i + 1]))
            self.values[(slice(None), *at)] = -hash(tuple(sequence.tokens[: i + 1]))
        sequence.computed += count

    def holds(self, sequence):
        """Whether what is said to be computed stands there."""
        for i in range(sequence.computed):
            block, place = sequence.blocks[i // BLOCK], i % BLOCK
            expected = hash(tuple(sequence.tokens[: i + 1]))
            if not ((self.keys[:, block, 0, place] == expected).all()
                    and (self.values[:, block, 0, place] == -expected).all()):
                return False
        return True


def opened(cache, pages, tokens, length=None, most_shared=None):
    """A sequence whose tokens are all computed, and how many of them were there."""
    sequence = CachedSequence(tokens)
    most_shared = len(tokens) - 1 if most_shared is None else most_shared
    shared = cache.open(sequence, length or len(tokens), most_shared)
    assert shared is not None
    pages.compute(sequence, len(tokens) - shared)
    return sequence, shared


class BlocksOfACache(RuleBasedStateMachine):
    """Sequences come and go, at random; after each step all that must hold does."""

    @initialize(n_blocks=st.integers(4, 14), retained=st.none() | st.integers(0, 6))
    def begin(self, n_blocks, retained):
        self.pages = Pages(n_blocks)
        self.cache = Cache(self.pages, retained)
        self.running, self.closed, self.room = [], [], {}

    def in_use(self):
        return {block for sequence in self.running for block in sequence.blocks}

    @rule(tokens=TOKENS, more=st.integers(0, 40), most_shared=st.integers(0, 200))
    def open(self, tokens, more, most_shared):
        length = min(len(tokens) + more, 4 * BLOCK)
        sequence = CachedSequence(tokens[:length])
        most_shared = min(most_shared, len(sequence.tokens) - 1)
        there = [other.tokens[: other.computed] for other in self.running + self.closed if other.blocks]
        known = max((common_prefix(sequence.tokens, others) for others in there), default=0)
        shared = self.cache.open(sequence, length, most_shared)
        needed = -(-length // BLOCK)
        if shared is None:  # what nobody runs has been thrown away by now
            assert not sequence.blocks and sequence.computed == 0
            shared = self.cache.open(sequence, length, most_shared)
        if shared is None:
            needed -= self.cache.shared_with(sequence.tokens, most_shared)[1] // BLOCK
            assert needed > self.pages.n_blocks - len(self.in_use())
            return
        assert sequence.computed == shared <= min(most_shared, known)
        assert len(sequence.blocks) == needed
        self.running.append(sequence)
        self.room[id(sequence)] = length

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), count=st.integers(1, 60), offers=st.booleans())
    def compute(self, which, count, offers):
        sequence = self.running[which % len(self.running)]
        self.pages.compute(sequence, min(count, len(sequence.tokens) - sequence.computed))
        if offers:
            self.cache.offer(sequence)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), tokens=TOKENS)
    def write(self, which, tokens):
        """A reply grows token by token."""
        sequence = self.running[which % len(self.running)]
        room = self.room[id(sequence)] - len(sequence.tokens)
        if sequence.computed == len(sequence.tokens):
            sequence.tokens += tokens[:room]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def close(self, which):
        sequence = self.running.pop(which % len(self.running))
        self.cache.close(sequence)
        self.closed.append(sequence)

    @rule()
    def no_room_for_more_than_there_is(self):
        free = self.cache.free_blocks
        assert self.cache.open(CachedSequence([7]), BLOCK * self.pages.n_blocks + 1, 0) is None
        assert self.cache.free_blocks == free  # nothing is forgotten in vain

    @invariant()
    def what_is_computed_stands_there(self):
        for sequence in self.running + [other for other in self.closed if other.blocks]:
            assert self.pages.holds(sequence)

    @invariant()
    def nobody_writes_where_another_reads(self):
        for sequence in self.running:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            written = set(sequence.blocks[sequence.computed // BLOCK :])
            for other in self.running + self.closed:
                assert other is sequence or not written & set(other.blocks)

    @invariant()
    def every_block_is_somewhere(self):
        kept = {block for sequence in self.closed for block in sequence.blocks}
        assert self.cache.free_blocks == self.pages.n_blocks - len(self.in_use() | kept)

    def teardown(self):
        for sequence in self.running:
            self.cache.close(sequence)
        everything = CachedSequence([7] * (BLOCK * self.pages.n_blocks))
        assert self.cache.open(everything, len(everything.tokens), 0) == 0
        assert sorted(everything.blocks) == list(range(self.pages.n_blocks)) and self.cache.free_blocks == 0


BlocksOfACache.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True)
TestBlocksOfACache = BlocksOfACache.TestCase


# ---- what is shared


@pytest.mark.parametrize("finished", [False, True], ids=["running", "finished"])
@pytest.mark.parametrize("common, expected", [
    (0, 0), (GRAIN - 1, 0), (GRAIN, GRAIN), (GRAIN + 3, GRAIN + 3), (BLOCK - 1, BLOCK - 1), (BLOCK, BLOCK),
    (BLOCK + 1, BLOCK + 1), (2 * BLOCK, 2 * BLOCK), (2 * BLOCK + 9, 2 * BLOCK + 9),
])
def test_whole_blocks_are_shared_and_a_part_is_copied(finished, common, expected):
    pages = Pages(8)
    cache = Cache(pages)
    first, _ = opened(cache, pages, [1] * (2 * BLOCK + 20))
    (cache.close if finished else cache.offer)(first)
    tokens = [1] * common + [2] * (3 * BLOCK - common)
    second, shared = opened(cache, pages, tokens)
    assert shared == expected and pages.holds(first) and pages.holds(second)
    assert set(first.blocks) & set(second.blocks) == set(first.blocks[: common // BLOCK])
    assert second.blocks[: common // BLOCK] == first.blocks[: common // BLOCK]
    assert cache.free_blocks == 8 - 3 - 3 + common // BLOCK


@pytest.mark.parametrize("most", [0, 5, GRAIN, 20, BLOCK, BLOCK + 7])
def test_no_more_is_shared_than_was_said(most):
    pages = Pages(8)
    cache = Cache(pages)
    first, _ = opened(cache, pages, [1] * 60)
    cache.offer(first)
    assert cache.shared_with([1] * 60, most) == ((first, most) if most >= GRAIN else (None, 0))
    assert opened(cache, pages, [1] * 60, most_shared=most)[1] == (most if most >= GRAIN else 0)


def test_what_is_not_computed_yet_is_not_shared():
    pages = Pages(8)
    cache = Cache(pages)
    first = CachedSequence([1] * 60)
    cache.open(first, 60, 59)
    pages.compute(first, 21)
    assert opened(cache, pages, [1] * 50)[1] == 0
    cache.offer(first)  # its first 16 tokens are found, of which 21 are there
    assert opened(cache, pages, [1] * 16 + [3] * 30)[1] == 16
    cache.offer(first)
    assert cache.shared_with([1] * 50, 49)[1] == 21


def test_a_reply_is_shared_as_well():
    """A conversation goes on: its next prompt begins with the last reply."""
    pages = Pages(8)
    cache = Cache(pages)
    first, _ = opened(cache, pages, [1] * 20, length=60)
    first.tokens += [2] * 30
    pages.compute(first, 29)  # the last token is never computed
    cache.close(first)
    assert opened(cache, pages, [1] * 20 + [2] * 30 + [3] * 9)[1] == 49


def test_the_oldest_are_forgotten_first():
    pages = Pages(6)
    cache = Cache(pages)
    for token in (1, 2, 3):
        cache.close(opened(cache, pages, [token] * 2 * BLOCK)[0])
    assert cache.free_blocks == 0
    cache.close(opened(cache, pages, [4] * BLOCK)[0])
    assert cache.free_blocks == 1
    assert [cache.shared_with([token] * 60, 59)[1] for token in (1, 2, 3, 4)] == [0, 59, 59, BLOCK]
    assert cache.shared_with([1] * 60, 59) == (None, 0)


def test_how_much_is_kept():
    for retained, kept in ((0, 0), (1, 0), (2, 1), (5, 2), (None, 3)):
        pages = Pages(20, blocks_per_sequence=2)
        cache = Cache(pages, retained)
        for token in (1, 2, 3):
            cache.close(opened(cache, pages, [token] * 2 * BLOCK)[0])
        assert cache.free_blocks == 20 - 2 * kept
        found = [cache.shared_with([token] * 60, 59)[1] > 0 for token in (1, 2, 3)]
        assert found == [False] * (3 - kept) + [True] * kept
    pages = Pages(20, blocks_per_sequence=2)
    cache = Cache(pages)
    for token in range(9):
        cache.close(opened(cache, pages, [token] * 2 * BLOCK)[0])
    assert cache.free_blocks == 20 - 8  # four of the longest


def test_low_blocks_come_first():
    """So that memory that is never needed is never touched."""
    pages = Pages(100)
    cache = Cache(pages, retained_blocks=0)
    for _ in range(10):
        sequence, _ = opened(cache, pages, [1] * 70)
        assert sorted(sequence.blocks) == [0, 1, 2]
        cache.close(sequence)


def test_closing_what_was_never_opened_or_computed():
    pages = Pages(4)
    cache = Cache(pages)
    cache.close(CachedSequence([1] * 50))
    sequence = CachedSequence([1] * 50)
    cache.open(sequence, 128, 0)
    assert cache.free_blocks == 0
    cache.close(sequence)
    assert cache.free_blocks == 4 and cache.shared_with([1] * 50, 49) == (None, 0)


# ---- finding beginnings


@given(a=TOKENS, b=TOKENS)
def test_common_prefix(a, b):
    expected = max(n for n in range(min(len(a), len(b)) + 1) if a[:n] == b[:n])
    assert common_prefix(a, b) == common_prefix(b, a) == expected


@given(added=st.lists(st.tuples(TOKENS, st.integers(0, 150)), max_size=6), tokens=TOKENS)
def test_the_longest_beginning_is_found(added, tokens):
    beginnings, known = Beginnings(), []
    for others, count in added:
        sequence = CachedSequence(others)
        beginnings.add(sequence, count)
        known.append((sequence, others[:count]))
    longest = max((common_prefix(tokens, others) // GRAIN for _, others in known), default=0)
    found = beginnings.find(tokens)
    if longest == 0:
        assert found is None
    else:
        alike = [sequence for sequence, others in known if common_prefix(tokens, others) // GRAIN == longest]
        assert found is alike[-1], "the later of two"
    for sequence, _ in known:
        beginnings.remove(sequence)
    assert beginnings.find(tokens) is None


def test_large_tokens_are_told_apart():
    beginnings = Beginnings()
    beginnings.add(CachedSequence([50256] * GRAIN), GRAIN)
    assert beginnings.find([50256] * GRAIN) and not beginnings.find([50256 % 256] * GRAIN)


def test_a_beginning_is_found_as_long_as_anyone_has_it():
    beginnings, tokens = Beginnings(), list(range(40))
    first, second = CachedSequence(tokens), CachedSequence(tokens[:24])
    beginnings.add(first, 40)
    beginnings.add(second, 24)
    assert beginnings.find(tokens[:24]) is second and beginnings.find(tokens) is first
    beginnings.remove(second)
    assert beginnings.find(tokens[:24]) is first
    beginnings.remove(first)
    assert beginnings.find(tokens) is None
