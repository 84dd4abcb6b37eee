"""config.json of a model folder, there and back."""

import os
from dataclasses import asdict, fields
from pathlib import Path

from .files import read_json
from .gpt2 import GPT2Config
from .untrusted import is_whole, shown

# Other names for the same that transformers reads as well.
ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
           "num_hidden_layers": "n_layer"}
MAX_SIZE = 2**31 - 1  # of any number that says how large the model is
# What would be another model: name, what it is, and the remedy.
REFUSED = {
    "add_cross_attention": ("attention to an encoder", "take a GPT-2 that is a language model by itself"),
    "quantization_config": ("quantised weights", "save it from transformers in float32, float16 or bfloat16"),
    "pruned_heads": ("layers with fewer heads than n_head", "take the model before its heads were pruned"),
}


def read_config(folder: str | os.PathLike) -> GPT2Config:
    """The GPT2Config of a model folder; ValueError where config.json asks for what tinyft's GPT-2 is not."""
    folder = Path(folder)
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():  # transformers would apply it, even beside whole weights
        raise ValueError(f"{folder} holds an adapter (adapter_config.json) for a model; tinyft's "
                         "load_model_and_tokenizer and examples/merge_adapter.py put it onto its base")
    if not path.exists():
        what = "has no config.json; is it a model folder" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}? Expected config.json, model.safetensors, vocab.json, merges.txt")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("model_type", "gpt2") != "gpt2":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path}: model_type is {shown(kind)}, expected 'gpt2'")
    for name, (what, remedy) in REFUSED.items():
        if raw.get(name):
            raise ValueError(f"{path}: {name} is {shown(raw[name])}, but {what} can't be read; {remedy}")
    for alias, name in ALIASES.items():
        if alias in raw and raw.setdefault(name, raw[alias]) != raw[alias]:
            raise ValueError(f"{path}: {alias} is {shown(raw[alias])} and {name} is {shown(raw[name])}, but they are "
                             "the same thing; remove the wrong one")
    known = {field.name for field in fields(GPT2Config)}
    values = {name: value for name, value in raw.items() if name in known}
    for name, value in values.items():
        if isinstance(value, dict | list) or isinstance(value, str) and len(value) > 100 or (
                type(value) is int and not is_whole(value, -MAX_SIZE, MAX_SIZE)):
            raise ValueError(f"{path}: {name} is {shown(value)}, expected a number, a word, true or false")
    try:
        return GPT2Config(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def config_values(config: GPT2Config, dtype: str) -> dict:
    """What config.json says of the model. dtype: of the weights in the file, "float32" or "float16"."""
    # transformers 5 calls it dtype and reads torch_dtype as well; transformers 4 knows only that.
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **asdict(config), "torch_dtype": dtype}
