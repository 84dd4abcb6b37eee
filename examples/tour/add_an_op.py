# %% [markdown]
# # 2. An op of your own, and how to know that its gradient is right
#
# You will know afterwards: how an op is declared, with its backward pass inside; how to check a gradient without
# trusting the one who derived it; why the check runs in float64, and with random weights. `tinyft/arithmetic.py` and
# `ops.py` have every op in this form, `tinyft/gradcheck.py` the check.

# %%
import numpy as np
from matplotlib.figure import Figure
from pictures import show

from tinyft import Tensor, gradcheck, op

rng = np.random.default_rng(0)

# %% [markdown]
# ## An op
#
# An op is a function on plain NumPy arrays that returns its result and a function `backward`. The op here is SiLU,
# `x*sigmoid(x)`, with sigmoid(x) = 1 / (1 + exp(-x)), which GPT-2's younger relatives use where GPT-2 has a similar
# function, GELU. `@op` above a `def` replaces the function by `op(function)`, which takes Tensors, and leaves a node
# in the graph at each call.
#
# From here on `dx` is short for d loss / d x, the gradient of x, and has the shape of x; `dout` is that of the
# result, and is what comes back. `backward` takes `dout` and returns `dx`. Element by element, out = x s with s =
# sigmoid(x), and the derivative of s is s (1 - s), so that
#
# d out / d x = s + x s (1 - s), and dx = dout (s + x s (1 - s)).
#
# `backward` sees `x` and `sigmoid`, since it stands inside; Python keeps both in memory until the graph is let go. It
# must not change `dout` or any of them in place, since others may be using the same arrays.


# %%
@op
def silu(x):
    """x * sigmoid(x) for an array of any shape."""
    sigmoid = 1 / (1 + np.exp(-x))

    def backward(dout):
        return dout * (sigmoid + x * sigmoid * (1 - sigmoid))

    return x * sigmoid, backward


@op
def wrong_silu(x):
    """The same with a slip in the gradient."""
    sigmoid = 1 / (1 + np.exp(-x))

    def backward(dout):
        return dout * (sigmoid + x * sigmoid)

    return x * sigmoid, backward


# %% [markdown]
# ## Several inputs, several results
#
# An op with several inputs returns a tuple, a gradient for each in their order, each in the shape of *its* input.
# Here x has N rows of C numbers, and all rows are multiplied by the same weight (C,): an element of `weight` is used
# in all N rows, and a value with several uses gets the sum of what they hand back (program 1; for more axes in front
# see program 3). That is so within an op, too: where an element x[j] has a part in several results out[i], as in a
# mean or a norm,
#
# dx[j] = sum over i of dout[i] · d out[i] / d x[j].
#
# (Programs 4 and 5 derive such a sum, for the softmax.)
#
# What isn't an input to differentiate, such as `eps`, stands behind the `*` and is given by name; an input that has
# no gradient (indices, say) gets None.


# %%
@op
def scale(x, weight, *, eps=0.0):
    """x (N, C) * (weight (C,) + eps)"""

    def backward(dout):
        return dout * (weight + eps), (dout * x).sum(axis=0)

    return x * (weight + eps), backward


# %% [markdown]
# ## The check
#
# A derivative is a slope, and a slope can be measured: change one element a little up and a little down, and divide
# the change of the result by the change of the element. This *central difference* is wrong by the order of h² only,
# where a step to one side alone is wrong by the order of h. A smaller h isn't always better: the result has a limited
# number of digits, and the difference of two nearly equal numbers keeps few of them.

# %%
def measured_slope(x, h, dtype):
    """d silu / d x at a number x, by the central difference of width h."""
    up, down = (silu(Tensor(np.array(x + sign * h, dtype))).item() for sign in (1, -1))
    return (up - down) / (2 * h)


s = 1 / (1 + np.exp(-0.7))
slope = s + 0.7 * s * (1 - s)
print("error of the measured slope    float64    float32")
widths = 10.0 ** -np.arange(1, 11)
errors = {dtype: [abs(measured_slope(0.7, h, dtype) - slope) for h in widths] for dtype in ("float64", "float32")}
for i in (0, 1, 2, 4, 6):
    print(f"h = {widths[i]:.0e}                      {errors['float64'][i]:.0e}      {errors['float32'][i]:.0e}")
figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.subplots()
for dtype, values in errors.items():
    axes.loglog(widths, values, marker="o", label=dtype)
axes.set(xlabel="width h", ylabel="error of the slope")
axes.legend()
show(figure, "add_an_op")

# %% [markdown]
# In float64 a width of 1e-5 leaves eleven correct digits. In float32 the best width leaves five, and one must know
# which it is (below 1e-7 or so x + h is x again, and the slope comes out as 0); a small slip in a formula could hide
# behind that. So gradients are checked in float64, on the same code that trains in float32: a Tensor has the dtype of
# its array (a Python number becomes float32). `gradcheck` does it for each element of each input of floats, and says
# where it differs.

# %%
array = rng.standard_normal((3, 4))
gradcheck(silu, [array])
print("silu: the gradient agrees with central differences, which take two more calls of silu for each of 12 elements")
gradcheck(scale, [array, rng.standard_normal(4)])
gradcheck(lambda x, weight: scale(x, weight, eps=0.1), [array, rng.standard_normal(4)])
print("scale: both gradients agree")
try:
    gradcheck(wrong_silu, [array])
except AssertionError as error:
    print(f"wrong_silu: caught: {error}")

# %% [markdown]
# ## Why random weights
#
# A slope needs one number, and an op returns many. The obvious way to make one of them is their sum, which is to say
# that `dout` is all ones. It is a bad way. The sum of a softmax is 1 whatever goes in, so that its gradient is 0, and
# a backward pass that returns only zeros would pass. So each element is multiplied by a random number of its own
# before they are added up; then none of them counts like another, and nothing cancels. These weights are what `dout`
# is in such a check, and the field calls whatever stands in that place a *cotangent*.


# %%
@op
def lazy_softmax(x):
    """exp(x) / sum(exp(x)) over the last axis (program 4 explains it), with a gradient that is always 0."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True), lambda dout: np.zeros_like(x)


weights = rng.standard_normal((3, 4))
nudge = np.zeros((3, 4))
nudge[0, 0] = 1e-5
for name, cotangent in (("ones", np.ones((3, 4))), ("random weights", weights)):
    up, down = (np.sum(cotangent * lazy_softmax(Tensor(array + sign * nudge)).data) for sign in (1, -1))
    print(f"with {name}: slope {(up - down) / 2e-5:.6f}, gradient 0.000000")
try:
    gradcheck(lazy_softmax, [array])
except AssertionError as error:
    print(f"caught: {str(error).splitlines()[0]}")

# %% [markdown]
# ## Exercises
#
# 1. Write `softplus(x)` = log(1 + exp(x)) as an op, with its backward pass, so that `gradcheck(softplus, [array])`
#    passes, and so that `softplus` of 1000 is 1000 and not infinity (`np.logaddexp` helps; NumPy's warning of an
#    overflow may stay, if the result is right).
# 2. An op with two inputs: `hypot(x, y)` = sqrt(x² + y²), both of one shape. Then swap the two gradients on purpose
#    (`swapped_hypot`), and write `inputs_that_hide_it()`, which returns a pair x, y with which
#    `gradcheck(swapped_hypot, [x, y])` passes all the same. (Not zeros: there hypot has no slope, and even the right
#    one fails.) What does that say about the inputs that a check should be given?
#
# Answers: `answers/add_an_op.py`. Next: `broadcasting.py`.
