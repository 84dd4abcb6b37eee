"""What a person could train GPT-2 124M with instead: one function for each, which makes a training step.

A step takes inputs and targets (8, T) and returns its seconds by part. Packages are imported inside, since
each peer runs in a process of its own, and only where it is installed. tinyft and transformers can train a small
model as well.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .processes import VOCABULARY, threads_given

GPT2_124M = dict(vocab_size=VOCABULARY, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
SMALL = dict(vocab_size=4000, n_positions=256, n_embd=224, n_layer=6, n_head=7)  # like the one in weights/
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.1, 1.0
Step = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def _timed(forward: Callable, backward: Callable, optimizer: Callable) -> Step:
    """A step of three parts: forward(inputs, targets) -> loss, backward(loss), optimizer()."""

    def step(inputs, targets):
        begin = time.perf_counter()
        loss = forward(inputs, targets)
        forward_end = time.perf_counter()
        backward(loss)
        backward_end = time.perf_counter()
        optimizer()
        return {"forward": forward_end - begin, "backward": backward_end - forward_end,
                "optimizer": time.perf_counter() - backward_end}

    return step


def tinyft_step(bfloat16: bool, shape: dict[str, int] = GPT2_124M) -> Step:
    """tinyft as `train` uses it."""
    from tinyft import GPT2, AdamW, GPT2Config
    from tinyft.memory import keep_freed_memory
    from tinyft.ops import set_product_dtype

    keep_freed_memory()
    set_product_dtype("bfloat16" if bfloat16 else "float32")
    model = GPT2(GPT2Config(**shape), np.random.default_rng(0))
    optimizer = AdamW(model, weight_decay=WEIGHT_DECAY)
    return _timed(model.loss, lambda loss: loss.backward(),
                  lambda: optimizer.step(LEARNING_RATE, max_norm=MAX_GRAD_NORM))


def transformers_step(bfloat16: bool, shape: dict[str, int] = GPT2_124M) -> Step:
    """transformers with PyTorch's fused AdamW; bfloat16 by autocast."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads_given())
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def forward(inputs, targets):
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return model(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return _timed(forward, lambda loss: loss.backward(), update)


def chapter7_step(bfloat16: bool) -> Step:
    """The model of "Build a Large Language Model (From Scratch)", trained as in its chapter 7.

    That is PyTorch's plain AdamW and no clipping, which saves it a pass over the gradients. The output layer
    is not tied to the token table, so that it has 39 million weights more than the others.
    """
    import torch
    from llms_from_scratch.ch04 import GPTModel

    torch.set_num_threads(threads_given())
    model = GPTModel({"vocab_size": VOCABULARY, "context_length": 1024, "emb_dim": 768, "n_heads": 12,
                      "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def forward(inputs, targets):
        logits = model(torch.from_numpy(inputs))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())

    def update():
        optimizer.step()
        optimizer.zero_grad()

    return _timed(forward, lambda loss: loss.backward(), update)


def jax_step(bfloat16: bool) -> Step:
    """JAX: the whole step is one compiled function, so that there are no parts to tell apart."""
    from .jax_gpt2 import make_step

    train = make_step(threads_given(), LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM)

    def step(inputs, targets):
        begin = time.perf_counter()
        train(inputs, targets)
        return {"step": time.perf_counter() - begin}

    return step


@dataclass(frozen=True)
class Peer:
    """How to make a peer's step, of whether in bfloat16 and perhaps a shape, and what has to be installed for it."""

    make_step: Callable[..., Step]
    packages: tuple[str, ...] = ()
    install: str = ""
    dtypes: tuple[str, ...] = ("float32",)

    def is_installed(self) -> bool:
        """Whether its packages can be imported, found out without importing them here."""
        return all(importlib.util.find_spec(package) for package in self.packages)


PEERS = {
    "tinyft": Peer(tinyft_step, dtypes=("float32", "bfloat16")),
    "transformers": Peer(transformers_step, ("torch", "transformers"), "pip install torch transformers",
                         ("float32", "bfloat16")),
    "chapter7": Peer(chapter7_step, ("torch", "llms_from_scratch"),
                     "pip install torch && pip install --no-deps llms-from-scratch"),
    "jax": Peer(jax_step, ("jax",), "pip install jax"),
}


def installed(without_torch: bool) -> tuple[dict[str, Peer], dict[str, Peer]]:
    """The peers that are, and those that are not; neither has those on PyTorch if it is to be left out."""
    wanted = {name: peer for name, peer in PEERS.items() if not (without_torch and "torch" in peer.packages)}
    here = {name: peer for name, peer in wanted.items() if peer.is_installed()}
    return here, {name: peer for name, peer in wanted.items() if name not in here}


def make_step(name: str) -> tuple[Step, int]:
    """The step of "tinyft", "tinyft_bf16", "tinyft_small", "jax", ...; and of how many tokens its vocabulary is."""
    peer, *kind = name.split("_")
    if "small" in kind:
        return PEERS[peer].make_step("bf16" in kind, SMALL), SMALL["vocab_size"]
    return PEERS[peer].make_step("bf16" in kind), VOCABULARY
