"""A process that tunes a GPT-2, for `tuning.py`: `python tuning_process.py tinyft|peft ROW`, ROW as JSON.

It says "ready" and then answers every line it reads, inputs and targets (B, T) as JSON, with a training step of them:
its seconds, its loss, and the most memory that the process has held so far, in MB. It is a script of its own, so that
PyTorch's process holds nothing of tinyft.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.1, 1.0
RANK, ALPHA, LAYERS = 8, 16, ("c_attn", "c_proj", "c_fc")
Step = Callable[[np.ndarray, np.ndarray], float]  # returns the loss


def tinyft_step(row: dict) -> Step:
    """tinyft as `fit` uses it."""
    from tinyft import GPT2, AdamW, GPT2Config
    from tinyft.lora import LoraConfig, add_lora
    from tinyft.memory import keep_freed_memory

    model = GPT2(GPT2Config(**row["shape"]))
    fill(model, row["base"])
    if row["lora"]:
        add_lora(model, LoraConfig(rank=RANK, alpha=ALPHA, layers=LAYERS), np.random.default_rng(1))
    model.recompute = row["recompute"]
    keep_freed_memory()  # from here on, since weights that were rounded shall be given back
    optimizer = AdamW(model, weight_decay=WEIGHT_DECAY, moments=row["moments"])

    def step(inputs, targets):
        loss = model.loss(inputs, targets)
        loss.backward()
        optimizer.step(LEARNING_RATE, max_norm=MAX_GRAD_NORM)
        return loss.item()

    return step


def fill(model, kept_as: str) -> None:
    """Random weights, rounded one matrix after the other, so that never all of them are there in float32."""
    from tinyft.compact import CompactWeight
    from tinyft.nn import Embedding, Linear

    rng = np.random.default_rng(0)
    for _, module in model.named_modules():
        if not isinstance(module, Linear | Embedding):
            continue
        matrix = module.weight.data
        for first in range(0, len(matrix), 1024):
            part = matrix[first : first + 1024]
            part[...] = 0.02 * rng.standard_normal(part.shape, np.float32)
        if kept_as != "float32" and module is not model.wpe:
            module.weight = CompactWeight(matrix, kept_as)


def peft_step(row: dict) -> Step:
    """transformers with peft's adapters and PyTorch's fused AdamW; rows are padded to the longest."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_default_dtype(getattr(torch, row["their_base"]))
    model = GPT2LMHeadModel(GPT2Config(**row["shape"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    torch.set_default_dtype(torch.float32)
    if row["lora"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LAYERS),
                                                 fan_in_fan_out=True, task_type="CAUSAL_LM"))
    if row["recompute"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step(inputs, targets):
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        loss = model(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


STEPS = {"tinyft": tinyft_step, "peft": peft_step}


def peak_bytes() -> int:
    """The most memory that this process has held so far; 0 where the system doesn't say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    """Make the model, then answer until there is nothing more to read."""
    sys.path.pop(0)  # modules beside this one are called like some of PyTorch's
    step = STEPS[sys.argv[1]](json.loads(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        inputs, targets = (np.array(rows, np.int64) for rows in json.loads(line))
        begin = time.perf_counter()
        loss = step(inputs, targets)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "loss": loss, "peak": peak_bytes() / 1e6}), flush=True)


if __name__ == "__main__":
    main()
