# %% [markdown]
# # 6. GPT-2 in plain ops
#
# You will know afterwards: all of GPT-2. This is the model of `tinyft/gpt2.py` in sixty lines of plain ops
# (arithmetic, `@`, `exp`, `tanh`, sums, and taking arrays apart), one sentence at a time, with the same weights. It
# gives the same logits and the same gradient for every weight, to ten digits, and it goes on with a text. What
# `gpt2.py` and the kernels add is speed.

# %%
import math

import numpy as np
from matplotlib.figure import Figure
from pictures import SMALL_MODEL, show

from tinyft import GPT2, Tensor, load_model_and_tokenizer, losses, no_grad, ops

small, tokenizer = load_model_and_tokenizer(SMALL_MODEL)
config = small.config
fast = GPT2(config, dtype=np.float64)  # the same weights in float64, so that ten digits can be compared
shipped = dict(small.named_parameters())
for name, parameter in fast.named_parameters():
    parameter.data[...] = shipped[name].data
weights = {name: Tensor(parameter.data.copy(), requires_grad=True) for name, parameter in fast.named_parameters()}
for name in [name for name in weights if name.startswith(("wte", "wpe", "h.0.", "ln_f"))]:
    print(f"{name:<22} {weights[name].shape}")
print(f"and {config.n_layer - 1} more blocks like h.0: {sum(w.size for w in weights.values()):,} weights in all")

# %% [markdown]
# ## The model
#
# Letters: T tokens, C channels, H heads of D = C / H, V tokens in the vocabulary. A token becomes its row of the
# table `wte`, its *embedding*, plus the row of `wpe` for its place. Each block adds twice to this *stream* x (T, C):
# what a token takes from others (attention), and what it makes of that by itself (the MLP: a linear layer to 4C
# channels, GELU, and a linear layer back to C). The last norm, and the product with the table again, give a score for
# each token of the vocabulary, the logits.
#
# Why these parts? Without GELU two linear layers would be a single one, since a product of matrices is a matrix:
# something that isn't linear has to stand between. Blocks *add* to the stream, so that what one of them leaves alone
# stays, and gradients come back past all of them undiminished. And a norm brings every token to one size before a
# layer reads it; otherwise the sizes would grow from block to block, and with them steps that are too large for some
# and too small for others.
#
# The names are OpenAI's: `wte` and `wpe`, the tables ("weights") of token and position embeddings; `h`, the blocks;
# `ln`, layer norms; `c_attn`, `c_fc` and `c_proj`, linear layers (the c is for convolution, of which they once were a
# case). Their matrices are (in, out), as here they have always been; PyTorch's `nn.Linear` has (out, in).
#
# In the code, `weights[...][ids]` picks rows of a table; its way back adds each gradient to the row that was picked.


# %%
def layer_norm(x, name):
    """(T, C): each row to mean 0 and variance 1, then scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scaled = centred * (variance + config.layer_norm_epsilon) ** -0.5
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, name):
    """(T, in) -> (T, out)"""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): passes what is well above 0, and little else."""
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def softmax(x):
    """Over the last axis. The largest is subtracted as a plain number: it cancels, in the gradient too."""
    exp = (x - x.data.max(axis=-1, keepdims=True)).exp()
    return exp / exp.sum(axis=-1, keepdims=True)


def attention(x, name):
    """(T, C) -> (T, C)"""
    T, C = x.shape
    H = config.n_head
    qkv = linear(x, f"{name}.c_attn").reshape(T, 3, H, C // H).transpose(1, 2, 0, 3)  # (3, H, T, D)
    scores = qkv[0] @ qkv[1].transpose(0, 2, 1) * (C // H) ** -0.5  # (H, T, T)
    scores = scores + np.where(np.tri(T, dtype=bool), 0.0, -np.inf)
    mixed = softmax(scores) @ qkv[2]  # (H, T, D)
    return linear(mixed.transpose(1, 0, 2).reshape(T, C), f"{name}.c_proj")


def mlp(x, name):
    """(T, C) -> (T, C)"""
    return linear(gelu(linear(x, f"{name}.c_fc")), f"{name}.c_proj")


def gpt2(ids):
    """Token ids (T,) -> logits of the next token (T, V)."""
    x = weights["wte.weight"][ids] + weights["wpe.weight"][np.arange(len(ids))]
    for layer in range(config.n_layer):
        x = x + attention(layer_norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn")
        x = x + mlp(layer_norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp")
    return layer_norm(x, "ln_f") @ weights["wte.weight"].T


# %% [markdown]
# ## The same logits, and the same gradients
#
# The table `wte` is used at both ends, so that its gradient is the sum of two. `GPT2.loss` leaves out what no target
# needs, computes once what rows share, and makes one op of several (program 7); the numbers must not notice.

# %%
ids = np.array(tokenizer.encode("A lemon is yellow. A banana is yellow. A carrot is orange."))
logits = gpt2(ids[:-1])
assert np.allclose(logits.data, fast(ids[:-1]).data[0], rtol=1e-10, atol=1e-10)

loss = losses.cross_entropy(logits, ids[1:])
loss.backward()
fast_loss = fast.loss(ids[:-1], ids[1:])
fast_loss.backward()
assert np.isclose(loss.item(), fast_loss.item(), rtol=1e-12)
for name, parameter in fast.named_parameters():
    assert np.allclose(weights[name].grad, parameter.grad, rtol=1e-10, atol=1e-12), name
print(f"logits {logits.shape}, loss {loss.item():.6f} and all {len(weights)} gradients: the same to ten digits")

# %% [markdown]
# Only attention lets tokens see each other, and only earlier ones. So another last token can't change what comes
# before it; that is why `GPT2.loss` may drop all that stands after a row's last target.

# %%
other = ids[:-1].copy()
other[-1] = ids[0]
assert np.array_equal(gpt2(other).data[:-1], logits.data[:-1]) and not np.array_equal(gpt2(other).data, logits.data)
print("another last token: all earlier logits stay as they were")

# %% [markdown]
# ## The norm, three ways
#
# Above, `layer_norm` is eleven plain ops (a mean is two), and the engine finds its gradient from theirs; each keeps
# arrays of its own until then. The fused op keeps x and two numbers a row (mean and 1 / standard deviation), and has
# its gradient derived once: with n the normalised row and g = dout · weight,
#
# dx = (g - mean(g) - n mean(g n)) / standard deviation.
#
# The norm makes a row blind to two changes, adding to all of it and stretching it; the two means take these out of
# the gradient. `derivations.md` has the steps.

# %%
x, dout = (np.random.default_rng(seed).standard_normal((5, config.n_embd)) for seed in (1, 2))
weight, bias = weights["ln_f.weight"], weights["ln_f.bias"]
gradients = []
for norm in (lambda x: layer_norm(x, "ln_f"), lambda x: ops.layer_norm(x, weight, bias)):
    leaf = Tensor(x, requires_grad=True)
    norm(leaf).backward(dout)
    gradients.append(leaf.grad)
std = np.sqrt(x.var(axis=1, keepdims=True) + config.layer_norm_epsilon)
n, g = (x - x.mean(axis=1, keepdims=True)) / std, dout * weight.data
gradients.append((g - g.mean(axis=1, keepdims=True) - n * (g * n).mean(axis=1, keepdims=True)) / std)
assert np.allclose(gradients[0], gradients[1]) and np.allclose(gradients[0], gradients[2])
print("plain ops, the fused op and the formula: the same gradient")

# %% [markdown]
# ## It writes
#
# The likeliest token is appended, again and again. (Every step computes all tokens anew; `tinyft/inference/` keeps
# keys and values instead.)

# %%
ids = tokenizer.encode("The capital of France is")
with no_grad():  # no graph is written down
    for _ in range(6):
        ids.append(int(gpt2(np.array(ids)).data[-1].argmax()))
print(tokenizer.decode(ids))
likely = logits.data[4]  # after "A lemon is yellow."
best = np.argsort(-likely)[:8]
shares = np.exp(likely[best] - likely.max()) / np.exp(likely - likely.max()).sum()
figure = Figure(figsize=(6, 2.5), layout="constrained")
figure.subplots().barh([repr(tokenizer.decode([token])) for token in best][::-1], shares[::-1])
figure.axes[0].set_xlabel("probability")
figure.axes[0].set_title("what may come after " + repr(tokenizer.decode(other[:5])))
show(figure, "naive_gpt2")

# %% [markdown]
# ## Exercises
#
# 1. How many weights has a GPT-2 of any shape? Write `count(V, P, C, L)`, for V tokens, P places, C channels and L
#    blocks, from the shapes that are printed above. It must give the number above, and 124,439,808 for GPT-2 (V =
#    50257, P = 1024, C = 768, L = 12).
# 2. What does a block do to a sentence whose tokens change places? Without `wpe` and without the mask, attention
#    doesn't know about order. Write `unordered(x, Q, K, V)`, for x (T, C) and matrices (C, D), one head without a
#    mask, in NumPy, and show that permuting the rows of x permutes the rows of the result, and does nothing else.
#
# Answers: `answers/naive_gpt2.py`. Next: `training_step.py`.
