# %% [markdown]
# # 5. Attention on one sentence
#
# You will know afterwards: what queries, keys and values are; why a token can't see the future; how to read a map of
# attention; how the gradients of attention are derived, and why one number for each token and head is all that the
# backward pass has to keep of a map of T x T weights. `tinyft/kernels/attention.py` does this for whole batches.
#
# A language model in three sentences, before we look at one part of it. Each token is turned into a vector, a row of
# C numbers (its *channels*). Then come L *blocks*, or layers, and each adds something to every token's vector: first
# what attention collects from the tokens before it, then what a small network makes of the vector alone. From what a
# vector is in the end the scores of the next token are computed. (Program 6 is all of it; you can read that first.)

# %%
import numpy as np
from pictures import SMALL_MODEL, show

from tinyft import Tensor, draw, load_model_and_tokenizer, no_grad, ops
from tinyft.segments import segments_of

model, tokenizer = load_model_and_tokenizer(SMALL_MODEL)
ids = np.array(tokenizer.encode("A lemon is yellow. A banana is yellow. A carrot is"))
tokens = [tokenizer.decode([token]) for token in ids]
T, C, H, L = len(ids), model.config.n_embd, model.config.n_head, model.config.n_layer
D = C // H
print(f"T = {T} tokens, C = {C} channels, H = {H} heads of D = {D} channels, L = {L} layers")
print("token and id:", ", ".join(f"{token!r} {i}" for token, i in zip(tokens, ids, strict=True)))

# %% [markdown]
# ## A mean of the past
#
# A token is to learn from those before it. The plainest way is the mean of them all: a matrix of weights, 1 / (i + 1)
# up to column i in row i, times the tokens. Attention is this mean with weights that the tokens choose themselves.
#
# ## Looking things up
#
# In each block a linear layer (program 3), which OpenAI's release names `c_attn`, makes three vectors of each
# token's: a *query*, what the token looks for; a *key*, what it can be found by; and a *value*, what it hands over if
# it is found. The C channels of each are divided among H *heads* of D = C / H channels, which look for different
# things, each by itself. Let us catch one head's in the fourth block. (How the next cell gets at them is of no
# importance here: it runs the model and keeps what block 4 hands to its attention.)

# %%
caught = {}


def attend(layer, qkv):
    """What GPT2 calls in each layer with queries, keys and values (T, 3C) for the mixture of values (T, C)."""
    caught[layer] = qkv.data.astype(np.float64)
    return model.attend_within_rows(segments_of([T]), layer, qkv)


with no_grad():  # no graph is written down
    model.run_blocks(ids, np.arange(T), attend)
LAYER, HEAD = 3, 3  # counted from 0; pictures and prints count from 1. Another head looks for something else: try it
qkv, channels = caught[LAYER], slice(HEAD * D, (HEAD + 1) * D)
Q, K, V = (part[:, channels] for part in np.split(qkv, 3, axis=1))
print(f"qkv {qkv.shape}; of one head: Q {Q.shape}, K {K.shape}, V {V.shape}")

# %% [markdown]
# How well token i's query fits token j's key is their dot product. It is divided by the root of D: the dot product of
# two vectors of D random numbers of variance 1 has a standard deviation of sqrt(D), and a softmax of large numbers is
# nearly one-hot and has hardly any gradient. Tokens after i are hidden from it (-inf, whose exp is 0), since a model
# that predicts the next token must not read it. The softmax of each row is the *weights* P of attention (other
# weights than those of layers), and the result is the weighted mean of the values (V is the values here, not the size
# of the vocabulary):
#
# S[i, j] = Q[i] · K[j] / sqrt(D), P = softmax over j ≤ i of S, out[i] = sum over j of P[i, j] V[j].
#
# Softmax divides exp(S) by the sum of its row. That is the same as subtracting the logarithm of that sum in the
# exponent: P = exp(S - lse), with lse[i] = log(sum over j of exp(S[i, j])), the "log-sum-exp". The code does it so.

# %%
S = Q @ K.T / np.sqrt(D)
past = np.tri(T, dtype=bool)  # (T, T), True where j <= i
S[~past] = -np.inf
top = S.max(axis=1, keepdims=True)  # (T, 1), the largest of each row: subtracted first, so that no exp overflows
lse = top + np.log(np.exp(S - top).sum(axis=1, keepdims=True))
P = np.exp(S - lse)
out = P @ V

tensor = Tensor(qkv, requires_grad=True)
ours = ops.causal_attention(tensor, n_head=H, segments=segments_of([T]))  # one row of T tokens
assert np.allclose(out, ours.data[:, channels])
alike = past / past.sum(axis=1, keepdims=True)  # what equal scores would give
sharp = np.exp(np.sqrt(D) * (S - top))  # and scores that aren't divided by the root of D, so that it is taken back here
sharp /= sharp.sum(axis=1, keepdims=True)
for name, weights in (("with equal scores", alike), ("here", P), ("if they weren't divided", sharp)):
    print(f"the largest weight of a row, on average, {name}: {weights.max(axis=1).mean():.2f}")
print(f"S and P {P.shape}, out {out.shape}: the same as tinyft's")

# %% [markdown]
# ## A map
#
# Row i of the picture says where token i takes its values from; dark is much (the colour is the root of the weight,
# so that small ones are seen), and a dot stands for a space. Everything right of the diagonal is white: the future.

# %%
inside = draw.look(model, ids)
show(draw.attention_maps(inside, lambda token: tokenizer.decode([token]), layers=[LAYER], heads=[HEAD]), "attention")
assert np.allclose(inside.attention[LAYER, HEAD], P, atol=1e-5)
for name in (" banana", " carrot"):
    at = tokens.index(" is", tokens.index(name))
    best = np.argsort(-P[at])[:3]
    print(f"{tokens[at]!r} at {at} looks at " + ", ".join(f"{tokens[j]!r} at {j} ({P[at, j]:.0%})" for j in best))

# %% [markdown]
# ## The way back
#
# Let dout be what comes back. out = P V is a product, so that dV = Pᵀ dout and dP = dout Vᵀ. Through the softmax of a
# row, P[j] = exp(S[j]) / sum, by the rule for a fraction: S[k] has a part in the sum, which gives -P[j] P[k] for
# every j; and for j = k in exp(S[j]) as well, which adds P[j]. So d P[j] / d S[k] = P[j] ([j = k] - P[k]), and
#
# dS[k] = sum over j of dP[j] P[j] ([j = k] - P[k]) = P[k] (dP[k] - sum over j of P[j] dP[j]).
#
# The sum is one number for each row. And sum over j of P[j] dP[j] = sum over j of P[j] (dout · V[j]) = dout · out,
# the dot product of two rows of D numbers: it can be had without P and dP, from the result (the kernel has both at
# hand, and forms it from them). Last, S = Q Kᵀ / sqrt(D) is a product again. P itself isn't kept: exp(S - lse) forms
# it again from Q and K, and `lse` is T numbers, where P is T x T (for a row of 1,024 tokens, a thousand times as
# many).

# %%
dout = np.random.default_rng(0).standard_normal((T, C))
ours.backward(dout)
dout = dout[:, channels]
P_again = np.exp(np.where(past, Q @ K.T / np.sqrt(D), -np.inf) - lse)
dV = P_again.T @ dout
dS = P_again * (dout @ V.T - (dout * out).sum(axis=1, keepdims=True))
dQ, dK = dS @ K / np.sqrt(D), dS.T @ Q / np.sqrt(D)
for name, by_hand, theirs in zip(("dQ", "dK", "dV"), (dQ, dK, dV), np.split(tensor.grad, 3, axis=1), strict=True):
    assert np.allclose(by_hand, theirs[:, channels])
    print(f"{name} {by_hand.shape}: the same as tinyft's")

# %% [markdown]
# ## Exercises
#
# 1. A window: let each token see itself and the w - 1 tokens before it only. Write `windowed(Q, K, V, w)`, which
#    returns `out`, with one more line than above (`np.tri(T, k=-w)` is 1 where j <= i - w). With w = T it must be the
#    `out` above, and with w = 1 exactly V. Why V?
# 2. Generation writes one token at a time. Then the query is that of the last token alone, but keys and values are
#    those of all tokens so far, kept from before. Write `one_more(q, K, V)` for q (D,) and K, V (T, D), which returns
#    (D,), without a mask. Why is none needed? It must give the last row of `out`.
#
# Answers: `answers/attention.py`. Next: `naive_gpt2.py`.
