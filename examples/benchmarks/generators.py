"""What a person could generate with instead: one function for each peer, which loads a model folder.

Weights are random, drawn once from a seed and the same for all: how fast a model writes does not depend on what.
Packages are imported inside, since each peer runs in a process of its own, and only where it is installed.
"""

import importlib.util
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from tinyft.kernels.jit import HOST_FEATURES

from .processes import threads_given

MARK = "_generates_"  # in the name of a process, between the peer and the kind of its weights
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "F32": 32, "F16": 16, "Q8_0": 8}
PARTS = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
         "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "wte": "token_embd", "wpe": "position_embd",
         "ln_f": "output_norm"}  # GPT-2's names and llama.cpp's
# llama.cpp repacks eight-bit weights for the matrix unit, where a CPU has one, and crashes in products with them (its
# issue 20824, seen with llama-cpp-python 0.3.36). Left as they are, they are multiplied in vectors.
LLAMA_REPACKS = "amx-tile" not in HOST_FEATURES
Prompts = list[list[int]]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to write.

    write(prompts, count, tell) returns the `count` likeliest tokens after each prompt, one after the other, and calls
    tell() whenever all prompts have got one more. weight_bytes: what it keeps of weights.
    """

    write: Callable[[Prompts, int, Callable[[], None]], Prompts]
    weight_bytes: int


# ---- what is to be done


def make_tokenizer(size: int):
    """A tokenizer of that many tokens: single bytes, pairs of bytes, and one that ends a text."""
    import tiktoken

    from tinyft.tokenizer import BYTE_OF, PATTERN, from_tiktoken

    order = list(BYTE_OF.values())  # GPT-2's, which begins with what can be printed
    tokens = [*([byte] for byte in order), *product(order, order)][: size - 1]
    ranks = {bytes(token): rank for rank, token in enumerate(tokens)}
    return from_tiktoken(tiktoken.Encoding("made-up", pat_str=PATTERN, mergeable_ranks=ranks,
                                           special_tokens={"<|endoftext|>": len(ranks)}))


def make_folder(folder: Path, shape: dict[str, int]) -> Path:
    """Save a model of random weights there, which never ends a reply by itself."""
    from tinyft import GPT2, GPT2Config, save_model

    model, tokenizer = GPT2(GPT2Config(**shape), np.random.default_rng(0)), make_tokenizer(shape["vocab_size"])
    model.wte.weight.data[tokenizer.eot_token] = 0  # its logit is 0, and the largest of all others is far above
    save_model(model, tokenizer, folder)
    return folder


def make_prompts(seed: int, rows: int, length: int, vocabulary: int) -> Prompts:
    """Random tokens, so that no two prompts begin alike: nothing that was read for one serves another."""
    return np.random.default_rng(seed).integers(0, vocabulary - 1, (rows, length)).tolist()


# ---- who does it


def tinyft(folder: Path, weights: str) -> Loaded:
    """tinyft's scheduler, as its server uses it."""
    from tinyft.inference.engine import load_engine
    from tinyft.inference.scheduler import Request, Scheduler

    engine, _ = load_engine(folder, weights=weights)
    scheduler = Scheduler(engine)

    def write(prompts, count, tell):
        requests = [Request(prompt, max_new_tokens=count) for prompt in prompts]
        for request in requests:
            scheduler.submit(request)
        while not scheduler.idle:
            if scheduler.step():
                tell()
        return [request.tokens for request in requests]

    return Loaded(write, engine.weight_bytes)


def _load_transformers(folder: Path, dtype: str):
    """PyTorch and the model."""
    import torch
    import transformers

    torch.set_num_threads(threads_given())
    transformers.utils.logging.disable_progress_bar()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return torch, model, sum(parameter.nbytes for parameter in model.parameters())


def transformers_loop(folder: Path, dtype: str) -> Loaded:
    """transformers with its cache in the shortest loop that one can write, which is faster than its `generate`."""
    torch, model, weight_bytes = _load_transformers(folder, dtype)
    # Recent versions have another name for it and complain about the old one.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def write(prompts, count, tell):
        ids, cache, tokens = torch.tensor(prompts), None, []
        with torch.inference_mode():
            for _ in range(count):
                output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache})
                ids, cache = output.logits[:, -1].argmax(-1, keepdim=True), output[name]
                tokens.append(ids)
                tell()
        return torch.cat(tokens, 1).tolist()

    return Loaded(write, weight_bytes)


class _Teller:
    """What transformers' `generate` takes for a streamer: it is given the prompts, then the tokens of each step."""

    def __init__(self, tell: Callable[[], None]):
        self.tell, self.has_prompts = tell, False

    def put(self, ids) -> None:
        if self.has_prompts:
            self.tell()
        self.has_prompts = True

    def end(self) -> None:
        pass


def transformers_generate(folder: Path, dtype: str) -> Loaded:
    """transformers' `generate`; several prompts are one padded batch, here of equal lengths."""
    torch, model, weight_bytes = _load_transformers(folder, dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def write(prompts, count, tell):
        ids = torch.tensor(prompts)
        replies = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                                 streamer=_Teller(tell))
        return replies[:, ids.shape[1]:].tolist()

    return Loaded(write, weight_bytes)


def _gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor: "h.3.attn.c_attn.weight" is "blk.3.attn_qkv.weight" there."""
    part, end = name.rsplit(".", 1)
    if not part.startswith("h."):
        return f"{PARTS[part]}.{end}"
    _, layer, part = part.split(".", 2)
    return f"blk.{layer}.{PARTS[part]}.{end}"


def write_gguf(folder: Path, kind: str) -> Path:
    """llama.cpp's file of the model in a folder, written there once. It has no tokenizer, only token ids."""
    import gguf
    from safetensors.numpy import load_file

    path = folder / f"{kind}.gguf"
    if path.exists():
        return path
    config, numbers = json.loads((folder / "config.json").read_text()), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        if tensor.ndim == 2 and name.startswith("h."):
            tensor = np.ascontiguousarray(tensor.T)
        if tensor.ndim == 2 and name != "wpe.weight" and kind != "F32":
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(tensor, numbers), raw_dtype=numbers)
        else:
            writer.add_tensor(_gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp(folder: Path, kind: str) -> Loaded:
    """llama.cpp by its own functions: the class around them in Python costs time of its own."""
    import llama_cpp as llama

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # it takes llama.cpp's warnings for errors
    path, config = write_gguf(folder, kind), json.loads((folder / "config.json").read_text())
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = config["n_positions"], 512, 512
    options.n_threads = options.n_threads_batch = threads_given()
    where = llama.llama_model_default_params()
    where.use_extra_bufts = LLAMA_REPACKS
    model = llama.llama_model_load_from_file(str(path).encode(), where)
    context = model and llama.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError(f"llama.cpp cannot load {path}; reinstall it with {PEERS['llama.cpp'].install}")

    def read(ids) -> int:
        tokens = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"llama.cpp cannot read {len(ids)} tokens with a context of {options.n_ctx}")
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(config["vocab_size"],))
        return int(logits.argmax())

    def write_one(prompt, count, tell):
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        reply = []
        for _ in range(count):
            reply.append(read(reply[-1:] or prompt))
            tell()
        return reply

    return Loaded(lambda prompts, count, tell: [write_one(prompt, count, tell) for prompt in prompts],
                  path.stat().st_size)


@dataclass(frozen=True)
class Peer:
    """How to load a model folder with weights of a kind, which kinds there are, and what has to be installed for it."""

    load: Callable[[Path, str], Loaded]
    kinds: tuple[str, ...]
    packages: tuple[str, ...] = ()
    install: str = ""

    def is_installed(self) -> bool:
        """Whether its packages can be imported, found out without importing them here."""
        return all(importlib.util.find_spec(package) for package in self.packages)


TORCH = ("torch", "transformers"), "pip install torch transformers"
PEERS = {
    "tinyft": Peer(tinyft, ("float32", "bfloat16", "int8")),
    "transformers": Peer(transformers_loop, ("float32", "bfloat16"), *TORCH),
    "transformers.generate": Peer(transformers_generate, ("float32",), *TORCH),
    "llama.cpp": Peer(llama_cpp, ("F32", "F16", "Q8_0"), ("llama_cpp", "gguf"),
                      "pip install gguf llama-cpp-python, which compiles for some minutes"),
}


def installed(without_torch: bool) -> tuple[dict[str, Peer], dict[str, Peer]]:
    """The peers that are, and those that are not; neither has those on PyTorch if it is to be left out."""
    wanted = {name: peer for name, peer in PEERS.items() if not (without_torch and "torch" in peer.packages)}
    here = {name: peer for name, peer in wanted.items() if peer.is_installed()}
    return here, {name: peer for name, peer in wanted.items() if name not in here}


# ---- a process of its own


def process_name(peer: str, kind: str) -> str:
    """What `--serve` is given for it."""
    return peer + MARK + kind


def _carry_out(loaded: Loaded, prompts: Prompts, count: int, apart: bool) -> dict[str, float]:
    """Seconds until every prompt has its first token, from there to the last, and of everything."""
    times = [time.perf_counter()]
    for some in ([[prompt] for prompt in prompts] if apart else [prompts]):
        replies = loaded.write(some, count, lambda: times.append(time.perf_counter()))
        if any(len(reply) != count for reply in replies):
            raise RuntimeError(f"asked for {count} tokens a prompt, got {sorted(map(len, replies))}")
    return {"first": times[1] - times[0], "rest": times[-1] - times[1], "whole": time.perf_counter() - times[0]}


def serve(name: str) -> None:
    """The process's side. The first line names a model folder, each that follows says what to write.

    They are JSON, and so are the answers: bytes of weights, then seconds as "step", and the peak memory in MB.
    """
    from tinyft.memory import peak_megabytes

    peer, kind = name.split(MARK)
    print("ready", flush=True)
    folder = sys.stdin.readline()
    if not folder:
        return
    folder = Path(json.loads(folder))
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    loaded = PEERS[peer].load(folder, kind)
    print(json.dumps(loaded.weight_bytes), flush=True)
    for line in sys.stdin:
        seed, rows, length, count, apart = json.loads(line)
        seconds = _carry_out(loaded, make_prompts(seed, rows, length, vocabulary), count, apart)
        print(json.dumps({"step": seconds, "peak": peak_megabytes()}), flush=True)
