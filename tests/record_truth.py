"""Record what PyTorch and transformers compute for a small GPT-2, into tests/truth_gpt2.npz.

    pip install torch transformers
    python tests/record_truth.py

Everything is computed in float64 from fixed seeds; the weights are numbers that float32 holds exactly, so that
a float32 model starts from the very same ones. The file holds

    config              JSON, under config.json's names
    weight.NAME         every parameter, without the prefix "transformer."
    inputs, targets     (B, T), rows of different lengths; -100 where nothing is learned
    logits              (B, T, V)
    loss                the sum over live targets divided by their number
    gradient.NAME       of that loss
    step_losses         (11,): before each of ten AdamW steps on this batch, and after the last
    step_norms          (10,): the gradient's norm before clipping
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers

TRUTH = Path(__file__).with_name("truth_gpt2.npz")
SHAPE = {"vocab_size": 61, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_inner": None,
         "layer_norm_epsilon": 1e-5}
STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 10, 1e-2, 0.1, 1.0
IGNORE = -100


def make_model() -> transformers.GPT2LMHeadModel:
    """All parameters random, biases and norms too, and large enough that attention is not flat."""
    config = transformers.GPT2Config(**SHAPE, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
                                     bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "eager"
    model = transformers.GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            drawn = centre + 0.25 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn.float())
    return model


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows: full, short, without a target, with dead targets at its head and in its middle, one target only."""
    generator = torch.Generator().manual_seed(21)
    shape = (5, 15)
    inputs = torch.randint(SHAPE["vocab_size"], shape, generator=generator)
    targets = torch.randint(SHAPE["vocab_size"], shape, generator=generator)
    targets[1, 6:] = IGNORE
    targets[2, :] = IGNORE
    targets[3, :4] = IGNORE
    targets[3, 7:9] = IGNORE
    targets[3, 12:] = IGNORE
    targets[4, 1:] = IGNORE
    return inputs, targets


def forward(model, inputs, targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the mean loss over live targets; targets are shifted already."""
    logits = model(input_ids=inputs, use_cache=False).logits
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE,
                                              reduction="sum")
    return logits, total / (targets != IGNORE).sum()


def main() -> None:
    torch.use_deterministic_algorithms(True)
    model = make_model()
    inputs, targets = make_batch()
    parameters = {name.removeprefix("transformer."): p for name, p in model.named_parameters()}
    truth = {f"weight.{name}": p.detach().numpy().astype(np.float32) for name, p in parameters.items()}

    logits, loss = forward(model, inputs, targets)
    loss.backward()
    truth |= {f"gradient.{name}": p.grad.numpy().copy() for name, p in parameters.items()}
    truth |= {"config": json.dumps(SHAPE), "inputs": inputs.numpy(), "targets": targets.numpy(),
              "logits": logits.detach().numpy(), "loss": loss.item()}

    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters.values() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
         {"params": [p for p in parameters.values() if p.ndim != 2], "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8,
    )
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = forward(model, inputs, targets)
        losses.append(loss.item())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM).item())
        optimizer.step()
    losses.append(forward(model, inputs, targets)[1].item())
    truth |= {"step_losses": losses, "step_norms": norms}

    np.savez_compressed(TRUTH, **truth)
    print(f"{TRUTH}: {TRUTH.stat().st_size} bytes, {sum(p.numel() for p in parameters.values())} parameters, "
          f"torch {torch.__version__}, transformers {transformers.__version__}")
    print("losses", *(f"{loss:.4f}" for loss in losses))
    print("norms ", *(f"{norm:.4f}" for norm in norms))


if __name__ == "__main__":
    main()
