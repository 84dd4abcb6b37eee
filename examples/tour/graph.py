# %% [markdown]
# # 1. A graph, and the way back through it
#
# You will know afterwards: what a framework writes down while you compute, how it gets from there to the derivative
# of the result with respect to every input, why the nodes are visited in one particular order, and why gradients add
# up. `tinyft/tensor.py` does all of it; the walk itself is the fifty lines from `_backward_pass` on.

# %%
from pictures import show

from tinyft import Tensor, draw

# %% [markdown]
# ## What is written down
#
# A `Tensor` is a NumPy array, its `.data`, that remembers how it was made. Here each holds one number. With
# `requires_grad=True` we ask for the derivative of the result with respect to it, its *gradient*; such an input is a
# *leaf* of the graph. The result is called *loss*, since that is what it will be later: the number that says how
# wrong a model is, and that training makes small.

# %%
a = Tensor(3.0, requires_grad=True)
b = Tensor(-2.0, requires_grad=True)
c = Tensor(11.0, requires_grad=True)

product = a * b
total = product + c
loss = total * a  # a is used a second time

print(f"product {product.item():g}, total {total.item():g}, loss {loss.item():g}")
made_total, parent = loss.node.parents
print(f"loss was made by {loss.node.op!r} from what {made_total.op!r} made, and from the leaf a: {parent is a}")

# %% [markdown]
# An *op* is a function that can be differentiated; `*` and `+` are two. Every call of an op on something whose
# gradient is wanted left a *node*, here `loss.node`: which op it was, its `parents` (for each input the node that
# made it, or the leaf itself, or None if nobody wants its gradient), and a function `backward`, which turns the
# derivative with respect to the op's result into those with respect to its inputs. That is all a graph is, and it is
# of what *ran*: a loop, a condition or a recursion leaves its calls, one after the other. The picture has values in
# the boxes; the red number on an arrow is what comes *back* along it, and the ops are numbered in the order of the
# way back.

# %%
names = {"a": a, "b": b, "c": c, "product": product, "total": total, "loss": loss}
show(draw.graph(loss, names), "graph")

# %% [markdown]
# ## What a gradient is
#
# `a` changes a little, and so does the loss: the change of the loss divided by the change of `a` is the gradient of
# `a`. That can be measured, before any theory: change one input, compute again, divide. (The first comes out as
# -1.002 where it is exactly -1, because 0.001 isn't infinitely small; program 2 looks at that error.)

# %%
def compute(a, b, c):
    """The same with plain numbers."""
    return (a * b + c) * a


for name, nudged in (("a", (3.001, -2, 11)), ("b", (3, -1.999, 11)), ("c", (3, -2, 11.001))):
    print(f"{name} + 0.001: the loss changes by {(compute(*nudged) - compute(3, -2, 11)) / 0.001:6.3f} times 0.001")

# %% [markdown]
# ## The same by the chain rule
#
# The chain rule, from the end to the beginning. `d_x` is short for d loss / d x, and has the value that the box of x
# shows as its gradient. For a product, each factor's gradient is the other factor times what comes back; a sum hands
# on what comes back unchanged.

# %%
d_loss = 1.0  # d loss / d loss
d_total = d_loss * a.item()  # loss = total * a
d_a_from_loss = d_loss * total.item()
d_product, d_c = d_total, d_total  # total = product + c
d_a_from_product = d_product * b.item()  # product = a * b
d_b = d_product * a.item()
d_a = d_a_from_loss + d_a_from_product

print(f"d_a = {d_a_from_loss:g} + {d_a_from_product:g} = {d_a:g}, d_b = {d_b:g}, d_c = {d_c:g}")

# %% [markdown]
# `a` is used twice, so that a small change of it reaches the loss along two paths, and the loss changes by the sum of
# both. That is why gradients add up wherever a value has several users, and why the engine may visit a node only when
# *all* of its users have been visited: before that, its gradient isn't complete. A node can only use what exists
# already, so that "from the last one made to the first" is such an order. tinyft numbers the nodes as they are made.
#
# Why from the end, when the chain rule works in both directions? From the end, one walk gives the derivative of one
# number with respect to millions of inputs. From the beginning it would take a walk for each input.
#
# Computing the result is the *forward pass*, and this walk, `loss.backward()`, the *backward pass*. It leaves the
# gradients of leaves in their `.grad`, which are plain arrays, and lets go of the graph, so that the memory is free
# again: a second backward pass needs the forward pass anew.

# %%
loss.backward()
for name, leaf, by_hand in (("a", a, d_a), ("b", b, d_b), ("c", c, d_c)):
    print(f"{name}: by hand {by_hand:g}, by the engine {leaf.grad.item():g}")
    assert leaf.grad == by_hand

# %% [markdown]
# ## What it is for
#
# It says in which direction the loss grows. Against it, the loss falls; that is all that training does, with millions
# of numbers instead of three. `backward` adds to `.grad`, so that it has to be cleared before the next pass.

# %%
for step in range(3):
    loss = (a * b + c) * a
    for leaf in (a, b, c):
        leaf.grad = None
    loss.backward()
    print(f"step {step}: loss {loss.item():8.4f}")
    for leaf in (a, b, c):
        leaf.data = leaf.data - 0.01 * leaf.grad

# %% [markdown]
# ## Exercises
#
# 1. A walk of your own. Write `gradients(last)`, which returns a dict from each leaf Tensor to its gradient, without
#    calling `last.backward()`: keep two dicts, of nodes that wait, at first `{last.node: 1.0}`, and of leaves. Take
#    the waiting node with the largest `order` (nodes are numbered as they are made), call its
#    `node.backward(gradient)`, and add what it returns to the entries of `node.parents`; `isinstance(parent, Tensor)`
#    tells leaves, and a parent that is None is skipped. What comes back is a tuple with one gradient for each parent,
#    but for an op with a single input that gradient alone. For the loss above, built anew, it must give what `.grad`
#    gives.
# 2. What goes wrong in another order? In `d = a * a; loss = d * d + d` two ops use d: the product and the sum. An
#    engine that is too hasty goes on from d's node to `a` as soon as the sum has handed d its share, and visits no
#    node twice, so that the product's share, which comes later, is lost. Which gradient does it find for a = 3? Write
#    `hasty(a)`, which returns that and the right one, as a pair.
#
# Answers: `answers/graph.py`. Next: `add_an_op.py`.
