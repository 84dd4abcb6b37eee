# %% [markdown]
# # 9. What tuning changed
#
# You will know afterwards: how few seconds it takes until a model that continues texts answers questions; which
# weights moved and how far; what the same prompt attends to before and after; and at which block the answer appears.
# This is the end of the tour: from `a * b` to a model that answers.

# %%
import textwrap
import time

import numpy as np
from matplotlib.figure import Figure
from pictures import ROOT, SMALL_MODEL, show

from tinyft import AdamW, InstructionSet, Progress, Settings, draw, load_model_and_tokenizer, read_entries, reply_all
from tinyft.data.entries import Turn
from tinyft.data.prompts import encode_prompt
from tinyft.train import Stepped, train

before, tokenizer = load_model_and_tokenizer(SMALL_MODEL)
after, _ = load_model_and_tokenizer(SMALL_MODEL)
entries = read_entries([ROOT / "examples" / "data" / "train.json"])
print(f"{len(entries)} entries, such as {entries[2].instruction!r} -> {entries[2].output!r}")

# %% [markdown]
# ## Tuning
#
# The shipped model was trained to continue simple texts and has never seen an instruction. 150 steps as in program 7,
# with 8 entries each; `train` yields what happens. (The None is a validation set, which we do without.)

# %% tags=["varies"]
data = InstructionSet(entries, tokenizer, mask_prompt=True, max_length=before.config.n_positions)
settings = Settings(batch_size=8, learning_rate=3e-4, max_steps=150, evaluate_every=1000)
losses, begin = [], time.perf_counter()
for event in train(after, AdamW(after), data, None, settings, Progress(), np.random.default_rng(0)):
    if isinstance(event, Stepped):
        losses.append(event.loss)
print(f"150 steps in {time.perf_counter() - begin:.1f} s")
for step in (0, 25, 50, 100, 149):
    print(f"step {step:>3}: loss {np.mean(losses[max(0, step - 4):step + 5]):.3f}")

# %% tags=["varies"]
unseen = [entry for entry in read_entries([ROOT / "examples" / "data" / "test_items.json"])
          if entry.family.startswith("learnable/")][:100]
prompts = [encode_prompt(entry.turns[:1], data.style, tokenizer) for entry in unseen]
for name, model in (("before", before), ("after", after)):
    replies = reply_all(model, tokenizer, prompts, max_new_tokens=20)
    right = sum(reply == entry.output for reply, entry in zip(replies, unseen, strict=True))
    print(f"{name}: {right} of {len(unseen)} replies are right")
    for i in (1, 8, 18, 23):
        print(f"    {unseen[i].instruction} {unseen[i].input}".rstrip(), "->", textwrap.shorten(replies[i], 40),
              f"(expected {unseen[i].output!r})" * (replies[i] != unseen[i].output))

# %% [markdown]
# ## Which weights moved
#
# The change of a matrix, as a share of its length: |after - before| / |before|, where |W| is the root of the sum of
# its squares. Most matrices change by 3 or 4 %: what the model knows was there before, and tuning teaches it to say
# it when it is asked. Two stand out, the table of positions and the first block's `attn.c_proj`. They are the ones
# with small weights, 0.02 beside 0.05 to 0.12 (root mean square), and AdamW moves a weight by about as much whether
# it is large or small.

# %% tags=["varies"]
KINDS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
old = {name: parameter.data for name, parameter in before.named_parameters()}
moved = {name: np.linalg.norm(parameter.data - old[name]) / np.linalg.norm(old[name])
         for name, parameter in after.named_parameters() if parameter.ndim == 2}
table = np.array([[moved[f"h.{layer}.{kind}.weight"] for kind in KINDS] for layer in range(before.config.n_layer)])
size = {name: np.sqrt(np.mean(old[name] ** 2)) for name in moved}
print("the smallest weights:", ", ".join(f"{name} {size[name]:.3f}" for name in sorted(moved, key=size.get)[:3]))
print(f"tokens {moved['wte.weight']:.1%}, positions {moved['wpe.weight']:.1%}, blocks:")
print(f"{'':>8}" + "".join(f"{kind:>13}" for kind in KINDS))
for layer, row in enumerate(table):
    print(f"layer {layer + 1:>2}" + "".join(f"{share:>13.1%}" for share in row))
figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.subplots()
picture = axes.imshow(100 * table, cmap="Oranges", vmin=0, aspect="auto")
axes.set_xticks(range(len(KINDS)), KINDS)
axes.set_yticks(range(len(table)), [f"layer {layer + 1}" for layer in range(len(table))])
figure.colorbar(picture, label="change in percent")
show(figure, "what_tuning_changed")

# %% [markdown]
# ## What it attends to
#
# The same prompt in both models. For each head, how different are the two maps of attention? Half the sum of
# |difference| of a row is the share of its attention that went elsewhere. (" Spain" is two tokens of this
# vocabulary, " S" and "pain".)

# %% tags=["varies"]
ids = encode_prompt([Turn("user", "What is the capital of Spain?")], data.style, tokenizer)
tokens = [tokenizer.decode([token]) for token in ids]
views = {name: draw.look(model, ids) for name, model in (("before", before), ("after", after))}
elsewhere = 0.5 * abs(views["after"].attention - views["before"].attention)[:, :, -1].sum(axis=-1)  # (L, H)
layer, head = np.unravel_index(elsewhere.argmax(), elsewhere.shape)
print(f"attention of the prompt's last token that went elsewhere, by layer: {np.round(elsewhere.mean(axis=1), 2)}")
print(f"most of all in layer {layer + 1}, head {head + 1}, where it looks at")
for name, view in views.items():
    row = view.attention[layer, head, -1]
    print(f"{name:>8}: " + ", ".join(f"{tokens[j]!r} ({row[j]:.0%})" for j in np.argsort(-row)[:4]))

# %% [markdown]
# ## Where the answer appears
#
# The stream (program 6) behind the prompt's last token, read after each block as if it were the last: through the
# last norm and the table. That gives the likeliest next token there, and its probability. The answer is "Madrid", of
# which "M" is the first token; in this model it appears only in the last block.
#
# After the embeddings alone most tokens say themselves, since the table that reads is the one that embeds: the prompt
# ends with a newline, and that is what it says. ("#" in the picture doesn't: some 500 tokens that the pretraining
# never met share one row.) In the picture columns are the prompt's last tokens, and rows the blocks, from bottom to
# top; "###" is how Alpaca's form begins a heading.

# %% tags=["varies"]
for level in range(before.config.n_layer + 1):
    where = f"layer {level}" if level else "embeddings"
    said = [f"{name}: {tokenizer.decode([view.likeliest[level, -1, 0]])!r} {view.probabilities[level, -1, 0]:.0%}"
            for name, view in views.items()]
    print(f"{where:>10}  {said[0]:<24}{said[1]}")
show(draw.lens(views["after"], lambda token: tokenizer.decode([token]), last=12), "what_tuning_changed_lens")

# %% [markdown]
# ## Exercises
#
# 1. Is it the change's direction or its length that matters? Write `between(before, after, share)`, which returns a
#    model with the weights (1 - share) before + share after, and look at its replies for shares of 0.5 and 1.5. (With
#    0 and 1 the logits must be those of the two.)
# 2. The change of a matrix has rank min(rows, columns) at most. Is it that many? Write `rank_for(change, share)`: how
#    many of the largest singular values (`np.linalg.svd`) does it take until their squares sum to that share of all?
#    (The SVD writes a matrix as a sum of products of a column and a row, the largest first; the singular values are
#    their sizes.) Try shares of 0.5, 0.9 and 0.99 on several layers. (Full tuning isn't asked for a change of low
#    rank, and makes none; LoRA learns one of rank 8 from the beginning, `tinyft/lora.py`, and the accuracy says
#    whether that is enough.)
#
# Answers: `answers/what_tuning_changed.py`. Where to go on: `python examples/finetune_alpaca.py`, and the tree under
# "Read it" in the README.
