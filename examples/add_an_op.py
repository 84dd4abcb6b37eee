"""How to add an op of your own, and how to know that its gradient is right.

The op here is SiLU, x * sigmoid(x), which GPT-2's younger relatives use where GPT-2 has GELU.
"""

import numpy as np

from tinyft import Tensor, gradcheck, op


@op
def silu(x):
    """x * sigmoid(x) for an array of any shape."""
    # 1. The forward pass, on plain NumPy arrays.
    sigmoid = 1 / (1 + np.exp(-x))

    # 2. The backward pass, nested inside: it sees x and sigmoid, so nothing has to be stored by hand.
    #    out = x * s  =>  dout/dx = s + x * s * (1 - s)
    def backward(dout):
        return dout * (sigmoid + x * sigmoid * (1 - sigmoid))

    return x * sigmoid, backward


@op
def wrong_silu(x):
    """The same with a slip in the gradient, to see what the check says."""
    sigmoid = 1 / (1 + np.exp(-x))

    def backward(dout):
        return dout * (sigmoid + x * sigmoid)

    return x * sigmoid, backward


def main() -> None:
    """Check the right one, the wrong one, and use the right one in a small network."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4))

    gradcheck(silu, [x])
    print("silu: the gradient agrees with central differences")
    try:
        gradcheck(wrong_silu, [x])
    except AssertionError as error:
        print(f"caught: {error}")

    # Learn y = |a| from examples with one hidden layer of SiLUs.
    inputs = rng.standard_normal((256, 1)).astype(np.float32)
    wanted = np.abs(inputs)
    first = Tensor(rng.standard_normal((1, 16)).astype(np.float32), requires_grad=True)
    second = Tensor(0.1 * rng.standard_normal((16, 1)).astype(np.float32), requires_grad=True)
    for step in range(301):
        loss = ((silu(Tensor(inputs) @ first) @ second - Tensor(wanted)) ** 2).mean()
        loss.backward()
        for weight in (first, second):
            weight.data -= 0.05 * weight.grad
            weight.grad = None
        if step % 100 == 0:
            print(f"step {step}: mean squared error {loss.item():.4f}")


if __name__ == "__main__":
    main()
