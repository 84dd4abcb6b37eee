"""Tensor, the `@op` declaration, and the walk back through the graph.

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
"""

import functools
import heapq
import itertools
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

FLOATS = (np.float32, np.float64)


class Given:
    """A gradient that nobody else holds or ever will: the receiver may add to it in place."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array


# A gradient is an array. Where it is as large as the weights, which is worth some care, it can also be a
# function write(out, accumulate) that fills `out` or adds to it, or an array that is Given away.
Gradient = np.ndarray | Callable[[np.ndarray, bool], None] | Given | None

OPS: dict[str, Callable] = {}  # every declared op by name; the tests ask for a gradient check of each

_creation = itertools.count()
_recording = True


class Node:
    """One op call in the graph. It holds no result, only what the way back needs.

    parents: for each positional input a Node, a leaf Tensor, or None where no gradient is wanted.
    order: counts up with every node, so parents always have a smaller one than their children.
    """

    __slots__ = ("op", "parents", "backward", "shape", "dtype", "order", "grad", "owned")

    def __init__(self, op: str, parents: tuple, backward: Callable, out: np.ndarray):
        self.op, self.parents, self.backward = op, parents, backward
        self.shape, self.dtype = out.shape, out.dtype
        self.order = next(_creation)
        self.grad: np.ndarray | None = None
        self.owned = False


class Tensor:
    """An array that remembers how it was made.

    data: a float32 or float64 array (integers where no gradient is asked for). Lists and numbers become
    float32. grad: after `backward()`, the gradient of a tensor with requires_grad, an array of its shape.
    """

    __slots__ = ("data", "grad", "owned", "requires_grad", "node")
    __array_priority__ = 1000  # array * tensor is ours, not an object array of NumPy's

    def __init__(self, data, requires_grad: bool = False, node: Node | None = None):
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data): data is a Tensor already; use data.data for its array")
        array = data if isinstance(data, np.ndarray | np.generic) else np.asarray(data)
        if not isinstance(data, np.ndarray | np.generic) and array.dtype == np.float64:
            array = array.astype(np.float32)
        self.data = np.asarray(array)
        if requires_grad and self.data.dtype not in FLOATS:
            raise TypeError(f"Tensor: requires_grad needs float32 or float64, got {self.data.dtype}")
        self.grad: np.ndarray | None = None
        self.owned = False  # whether `grad` was made here, so that a second backward() adds to it in place
        self.requires_grad = requires_grad or node is not None
        self.node = node

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
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
        _walk_back(self.node or self, gradient)


def _walk_back(last: Node | Tensor, gradient: np.ndarray) -> None:
    """Visit the nodes from the last one made to the first; each is complete when its turn comes.

    A heap ordered by creation is all the sorting it takes, and no recursion: a path from child to parent is
    walked once however many others join it.
    """
    _accumulate(last, gradient)
    del gradient
    waiting = [(-last.order, last)] if isinstance(last, Node) else []
    seen = {id(last)}
    while waiting:
        node = heapq.heappop(waiting)[1]
        if node.backward is None:
            raise RuntimeError(
                f"backward: the graph of this '{node.op}' was freed by an earlier backward(); "
                "compute the forward pass again, or add the losses and call backward() once"
            )
        gradients = node.backward(node.grad)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        node.backward, node.grad = None, None
        if len(gradients) != len(node.parents):
            raise ValueError(f"{node.op}: backward returned {len(gradients)} gradients for "
                             f"{len(node.parents)} inputs")
        gradient = None
        for i, (parent, gradient) in enumerate(zip(node.parents, gradients, strict=True)):
            if parent is None or gradient is None:
                continue
            shape = getattr(gradient.array if isinstance(gradient, Given) else gradient, "shape", parent.shape)
            if shape != parent.shape:
                raise ValueError(f"{node.op}: gradient of input {i} is {shape}, "
                                 f"expected {parent.shape}, the input's shape")
            _accumulate(parent, gradient)
            if isinstance(parent, Node) and id(parent) not in seen:
                seen.add(id(parent))
                heapq.heappush(waiting, (-parent.order, parent))
        node.parents = ()
        del gradients, gradient  # or they would live on through the next node's way back


def _accumulate(target: Node | Tensor, gradient: Gradient) -> None:
    """Add a gradient to target.grad, in place only where that array was made here, or given away.

    A first gradient is kept as it is in a node, where it will only be read, and copied in a leaf, whose
    gradient users may change.
    """
    if callable(gradient):
        if target.grad is not None and not target.owned:
            target.grad = target.grad.copy()
        fresh = target.grad is None
        if fresh:
            target.grad = np.empty(target.shape, target.dtype)
        gradient(target.grad, not fresh)
        target.owned = True
        return
    given = isinstance(gradient, Given)
    array = np.asarray(gradient.array if given else gradient, target.dtype)
    if target.grad is None:
        copy = isinstance(target, Tensor) and not given
        target.grad = array.copy() if copy else array
        target.owned = copy or given
    elif target.owned:
        target.grad += array
    elif given:
        array += target.grad
        target.grad, target.owned = array, True
    else:
        target.grad = target.grad + array
        target.owned = True


def op(function: Callable) -> Callable:
    """Make `function(*arrays) -> (result, backward)` an op on Tensors; see the top of this file.

    Positional arguments may be Tensors and get gradients; keyword arguments are handed on as they are.
    """
    name = function.__name__

    @functools.wraps(function)
    def call(*args, **options) -> Tensor:
        for option, value in options.items():
            if isinstance(value, Tensor):
                raise TypeError(f"{name}: {option} is a Tensor given by name; only positional inputs get gradients")
        arrays = [arg.data if isinstance(arg, Tensor) else arg for arg in args]
        out, backward = function(*arrays, **options)
        out = np.asarray(out)
        if not _recording:
            return Tensor(out)
        parents = tuple(
            (arg.node or arg) if isinstance(arg, Tensor) and arg.requires_grad else None for arg in args
        )
        if all(parent is None for parent in parents):
            return Tensor(out)
        return Tensor(out, node=Node(name, parents, backward, out))

    OPS[name] = call
    return call


def is_recording() -> bool:
    """Whether ops record the graph now."""
    return _recording


@contextmanager
def no_grad():
    """Within this block ops record nothing: for evaluation and generation."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before
