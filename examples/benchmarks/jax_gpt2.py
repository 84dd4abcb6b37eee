"""The JAX peer: GPT-2 124M and AdamW as one jitted function that reuses the memory of what it replaces.

Imported only in that peer's own process, after its threads are limited.
"""

import os
from collections.abc import Callable

import numpy as np

from tinyft import GPT2Config

SHAPE = GPT2Config()
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def _import_jax(threads: int):
    """JAX on `threads` of the CPUs. It has no setting for that: it sizes its pool by the CPUs it may use."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # elsewhere than on Linux, JAX takes all there are
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax

    return jax


def _fresh_parameters(rng: np.random.Generator) -> dict:
    def normal(*shape):
        return 0.02 * rng.standard_normal(shape, np.float32)

    def linear(n_in, n_out):
        return {"weight": normal(n_in, n_out), "bias": np.zeros(n_out, np.float32)}

    def norm():
        return {"weight": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

    width = SHAPE.n_embd
    blocks = [{"ln_1": norm(), "c_attn": linear(width, 3 * width), "attn_c_proj": linear(width, width),
               "ln_2": norm(), "c_fc": linear(width, 4 * width), "mlp_c_proj": linear(4 * width, width)}
              for _ in range(SHAPE.n_layer)]
    return {"wte": normal(SHAPE.vocab_size, width), "wpe": normal(SHAPE.n_positions, width), "h": blocks,
            "ln_f": norm()}


def make_loss(jax) -> Callable:
    """loss(parameters, inputs, targets): mean cross-entropy of the targets that are not -100."""
    jnp = jax.numpy

    def linear(p, x):
        return x @ p["weight"] + p["bias"]

    def norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + SHAPE.layer_norm_epsilon) * p["weight"] + p["bias"]

    def loss(parameters, inputs, targets):
        batch, length = inputs.shape
        x = parameters["wte"][inputs] + parameters["wpe"][:length]
        for block in parameters["h"]:
            qkv = linear(block["c_attn"], norm(block["ln_1"], x)).reshape(batch, length, 3, SHAPE.n_head, -1)
            mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
            x = x + linear(block["attn_c_proj"], mixed.reshape(batch, length, -1))
            x = x + linear(block["mlp_c_proj"], jax.nn.gelu(linear(block["c_fc"], norm(block["ln_2"], x))))
        logits = norm(parameters["ln_f"], x) @ parameters["wte"].T
        live = targets != -100
        correct = jnp.take_along_axis(logits, jnp.where(live, targets, 0)[..., None], -1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - correct
        return jnp.where(live, losses, 0).sum() / live.sum()

    return loss


def make_step(threads: int, learning_rate: float, weight_decay: float, max_norm: float) -> Callable:
    """step(inputs, targets) -> loss, which trains on."""
    jax = _import_jax(threads)
    jnp, loss = jax.numpy, make_loss(jax)

    def update(state, inputs, targets):
        count = state["count"] + 1
        value, grads = jax.value_and_grad(loss)(state["parameters"], inputs, targets)
        norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in jax.tree.leaves(grads)))
        scale = jnp.minimum(1, max_norm / norm)
        m = jax.tree.map(lambda m, grad: BETA1 * m + (1 - BETA1) * scale * grad, state["m"], grads)
        v = jax.tree.map(lambda v, grad: BETA2 * v + (1 - BETA2) * jnp.square(scale * grad), state["v"], grads)

        def updated(p, m, v):
            adam = m / (1 - BETA1**count) / (jnp.sqrt(v / (1 - BETA2**count)) + EPS)
            return p * (1 - learning_rate * weight_decay) - learning_rate * adam

        parameters = jax.tree.map(updated, state["parameters"], m, v)
        return {"parameters": parameters, "m": m, "v": v, "count": count}, value

    jitted = jax.jit(update, donate_argnums=0)  # the state of before is overwritten by the state of after
    parameters = jax.tree.map(jnp.asarray, _fresh_parameters(np.random.default_rng(0)))
    state = {"parameters": parameters, "m": jax.tree.map(jnp.zeros_like, parameters),
             "v": jax.tree.map(jnp.zeros_like, parameters), "count": jnp.float32(0)}

    def step(inputs, targets):
        nonlocal state
        state, value = jax.block_until_ready(jitted(state, inputs.astype(np.int32), targets.astype(np.int32)))
        return float(value)

    return step
