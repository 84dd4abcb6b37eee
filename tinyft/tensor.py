"""Tensor, the `@op` declaration, and the backward pass through the graph.

An op is an ordinary function on NumPy arrays that returns its result and a nested function `backward`.
`@op` lets it take Tensors and records one `Node` for each call: who the parents are, and how to turn the
gradient of the result into gradients of the inputs.

    @op
    def mul(x, y):
        def backward(dout):
            return dout * y, dout * x
        return x * y, backward

What `backward` needs it finds in the variables around it; what it doesn't name is freed. It is pure: it
returns one gradient for each positional input and changes nothing that others see. Adding up is done here.

An op for which a gradient is expensive asks which ones are wanted: with a keyword `wanted` in its signature it
is handed one bool for each positional input, and may return None where it is False.

The graph holds the arrays themselves, not copies. Changing one in place (`x.data += 1`) between the forward and
the backward pass gives wrong gradients, and nothing can notice it.
"""

import functools
import heapq
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import ModuleType

import numpy as np

FLOATS = (np.float32, np.float64)


class Donated:
    """A gradient that nobody else holds or ever will: the receiver may add to it in place."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array


# A gradient is an array. Where it is as large as the weights, which is worth some care, it can also be a
# function write(out, accumulate) that fills `out` or adds to it, or an array that is Donated.
Gradient = np.ndarray | Callable[[np.ndarray, bool], None] | Donated | None

_creation = itertools.count()
_recording = ContextVar("recording", default=True)  # each thread has its own
_ops: ModuleType = None  # ops.py puts itself here: it imports this file, so that this file cannot import it


class Node:
    """One op call in the graph. It holds no result, only what the backward pass needs.

    parents: for each positional input a Node, a leaf Tensor, or None where no gradient is wanted.
    context: the settings (`ContextVar`s) of the forward pass, under which the backward pass runs too.
    order: counts up with every node, so parents always have a smaller one than their children.
    """

    __slots__ = ("op", "parents", "backward", "shape", "dtype", "context", "order")

    def __init__(self, op: str, parents: tuple, backward: Callable, out: np.ndarray):
        self.op, self.parents, self.backward = op, parents, backward
        self.shape, self.dtype = out.shape, out.dtype
        self.context = copy_context()
        self.order = next(_creation)


class Tensor:
    """An array that remembers how it was made.

    data: a float32 or float64 array (integers where no gradient is asked for). Python's lists and numbers become
    float32. NumPy's own functions don't take Tensors; tinyft's are methods here and functions in `tinyft.ops`.

    >>> from tinyft import Tensor
    >>> a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0])
    >>> (a * b).sum().backward()
    >>> a.grad.tolist()
    [3.0, 4.0]
    """

    __slots__ = ("data", "requires_grad", "node", "_grad", "_grad_is_shared")

    def __init__(self, data, requires_grad: bool = False, node: Node | None = None):
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data): data is a Tensor already; use data.data for its array")
        if isinstance(data, np.ndarray | np.generic):
            self.data = np.asarray(data)
        else:
            self.data = np.asarray(data)
            if self.data.dtype.kind in "iuf":
                self.data = self.data.astype(np.float32)
        if requires_grad and self.data.dtype not in FLOATS:
            raise TypeError(f"Tensor: requires_grad needs float32 or float64, got {self.data.dtype}")
        self.requires_grad = requires_grad or node is not None
        self.node = node
        self._grad: np.ndarray | None = None
        self._grad_is_shared = False

    @property
    def grad(self) -> np.ndarray | None:
        """After `backward()`, the gradient of a tensor with requires_grad: an array of its shape, or None.

        A later backward() adds to it: in place while nobody has seen the array, else in a new one, so that
        whoever took it, for another tensor's `grad` perhaps, keeps what he has.
        """
        self._grad_is_shared = True
        return self._grad

    @grad.setter
    def grad(self, gradient: np.ndarray | None) -> None:
        self._grad, self._grad_is_shared = gradient, True

    @property
    def operand(self):
        """What ops are handed: the array, or what stands for it where a subclass keeps something else."""
        return self.data

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements."""
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made_by = f", made by {self.node.op}" if self.node else ", requires_grad" * self.requires_grad
        return f"Tensor({np.array2string(self.data, threshold=20)}, {self.dtype}{made_by})"

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        return self.data.item()

    def detach(self) -> "Tensor":
        """The same array, without its history."""
        return Tensor(self.data)

    def backward(self, gradient: np.ndarray | None = None) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it was computed from.

        gradient: d(something)/d(this), of this tensor's shape; 1 for a tensor with one element. The graph is
        freed on the way, and a second call raises RuntimeError.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: nothing to do, no input of this tensor has requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward: the tensor has shape {self.shape}, expected one element; "
                    "reduce it first (sum, mean) or pass its gradient"
                )
            gradient = np.ones_like(self.data)
        gradient = np.asarray(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise ValueError(f"backward: gradient is {gradient.shape}, expected {self.shape}, the tensor's shape")
        if self.node is None:
            self._add_to_grad(gradient)
        else:
            _backward_pass(self.node, gradient)

    def _add_to_grad(self, gradient: Gradient) -> None:
        """Unlike a node's, a leaf's first gradient is copied, unless it is donated: users may change it."""
        total, owned = _add((self._grad, not self._grad_is_shared), gradient, self)
        self._grad, self._grad_is_shared = total if owned else total.copy(), False

    # ---- what Python writes as operators and methods; see ops.py for each

    def __add__(self, other) -> "Tensor":
        return _ops.add(self, other)

    def __radd__(self, other) -> "Tensor":
        return _ops.add(other, self)

    def __sub__(self, other) -> "Tensor":
        return _ops.sub(self, other)

    def __rsub__(self, other) -> "Tensor":
        return _ops.sub(other, self)

    def __mul__(self, other) -> "Tensor":
        return _ops.mul(self, other)

    def __rmul__(self, other) -> "Tensor":
        return _ops.mul(other, self)

    def __truediv__(self, other) -> "Tensor":
        return _ops.div(self, other)

    def __rtruediv__(self, other) -> "Tensor":
        return _ops.div(other, self)

    def __matmul__(self, other) -> "Tensor":
        return _ops.matmul(self, other)

    def __rmatmul__(self, other) -> "Tensor":
        return _ops.matmul(other, self)

    def __pow__(self, exponent) -> "Tensor":
        return _ops.pow(self, exponent)

    def __rpow__(self, base) -> "Tensor":
        return _ops.pow(base, self)

    def __neg__(self) -> "Tensor":
        return _ops.neg(self)

    def __getitem__(self, key) -> "Tensor":
        return _ops.index(self, key=key.data if isinstance(key, Tensor) else key)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs, **options):
        """`array * tensor` is ours; any other function of NumPy would lose the gradient without a word."""
        ours = _ops.OPERATORS.get(ufunc)
        if method == "__call__" and ours is not None and not options:
            return ours(*inputs)
        name = ufunc.__name__
        remedy = f"tinyft.ops.{name}(x)" if hasattr(_ops, name) else "one of the functions in tinyft.ops"
        raise TypeError(f"numpy.{name} of a Tensor has no gradient; use {remedy}, or x.data for the values alone")

    def reshape(self, *shape) -> "Tensor":
        """The same elements in another shape: reshape(2, -1) or reshape((2, -1))."""
        return _ops.reshape(self, shape=_several(shape))

    def transpose(self, *axes) -> "Tensor":
        """The axes in another order, reversed if none is named: transpose(1, 0) or transpose((1, 0))."""
        return _ops.transpose(self, axes=_several(axes) or None)

    @property
    def T(self) -> "Tensor":
        """The axes reversed."""
        return _ops.transpose(self)

    def sum(self, *, axis=None, keepdims: bool = False) -> "Tensor":
        """Sum over one axis, several, or all."""
        return _ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, *, axis=None, keepdims: bool = False) -> "Tensor":
        """Mean over one axis, several, or all."""
        return _ops.mean(self, axis=axis, keepdims=keepdims)

    def exp(self) -> "Tensor":
        """e ** x, element by element."""
        return _ops.exp(self)

    def log(self) -> "Tensor":
        """Natural logarithm, element by element."""
        return _ops.log(self)

    def tanh(self) -> "Tensor":
        """Hyperbolic tangent, element by element."""
        return _ops.tanh(self)

    def relu(self) -> "Tensor":
        """max(x, 0), element by element."""
        return _ops.relu(self)


def _several(arguments: tuple) -> tuple:
    """f(1, 2) and f((1, 2)) mean the same."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], list | tuple) else arguments


def _backward_pass(last: Node, gradient: np.ndarray) -> None:
    """Visit the nodes from the last one made to the first; each is complete when its turn comes.

    A heap ordered by creation is all the sorting it takes, and no recursion: a path from child to parent is
    walked once however many others join it.
    """
    sums = {last: (gradient, False)}  # what has come in for a node so far, and whether that array was made here
    waiting = [(-last.order, last)]
    del gradient

    def visit(node: Node) -> None:
        parents = node.parents
        gradients = _gradients_of_inputs(node, sums.pop(node)[0])
        for parent, gradient in zip(parents, gradients, strict=True):
            if parent is None or gradient is None:
                continue
            if isinstance(parent, Tensor):
                parent._add_to_grad(gradient)
                continue
            if parent not in sums:
                heapq.heappush(waiting, (-parent.order, parent))
            sums[parent] = _add(sums.get(parent, (None, False)), gradient, parent)

    while waiting:
        node = heapq.heappop(waiting)[1]
        node.context.run(visit, node)


def _gradients_of_inputs(node: Node, dout: np.ndarray) -> tuple[Gradient, ...]:
    """Run one node's backward function, check what it returns, and free the node."""
    if node.backward is None:
        raise RuntimeError(
            f"backward: the graph of this '{node.op}' was freed by an earlier backward(); "
            "compute the forward pass again, or add the losses and call backward() once"
        )
    gradients = node.backward(dout)
    if isinstance(gradients, list):
        raise TypeError(f"{node.op}: backward returned a list, expected an array, or a tuple with one for each input")
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) != len(node.parents):
        raise ValueError(f"{node.op}: backward returned {len(gradients)} of {len(node.parents)} gradients; expected "
                         "one for each input in their order, and None for what has no gradient")
    for i, (parent, gradient) in enumerate(zip(node.parents, gradients, strict=True)):
        if isinstance(gradient, Tensor):
            raise TypeError(f"{node.op}: backward returned a Tensor as gradient of input {i}, expected an array; "
                            "compute it from dout and the arrays of the forward pass, or return its .data")
        if parent is None or gradient is None or callable(gradient):
            continue
        array = gradient.array if isinstance(gradient, Donated) else gradient
        if not isinstance(array, np.ndarray | np.generic):
            raise TypeError(f"{node.op}: gradient of input {i} is a {type(array).__name__}, expected an array "
                            f"{parent.shape}, or None")
        if array.shape != parent.shape:
            raise ValueError(f"{node.op}: gradient of input {i} is {array.shape}, "
                             f"expected {parent.shape}, the input's shape")
    node.backward, node.parents = None, ()
    return gradients


def _add(so_far: tuple[np.ndarray | None, bool], gradient: Gradient, like: Node | Tensor) -> tuple[np.ndarray, bool]:
    """One more gradient on top of (sum, owned), as such a pair.

    owned: whether the array was made here or donated, so that nobody else sees it and it may be added to in place.
    The first gradient becomes the sum as it is, without a copy. like: has the shape and dtype of the sum.
    """
    total, owned = so_far
    if callable(gradient):
        fresh = total is None
        if fresh:
            total = np.empty(like.shape, like.dtype)
        elif not owned:
            total = total.copy()
        gradient(total, not fresh)
        return total, True
    donated = isinstance(gradient, Donated)
    array = np.asarray(gradient.array if donated else gradient, like.dtype)
    if total is None:
        return array, donated
    if owned:
        total += array
        return total, True
    if donated:
        array += total
        return array, True
    return total + array, True


def op(function: Callable) -> Callable:
    """Make `function(*arrays) -> (result, backward)` an op on Tensors; see the top of this file.

    Positional arguments may be Tensors and get gradients; keyword arguments are passed through unchanged. Where the
    function has a keyword `wanted`, it is a tuple with one bool for each positional argument: whether its gradient
    is wanted. NumPy's scalars count as Python's numbers, so that x * np.sqrt(2) keeps the dtype of x.

    >>> import numpy as np
    >>> @op
    ... def square(x):
    ...     return x * x, lambda dout: 2 * x * dout
    >>> x = Tensor(3.0, requires_grad=True)
    >>> square(x).backward()
    >>> x.grad.item()
    6.0
    """
    name, signature = function.__name__, inspect.signature(function)
    asks = "wanted" in signature.parameters

    @functools.wraps(function)
    def call(*args, **options) -> Tensor:
        for option, value in options.items():
            if isinstance(value, Tensor):
                raise TypeError(f"{name}: {option} is a Tensor given by name; only positional inputs get gradients")
        recording = is_recording()
        parents = tuple(
            (arg.node or arg) if recording and isinstance(arg, Tensor) and arg.requires_grad else None for arg in args
        )
        if asks:
            options["wanted"] = tuple(parent is not None for parent in parents)
        made = function(*map(_plain, args), **options)
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1]) and not callable(made[0])):
            kinds = ", ".join(type(one).__name__ for one in (made if isinstance(made, tuple) else (made,)))
            raise TypeError(f"{name}: an op returns its result and a function, return out, backward; got {kinds}")
        out, backward = np.asarray(made[0]), made[1]
        if out.dtype.kind not in "biufc":
            raise TypeError(f"{name}: the result is a {type(made[0]).__name__}, expected an array; inside an op all "
                            "inputs are arrays, and NumPy's functions take them")
        if all(parent is None for parent in parents):
            return Tensor(out)
        return Tensor(out, node=Node(name, parents, backward, out))

    call.__signature__ = signature.replace(
        parameters=[parameter for parameter in signature.parameters.values() if parameter.name != "wanted"])
    call.is_op = True
    return call


def _plain(arg):
    """A Tensor's array, a NumPy scalar as a Python number, and anything else as it is."""
    if isinstance(arg, Tensor):
        return arg.operand
    return arg.item() if isinstance(arg, np.floating | np.integer) else arg


def is_recording() -> bool:
    """Whether ops record the graph now, in this thread."""
    return _recording.get()


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this block ops record nothing: for evaluation and generation. Other threads go on as they do.

    >>> x = Tensor(2.0, requires_grad=True)
    >>> with no_grad():
    ...     y = x * x
    >>> y.requires_grad
    False
    """
    before = is_recording()
    _recording.set(False)
    try:
        yield
    finally:  # set, not reset: a generator may be left in another context than it was entered in
        _recording.set(before)
