# %% [markdown]
# # 4. Softmax and cross-entropy by hand, and targets of -100
#
# You will know afterwards: how a row of numbers becomes probabilities without overflow; why the gradient of the loss
# is "softmax minus one-hot"; what a target of -100 means, what it spares, and what the mean is taken over.
# `tinyft/losses.py` and `tinyft/kernels/loss.py` do it for 50,257 tokens at a time.

# %%
import time

import numpy as np
from matplotlib.figure import Figure
from pictures import show

from tinyft import Tensor, gradcheck, losses

rng = np.random.default_rng(0)
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## From scores to probabilities
#
# A language model reads a text in pieces, its *tokens*: frequent words, and parts of rarer ones. There are V of them,
# the *vocabulary*, and each has a number, its id. For each position of a text the model returns a score for every
# token: how well would it continue the text up to here? These scores are called *logits*, here z (N, V) with N = 3
# positions and V = 5 tokens. Softmax makes them positive, by exp, and divides by their sum:
#
# p[j] = exp(z[j]) / sum over k of exp(z[k]).
#
# exp(1000) is too large for a float. Adding a number to all logits of a row changes nothing, since it cancels in the
# fraction; so the largest is subtracted first, and the largest exp is exp(0) = 1.


# %%
def softmax(z):
    """(N, V) -> (N, V), each row sums to 1."""
    exp = np.exp(z - z.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


logits = rng.standard_normal((3, 5)) * 2
probabilities = softmax(logits)
print("logits:", *logits, "probabilities:", *probabilities, sep="\n")
assert np.allclose(softmax(logits + 1000), probabilities)

# %% [markdown]
# ## The loss of a position
#
# The text says which token came next, the *target* t. The loss is -log p[t]: 0 if the model was certain of it, and
# large if the model considered it impossible. A model that knows nothing gives each of V tokens 1/V and has the loss
# log V: 10.8 for GPT-2's 50,257. In terms of the logits,
#
# loss = -log p[t] = log(sum over k of exp(z[k])) - z[t].
#
# ## Its gradient
#
# Differentiate that with respect to z[j]. The first term gives exp(z[j]) / sum over k of exp(z[k]), which is p[j]
# again; the second gives -1 if j = t and 0 otherwise. Write [j = t] for the number that is 1 if j = t and 0 otherwise
# (such brackets are not an index), then
#
# d loss / d z[j] = p[j] - [j = t].
#
# A row that is 1 at t and 0 elsewhere is called *one-hot*. Softmax minus one-hot: what the model said, minus what was
# true. Every wrong token is pushed down by its probability, the right one up by what it lacks; the row sums to 0. For
# the mean over N positions, divide by N.

# %%
targets = np.array([1, 4, 0])
loss = -np.log(probabilities[np.arange(3), targets]).mean()  # of row i the element targets[i]
one_hot = np.eye(5)[targets]  # row i is row targets[i] of the identity matrix
by_hand = (probabilities - one_hot) / 3

tensor = Tensor(logits, requires_grad=True)
ours = losses.cross_entropy(tensor, targets)
ours.backward()
print(f"loss by hand {loss:.6f}, by tinyft {ours.item():.6f}; gradients:", *by_hand, sep="\n")
assert np.isclose(loss, ours.item()) and np.allclose(by_hand, tensor.grad)
gradcheck(losses.cross_entropy, [logits, targets])
print("and central differences agree")

# %%
figure = Figure(figsize=(7, 2.2), layout="constrained")
for axes, values, title in zip(figure.subplots(1, 3), (probabilities, one_hot, 3 * by_hand),
                               ("softmax", "one-hot", "their difference"), strict=True):
    picture = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set(title=title, xlabel="token", ylabel="position", yticks=range(3))
figure.colorbar(picture, label="red above 0, blue below")
show(figure, "cross_entropy")

# %% [markdown]
# ## -100: not to be learned
#
# When a model is tuned to answer, it isn't to learn the questions. Their positions get the target -100, which is no
# token's id (the number is PyTorch's choice). They have no loss, the gradient of their logits is 0, and the mean is
# over the *live* targets, the others.

# %%
masked = np.array([1, -100, 0])
tensor = Tensor(logits, requires_grad=True)
ours = losses.cross_entropy(tensor, masked)
ours.backward()
two = -np.log(probabilities[[0, 2], [1, 0]]).mean()
print(f"mean of the two live targets {two:.6f}, by tinyft {ours.item():.6f}; gradients:", *tensor.grad, sep="\n")
assert np.isclose(two, ours.item()) and not tensor.grad[1].any()

# %% [markdown]
# So the row of logits of a position without a target is never looked at, and it need not be computed. That matters,
# since the last product of GPT-2 is its largest: for each position the C numbers that the model has made of it, its
# *hidden state* (N, C), times a table (V, C) transposed, which is N C V multiplications and as many additions, 2 N C
# V operations, forward and twice as many backward. `losses.linear_cross_entropy` takes hidden states and table, picks
# the live rows, and multiplies those alone: where a third of the tokens are replies, two thirds of that work is left
# out. (In the data that ship they are less than 5 %.)
#
# Only this last layer is spared. A token of the question still goes through all of the model before it, since the
# tokens of the reply look at it, and by way of them it has its share in the gradients of the weights.

# %%
N, C, V = 512, 256, 8000
hidden, table = (rng.standard_normal(shape).astype(np.float32) / 16 for shape in ((N, C), (V, C)))
everywhere = rng.integers(V, size=N)
third = np.where(np.arange(N) % 3 == 0, everywhere, -100)
loss_of_third = losses.linear_cross_entropy(Tensor(hidden), Tensor(table), third).item()
logits = hidden[::3] @ table.T
assert np.isclose(loss_of_third, -np.log(softmax(logits)[np.arange(len(logits)), everywhere[::3]]).mean(), rtol=1e-5)

# %% tags=["varies"]
for name, some in (("all", everywhere), ("a third", third)):
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        inputs = Tensor(hidden, requires_grad=True), Tensor(table, requires_grad=True)
        losses.linear_cross_entropy(*inputs, some).backward()
        seconds.append(time.perf_counter() - begin)
    work = 6 * np.count_nonzero(some != -100) * C * V  # 2 forward and 4 backward
    print(f"{name:>7} of the targets live: {work / 1e9:.1f} billion operations, {1e3 * min(seconds):.0f} ms")

# %% [markdown]
# ## Exercises
#
# 1. A batch doesn't fit, and is computed in two parts; one has 9 live targets and the other 1. Why is the mean of the
#    two means not the mean of the batch? Write `loss_in_parts(logits, targets, cut)`, which calls
#    `losses.cross_entropy` on the rows before `cut` and on those from it, and returns the loss of the whole batch.
# 2. Label smoothing: the right token gets 1 - e and all V tokens share e, so that the target is a distribution q with
#    q[j] = e / V + (1 - e) [j = t], and the loss of a row is -sum over j of q[j] log p[j]. Derive its gradient, and
#    write it as an op `smoothed(logits, targets, *, e)` that returns the mean over rows. `gradcheck(lambda z:
#    smoothed(z, targets, e=0.1), [logits])` says whether it is right; `backward` returns None for the targets, which
#    have no gradient.
#
# Answers: `answers/cross_entropy.py`. Next: `attention.py`.
