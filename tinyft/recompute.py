"""Two nodes that do more than return gradients: a part that is computed again, and a call when the walk comes by."""

from collections.abc import Callable

from .tensor import Donated, Node, Tensor, is_recording, no_grad


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), whose inner results are not kept: the backward pass computes them again.

    So it costs a second forward pass, and memory for no more than the inputs until then (Chen et al., "Training Deep
    Nets with Sublinear Memory Cost", 2016). Parameters that the function uses get their gradients as ever. It is
    called once without recording and once with it, and must give the same both times.
    """
    if not is_recording():
        return function(*inputs)
    with no_grad():
        out = function(*inputs)
    parents = tuple((x.node or x) if x.requires_grad else None for x in inputs)

    def backward(dout):
        leaves = [Tensor(x.data, requires_grad=x.requires_grad) for x in inputs]
        again = function(*leaves)
        if again.requires_grad:
            again.backward(dout)
        return tuple(None if leaf.grad is None else Donated(leaf.grad) for leaf in leaves)

    return Tensor(out.data, node=Node("recompute", parents, backward, out.data))


def when_passed(x: Tensor, call: Callable[[], None]) -> Tensor:
    """x itself; the backward pass calls `call` when it is done with everything that was computed after this line.

    That holds because nodes are visited from the last one made to the first. Where x wants no gradient, it never comes
    here.
    """
    if not (is_recording() and x.requires_grad):
        return x

    def backward(dout):
        call()
        return dout

    return Tensor(x.data, node=Node("when_passed", (x.node or x,), backward, x.data))
