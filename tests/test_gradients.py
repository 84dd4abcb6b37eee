"""Every op's gradient against central differences, and gradcheck against gradients that are wrong."""

import itertools
import tracemalloc
from functools import partial

import numpy as np
import pytest
from small import products_in

from tinyft import Tensor, gradcheck, lora, losses, op, ops
from tinyft.segments import segments_of

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape)


def away_from_zero(*shape):
    x = normal(*shape)
    return x + np.where(x < 0, -0.3, 0.3)


def positive(*shape):
    return RNG.uniform(0.5, 2, shape)


def both_ways(f):
    """Broadcasting in all directions for an operator with two inputs."""
    shapes = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((4, 1, 2), (3, 1)), ((1,), ())]
    return [(f, [away_from_zero(*left), away_from_zero(*right)]) for left, right in shapes]


def indexed(*keys):
    return [(lambda x, key=key: ops.index(x, key=key), [normal(4, 3)]) for key in keys]


def attention(lengths, heads, size, *parents_and_shared):
    segments = segments_of(lengths, *parents_and_shared)
    qkv = normal(sum(lengths), 3 * heads * size)
    return lambda qkv: ops.causal_attention(qkv, n_head=heads, segments=segments), [qkv]


TARGETS = np.array([2, -100, 0, 4, -100, 2, 1])
COUNTS = np.array([1, 7, 3, 1, 1, 2, 4])  # how often each occurs

CASES = {
    "add": both_ways(ops.add),
    "sub": both_ways(ops.sub),
    "mul": both_ways(ops.mul),
    "div": both_ways(ops.div),
    "neg": [(ops.neg, [normal(2, 3)])],
    "pow": [
        *((lambda x, n=n: ops.pow(x, n), [away_from_zero(2, 3)]) for n in (0, 1, 2, 3, -1, -2)),
        *((lambda x, n=n: ops.pow(x, n), [positive(2, 3)]) for n in (0.5, -1.5)),
        (lambda x: ops.pow(x, 2), [np.array([0.0, 1.0])]),
        (lambda x: ops.pow(x, 0), [np.array([0.0, 1.0])]),
        *((lambda x, base=base: ops.pow(base, x), [normal(2, 3)]) for base in (2, 0.5, 1)),
    ],
    "exp": [(ops.exp, [normal(2, 3)])],
    "log": [(ops.log, [positive(2, 3)])],
    "tanh": [(ops.tanh, [normal(2, 3)])],
    "relu": [(ops.relu, [away_from_zero(3, 5)])],
    "reshape": [
        (lambda x: ops.reshape(x, shape=(3, 4)), [normal(2, 6)]),
        (lambda x: ops.reshape(x, shape=(-1,)), [normal(2, 3)]),
        (lambda x: ops.reshape(x, shape=()), [normal(1, 1)]),
        (lambda x: ops.reshape(ops.transpose(x), shape=(2, 6)), [normal(3, 4)]),
    ],
    "transpose": [
        (ops.transpose, [normal(2, 3)]),
        *((lambda x, axes=axes: ops.transpose(x, axes=axes), [normal(2, 3, 4)]) for axes in [None, (0, 1, 2), (1, 2, 0),
                                                                                           (2, 0, 1), (0, 2, 1)]),
        # Axes counted from the end; all of one length, so that a wrong backward pass has the right shape.
        *((lambda x, axes=axes: ops.transpose(x, axes=axes), [normal(3, 3, 3)]) for axes in [(0, -1, -2), (-1, 0, 1)]),
    ],
    "index": indexed(1, -1, slice(1, 3), (slice(None), 2), np.array([0, 0, 3, 0]), (np.array([1, 1]), np.array([2, 2])),
                     normal(4, 3) > 0, (None, slice(None, None, -2)), Ellipsis, (1, 2)),
    "sum": [(lambda x, o=o: ops.sum(x, **o), [normal(2, 3, 4)]) for o in (
        {}, {"axis": 0}, {"axis": -1}, {"axis": (0, 2)}, {"axis": (-1, 0)}, {"axis": 1, "keepdims": True},
        {"keepdims": True}, {"axis": (0, 1, 2)})],
    "matmul": [(ops.matmul, [normal(*a), normal(*b)]) for a, b in (
        ((2, 3), (3, 4)), ((1, 3), (3, 1)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (4, 3, 2)), ((1, 2, 3), (5, 3, 2)), ((5, 1, 3), (3, 4)))],
    "linear": [(ops.linear, [normal(*x), normal(3, 4), normal(4)]) for x in ((2, 3), (1, 3), (3,), (2, 5, 3))],
    "lora_linear": [
        (lambda *inputs, p=p: lora.lora_linear(*inputs, scale=1.7, p=p, rng=np.random.default_rng(3)),
         [normal(*x), normal(3, 4), normal(4), normal(rank, 3), normal(4, rank)])
        for p in (0.0, 0.4) for x, rank in (((2, 3), 2), ((1, 3), 1), ((3,), 5), ((2, 5, 3), 2))],
    "softmax": [(ops.softmax, [normal(*shape)]) for shape in ((1,), (5,), (2, 3), (2, 1), (2, 3, 7))],
    "layer_norm": [
        *((ops.layer_norm, [normal(*rows, n), normal(n), normal(n)]) for *rows, n in ((5,), (3, 4), (2, 3, 7))),
        (lambda *inputs: ops.layer_norm(*inputs, eps=0.5), [normal(3, 4), normal(4), normal(4)]),
    ],
    "gelu": [(partial(ops.gelu, exact=exact), [2 * normal(*shape)])
             for exact in (False, True) for shape in ((), (3,), (2, 3, 4))],
    "embedding": [
        (ops.embedding, [normal(4, 3), np.array([1, 1, 3, 1])]),
        (ops.embedding, [normal(4, 3), np.array([[0, 3], [3, 2]])]),
        (ops.embedding, [normal(4, 3), np.array(2)]),
    ],
    "causal_attention": [attention([5], 2, 3), attention([1], 1, 1), attention([2, 0, 7, 1], 3, 2),
                         attention([19, 3], 1, 2), attention([4, 3, 0, 2, 1], 2, 3, [-1, 0, 0, 1, -1], [0, 2, 3, 4, 0]),
                         attention([17, 2, 3], 1, 2, [-1, 0, 1], [0, 17, 18])],
    "dropout": [
        (lambda x, p=p: ops.dropout(x, p=p, rng=np.random.default_rng(3)), [normal(4, 5)]) for p in (0.0, 0.3, 0.9)
    ],
    "cross_entropy": [
        (losses.cross_entropy, [2 * normal(7, 5), TARGETS]),
        (losses.cross_entropy, [normal(2, 3, 5), np.array([[1, 2, -100], [0, 0, 4]])]),
        (losses.cross_entropy, [normal(5), np.array(3)]),
        (losses.cross_entropy, [normal(2, 5), np.array([-100, -100])]),
    ],
    "linear_cross_entropy": [
        (losses.linear_cross_entropy, [normal(7, 3), normal(5, 3), TARGETS]),
        (lambda *inputs: losses.linear_cross_entropy(*inputs, total=12), [normal(7, 3), normal(5, 3), TARGETS]),
        *((lambda *inputs, total=total: losses.linear_cross_entropy(*inputs, counts=COUNTS, total=total),
           [normal(7, 3), normal(5, 3), TARGETS]) for total in (None, 12)),
        (losses.linear_cross_entropy, [normal(2, 3), normal(5, 3), np.array([-100, -100])]),
        (losses.linear_cross_entropy, [normal(1, 3), normal(5, 3), np.array([4])]),
    ],
}


def ops_of_tinyft():
    functions = vars(ops) | vars(losses) | vars(lora)
    return [name for name, function in functions.items() if getattr(function, "is_op", False)]


def test_every_op_has_a_case():
    assert sorted(ops_of_tinyft()) == sorted(CASES)


@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_gradient(name, case):
    f, inputs = CASES[name][case]
    # In fact a call of that op: a case under a wrong name would leave an op unchecked.
    tensors = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in map(np.asarray, inputs)]
    assert f(*tensors).node.op == name
    assert gradcheck(f, inputs)


def test_gradients_through_several_ops():
    segments = segments_of([4, 5])
    ids, targets = np.array([0, 1, 2, 1, 5, 3, 3, 0, 4]), np.array([1, 2, -100, 5, 3, 3, -100, 4, 0])

    def block(table, g, b, weight, bias):
        x = ops.embedding(table, ids)
        h = ops.causal_attention(ops.linear(ops.layer_norm(x, g, b), weight, bias), n_head=2, segments=segments)
        return losses.linear_cross_entropy(ops.gelu(x + h), table, targets)  # tied weights: two gradients for one table

    assert gradcheck(block, [normal(6, 4), normal(4), normal(4), normal(4, 12), normal(12)])


# ---- wrong gradients


@op
def wrong_sign(x, y):
    return x * y, lambda dout: (dout * y, -dout * x)


@op
def wrong_factor(x, y):
    return x * y, lambda dout: (dout * y, 1.001 * dout * x)


@op
def wrong_transposed(x, y):
    return x @ y, lambda dout: (dout @ y.T, (x.T @ dout).T)


@op
def wrong_element(x, y):
    def backward(dout):
        dy = dout * x
        dy[1, 0] += 1e-4
        return dout * y, dy

    return x * y, backward


@op
def wrong_broadcast(x, y):
    """Takes one row of the gradient for their sum."""
    return x * y, lambda dout: (dout * y, (dout * x)[:1])


@op
def wrong_for_all_but_ones(x, y):
    return x.sum(axis=0) * y.sum(axis=0), lambda dout: (
        np.ones_like(x) * y.sum(axis=0), np.ones_like(y) * x.sum(axis=0))


@op
def wrong_nan(x, y):
    return x * y, lambda dout: (dout * y, dout * np.nan)


@op
def wrong_forgotten(x, y):
    return x * y, lambda dout: (dout * y, None)


A, B = np.array([[1.0, 2], [3, 5]]), np.array([[0.5, -1], [2, 4]])


@pytest.mark.parametrize(("f", "inputs", "index"), [
    (wrong_sign, [A, B], (0, 0)),
    (wrong_factor, [A, B], (0, 0)),
    (wrong_transposed, [A, B], (0, 1)),
    (wrong_element, [A, B], (1, 0)),
    (wrong_broadcast, [A, B[:1]], (0, 0)),
    (wrong_nan, [A, B], (0, 0)),
    (wrong_forgotten, [A, B], (0, 0)),
], ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_gradient_is_caught(f, inputs, index):
    """Input 0 is right, input 1 is wrong, first at `index`."""
    number = r"(-?\d[\d.e+-]*|nan)"
    with pytest.raises(AssertionError, match=(
        rf"^{f.__name__}: gradient of input 1 at index \({index[0]}, {index[1]}\) is {number}, "
        rf"expected {number} by central differences$"
    )):
        gradcheck(f, inputs)


def test_got_and_expected_are_the_right_way_round():
    cotangent = np.random.default_rng(0).standard_normal((1, 1)).item()
    with pytest.raises(AssertionError, match=rf"is {-3 * cotangent:.5f}\d*, expected {3 * cotangent:.5f}"):
        gradcheck(wrong_sign, [np.array([[3.0]]), np.array([[1.0]])])


def test_gradient_that_is_right_for_a_cotangent_of_ones_only_is_caught():
    x, y = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)
    wrong_for_all_but_ones(x, y).sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones_like(A) * B.sum(axis=0))  # as it should be
    with pytest.raises(AssertionError, match=r"wrong_for_all_but_ones: gradient of input 0 at index \(0, 0\)"):
        gradcheck(wrong_for_all_but_ones, [A, B])


def test_the_check_wants_a_list():
    with pytest.raises(TypeError, match=r"a single ndarray, expected a list of arrays: gradcheck\(f, \[x\]\)"):
        gradcheck(ops.gelu, np.ones(3))


def test_forgotten_ignore_index_is_caught():
    @op
    def wrong_ignore(logits, targets):
        live = targets != -100
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -np.log(p[live, targets[live]]).mean()

        def backward(dout):
            dlogits = p.copy()
            dlogits[live, targets[live]] -= 1
            return dout * dlogits / live.sum(), None  # rows that are ignored should be 0

        return loss, backward

    with pytest.raises(AssertionError, match=r"wrong_ignore: gradient of input 0 at index \(1, 0\) is .*, expected "):
        gradcheck(wrong_ignore, [A, np.array([1, -100])])


def test_name_replaces_the_op():
    with pytest.raises(AssertionError, match="^my model: gradient of input 1"):
        gradcheck(wrong_sign, [A, B], name="my model")


def test_gradcheck_needs_something_to_check():
    with pytest.raises(ValueError, match="no float input"):
        gradcheck(lambda x: x, [np.arange(3)])
    with pytest.raises(AssertionError, match="does not depend"):
        gradcheck(lambda x: Tensor(x.data * 2), [A])


def test_gradcheck_leaves_its_inputs_alone():
    x = A.copy()
    gradcheck(ops.exp, [x])
    np.testing.assert_array_equal(x, A)


def test_gradcheck_says_when_a_result_is_not_float64():
    @op
    def to_float32(x):
        return x.astype(np.float32), lambda dout: dout.astype(np.float64)

    with pytest.raises(AssertionError, match="to_float32: the result is float32"):
        gradcheck(to_float32, [A])


# ---- dropout


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = Tensor(np.ones((200, 500), np.float32), requires_grad=True)
    out = ops.dropout(x, p=0.25, rng=np.random.default_rng(0))
    assert out.dtype == np.float32
    assert set(np.unique(out.data)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    # 100,000 draws: a standard deviation of 0.0014.
    assert abs((out.data == 0).mean() - 0.25) < 0.007
    out.backward(np.ones(out.shape, np.float32))
    np.testing.assert_array_equal(x.grad, out.data)


def test_dropout_of_everything_is_zero():
    out = ops.dropout(Tensor(np.ones((3, 4), np.float32)), p=1.0, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(out.data, 0)


# ---- the loss


def loss_and_gradients(hidden, weight, targets, dout=1.0, **options):
    h, w = Tensor(hidden, requires_grad=True), Tensor(weight, requires_grad=True)
    loss = losses.linear_cross_entropy(h, w, targets, **options)
    loss.backward(np.asarray(dout, loss.dtype))
    return loss.data, h.grad, w.grad


def test_linear_cross_entropy_is_cross_entropy_of_the_product(rng):
    hidden, weight = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    got = loss_and_gradients(hidden, weight, TARGETS)
    h, w = Tensor(hidden, requires_grad=True), Tensor(weight, requires_grad=True)
    loss = losses.cross_entropy(h @ w.T, TARGETS)
    loss.backward()
    for a, b in zip(got, (loss.data, h.grad, w.grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rows_at_a_time", [0, 1, 2, 5])
@pytest.mark.parametrize("dout", [1.0, -2.5])
@pytest.mark.parametrize("counts", [None, np.arange(23)])
def test_chunks_change_nothing(rng, monkeypatch, rows_at_a_time, dout, counts):
    hidden, weight = rng.standard_normal((23, 6)), rng.standard_normal((11, 6))
    targets = np.where(rng.random(23) < 0.3, -100, rng.integers(0, 11, 23))
    whole = loss_and_gradients(hidden, weight, targets, dout, counts=counts)
    # Less than a row's worth still takes one row at a time.
    monkeypatch.setattr(losses, "LOGITS_BYTES", max(1, rows_at_a_time * 11 * 8))
    calls = []
    kernel = losses.cross_entropy_in_place

    def counting(logits, *rest):
        calls.append(len(logits))
        return kernel(logits, *rest)

    monkeypatch.setattr(losses, "cross_entropy_in_place", counting)
    for a, b in zip(loss_and_gradients(hidden, weight, targets, dout, counts=counts), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    assert max(calls) <= max(1, rows_at_a_time) and sum(calls) == (targets != -100).sum()


@pytest.mark.parametrize("total", [None, 5])
def test_a_count_is_so_many_equal_rows(rng, total):
    hidden, weight = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    loss, dhidden, dweight = loss_and_gradients(hidden, weight, TARGETS, counts=COUNTS, total=total)
    each = np.repeat(np.arange(7), COUNTS)
    expected, dcopies, dweight_of_copies = loss_and_gradients(hidden[each], weight, TARGETS[each], total=total)
    of_all = np.zeros_like(hidden)
    np.add.at(of_all, each, dcopies)
    for a, b in ((loss, expected), (dhidden, of_all), (dweight, dweight_of_copies)):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_parts_of_a_batch_add_up(rng):
    hidden, weight = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    whole = loss_and_gradients(hidden, weight, TARGETS)
    total = int((TARGETS != -100).sum())
    first = loss_and_gradients(hidden[:3], weight, TARGETS[:3], total=total)
    second = loss_and_gradients(hidden[3:], weight, TARGETS[3:], total=total)
    np.testing.assert_allclose(first[0] + second[0], whole[0], rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([first[1], second[1]]), whole[1], rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(first[2] + second[2], whole[2], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_learn_is_zero_and_not_nan(dtype, rows):
    targets = np.full(rows, -100)
    loss, dhidden, dweight = loss_and_gradients(np.ones((rows, 3), dtype), np.ones((5, 3), dtype), targets)
    assert loss == 0 and loss.dtype == dtype
    np.testing.assert_array_equal(dhidden, np.zeros((rows, 3)))
    np.testing.assert_array_equal(dweight, np.zeros((5, 3)))
    logits = Tensor(np.ones((rows, 5), dtype), requires_grad=True)
    loss = losses.cross_entropy(logits, targets)
    loss.backward()
    assert loss.item() == 0
    np.testing.assert_array_equal(logits.grad, np.zeros((rows, 5)))


def test_ignored_rows_cannot_spoil_the_loss(rng):
    hidden, weight = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    expected = loss_and_gradients(hidden, weight, TARGETS)
    hidden[TARGETS == -100] = np.nan
    for a, b in zip(loss_and_gradients(hidden, weight, TARGETS), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nan_reaches_the_loss(dtype):
    hidden = np.ones((3, 2), dtype)
    hidden[1, 0] = np.nan
    weight = Tensor(np.ones((4, 2), dtype))
    assert np.isnan(losses.linear_cross_entropy(Tensor(hidden), weight, np.zeros(3, int)).item())
    assert np.isnan(losses.cross_entropy(Tensor(hidden), np.zeros(3, int)).item())


# ---- gradients that nobody wants


@pytest.mark.parametrize("wants", list(itertools.product([False, True], repeat=3)))
def test_linear_forms_only_what_is_wanted(monkeypatch, wants):
    inputs = [Tensor(x, requires_grad=wanted)
              for x, wanted in zip((normal(5, 3), normal(3, 4), normal(4)), wants, strict=True)]
    out = ops.linear(*inputs)
    assert out.requires_grad == any(wants)
    if any(wants):
        found = products_in(monkeypatch, lambda: out.backward(normal(5, 4)))[0]
        assert found == [(5, 4, 3)] * wants[0] + [(3, 5, 4)] * wants[1]
    assert [x.grad is not None for x in inputs] == list(wants)


@pytest.mark.parametrize("shapes", [((5, 3), (3, 4)), ((2, 5, 3), (3, 4)), ((2, 5, 3), (2, 3, 4))])
@pytest.mark.parametrize("wanted", [0, 1])
def test_matmul_forms_only_what_is_wanted(monkeypatch, shapes, wanted):
    inputs = [Tensor(normal(*shape), requires_grad=i == wanted) for i, shape in enumerate(shapes)]
    both = [Tensor(x.data, requires_grad=True) for x in inputs]
    out, dout = inputs[0] @ inputs[1], normal(*np.matmul(*(x.data for x in inputs)).shape)
    alone, _ = products_in(monkeypatch, lambda: out.backward(dout))
    out = both[0] @ both[1]
    assert len(alone) < len(products_in(monkeypatch, lambda: out.backward(dout))[0])
    np.testing.assert_array_equal(inputs[wanted].grad, both[wanted].grad)
    assert inputs[1 - wanted].grad is None


@pytest.mark.parametrize(("wants_hidden", "wants_weight"), [(False, False), (True, False), (False, True), (True, True)])
def test_frozen_output_layer_forms_no_gradient(monkeypatch, wants_hidden, wants_weight):
    rows, size, vocabulary = int((TARGETS != -100).sum()), 3, 50
    hidden, weight = Tensor(normal(7, size), wants_hidden), Tensor(normal(vocabulary, size), wants_weight)

    def step():
        loss = losses.linear_cross_entropy(hidden, weight, TARGETS)
        if loss.requires_grad:
            loss.backward()

    expected = [(rows, size, vocabulary)]
    expected += [(rows, vocabulary, size)] * wants_hidden + [(vocabulary, rows, size)] * wants_weight
    assert products_in(monkeypatch, step)[0] == expected
    assert (hidden.grad is not None, weight.grad is not None) == (wants_hidden, wants_weight)
    if wants_hidden or wants_weight:
        _, dhidden, dweight = loss_and_gradients(hidden.data, weight.data, TARGETS)
        for x, gradient in ((hidden, dhidden), (weight, dweight)):
            if x.requires_grad:
                np.testing.assert_array_equal(x.grad, gradient)


def test_no_array_of_the_weight_s_size_for_a_frozen_output_layer():
    hidden, weight = Tensor(normal(4, 64), requires_grad=True), Tensor(normal(20_000, 64))
    targets = np.array([1, 2, 3, 4])
    losses.linear_cross_entropy(hidden, weight, targets).backward()  # compiled, and buffers made
    tracemalloc.start()
    try:
        losses.linear_cross_entropy(hidden, weight, targets).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < weight.data.nbytes / 2  # the logits of four rows, and little else


@pytest.mark.parametrize("compute", [losses.linear_cross_entropy, losses.row_losses])
def test_one_chunk_of_logits_is_there_at_a_time(monkeypatch, compute):
    hidden, weight = np.zeros((40, 2), np.float32), np.zeros((20_000, 2), np.float32)
    monkeypatch.setattr(losses, "LOGITS_BYTES", 10 * len(weight) * weight.itemsize)
    arrays = (hidden, weight) if compute is losses.row_losses else (Tensor(hidden), Tensor(weight))
    compute(*arrays, np.zeros(40, int))  # workspaces that stay
    tracemalloc.start()
    try:
        compute(*arrays, np.zeros(40, int))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert losses.LOGITS_BYTES <= peak < 1.5 * losses.LOGITS_BYTES


# ---- losses of single rows


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 100])
def test_row_losses(rng, dtype, monkeypatch, rows_at_a_time):
    hidden, weight = rng.standard_normal((23, 6)).astype(dtype), rng.standard_normal((11, 6)).astype(dtype)
    targets = np.where(rng.random(23) < 0.3, -100, rng.integers(0, 11, 23))
    monkeypatch.setattr(losses, "LOGITS_BYTES", rows_at_a_time * 11 * weight.itemsize)
    each, likeliest = losses.row_losses(hidden, weight, targets)
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(23), np.maximum(targets, 0)]
    assert each.dtype == dtype and each.shape == likeliest.shape == (23,)
    np.testing.assert_allclose(each, np.where(targets == -100, 0, expected), rtol=50 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(likeliest, np.where(targets == -100, -1, logits.argmax(axis=1)))
    total = losses.linear_cross_entropy(hidden, weight, targets, total=1).item()
    np.testing.assert_allclose(each.sum(dtype=np.float64), total, rtol=50 * np.finfo(dtype).eps)


def test_row_losses_at_the_edges(dtype):
    hidden, weight = np.ones((3, 2), dtype), np.ones((4, 2), dtype)
    hidden[1, 0] = np.nan
    each, likeliest = losses.row_losses(hidden, weight, np.array([0, 1, -100]))
    assert np.isnan(each[1]) and each[2] == 0
    np.testing.assert_array_equal(likeliest, [0, -1, -1])  # of equal ones the first; none among NaN; not asked for
    each, likeliest = losses.row_losses(hidden[:0], weight, np.zeros(0, int))
    assert each.shape == likeliest.shape == (0,)


# ---- what does not fit is named

ONES = np.ones


@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda: ops.matmul(ONES((2, 3)), ONES((4, 5))), ValueError, [r"matmul", r"\(2, 3\)", r"\(4, 5\)"]),
    (lambda: ops.matmul(ONES(3), ONES((3, 5))), ValueError, ["matmul", r"\(3,\)", "reshape"]),
    (lambda: ops.linear(ONES((2, 3)), ONES((3, 4)), ONES(3)), ValueError, ["linear", r"bias \(3,\)"]),
    (lambda: ops.linear(ONES((2, 3)), ONES((4, 3)), ONES(3)), ValueError, ["linear", r"x \(2, 3\), weight \(4, 3\)"]),
    (lambda: ops.layer_norm(ONES((2, 3)), ONES(4), ONES(3)), ValueError, ["layer_norm: weight", r"\(4,\)", r"\(3,\)"]),
    (lambda: ops.layer_norm(ONES((2, 3)), ONES(3), ONES(1)), ValueError, ["layer_norm: bias", r"\(1,\)", r"\(3,\)"]),
    (lambda: ops.softmax(ONES((2, 0))), ValueError, ["softmax", r"\(2, 0\)"]),
    (lambda: ops.softmax(np.array(1.0)), ValueError, ["softmax", r"\(\)"]),
    (lambda: ops.pow(ONES(3), ONES(3)), TypeError, ["pow", r"\(3,\)", "number"]),
    (lambda: ops.pow(-2, ONES(3)), ValueError, ["pow", "base is -2", "above 0"]),
    (lambda: ops.pow(0, ONES(3)), ValueError, ["pow", "base is 0", "above 0"]),
    (lambda: ops.embedding(ONES((4, 2)), np.array([0, 4])), IndexError, ["embedding", "0 to 4", "0 to 3"]),
    (lambda: ops.embedding(ONES((4, 2)), np.array([-1, 3])), IndexError, ["embedding", "-1 to 3"]),
    (lambda: ops.causal_attention(ONES((2, 10)), n_head=2, segments=segments_of([2])), ValueError, ["n_head = 2"]),
    (lambda: ops.causal_attention(ONES((2, 6)), n_head=2, segments=segments_of([1])), ValueError,
     ["causal_attention: segments have 1 tokens", "expected 2", r"\(2, 6\)"]),
    (lambda: ops.causal_attention(ONES((4, 6)), n_head=2, segments=segments_of([3, 2], [-1, 0], [0, 2])), ValueError,
     ["causal_attention: segments have 5 tokens", "expected 4"]),
    (lambda: losses.cross_entropy(ONES((2, 3)), np.array([0])), ValueError, [r"\(1,\)", r"\(2,\)", r"\(2, 3\)"]),
    (lambda: losses.cross_entropy(ONES((2, 3)), np.array([0, 3])), IndexError, ["cross_entropy", "0 to 3", "0 to 2"]),
    (lambda: losses.cross_entropy(ONES((2, 3)), np.array([0, -1])), IndexError, ["cross_entropy", "-1 to 0"]),
    (lambda: losses.linear_cross_entropy(ONES((2, 3)), ONES((5, 4)), np.array([0, 1])), ValueError,
     [r"\(2, 3\)", r"\(2, 4\)"]),
    (lambda: losses.linear_cross_entropy(ONES((4, 3)), ONES((5, 3)), np.zeros((2, 2), int)), ValueError, [r"\(2, 2\)"]),
    (lambda: losses.linear_cross_entropy(ONES((2, 3)), ONES((5, 3)), np.array([0, 5])), IndexError,
     ["0 to 5", "0 to 4"]),
    (lambda: losses.row_losses(ONES((2, 3)), ONES((5, 4)), np.array([0, 1])), ValueError, ["row_losses", r"\(2, 4\)"]),
    (lambda: losses.row_losses(ONES((2, 3)), ONES((5, 3)), np.array([0, 5])), IndexError, ["row_losses", "0 to 5"]),
])
def test_error_names_what_is_wrong(call, error, says):
    with pytest.raises(error, match=".*".join(says)):
        call()


def test_exponent_with_a_gradient_is_refused():
    """It would silently get none."""
    with pytest.raises(TypeError, match="pow.*exponent"):
        ops.pow(Tensor(ONES(3)), Tensor(np.array(2.0), requires_grad=True))


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 0)), ((2, 0), (0, 4)), ((0, 3), (3, 4)), ((2, 3, 0), (0, 4)),
                                      ((2, 0, 3), (2, 3, 4)), ((0, 2, 3), (0, 3, 4))])
def test_matmul_of_nothing(a, b):
    x, y = Tensor(ONES(a), requires_grad=True), Tensor(ONES(b), requires_grad=True)
    out = x @ y
    np.testing.assert_array_equal(out.data, ONES(a) @ ONES(b))
    out.backward(ONES(out.shape))
    np.testing.assert_array_equal(x.grad, ONES(out.shape) @ y.data.swapaxes(-1, -2))
    expected = ONES(a).swapaxes(-1, -2) @ ONES(out.shape)
    np.testing.assert_array_equal(y.grad, expected.sum(axis=0) if expected.ndim > y.ndim else expected)
