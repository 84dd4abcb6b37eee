# %% [markdown]
# # 7. One training step, from an entry to a changed weight
#
# You will know afterwards: every array between a line of JSON and a weight that has moved, and its shape; why inputs
# and targets are the same tokens, shifted; why the token table gets two gradients; what AdamW does with a gradient;
# and where the milliseconds of a step go.

# %%
import time
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from pictures import ROOT, SMALL_MODEL, show

from tinyft import AdamW, InstructionSet, load_model_and_tokenizer, read_entries
from tinyft.gpt2 import needed_lengths
from tinyft.segments import lay_out
from tinyft.tensor import Node

model, tokenizer = load_model_and_tokenizer(SMALL_MODEL)
entries = read_entries([ROOT / "examples" / "data" / "train.json"])[:8]

# %% [markdown]
# ## From text to numbers
#
# An entry becomes a text: a prompt, in the form that the Alpaca data made common, and a reply. Text becomes token
# ids. Beside them stands which ones are to be learned: those of the reply, and the token that ends it. Then a batch
# is made of B rows: inputs (B, T) and targets (B, T), where the target of a position is the token that *follows*, or
# -100 where nothing is to be learned. Shorter rows are filled up.

# %%
data = InstructionSet(entries, tokenizer, mask_prompt=True, max_length=model.config.n_positions)
print(f"entry 0: {entries[0].instruction!r} -> {entries[0].output!r}")
inputs, targets = data.collate(range(len(data)))
print(f"inputs {inputs.shape}, targets {targets.shape}, of which {np.count_nonzero(targets != -100)} are not -100")
print("the end of row 0:  input -> target")
end = needed_lengths(targets)[0]
for t in range(end - 5, end + 1):
    wanted = "-100" if targets[0, t] == -100 else repr(tokenizer.decode([targets[0, t]]))
    print(f"{tokenizer.decode([inputs[0, t]])!r:>22} -> {wanted}")

# %% [markdown]
# ## Forward
#
# Two things are saved before anything is computed. What stands after a row's last target can't touch its loss
# (program 6) and is dropped; `needed_lengths` says how much of each row is left. And all eight prompts begin with the
# same words. Attention looks only backwards, and these tokens stand in the same places, so that they get the same
# vectors in every row: they are computed once, and all rows look at that one copy. Its gradient is the sum of what
# eight rows hand back, as for any value with several uses.
#
# `lay_out` puts what is left end to end, N tokens without padding; what a row has of its own is a *segment*. The
# blocks make x (N, C) of them, and of that only the rows with a target go on to the output layer (program 4).

# %%
segments, _ = lay_out(inputs, needed_lengths(targets))
C, V = model.config.n_embd, model.config.vocab_size
N = segments.starts[-1]  # where the last segment ends
print(f"{inputs.size} places in the batch, N = {N} tokens to compute, C = {C}")
print(f"each block: qkv (N, {3 * C}), inside of the MLP (N, {4 * C}), x (N, {C})")
print(f"output layer: ({np.count_nonzero(targets != -100)}, {C}) times the table transposed ({C}, {V})")
n_block = sum(p.size for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h."))
for what, n, n_out in (("as they stand, padded", inputs.size, inputs.size),
                       ("computed", N, np.count_nonzero(targets != -100))):
    print(f"products of a step, forward and backward, {what}: {6 * (n_block * n + C * V * n_out) / 1e9:.1f} GFLOP")
print(f"memory: 16 bytes for each of {model.n_parameters():,} weights (itself, gradient, and AdamW's two means)")
loss = model.loss(inputs, targets)
before = loss.item()
print(f"loss {before:.3f}; a guess among {V} tokens would have {np.log(V):.3f}")

# %% [markdown]
# ## Backward
#
# Each weight gets a gradient of its own shape. The token table `wte` is used twice: its rows go in at the bottom, and
# at the top all of it is the output layer. So it gets two gradients, and they add up. The first touches only the rows
# of tokens that occur in the inputs; the second all rows, since every token that is not the target is made less
# likely.

# %%
loss.backward()
table = model.wte.weight
computed = np.arange(inputs.shape[1]) < needed_lengths(targets)[:, None]  # (B, T)
in_inputs = np.isin(np.arange(V), inputs[computed])
print(f"gradient of wte {table.grad.shape}: {in_inputs.sum()} rows from both uses, {(~in_inputs).sum()} from one")

# %% [markdown]
# ## The update
#
# AdamW (Loshchilov and Hutter, 2019) keeps two running means for each weight, of its gradient g and of g², with β1 =
# 0.9 and β2 = 0.999:
#
# m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g².
#
# A weight moves by the learning rate times m / sqrt(v): where gradients agree from batch to batch that is nearly the
# full learning rate, and where they are noise it is small; how large they are cancels. Both means begin at 0: after s
# steps the factors of all gradients in m add up to 1 - β1^s only (0.1 after the first), so that m is divided by that,
# and v likewise. In the first step m / sqrt(v) is g / |g|, a sign (and ε only avoids dividing by 0). *Decay* pulls
# matrices towards 0, apart from the gradient.

# %%
lr, (beta1, beta2), eps, decay = 1e-4, (0.9, 0.999), 1e-8, 0.1
name = "h.0.attn.c_attn.weight"
weight = dict(model.named_parameters())[name]
w, g = weight.data.astype(np.float64), weight.grad.astype(np.float64)
m, v = (1 - beta1) * g, (1 - beta2) * g * g
m_hat, v_hat = m / (1 - beta1), v / (1 - beta2)  # after step 1; beta ** steps in general
by_hand = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)

optimizer = AdamW(model, betas=(beta1, beta2), eps=eps, weight_decay=decay)
optimizer.step(lr)
assert np.allclose(weight.data, by_hand, rtol=1e-6, atol=1e-9)
print(f"{name} {weight.shape}: as by hand, and moved by {abs(weight.data - w).mean():.2e} on average")
after = model.loss(inputs, targets).item()
print(f"loss on the same batch: {before:.3f} -> {after:.3f}")
assert after < before

# %% [markdown]
# ## Where the milliseconds go
#
# Steps again, with a clock around each op's backward function. Gradients of weights have a line of their own: instead
# of dW, which would be an array as large as W, tinyft's `linear` returns a function that adds dW to `.grad`. That
# runs outside of the functions with a clock; its time is what is left of the whole walk's. Products (those, `linear`,
# and most of the forward pass) have most of a step, which is why the next program is about them. The loss hardly
# shows on the way back, since `linear_cross_entropy` forms its gradients in the forward pass, while a chunk of logits
# is at hand. All of them are steps on the same eight entries, so that the model memorises them: the cheapest test
# that a training loop works.

# %% tags=["varies"]
seconds = defaultdict(float)


def timed(name, call):
    """call, with a clock around it."""

    def run(*args):
        begin = time.perf_counter()
        result = call(*args)
        seconds[name] += time.perf_counter() - begin
        return result

    return run


for round in range(12):
    if round == 2:
        seconds.clear()  # the first two were to warm up
    loss = timed("forward", model.loss)(inputs, targets)
    waiting, seen = [loss.node], set()
    while waiting:  # a clock for every node of the graph
        node = waiting.pop()
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            waiting.extend(node.parents)
            node.backward = timed(f"backward: {node.op}", node.backward)
    timed("backward", loss.backward)()
    timed("AdamW", optimizer.step)(lr)
inside = sum(s for part, s in seconds.items() if part.startswith("backward: "))
seconds["backward: gradients of weights"] = seconds.pop("backward") - inside
parts = {part: 100 * s for part, s in sorted(seconds.items(), key=lambda item: item[1])}  # ms of one of ten steps
print(f"loss on these eight entries now: {loss.item():.3f}")
for part, ms in reversed(parts.items()):
    print(f"{part:<32} {ms:6.2f} ms")
figure = Figure(figsize=(7, 3), layout="constrained")
figure.subplots().barh(list(parts), list(parts.values()))
figure.axes[0].set_xlabel("ms")
figure.axes[0].set_title(f"a step of the small model: {sum(parts.values()):.0f} ms", loc="right", fontsize=10)
show(figure, "training_step")

# %% [markdown]
# ## Exercises
#
# 1. A batch is too large for the memory. Write `in_halves(model, inputs, targets)`, which calls
#    `model.loss(...).backward()` on the first half of the rows and then on the second, so that `.grad` of every
#    parameter is that of the whole batch. (`loss` has an argument for it, `total`; program 4 says why it is needed.)
# 2. Write `adamw(w, gradients, lr)`, which returns the weight after as many steps as there are gradients in the list,
#    with the numbers above. It must agree with the optimizer after three steps: that is where the powers of beta
#    count.
#
# Answers: `answers/training_step.py`. Next: `matmul_steps.py`.
