# %% [markdown]
# # 3. Broadcasting, products, and transposes
#
# You will know afterwards: what the gradient of a stretched array is, and why it is a sum; why a *bias*, a row that
# is added to all rows, gets the sum of theirs; how to derive the gradients of a matrix product, dA = dC Bᵀ and dB =
# Aᵀ dC, from indices. One idea does all three: the backward pass of a linear map is its transpose.

# %%
import numpy as np
from matplotlib.figure import Figure
from pictures import show

from tinyft import Tensor, ops
from tinyft.arithmetic import unbroadcast

rng = np.random.default_rng(0)

# %% [markdown]
# ## Broadcasting is a matrix of zeros and ones
#
# NumPy lets a row (3,) be added to a table (4, 3): the row is used once for each of the four rows of the table.
# Written out, `stretched = D row`, where D is a matrix with a single 1 in each of its rows: the identity matrix four
# times, one below the other. Here the four rows of the table are laid end to end, as 12 numbers.

# %%
row = rng.standard_normal(3)
D = np.tile(np.eye(3), (4, 1))
stretched = np.broadcast_to(row, (4, 3))
assert np.allclose(D @ row, stretched.reshape(12))
figure = Figure(figsize=(6, 3), layout="constrained")
for axes, matrix, title in zip(figure.subplots(1, 2), (D, D.T), ("D (12, 3)", "D transposed (3, 12)"), strict=True):
    axes.imshow(matrix, cmap="Blues", vmax=1.5)
    axes.set(title=title, xticks=range(matrix.shape[1]), yticks=range(matrix.shape[0]))
show(figure, "broadcasting")

# %% [markdown]
# Let `dout` = d loss / d stretched be what comes back, twelve numbers. `row[j]` reaches the loss by way of all of
# them, and its gradient is the sum over these paths, as in program 1:
#
# d loss / d row[j] = sum over i of dout[i] · d stretched[i] / d row[j] = sum over i of dout[i] D[i, j],
#
# which is Dᵀ dout. (In general: a map out = J x with a fixed matrix J is called *linear*. Its derivatives are J, and
# the way back multiplies by Jᵀ.) A column of D has a 1 wherever `row[j]` was used, so that this adds up `dout` over
# all uses. It is what the first program has shown: a value that is used several times gets the sum.

# %%
dout = rng.standard_normal((4, 3))
print(f"by D transposed: {D.T @ dout.reshape(12)}")
print(f"by adding rows:  {dout.sum(axis=0)}")
leaf = Tensor(row, requires_grad=True)
(leaf + Tensor(np.zeros((4, 3)))).backward(dout)  # begins with dout; without an argument, with 1, for a single number
print(f"by tinyft:       {leaf.grad}")
assert np.allclose(D.T @ dout.reshape(12), leaf.grad)
assert np.allclose(unbroadcast(dout, row.shape), leaf.grad)

# %% [markdown]
# `unbroadcast(dout, shape)` in `tinyft/arithmetic.py` is this sum for any shapes: over axes that were added in front,
# and over axes of length 1 that were stretched. The bias of a layer is the case that occurs most: (C,) added to (N,
# C), so that its gradient is the sum over the N rows; with more axes in front, `(B, T, C)`, over all of them. An op
# of your own that broadcasts returns `unbroadcast(dweight, weight.shape)`, or `dweight.reshape(-1, C).sum(axis=0)`.
#
# ## A matrix product
#
# out = A B with A (M, K) and B (K, N). In indices,
#
# out[m, n] = sum over k of A[m, k] B[k, n].
#
# How does the loss depend on one element A[m, k]? It occurs in all elements of row m of out, each time with the
# factor B[k, n]. So
#
# dA[m, k] = sum over n of dout[m, n] B[k, n], which is row m of dout times row k of B: dA = dout Bᵀ.
#
# And B[k, n] occurs in all elements of column n, with the factor A[m, k]:
#
# dB[k, n] = sum over m of A[m, k] dout[m, n]: dB = Aᵀ dout.
#
# If you forget which is which, the shapes remember: from dout (M, N) and B (K, N) there is one product that is (M,
# K).

# %%
M, K, N = 4, 5, 3
A, B, dout = rng.standard_normal((M, K)), rng.standard_normal((K, N)), rng.standard_normal((M, N))
dA, dB = np.zeros((M, K)), np.zeros((K, N))
for m in range(M):
    for k in range(K):
        for n in range(N):
            dA[m, k] += dout[m, n] * B[k, n]
            dB[k, n] += A[m, k] * dout[m, n]

a, b = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)
(a @ b).backward(dout)
for name, by_loops, by_product, by_tinyft in (("dA", dA, dout @ B.T, a.grad), ("dB", dB, A.T @ dout, b.grad)):
    print(f"{name} {by_loops.shape}: loops, products and tinyft differ by at most "
          f"{max(abs(by_loops - by_product).max(), abs(by_loops - by_tinyft).max()):.0e}")
    assert np.allclose(by_loops, by_product) and np.allclose(by_loops, by_tinyft)

# %% [markdown]
# A linear map J and its transpose belong together by one equation: for any two vectors, u · (J v) = (Jᵀ u) · v. So
# the backward pass of a linear op can be checked with two random vectors and no differences at all: the forward pass
# gives J v, the backward pass Jᵀ u.

# %%
v, u = rng.standard_normal((M, K)), rng.standard_normal((M, N))
x = Tensor(v, requires_grad=True)
out = x @ Tensor(B)
out.backward(u)
print(f"u · (J v) = {np.sum(u * out.data):.10f}\n(Jᵀ u) · v = {np.sum(x.grad * v):.10f}")

# %% [markdown]
# Two things follow that matter for speed. The backward pass of a product is two products of the same size, so that a
# training step costs about three times its forward pass. And each of the two can be left out where nobody wants it: a
# weight that isn't trained needs no dB, and the data that go into a network no dA. An op that has a keyword `wanted`
# is told: a tuple with True or False for each input. tinyft's `matmul` has it (`tinyft/arithmetic.py`).
#
# ## A linear layer
#
# out = x W + b, with x (N, C), W (C, K), b (K,): the *layer* of which networks are built, where W and b are what is
# trained (its *weights*). All of the above at once.

# %%
x, W, bias = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((6, 4), (4, 3), (3,)))
dout = rng.standard_normal((6, 3))
ops.linear(x, W, bias).backward(dout)
assert np.allclose(x.grad, dout @ W.data.T)
assert np.allclose(W.grad, x.data.T @ dout)
assert np.allclose(bias.grad, dout.sum(axis=0))
for name, leaf, formula in (("x", x, "dout Wᵀ"), ("W", W, "xᵀ dout"), ("bias", bias, "sum of the rows of dout")):
    print(f"d{name:<5} {str(leaf.grad.shape):<7} = {formula}")

# %% [markdown]
# ## Exercises
#
# 1. `x.sum(axis=0)` is a linear map as well. Which matrix S is it, for x (4, 3) laid end to end, and what is Sᵀ
#    applied to a gradient (3,)? Write `sum_matrix(rows, columns)`, which returns S, and check with it that
#    `Tensor.sum(axis=0)` and its backward pass do the same.
# 2. A batch of products, out[b, m, n] = sum over k of A[b, m, k] B[k, n]: B has no b, and is used for all of them.
#    Derive dA and dB in indices, then write `gradients(A, B, dout)` with `np.einsum` (the product itself is
#    `np.einsum("bmk,kn->bmn", A, B)`: an index that stands only on the left is summed over), and compare it with
#    tinyft's `@`.
#
# Answers: `answers/broadcasting.py`. Next: `cross_entropy.py`.
