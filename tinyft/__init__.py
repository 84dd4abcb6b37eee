"""tinyft: fine-tune GPT-2 to follow instructions, on a CPU, in code that is meant to be read.

Reading order:

    tensor.py        Tensor, how an op is declared, and the walk back through the graph
    arithmetic.py, ops.py, losses.py  every differentiable op: forward, with its backward inside, and how it is derived
    gradcheck.py     is a gradient right?
    nn.py, gpt2.py   layers, and GPT-2 made of them; recompute.py: parts that are computed again to save memory
    tokenizer.py     text to ids; tokenizer_files.py, added_tokens.py, pretokenizer.py: as a folder says
    data/            from files of any kind to entries, conversations as text, batches with masks
    optim.py, train.py              AdamW and the training loop, over a training_set.py; watch.py: what looks odd;
                     ranks.py, parallel.py: several processes that train together
    lora.py, compact.py             adapters beside frozen matrices, and these in 16 or 8 bits
    inference/       replies to one prompt or many, how likely texts are, a server; scoring.py: how good replies are
    checkpoint.py    model folders that other tools read, with model_config.py, weight_names.py,
                     safetensors_file.py, hub.py, files.py; adapters.py: those that hold an adapter alone
    run.py, report.py, progress.py  a whole run: the loop, what a person sees of it, the files it leaves; state.py,
                     keeper.py, run_lock.py, signals.py, tensor_files.py: how it goes on after a crash, and alone;
                     memory.py: whether it fits; loggers.py: TensorBoard and others
    evaluation/      the public harnesses, a judge, an arena, a sandbox
    draw/            pictures: graphs, attention, what a model would say layer by layer
    untrusted.py, compile_ahead.py, segments.py     values of strangers; a second process that compiles; shared tokens
    cli.py           what the scripts in examples/ share
    kernels/         the arithmetic, compiled by Numba: start with matmul.py
"""

from .adapters import load_adapter, load_model_and_tokenizer, save_adapter
from .checkpoint import load_model, save_model
from .data.entries import Entry, Turn
from .data.instructions import InstructionSet, collate, split
from .data.readers import read_entries, read_with_account
from .data.schemas import parse_columns
from .gpt2 import GPT2, GPT2Config
from .gradcheck import gradcheck
from .inference.engine import Engine, load_engine
from .inference.generate import generate
from .inference.replies import ask, reply, reply_all
from .inference.sampling import Sampling
from .inference.text import stream_text
from .lora import LoraConfig, add_lora, merge_lora
from .optim import AdamW, cosine_with_warmup
from .run import delete_state, fit, warm_up
from .state import load_state, save_state
from .tensor import Tensor, no_grad, op
from .tokenizer_files import load_tokenizer, save_tokenizer
from .train import Progress, Settings, evaluate, train
from .version import VERSION as __version__

__all__ = [
    "AdamW", "Engine", "Entry", "GPT2", "GPT2Config", "InstructionSet", "LoraConfig", "Progress", "Sampling",
    "Settings", "Tensor", "Turn", "__version__", "add_lora", "ask", "cli", "collate", "cosine_with_warmup",
    "delete_state", "evaluate", "fit", "generate", "gradcheck", "load_adapter", "load_engine", "load_model",
    "load_model_and_tokenizer", "load_state", "load_tokenizer", "merge_lora", "no_grad", "op", "parse_columns",
    "read_entries", "read_with_account", "reply", "reply_all", "save_adapter", "save_model", "save_state",
    "save_tokenizer", "split", "stream_text", "train", "warm_up",
]
