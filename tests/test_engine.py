"""The engine against the model that it is made of: numbers, and that nothing changes them that should not."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_model
from test_panels import rounded

from tinyft import GPT2, Engine, no_grad
from tinyft.inference import engine as engine_module
from tinyft.inference import weights as weights_module
from tinyft.inference.engine import Span
from tinyft.inference.weights import bytes_of, prepare
from tinyft.kernels.cached_attention import BLOCK
from tinyft.kernels.packing import TILE_ROWS
from tinyft.kernels.panels import FEW_ROWS

FORMS = ("float32", "bfloat16", "int8")
CONTEXT = 100
VARIANTS = [
    {}, {"activation_function": "gelu"}, {"activation_function": "relu"}, {"activation_function": "gelu_fast"},
    {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    {"tie_word_embeddings": False}, {"n_inner": 7}, {"n_inner": 1100}, {"n_embd": 13, "n_head": 1},
    {"n_embd": 70, "n_head": 2, "vocab_size": 61}, {"n_embd": 1, "n_head": 1, "vocab_size": 2},
    {"n_embd": 65, "n_head": 5, "n_layer": 1, "tie_word_embeddings": False},
    {"layer_norm_epsilon": 1e-2, "n_embd": 130, "n_head": 2},
]
EACH = pytest.mark.parametrize("variant", VARIANTS, ids=lambda shape: "-".join(map(str, shape.items())) or "usual")


def model_of(dtype=np.float32, **shape) -> GPT2:
    return make_model(**{"seed": 4, "dtype": dtype, "n_positions": CONTEXT, **shape})


def some_ids(model, length, seed=0):
    return np.random.default_rng(seed).integers(model.config.vocab_size, size=length)


def whole_pass(model, ids):
    with no_grad():
        return model(ids).data[0]


class Reader:
    """Sequences and their blocks, which lie about in the cache."""

    def __init__(self, engine, seed=0):
        self.engine, self.free = engine, list(np.random.default_rng(seed).permutation(engine.n_blocks))

    def blocks(self, length):
        return [int(self.free.pop()) for _ in range(-(-length // BLOCK))]

    def read(self, ids, cuts=(), keep_all=True):
        """The tokens in pieces -> hidden and logits after each of them."""
        blocks, places, found = self.blocks(len(ids)), [0, *cuts, len(ids)], []
        for first, end in zip(places, places[1:], strict=False):
            found.append(self.engine.step([Span(ids[first:end], first, blocks, end - first if keep_all else 1)]))
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def dequantised(model: GPT2, form: str) -> GPT2:
    """A copy whose matrices are the numbers that `form` keeps; (depth, columns) as they are multiplied."""
    other = GPT2(model.config, np.random.default_rng(0))
    parameters = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        matrix, table = parameter.data, name in ("wte.weight", "lm_head.weight")
        if matrix.ndim == 2 and name != "wpe.weight":
            matrix = np.ascontiguousarray(rounded(matrix.T, form).T) if table else rounded(matrix, form)
        parameters[name].data = matrix.copy()
    return other


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


# ---- numbers


@EACH
def test_one_sequence(variant):
    """In float32 the engine may be off by as much as the model is, which adds up the same terms: rounding errors."""
    double, model = model_of(np.float64, **variant), model_of(**variant)
    ids = some_ids(model, CONTEXT)
    expected = whole_pass(double, ids)
    hidden, logits = Reader(Engine(double)).read(ids)
    assert logits.dtype == np.float64 and hidden.shape == (CONTEXT, double.config.n_embd)
    bound = 1e-12 * np.abs(expected).max()
    assert np.abs(logits - expected).max() <= bound
    assert np.abs(hidden @ double.output_weight.data.T - logits).max() <= bound
    hidden, logits = Reader(Engine(model)).read(ids)
    assert logits.dtype == hidden.dtype == np.float32
    assert np.abs(logits - expected).max() <= 2 * np.abs(whole_pass(model, ids) - expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_sequences_of_all_lengths_in_one_step(dtype):
    model = model_of(dtype, n_embd=20, n_head=4)
    lengths = [1, 2, FEW_ROWS, FEW_ROWS + 1, TILE_ROWS, TILE_ROWS + 1, BLOCK, BLOCK + 1, 77, CONTEXT]
    reader, spans, expected = Reader(Engine(model)), [], []
    for i, length in enumerate(lengths):
        ids, blocks = some_ids(model, length, i), reader.blocks(length)
        before = i * length // 11  # 0 for the first, and more and more
        if before:
            reader.engine.step([Span(ids[:before], 0, blocks)])
        spans.append(Span(ids[before:], before, blocks, 1 + i % 3 if length - before > 2 else 1))
        expected.append(whole_pass(model, ids)[-spans[-1].keep :])
    assert len({span.keep for span in spans}) == 3
    expected = np.concatenate(expected)
    hidden, logits = reader.engine.step(spans)
    assert len(hidden) == len(logits) == len(expected)
    tolerance = 1e-12 if dtype == np.float64 else 5e-6
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
@EACH
def test_kept_in_fewer_bits_it_is_the_model_with_rounded_weights(form, variant):
    """To the last bit: in whatever size of group, expanded or not."""
    model = model_of(**variant)
    reader, other = Reader(Engine(model, weights=form)), Reader(Engine(dequantised(model, form)))
    for cuts in ((), (1, 1 + FEW_ROWS, 1 + FEW_ROWS + TILE_ROWS)):
        ids = some_ids(model, CONTEXT, len(cuts))
        got = reader.read(ids, cuts)
        assert_same(got, other.read(ids, cuts))
    if model.config.n_embd > 1:
        assert (got[1] != whole_pass(model, ids)).any()


def test_int8_and_bfloat16_of_a_float64_model_are_those_of_float32():
    for form in ("bfloat16", "int8"):
        double, single = (Reader(Engine(model_of(dtype), weights=form)) for dtype in (np.float64, np.float32))
        assert_same(double.read(np.arange(9)), single.read(np.arange(9)))


# ---- what changes nothing


@settings(max_examples=30)
@given(form=st.sampled_from(FORMS), length=st.integers(1, CONTEXT), seed=st.integers(0, 99), data=st.data())
def test_a_prompt_may_be_cut_anywhere(form, length, seed, data):
    """To the last bit, and wherever in the cache it stands."""
    engine = ENGINES[form]
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6))) if length > 1 else []
    ids = some_ids(engine, length, seed)
    assert_same(Reader(engine, seed + 1).read(ids, cuts), Reader(engine).read(ids))


@settings(max_examples=30)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 2**16),
       sequences=st.lists(st.tuples(st.integers(1, CONTEXT), st.integers(0, CONTEXT - 1)), min_size=1, max_size=8))
def test_a_sequence_does_not_depend_on_what_else_is_in_the_step(form, seed, sequences):
    engine = ENGINES[form]
    reader, spans, expected = Reader(engine, seed), [], []
    for i, (length, before) in enumerate(sequences):
        ids, before = some_ids(engine, length, seed + i), min(before, length - 1)
        alone = Reader(engine, seed + 1).read(ids)
        expected.append([part[before:] for part in alone])
        spans.append((ids, before))
    built = []
    for ids, before in spans:
        blocks = reader.blocks(len(ids))
        if before:
            engine.step([Span(ids[:before], 0, blocks)])
        built.append(Span(ids[before:], before, blocks, len(ids) - before))
    assert_same(engine.step(built), [np.concatenate(parts) for parts in zip(*expected, strict=True)])


@pytest.mark.parametrize("form", FORMS)
def test_only_tokens_that_are_kept_are_given(form):
    engine = ENGINES[form]
    a, b = some_ids(engine, 40, 1), some_ids(engine, 20, 2)
    reader = Reader(engine)
    blocks = reader.blocks(40), reader.blocks(20)

    def step(keep_a, keep_b):
        return engine.step([Span(a, 0, blocks[0], keep_a), Span(b, 0, blocks[1], keep_b)])

    hidden, logits = step(40, 20)
    for keep_a, keep_b in ((1, 1), (3, 1), (0, 5), (2, 0), (0, 0), (40, 1), (0, 20)):
        rows = np.r_[40 - keep_a : 40, 60 - keep_b : 60]
        assert_same(step(keep_a, keep_b), (hidden[rows], logits[rows]))


@pytest.mark.parametrize("form", FORMS)
def test_the_output_layer_alone(form):
    """Also of more rows than a step has."""
    engine = Engine(model_of(), weights=form, step_rows=30)
    reader, ids = Reader(engine), some_ids(engine, 90)
    hidden, logits = reader.read(ids, (30, 60))
    for n in (1, 2, FEW_ROWS + 1, 30, 31, 90):
        np.testing.assert_array_equal(engine.logits(hidden[:n]), logits[:n], strict=True)
        np.testing.assert_array_equal(engine.logits(hidden[-n:]), logits[-n:], strict=True)
    assert engine.logits(hidden[:0]).shape == (0, 340)
    again, none = engine.step([Span(ids[:30], 0, reader.blocks(30), 30)], logits=False)
    np.testing.assert_array_equal(again, hidden[:30])
    assert none.shape == (0, 340)


@pytest.fixture
def threads_seen(monkeypatch):
    """The numbers of threads that steps ran with; all steps are worth sharing."""
    seen = set()
    run_model = engine_module.run_model
    monkeypatch.setattr(engine_module, "SHARED_WORK", 0)
    monkeypatch.setattr(engine_module, "run_model", lambda *args: seen.add(args[-1]) or run_model(*args))
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_threads_change_nothing(form, one_and_two_threads, threads_seen):
    model = model_of(n_embd=64, n_head=4, n_layer=3)
    ids = some_ids(model, CONTEXT)

    def run():
        engine = Engine(model, weights=form)
        reader = Reader(engine)
        first = reader.read(ids, (50,))
        spans = [Span(ids[i : i + 9], 0, reader.blocks(9), 9) for i in range(20)]
        return [*first, *engine.step(spans), engine.logits(first[0])]

    one, two = one_and_two_threads(run)
    assert threads_seen == {1, 2}
    assert_same(one, two)


def test_other_threads_than_it_was_made_with(one_and_two_threads, threads_seen):
    """Fewer can do all the work, and more than it has room for don't come."""
    reads = []
    for engine in one_and_two_threads(lambda: Engine(model_of())):
        reads += one_and_two_threads(lambda engine=engine: (Reader(engine).read(np.arange(60)), threads_seen.copy()))
        threads_seen.clear()
    assert [seen for _, seen in reads] == [{1}, {1}, {1}, {1, 2}]
    for result, _ in reads[1:]:
        assert_same(result, reads[0][0])


def test_a_small_step_is_not_shared_and_other_kernels_have_their_threads_back(threads_seen, monkeypatch):
    monkeypatch.setattr(engine_module, "SHARED_WORK", 8_000_000)
    before = numba.get_num_threads()
    Reader(Engine(model_of())).read(np.arange(60))
    assert threads_seen == {1} and numba.get_num_threads() == before


def test_a_step_may_be_as_large_as_was_said():
    engine, other = Engine(model_of(), step_rows=37), Engine(model_of())
    reader, same = Reader(engine), Reader(other)
    ids = some_ids(engine, 37)
    spans = [(ids[:30], reader.blocks(30), same.blocks(30)), (ids[30:], reader.blocks(7), same.blocks(7))]
    got = engine.step([Span(part, 0, blocks, len(part)) for part, blocks, _ in spans])
    assert_same(got, other.step([Span(part, 0, blocks, len(part)) for part, _, blocks in spans]))


def test_other_blocks_are_left_alone():
    engine = Engine(model_of(), n_blocks=8)
    engine.keys[:], engine.values[:] = np.nan, np.nan
    got = engine.step([Span(np.arange(40), 0, [6, 1], 40)])
    assert np.isfinite(got[1]).all()
    for part in (engine.keys, engine.values):
        assert np.isnan(np.delete(part, [6, 1], axis=1)).all()
        assert np.isfinite(part[:, [6, 1]]).any(axis=(2, 3)).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_trained_on_does_not_change_its_engine(form):
    model = model_of()
    engine = Engine(model, weights=form)
    before = Reader(engine).read(np.arange(9))
    for _, parameter in model.named_parameters():
        parameter.data *= 2
    assert_same(Reader(engine).read(np.arange(9)), before)


def test_weights_that_are_no_numbers_are_not_hidden():
    """A NaN in the tables reaches what reads it, and that alone."""
    model = model_of(tie_word_embeddings=False)
    model.wte.weight.data[5, 3] = np.nan
    for form in FORMS:
        engine = Engine(model, weights=form)
        reader = Reader(engine)
        _, logits = engine.step([Span(np.array([1, 2, 5, 3]), 0, reader.blocks(4), 4),
                                 Span(np.array([4, 6]), 0, reader.blocks(2), 2)])
        assert np.isnan(logits[2:4]).all() and np.isfinite(logits[4:]).all()
        hidden, _ = engine.step([Span(np.array([1, 2]), 0, reader.blocks(2), 2)])
        assert np.isfinite(hidden).all()


# ---- preparing


@pytest.mark.parametrize("form, share", [("float32", 1), ("bfloat16", 1 / 2), ("int8", 1 / 4 + 1 / 64)])
def test_memory_that_weights_take(form, share):
    """In whole panels, which is all that comes to a model's own size here; int8 has a float32 for 64 weights."""
    model = model_of(n_embd=64, n_head=2, vocab_size=1024)
    matrices = sum(parameter.data.nbytes for name, parameter in model.named_parameters()
                   if parameter.ndim == 2 and "wpe" not in name)
    rest = sum(parameter.data.nbytes for _, parameter in model.named_parameters()) - matrices
    engine = Engine(model, weights=form)
    assert engine.weight_bytes == bytes_of(engine.weights) == matrices * share + rest


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_copied_in_parts(form, tied, monkeypatch):
    """And it is said of each part when it is done with."""
    model, whole, parts = model_of(tie_word_embeddings=tied), [], []
    expected = prepare(model, form, whole.append)
    monkeypatch.setattr(weights_module, "PART_BYTES", 1)
    got = prepare(model, form, parts.append)
    assert_same(got, expected)
    matrices = [parameter.data for name, parameter in model.named_parameters()
                if parameter.ndim == 2 and name != "wpe.weight"]
    assert len(whole) == len(matrices) < len(parts)
    for seen in (whole, parts):
        assert sum(part.size for part in seen) == sum(matrix.size for matrix in matrices)
        assert all(any(np.shares_memory(part, matrix) for matrix in matrices) for part in seen)


def test_weights_that_may_not_be_written_to():
    """As they come from a file that is mapped into memory."""
    model, expected = model_of(), Reader(Engine(model_of())).read(np.arange(9))
    for _, parameter in model.named_parameters():
        parameter.data.flags.writeable = False
    assert_same(Reader(Engine(model)).read(np.arange(9)), expected)


@pytest.mark.parametrize("form", ["float16", "", None, "INT8"])
def test_a_form_that_there_is_not(form):
    with pytest.raises(ValueError, match=f"kept as {form!r}, expected one of float32, bfloat16, int8"):
        Engine(model_of(), weights=form)


ENGINES = {form: Engine(model_of(), weights=form) for form in FORMS}
