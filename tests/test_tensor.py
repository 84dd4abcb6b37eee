"""The graph: what is recorded, in which order it is walked back, who owns which gradient, what is freed."""

import contextvars
import gc
import inspect
import threading
import time
import weakref

import numpy as np
import pytest

from tinyft import Tensor, losses, no_grad, op, ops
from tinyft.tensor import is_recording


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ---- values


def test_lists_and_numbers_become_float32():
    assert Tensor([1.5, 2.0]).dtype == np.float32
    assert Tensor(1.5).dtype == np.float32
    assert Tensor(np.array([1.5])).dtype == np.float64
    assert Tensor(np.float64(1.5)).dtype == np.float64
    assert Tensor(np.arange(3)).dtype == np.int64


def test_tensor_of_tensor_is_refused():
    with pytest.raises(TypeError, match="Tensor already.*data.data"):
        Tensor(Tensor(1.0))


@pytest.mark.parametrize("values", [np.arange(3), np.array([True]), np.zeros(2, np.float16), np.zeros(2, complex)])
def test_only_float32_and_float64_can_require_grad(values):
    with pytest.raises(TypeError, match=f"requires_grad.*{values.dtype}"):
        Tensor(values, requires_grad=True)


def test_looks():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x)) == ((2, 3), 2, 6, 2)
    assert "float32" in repr(x) and "requires_grad" in repr(x)
    assert "made by add" in repr(x + x)
    assert Tensor(2.5).item() == 2.5
    assert x.detach().data is x.data and not x.detach().requires_grad


OPERATORS = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "x / y": lambda x, y: x / y,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", ["tensor", "array", "number", "numpy number", "0-d array"])
def test_operators_on_both_sides(name, kind):
    f = OPERATORS[name]
    values = np.array([[1.0, -2, 3], [4, 5, -6]], np.float32)
    others = {"tensor": np.float32([2, 3, 4]), "array": np.float32([2, 3, 4]), "number": 2.5,
              "numpy number": np.float32(2.5), "0-d array": np.array(2.5, np.float32)}
    other = others[kind]
    x = leaf(values, np.float32)
    y = Tensor(other) if kind == "tensor" else other
    for got, expected in ((f(x, y), f(values, other)), (f(y, x), f(other, values))):
        assert type(got) is Tensor and got.requires_grad and got.dtype == np.float32
        np.testing.assert_array_equal(got.data, expected)


def test_matmul_on_both_sides(rng):
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    for got in (leaf(a) @ leaf(b), leaf(a) @ b, a @ leaf(b)):
        assert type(got) is Tensor and got.requires_grad
        np.testing.assert_allclose(got.data, a @ b, rtol=1e-14)


def test_reverse_operators_have_the_right_gradients():
    x = leaf([2.0, 4.0])
    (1 / x).sum().backward()
    np.testing.assert_allclose(x.grad, [-1 / 4, -1 / 16])
    x = leaf([2.0, 4.0])
    (np.array([1.0, 1.0]) - 2 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [-2, -2])


def test_methods_are_the_ops():
    x = np.array([[0.5, 1.5], [2.0, 3.0]])
    t = Tensor(x)
    for got, expected in [
        (-t, -x), (t**2, x**2), (t[0], x[0]), (t[:, ::-1], x[:, ::-1]), (t.T, x.T), (t.transpose(1, 0), x.T),
        (t.reshape(4), x.reshape(4)), (t.reshape(1, -1), x.reshape(1, 4)), (t.reshape((4, 1)), x.reshape(4, 1)),
        (t.sum(), x.sum()), (t.sum(axis=0), x.sum(axis=0)), (t.mean(axis=-1, keepdims=True), x.mean(1, keepdims=True)),
        (t.mean(), x.mean()), (t.exp(), np.exp(x)), (t.log(), np.log(x)), (t.tanh(), np.tanh(x)),
        ((t - 1).relu(), np.maximum(x - 1, 0)),
    ]:
        np.testing.assert_allclose(got.data, expected, rtol=1e-15)


def test_float32_stays_float32():
    x, weight = leaf(np.ones((2, 3)), np.float32), leaf(np.ones((3, 3)), np.float32)
    bias = leaf(np.ones(3), np.float32)
    h = ops.linear(x, weight, bias) @ weight
    h = ops.layer_norm(ops.gelu(2 * h / 3 - 1), bias, bias) ** 2
    h = ops.softmax(h.tanh().exp()).log().mean(axis=1)
    loss = (1 / h).mean()
    assert loss.dtype == np.float32
    loss.backward()
    assert {p.grad.dtype for p in (x, weight, bias)} == {np.dtype(np.float32)}


def test_gradient_has_the_dtype_of_its_leaf():
    """A float64 constant makes a float64 result, not a float64 gradient for a float32 parameter."""
    x = leaf([1.0, 2.0], np.float32)
    (x * np.array([0.5, 0.25])).sum().backward()
    assert x.grad.dtype == np.float32


# ---- gradients add up


@pytest.mark.parametrize(("left", "right"), [((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2, 3)), ((1, 1, 1), (3,)),
                                             ((2, 3), (2, 3)), ((4, 1, 3), (2, 1)), ((1,), ()), ((0, 3), (1, 3))])
def test_broadcasting_sums_the_gradient(rng, left, right):
    x, y = leaf(rng.standard_normal(left)), leaf(rng.standard_normal(right))
    dout = rng.standard_normal(np.broadcast_shapes(left, right))
    (x * y).backward(dout)
    for t, other in ((x, y.data), (y, x.data)):
        full = dout * other
        expected = np.zeros(t.shape)
        for at in np.ndindex(*full.shape):  # every element goes home to the one it came from
            home = tuple(i if n > 1 else 0 for i, n in zip(at[full.ndim - t.ndim :], t.shape, strict=True))
            expected[home] += full[at]
        assert t.grad.shape == t.shape
        np.testing.assert_allclose(t.grad, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ()])
def test_reductions(rng, axis, keepdims):
    values = rng.standard_normal((2, 3, 4))
    for name in ("sum", "mean"):
        x = leaf(values)
        out = getattr(x, name)(axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(out.data, getattr(values, name)(axis=axis, keepdims=keepdims), rtol=1e-13)
        dout = rng.standard_normal(out.shape)
        out.backward(dout)
        share = 1 if name == "sum" else out.size / x.size
        axes = range(3) if axis is None else axis
        kept = dout.reshape(values.sum(axis=axis, keepdims=True).shape) if axes != () else dout
        np.testing.assert_allclose(x.grad, np.broadcast_to(kept * share, x.shape), rtol=1e-14)


def test_diamond():
    x = leaf([3.0])
    (x * x + x).backward()
    np.testing.assert_array_equal(x.grad, [7])
    x = leaf([3.0])
    a, b = x * 2, x * 5
    (a * b + a - b).backward()  # 10 x^2 - 3 x
    np.testing.assert_array_equal(x.grad, [57])


def test_a_thousand_uses():
    x = leaf([2.0, -1.0])
    total = x * 0
    for i in range(1000):
        total = total + x * i
    total.sum().backward()
    np.testing.assert_array_equal(x.grad, [499_500, 499_500])


def test_one_tensor_as_all_inputs():
    x = leaf([3.0])
    (x - x).backward()
    np.testing.assert_array_equal(x.grad, [0])
    x = leaf([3.0])
    (x / x).backward()
    np.testing.assert_allclose(x.grad, [0], atol=1e-15)


def test_deep_chain_needs_no_recursion():
    x = leaf([1.0])
    y = x
    for _ in range(5000):
        y = y + 1
    y.backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_deep_chain_is_freed_without_recursion():
    y = leaf([1.0])
    for _ in range(50_000):
        y = y + 1
    del y


def test_paths_are_not_counted_one_by_one():
    x = leaf([1.0])
    y = x
    for _ in range(60):
        y = y + y
    started = time.perf_counter()
    y.backward()
    assert time.perf_counter() - started < 5  # 2**60 paths
    np.testing.assert_array_equal(x.grad, [2.0**60])


def test_old_tensor_used_again_after_newer_ones():
    """The node made first gets its last contribution from the one made last, past a long detour."""
    x = leaf([2.0])
    early = x * 3
    late = early
    for _ in range(10):
        late = late * 1
    (late + early * early).backward()  # 3 x + 9 x^2
    np.testing.assert_array_equal(x.grad, [39])


def test_two_backward_calls_add_up(rng):
    values, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    ids = np.array([0, 2, 2])

    def losses(table, weight):
        h = ops.embedding(table, ids)
        return (h @ weight).tanh().sum(), ops.linear(h, weight, Tensor(np.zeros(2))).exp().sum()

    one_by_one, at_once = (leaf(values), leaf(w)), (leaf(values), leaf(w))
    losses(*one_by_one)[0].backward()
    losses(*one_by_one)[1].backward()
    first, second = losses(*at_once)
    (first + second).backward()
    for a, b in zip(one_by_one, at_once, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-13)


@pytest.mark.parametrize("written_first", [True, False])
def test_gradient_that_is_written_adds_to_one_that_is_there(rng, written_first):
    """linear and embedding write their large gradients into place; others add arrays to it."""
    w, x = rng.standard_normal((3, 2)), rng.standard_normal((4, 3))
    weight = leaf(w)
    uses = [lambda: ops.linear(Tensor(x), weight, Tensor(np.zeros(2))).sum(), lambda: (weight * 2).sum(),
            lambda: ops.embedding(weight, np.array([1, 1])).sum(), lambda: weight.sum()]
    for use in uses if written_first else uses[::-1]:
        use().backward()
    expected = x.sum(axis=0)[:, None] + 3 + 2 * (np.arange(3) == 1)[:, None]
    np.testing.assert_allclose(weight.grad, np.broadcast_to(expected, (3, 2)), rtol=1e-13)


def test_backward_from_the_middle_with_a_gradient():
    x = leaf([1.0, 2.0])
    (x * x).backward(np.array([10.0, 100.0]))
    np.testing.assert_array_equal(x.grad, [20, 400])


def test_backward_on_a_leaf():
    x = leaf(3.0)
    x.backward()
    x.backward()
    assert x.grad == 2 and x.grad.shape == ()


# ---- who owns which array


def test_leaf_gradients_share_no_memory():
    x, y, z = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf([5.0, 6.0])
    cotangent = np.array([1.0, 1.0])
    (x + y + z).backward(cotangent)
    grads = [x.grad, y.grad, z.grad, cotangent]
    for i, one in enumerate(grads):
        for other in grads[i + 1 :]:
            assert not np.shares_memory(one, other)
    (x * 1).backward(cotangent)
    np.testing.assert_array_equal(x.grad, [2, 2])
    np.testing.assert_array_equal(cotangent, [1, 1])
    np.testing.assert_array_equal(y.grad, [1, 1])


@pytest.mark.parametrize("use", [
    lambda x: x + 0, lambda x: x.reshape(4), lambda x: x.T, lambda x: x - 0, lambda x: x.reshape(2, 2).reshape(4, 1),
])
def test_leaf_gradient_is_not_the_cotangent(use):
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    out = use(x)
    cotangent = np.ones(out.shape)
    out.backward(cotangent)
    assert not np.shares_memory(x.grad, cotangent)
    x.grad += 1
    np.testing.assert_array_equal(cotangent, 1)


def test_backward_on_a_leaf_copies_the_cotangent():
    x, cotangent = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    x.backward(cotangent)
    assert not np.shares_memory(x.grad, cotangent)


def test_earlier_gradient_that_was_kept_stays():
    """Someone keeps x.grad, and then starts again with x.grad = None."""
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    kept, x.grad = x.grad, None
    (x * 5).sum().backward()
    np.testing.assert_array_equal(kept, [3, 3])
    np.testing.assert_array_equal(x.grad, [5, 5])


def test_op_that_returns_one_array_for_two_inputs():
    """Each input adds up on its own from there, whoever else got the same array."""

    @op
    def doubled_sum(x, y):
        def backward(dout):
            dx = 2 * dout
            return dx, dx

        return 2 * (x + y), backward

    x, y = leaf([1.0]), leaf([1.0])
    a, b = x * 1, y * 1
    early = a * 10  # made before the shared array's op, so that its gradient is added afterwards
    (doubled_sum(a, b) + early).backward()
    np.testing.assert_array_equal(x.grad, [12])
    np.testing.assert_array_equal(y.grad, [2])


def test_op_that_returns_a_view_of_another_gradient():
    @op
    def doubled_difference(x, y):
        def backward(dout):
            dx = 2 * dout
            return dx, dx[::-1]

        return 2 * (x + y[::-1]), backward

    x, y = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    a, b = x * 1, y * 1
    early = a * 10
    (doubled_difference(a, b) + early).sum().backward()
    np.testing.assert_array_equal(x.grad, [12, 12])
    np.testing.assert_array_equal(y.grad, [2, 2])


def test_op_that_returns_an_array_it_keeps():
    """A gradient worked out in the forward pass, or an input that is a gradient: adding to it must not show there."""

    @op
    def half_square(x):
        return (x * x).sum() / 2, lambda dout: x

    x = leaf([1.0, 2.0])
    half_square(x).backward()
    half_square(x).backward()
    np.testing.assert_array_equal(x.grad, [2, 4])
    np.testing.assert_array_equal(x.data, [1, 2])


@pytest.mark.parametrize("again", ["a", "b"])
@pytest.mark.parametrize("use", [
    lambda x: (x * 3).sum(), lambda x: ops.linear(Tensor(np.ones((1, 2))), x, np.zeros(1)),
])
def test_a_gradient_given_to_another_leaf_stays_its_own(use, again):
    """a.grad = b.grad, then one more backward() on either: the other's must not move."""
    leaves = {"a": leaf([[1.0], [2.0]]), "b": leaf([[5.0], [6.0]])}
    for x in leaves.values():
        use(x).backward(np.ones(use(x).shape))
    leaves["a"].grad = leaves["b"].grad
    before = leaves["a"].grad.copy()
    use(leaves[again]).backward(np.ones(use(leaves[again]).shape))
    other = {"a": "b", "b": "a"}[again]
    np.testing.assert_array_equal(leaves[other].grad, before)
    np.testing.assert_array_equal(leaves[again].grad, 2 * before)


def test_a_gradient_that_nobody_has_seen_is_added_to_in_place():
    """So that gradient accumulation makes no copy of every weight's gradient."""
    weight, arrays = leaf(np.ones((2, 3))), []
    for _ in range(3):
        ops.linear(Tensor(np.ones((4, 2))), weight, np.zeros(3)).sum().backward()
        arrays.append(weight._grad)
    assert arrays[0] is arrays[1] is arrays[2]
    np.testing.assert_array_equal(weight.grad, 12)


# ---- what is wrong is named


def test_second_backward_raises():
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="'sum' was freed by an earlier backward.*forward pass again"):
        loss.backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_second_backward_through_a_shared_part_raises():
    x = leaf([1.0, 2.0])
    shared = x * x
    first, second = shared.sum(), shared.exp().sum()
    first.backward()
    with pytest.raises(RuntimeError, match="'mul' was freed"):
        second.backward()


def test_backward_without_requires_grad_raises():
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        (Tensor([1.0]) * 2).backward()


def test_backward_of_several_elements_raises():
    with pytest.raises(RuntimeError, match=r"\(2,\), expected one element"):
        (leaf([1.0, 2.0]) * 2).backward()


def test_cotangent_of_a_wrong_shape_raises():
    with pytest.raises(ValueError, match=r"\(3,\), expected \(2,\)"):
        (leaf([1.0, 2.0]) * 2).backward(np.ones(3))


def test_gradient_of_a_wrong_shape_raises():
    @op
    def forgot_to_sum(x, y):
        return x + y, lambda dout: (dout, dout)

    with pytest.raises(ValueError, match=r"forgot_to_sum: gradient of input 1 is \(2, 3\), expected \(3,\)"):
        forgot_to_sum(leaf(np.ones((2, 3))), leaf(np.ones(3))).sum().backward()


def test_wrong_number_of_gradients_raises():
    @op
    def forgot_one(x, y):
        return x + y, lambda dout: dout

    with pytest.raises(ValueError, match="forgot_one: backward returned 1 of 2 gradients; .* None for"):
        forgot_one(leaf([1.0]), leaf([1.0])).backward()


def test_gradients_in_a_list_raise():
    @op
    def add(x, y):
        return x + y, lambda dout: [dout, dout]

    with pytest.raises(TypeError, match="add: backward returned a list, expected an array, or a tuple"):
        add(leaf([1.0]), leaf([1.0])).backward()


@pytest.mark.parametrize("gradient", [2.0, [1.0, 2.0], {"x": 1}, "x", (np.ones(2),)])
def test_a_gradient_that_is_no_array_raises(gradient):
    @op
    def odd(x, y):
        return x + y, lambda dout: (dout, gradient)

    with pytest.raises(TypeError, match=r"odd: gradient of input 1 is a \w+, expected an array \(2,\), or None"):
        odd(leaf([1.0, 2.0]), leaf([1.0, 2.0])).backward(np.ones(2))


@pytest.mark.parametrize("result", [Tensor(np.ones(2)), "text", [leaf([1.0])]])
def test_a_result_that_is_no_array_raises(result):
    @op
    def odd(x):
        return result, lambda dout: dout

    with pytest.raises(TypeError, match="odd: the result is a (Tensor|str|list), expected an array; inside an op"):
        odd(leaf([1.0, 2.0]))


@pytest.mark.parametrize("made", [np.ones(2), np.ones((2, 2)), (np.ones(2),), (np.ones(2), np.ones(2)), None,
                                  (np.ones(2), None), (lambda dout: dout, np.ones(2)), (np.ones(2), lambda d: d, 3)])
def test_an_op_without_its_backward_raises(made):
    @op
    def no_way_back(x):
        return made

    with pytest.raises(TypeError, match="no_way_back: an op returns its result and a function, return out, backward"):
        no_way_back(leaf([1.0, 2.0]))


def test_inputs_without_grad_get_none():
    x, constant = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    (x * constant).sum().backward()
    assert constant.grad is None
    np.testing.assert_array_equal(x.grad, [3, 4])


# ---- no_grad


def test_no_grad_records_nothing():
    x = leaf([1.0])
    with no_grad():
        assert not is_recording()
        y = x * 2
        with no_grad():
            pass
        assert not is_recording()
    assert is_recording()
    assert y.node is None and not y.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_ends_with_an_exception():
    with pytest.raises(KeyError):
        with no_grad():
            raise KeyError
    assert is_recording()


def test_nothing_is_recorded_for_constants():
    assert (Tensor([1.0]) * Tensor([2.0])).node is None


# ---- memory


@pytest.mark.parametrize("use", [
    lambda y: -y, lambda y: y.exp(), lambda y: y.tanh(), lambda y: ops.softmax(y), lambda y: y + 1, lambda y: 1 - y,
    lambda y: y.sum(), lambda y: y.mean(axis=0),
], ids=["neg", "exp", "tanh", "softmax", "add", "sub", "sum", "mean"])
def test_result_that_the_backward_pass_does_not_need_is_freed(use):
    """These gradients take the result, or shapes, but never the input's elements."""
    x = leaf([1.0, 2.0])
    y = x * 3
    ref = weakref.ref(y.data)
    z = use(y)
    del y
    assert ref() is None
    z.backward(np.ones(z.shape))
    assert x.grad is not None


def test_input_of_a_frozen_layer_is_freed():
    x, weight, bias = leaf([[1.0, 2.0]]), Tensor(np.ones((2, 3))), leaf(np.ones(3))
    y = x * 3
    ref = weakref.ref(y.data)
    z = ops.linear(y, weight, bias)
    del y
    assert ref() is None
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [[9, 9]])


def test_ids_and_targets_may_be_single_numbers():
    table = leaf([[1.0, 2.0], [3.0, 5.0]])
    loss = losses.cross_entropy(ops.embedding(table, np.int64(1)), np.int64(0))
    loss.backward()
    np.testing.assert_allclose(loss.item(), np.log(1 + np.exp(2)))
    assert (table.grad[1] != 0).all() and (table.grad[0] == 0).all()


def test_result_that_backward_needs_lives_until_then():
    x = leaf([1.0, 2.0])
    y = x * 3
    ref = weakref.ref(y.data)
    z = (y * y).sum()
    del y
    gc.collect()
    assert ref() is not None
    z.backward()
    assert ref() is None  # although z is still there
    np.testing.assert_array_equal(x.grad, [18, 36])


def test_graph_is_freed_without_the_garbage_collector():
    x = leaf([1.0, 2.0])
    gc.disable()
    try:
        y = x * 3
        ref = weakref.ref(y.data)
        z = (y * y).sum()
        del y, z
        assert ref() is None
    finally:
        gc.enable()


def test_each_node_is_freed_before_the_next_runs_back():
    """Otherwise all activations would live until the end of the backward pass."""
    alive = []

    @op
    def remember(x, *, refs):
        kept = x * 1
        refs.append(weakref.ref(kept))

        def backward(dout):
            alive.append([ref() is not None for ref in refs])
            return dout + 0 * kept

        return x + 0, backward

    x, refs = leaf([1.0, 2.0]), []
    y = x
    for _ in range(4):
        y = remember(y, refs=refs)
    y.sum().backward()
    assert alive == [[True] * 4, [True] * 3 + [False], [True] * 2 + [False] * 2, [True] + [False] * 3]


def test_gradients_of_results_are_freed_on_the_way():
    """While a node runs back, the gradient of a result after its own is no longer held."""
    refs, alive = [], []

    @op
    def watch_gradients(x):
        def backward(dout):
            alive.append(sum(ref() is not None for ref in refs))
            refs.append(weakref.ref(dout))
            return dout * 1

        return x * 1, backward

    y = leaf([1.0, 2.0])
    for _ in range(5):
        y = watch_gradients(y)
    y.sum().backward()
    assert alive == [0] * 5


def test_gradients_are_kept_for_leaves_only():
    x = leaf([1.0, 2.0])
    y = x * 3
    y.sum().backward()
    assert y.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("targets", [np.array([0.9, 1.7]), np.array([True, False])])
def test_targets_that_are_no_integers_are_refused(targets):
    with pytest.raises(TypeError, match="expected integers"):
        losses.cross_entropy(Tensor(np.ones((2, 3))), targets)
    with pytest.raises(TypeError, match="expected integers"):
        losses.linear_cross_entropy(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 3))), targets)


# ---- threads


def test_no_grad_in_one_thread_leaves_others_alone():
    """Entered and left in turns, as two threads that generate do: whoever leaves last must not leave it off."""
    entered, left = threading.Barrier(2), threading.Barrier(2)
    found = {}

    def generate(name, first_to_leave):
        with no_grad():
            entered.wait(10)
            found[name] = (leaf([1.0]) * 2).requires_grad
            if not first_to_leave:
                left.wait(10)
        if first_to_leave:
            left.wait(10)
        found[name, "after"] = is_recording()

    threads = [threading.Thread(target=generate, args=(name, name == "a")) for name in "ab"]
    for thread in threads:
        thread.start()
    entered_here = is_recording()
    for thread in threads:
        thread.join()
    assert entered_here and is_recording()
    assert found == {"a": False, "b": False, ("a", "after"): True, ("b", "after"): True}


def test_no_grad_is_not_for_threads_that_start_within_it():
    found = []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append(is_recording()))
        thread.start()
        thread.join()
    assert found == [True]


# ---- gradients on demand


@op
def remember_wanted(x, y, *, into, wanted):
    into.append(wanted)
    return x + y, lambda dout: (dout if wanted[0] else None, dout if wanted[1] else None)


def test_an_op_learns_which_gradients_are_wanted():
    x, constant, into = leaf([1.0]), Tensor(np.array([2.0])), []
    remember_wanted(x, constant, into=into).backward()
    remember_wanted(constant, x * 2, into=into).backward()
    remember_wanted(2.0, constant, into=into)
    remember_wanted(x, x, into=into)
    with no_grad():
        remember_wanted(x, x, into=into)
    assert into == [(True, False), (False, True), (False, False), (True, True), (False, False)]
    np.testing.assert_array_equal(x.grad, [3])


def test_wanted_is_no_part_of_the_signature():
    assert list(inspect.signature(ops.linear).parameters) == ["x", "weight", "bias"]
    assert list(inspect.signature(remember_wanted).parameters) == ["x", "y", "into"]


# ---- Python's and NumPy's numbers and functions


@pytest.mark.parametrize("values", [[1, 2], 2, [[1], [2]], 2.5, np.pi])
def test_python_numbers_can_require_grad(values):
    x = Tensor(values, requires_grad=True)
    assert x.dtype == np.float32
    (x * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * np.float32(values), rtol=1e-6)


@pytest.mark.parametrize("f", [
    lambda x: x * np.sqrt(2), lambda x: np.sqrt(2) * x, lambda x: x + np.float64(1), lambda x: np.float64(3) / x,
    lambda x: x ** np.float64(2), lambda x: x - np.arange(3.0)[1], lambda x: np.float64(2) ** x,
    lambda x: x * np.int64(3), lambda x: np.arange(3).sum() - x,
])
def test_numpy_scalars_keep_float32(f):
    x = leaf([1.0, 2.0], np.float32)
    out = f(x)
    assert type(out) is Tensor and out.dtype == np.float32
    out.sum().backward()
    assert x.grad.dtype == np.float32


def test_number_to_the_power_of_a_tensor():
    x = leaf([3.0, -1.0, 0.0])
    out = 2**x
    np.testing.assert_array_equal(out.data, [8, 0.5, 1])
    out.sum().backward()
    np.testing.assert_allclose(x.grad, np.log(2) * out.data, rtol=1e-15)


@pytest.mark.parametrize(("f", "says"), [
    (np.exp, r"numpy.exp of a Tensor.*tinyft.ops.exp\(x\).*x.data"), (np.sin, "numpy.sin.*tinyft.ops.*x.data"),
    (np.add.reduce, "numpy.add"), (lambda x: np.equal(np.ones(2), x), "numpy.equal"),
    (lambda x: np.add(np.ones(2), x, out=np.ones(2)), "numpy.add"),
])
def test_functions_of_numpy_are_refused(f, says):
    with pytest.raises(TypeError, match=says):
        f(leaf([1.0, 2.0]))


def test_backward_that_returns_a_tensor_is_named():
    @op
    def too_clever(x):
        return x * 2, lambda dout: Tensor(dout * 2)

    with pytest.raises(TypeError, match="too_clever: backward returned a Tensor as gradient of input 0.*expected an"):
        too_clever(leaf([1.0])).backward()


def test_methods_are_found_where_they_are_defined():
    for name in ("__add__", "__rmul__", "sum", "mean", "exp", "reshape", "transpose"):
        method = vars(Tensor)[name]
        assert method.__qualname__ == f"Tensor.{name}" and method.__module__ == "tinyft.tensor"


def test_ops_and_tensor_can_be_imported_in_any_order(run_python):
    for first in ("tinyft.tensor", "tinyft.ops"):
        done = run_python(f"import {first}; from tinyft.tensor import Tensor; print((Tensor(2) * 3).item())")
        assert done.stdout.strip() == "6.0", done.stderr


def test_no_grad_may_end_in_another_context():
    """A generator that was entered in one context, and goes on in another."""
    def evaluation():
        with no_grad():
            yield is_recording()

    steps = evaluation()
    assert contextvars.Context().run(next, steps) is False
    with pytest.raises(StopIteration):
        next(steps)
    assert is_recording()
