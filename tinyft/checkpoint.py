"""Model folders in Hugging Face's GPT-2 layout."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from .files import read_json, recover_folder, replacing_folder, to_json
from .gpt2 import GPT2, GPT2Config
from .model_config import config_values, read_config
from .safetensors_file import read_header, read_tensors
from .tensor import Tensor
from .tensor_files import write_tensors
from .tokenizer import Tokenizer
from .tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from .untrusted import shown
from .weight_names import (
    expected_shapes,
    full_name,
    is_buffer,
    plain_names,
    refuse_signs,
    why_misshaped,
    why_missing,
)

OTHER_WEIGHTS = {".safetensors": "another safetensors file", ".bin": "a PyTorch pickle", ".pt": "a PyTorch pickle",
                 ".pth": "a PyTorch pickle", ".ckpt": "a PyTorch pickle", ".h5": "TensorFlow's",
                 ".msgpack": "Flax's", ".gguf": "llama.cpp's"}
# What of a model folder belongs to one model, or one adapter, and must not stand beside another's.
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
               "adapter_config.json", "adapter_model.safetensors", "additional_chat_templates/default.jinja",
               *TOKENIZER_FILES)
SAVE_DTYPES = {"float32": np.float32, "float16": np.float16}


# ---- reading


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: 'weight_map' is missing, expected an index of safetensors files")
        return [folder / name for name in sorted({_inside(name, index) for name in weight_map.values()})]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    if not others:
        remedy = ""
    elif others[0].endswith(".safetensors"):
        remedy = f"; there is {others[0]}: rename it if it is the whole model"
    else:
        remedy = (f"; {others[0]} is {OTHER_WEIGHTS[Path(others[0]).suffix]}: load it in transformers and save it "
                  "with save_pretrained(folder, safe_serialization=True)")
    raise ValueError(f"{folder} has no model.safetensors and no model.safetensors.index.json, "
                     f"expected a folder with weights{remedy}")


def _inside(name, index: Path) -> str:
    """The name of a file beside the index. ValueError if it is none: nothing outside of the folder is opened.

    A file may be a link, as the hub's cache makes them; a folder's name that could be one is refused.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w. -]{0,200}\.safetensors", name, re.ASCII):
        raise ValueError(f"{index}: {shown(name)} is no name of a file in that folder, expected names like "
                         "'model-00001-of-00002.safetensors'")
    return name


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a model folder under the names of tinyft's GPT2, wherever they come from."""
    paths = _weight_files(folder)
    where: dict[str, Path] = {}
    for path in paths:
        for name in read_header(path):
            if where.setdefault(name, path) != path and not is_buffer(name):
                raise ValueError(f"{folder}: tensor '{name}' stands in {where[name].name} and in {path.name}; files of "
                                 "two models are mixed, copy or download the folder again")
    refuse_signs(folder, where)
    names = plain_names(folder, (name for name in where if not is_buffer(name)))
    stored: dict[str, np.ndarray] = {}
    for path in paths:
        stored |= read_tensors(path, lambda name: name in names)
    return {short: stored[name] for name, short in names.items()}


def _tie(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Leave one of two tables that are the same: files may have either or both."""
    head = tensors.pop("lm_head.weight", None)
    if head is None:
        return
    table = tensors.setdefault("wte.weight", head)
    if table is not head and not np.array_equal(head, table, equal_nan=True):
        raise ValueError(
            f"{folder}: lm_head.weight differs from wte.weight, but config.json doesn't say tie_word_embeddings = "
            "false; transformers 4 would use wte.weight for both, transformers 5 each for its own: say false in "
            "config.json, or remove lm_head.weight")


def load_model(folder: str | os.PathLike) -> GPT2:
    """The model in a folder, in float32. Float32 weights stay in the mapped file until training writes them.

    Prefixes of wrappers are understood, masks left out. ValueError names the tensor that is missing, of another shape,
    or not GPT-2's, or the setting in config.json that asks for another model, with the reason and what to do.

    >>> load_model("weights/tiny-world").n_parameters()
    4583936
    """
    folder = Path(folder)
    recover_folder(folder)
    config = read_config(folder)
    tensors = _read_weights(folder)
    if config.tie_word_embeddings:
        _tie(folder, tensors)
    _check_shapes(folder, tensors, config)
    model = GPT2(config)
    for name, parameter in model.named_parameters():
        parameter.data = np.asarray(tensors.pop(name), np.float32)
    return model


def _check_shapes(folder: Path, tensors: dict[str, np.ndarray], config: GPT2Config) -> None:
    """ValueError unless the tensors are those of the model that config.json describes, before memory is taken for it.

    Stops at the first that is missing, so that it takes no longer than the file is long.
    """
    count = 0
    for name, shape in expected_shapes(config):
        if name not in tensors:
            raise ValueError(f"{folder}: tensor '{name}' is missing; {why_missing(name, set(tensors), config.n_layer)}")
        if tensors[name].shape != shape:
            raise ValueError(f"{folder}: tensor '{name}' is {tensors[name].shape}, expected {shape}; "
                             f"{why_misshaped(name, tensors[name].shape, shape)}")
        count += 1
    if count < len(tensors):
        extra = min(tensors.keys() - {name for name, _ in expected_shapes(config)})
        raise ValueError(f"{folder}: tensor '{extra}' has no place in a GPT-2 with n_layer = {config.n_layer}, "
                         "as config.json says; they don't belong together")


def load_model_and_tokenizer(folder: str | os.PathLike) -> tuple[GPT2, Tokenizer]:
    """Both from one folder; ValueError if the tokenizer has ids that the model has no row for."""
    return load_model(folder), load_tokenizer(folder)


# ---- writing


def save_model(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike,
               dtype: str = "float32") -> None:
    """Write a folder that transformers, llama.cpp's converter and `load_model` read; dtype may be "float16".

    It is written beside, and then the whole folder is replaced at once: at no instant does it hold files of two
    models, and an error while writing leaves the old one. Files that are no model's go along. ValueError for a model
    with adapters on it. OSError if the disk is full, say.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from tinyft import load_model_and_tokenizer, save_model
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(model, tokenizer, folder, dtype="float16")
    ...     sorted(path.name for path in Path(folder).iterdir())[:3]
    ['config.json', 'generation_config.json', 'merges.txt']
    """
    if dtype not in SAVE_DTYPES:
        raise ValueError(f"save_model: dtype is {dtype!r}, expected one of {', '.join(SAVE_DTYPES)}")
    tensors = {full_name(name): parameter.data for name, parameter in model.named_parameters()}
    if any(".lora_" in name for name in tensors):
        raise ValueError("save_model: the model has LoRA adapters on it; merge_lora(model) first, or write them alone "
                         "with save_adapter")
    with replacing_folder(folder, MODEL_FILES) as beside:
        for name, content in model_description(model.config, tokenizer, dtype).items():
            (beside / name).write_bytes(content)
        write_tensors(beside / "model.safetensors", tensors, {"format": "pt"}, SAVE_DTYPES[dtype])


def model_description(config: GPT2Config, tokenizer: Tokenizer, dtype: str = "float32") -> dict[str, bytes]:
    """What a model folder holds beside the weights, by file name: config.json, the tokenizer's files, ..."""
    tokens, ends = _special_ids(tokenizer), list(tokenizer.stop_tokens)
    return {
        **tokenizer_files(tokenizer),
        "config.json": to_json(config_values(config, dtype) | tokens | tokenizer.in_config).encode(),
        "generation_config.json": to_json(tokens | {"eos_token_id": ends if len(ends) > 1 else ends[0]}).encode(),
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """bos_token_id, eos_token_id and, where the tokenizer has one, pad_token_id."""
    ids = {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token}
    for name in ("bos_token", "pad_token"):
        id = tokenizer.token_id(tokenizer.special_names.get(name, ""))
        if id is not None:
            ids[f"{name}_id"] = id
    return ids | {name: id for name, id in tokenizer.in_config.items() if name == "pad_token_id"}


# ---- telling models apart


def model_fingerprint(model: GPT2) -> str:
    """A short hash of the first weights of every parameter, to tell whether two runs start from the same model."""
    return weights_fingerprint(dict(model.named_parameters()))


def weights_fingerprint(parameters: dict[str, Tensor]) -> str:
    """The same of some parameters by name."""
    digest = hashlib.sha256()
    for name, parameter in parameters.items():
        first = parameter.operand[:256]  # not `data`, which would expand all of a matrix that is kept in fewer bits
        digest.update(f"{name} {parameter.shape}".encode() + first.ravel()[:256].tobytes())
    return digest.hexdigest()[:16]
