"""Is a gradient right? Compare it with what the function does when its input moves a little."""

from collections.abc import Callable, Sequence

import numpy as np

from .tensor import Tensor, no_grad


def gradcheck(
    f: Callable[..., Tensor],
    inputs: Sequence[np.ndarray],
    *,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    rng: np.random.Generator | None = None,
    name: str | None = None,
) -> bool:
    """Check the gradients of f at `inputs` against central differences, in float64.

    f takes Tensors and returns one. Each result element is weighted with a random number (a random
    cotangent), so that errors in different elements cannot cancel and a wrong sum cannot hide: a softmax always
    sums to 1, so that weights of 1 would ask for a gradient of 0 whatever its backward does with the rest. Every
    element of every float input is then moved by +-step: (f(x + step) - f(x - step)) / (2 step) has an error of
    order step**2. Integer arrays are passed on and not checked.

    Returns True, or raises AssertionError that names the op, the input, the index, got and expected where
    |got - expected| > atol + rtol * |expected|. `name` replaces the op's name in that message.

    >>> import numpy as np
    >>> from tinyft import gradcheck, ops
    >>> gradcheck(ops.matmul, [np.ones((2, 3)), np.ones((3, 2))])
    True
    """
    if isinstance(inputs, np.ndarray | Tensor):
        raise TypeError(f"gradcheck: inputs are a single {type(inputs).__name__}, expected a list of arrays: "
                        "gradcheck(f, [x])")
    rng = rng or np.random.default_rng(0)
    arrays = [np.array(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x) for x in inputs]
    floats = [i for i, array in enumerate(arrays) if array.dtype.kind == "f"]
    if not floats:
        raise ValueError("gradcheck: no float input, so there is no gradient to check")
    tensors = [Tensor(array, requires_grad=i in floats) for i, array in enumerate(arrays)]
    out = f(*tensors)
    name = name or (out.node.op if out.node else getattr(f, "__name__", "f"))
    if out.node is None:
        raise AssertionError(f"{name}: the result does not depend on any input through recorded ops")
    if out.dtype != np.float64:
        raise AssertionError(f"{name}: the result is {out.dtype}, expected float64 from float64 inputs")
    cotangent = rng.standard_normal(out.shape)
    out.backward(cotangent)

    def weighted_result() -> float:
        with no_grad():
            return float(np.sum(cotangent * f(*[Tensor(array) for array in arrays]).data))

    for i in floats:
        got = tensors[i].grad
        got = np.zeros_like(arrays[i]) if got is None else got
        for at in np.ndindex(*arrays[i].shape):
            kept = arrays[i][at]
            arrays[i][at] = kept + step
            above = weighted_result()
            arrays[i][at] = kept - step
            below = weighted_result()
            arrays[i][at] = kept
            expected = (above - below) / (2 * step)
            if not abs(got[at] - expected) <= atol + rtol * abs(expected):
                raise AssertionError(
                    f"{name}: gradient of input {i} at index {tuple(int(k) for k in at)} is {got[at]:.10g}, "
                    f"expected {expected:.10g} by central differences"
                )
    return True
