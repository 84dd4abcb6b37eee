"""Model folders in Hugging Face's GPT-2 layout, and a training run's state."""

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .files import make_writable_folder, read_json, replacing, to_json
from .gpt2 import GPT2
from .model_config import config_values, read_config
from .optim import AdamW
from .safetensors_file import read_header, read_tensors
from .tensor import Tensor
from .tokenizer import Tokenizer
from .tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from .train import Progress
from .weight_names import full_name, is_buffer, plain_names, refuse_signs, why_misshaped, why_missing

OTHER_WEIGHTS = {".safetensors": "another safetensors file", ".bin": "a PyTorch pickle", ".pt": "a PyTorch pickle",
                 ".pth": "a PyTorch pickle", ".ckpt": "a PyTorch pickle", ".h5": "TensorFlow's",
                 ".msgpack": "Flax's", ".gguf": "llama.cpp's"}
SAVE_DTYPES = {"float32": np.float32, "float16": np.float16}


# ---- reading


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        content = read_json(index)
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise ValueError(f"{index}: 'weight_map' is missing, expected an index of safetensors files")
        return [folder / str(name) for name in sorted(map(str, set(content["weight_map"].values())))]
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
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_weights(folder)
    if config.tie_word_embeddings:
        _tie(folder, tensors)
    model = GPT2(config)
    there = set(tensors)
    for name, parameter in model.named_parameters():
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise ValueError(f"{folder}: tensor '{name}' is missing; {why_missing(name, there, config.n_layer)}")
        if tensor.shape != parameter.shape:
            raise ValueError(f"{folder}: tensor '{name}' is {tensor.shape}, expected {parameter.shape}; "
                             f"{why_misshaped(name, tensor.shape, parameter.shape)}")
        parameter.data = np.asarray(tensor, np.float32)
    if tensors:
        raise ValueError(f"{folder}: tensor '{min(tensors)}' has no place in a GPT-2 with n_layer = {config.n_layer}, "
                         "as config.json says; they don't belong together")
    return model


def load_model_and_tokenizer(folder: str | os.PathLike) -> tuple[GPT2, Tokenizer]:
    """Both from one folder; ValueError if the tokenizer has ids that the model has no row for."""
    return load_model(folder), load_tokenizer(folder)


# ---- writing


def save_model(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike,
               dtype: str = "float32") -> None:
    """Write a folder that transformers, llama.cpp's converter and `load_model` read; dtype may be "float16".

    All files are written beside first and then take their names, one right after the other: an error while
    writing leaves the old model whole. Files of an older model that other tools would read instead are removed.
    """
    if dtype not in SAVE_DTYPES:
        raise ValueError(f"save_model: dtype is {dtype!r}, expected one of {', '.join(SAVE_DTYPES)}")
    folder = make_writable_folder(folder)
    tokens, ends = _special_ids(tokenizer), list(tokenizer.stop_tokens)
    contents = {
        **tokenizer_files(tokenizer),
        "config.json": to_json(config_values(model.config, dtype) | tokens | tokenizer.in_config).encode(),
        "generation_config.json": to_json(tokens | {"eos_token_id": ends if len(ends) > 1 else ends[0]}).encode(),
    }
    tensors = {full_name(name): np.ascontiguousarray(parameter.data, SAVE_DTYPES[dtype])
               for name, parameter in model.named_parameters()}
    with ExitStack() as together:
        for name, content in contents.items():
            together.enter_context(replacing(folder / name)).write_bytes(content)
        save_file(tensors, together.enter_context(replacing(folder / "model.safetensors")), metadata={"format": "pt"})
    others = {"model.safetensors.index.json", "additional_chat_templates/default.jinja"}
    for stale in {*TOKENIZER_FILES, *others} - contents.keys():
        (folder / stale).unlink(missing_ok=True)


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """bos_token_id, eos_token_id and, where the tokenizer has one, pad_token_id."""
    ids = {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token}
    for name in ("bos_token", "pad_token"):
        id = tokenizer.token_id(tokenizer.special_names.get(name, ""))
        if id is not None:
            ids[f"{name}_id"] = id
    return ids | {name: id for name, id in tokenizer.in_config.items() if name == "pad_token_id"}


# ---- the state of a training run


def save_training_state(path: str | os.PathLike, optimizer: AdamW, progress: Progress, settings: dict) -> None:
    """What it takes to go on later: trainable weights, both moments, progress. One file, whole or not at all.

    Frozen weights stand in the model that the run started from.
    """
    tensors = {}
    for name, parameter in optimizer.parameters.items():
        tensors |= {f"weight.{name}": parameter.data, f"m.{name}": optimizer.m[name], f"v.{name}": optimizer.v[name]}
    notes = {"progress": json.dumps(asdict(progress)), "settings": json.dumps(settings),
             "optimizer_steps": str(optimizer.steps)}
    with replacing(path) as beside:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, beside, metadata=notes)


def model_fingerprint(model: GPT2) -> str:
    """A short hash of the first weights of every parameter, to tell whether two runs start from the same model."""
    return weights_fingerprint(dict(model.named_parameters()))


def weights_fingerprint(parameters: dict[str, Tensor]) -> str:
    """The same of some parameters by name."""
    digest = hashlib.sha256()
    for name, parameter in parameters.items():
        digest.update(f"{name} {parameter.data.shape}".encode() + parameter.data.ravel()[:256].tobytes())
    return digest.hexdigest()[:16]


def check_training_state(path: str | os.PathLike, settings: dict) -> dict[str, str]:
    """The notes of a saved state. ValueError if it is none, or was saved by a run with other settings."""
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: no state of a training run ({error})") from None
    if "progress" not in notes:
        raise ValueError(f"{path} is not a training state, expected one that save_training_state wrote")
    for name, value in json.loads(notes.get("settings", "{}")).items():
        if settings.get(name) != value:
            raise ValueError(f"{path}: the run was started with {name} = {value}, now it is {settings.get(name)}; "
                             "resume with the same, or start anew without --resume")
    return notes


def load_training_state(path: str | os.PathLike, optimizer: AdamW, settings: dict) -> Progress:
    """Put a saved state into the optimizer and its parameters, in place; returns the progress.

    ValueError if it belongs to another model, or was saved by a run with other settings.
    """
    tensors = read_tensors(path)
    notes = check_training_state(path, settings)
    places = {}
    for name, parameter in optimizer.parameters.items():
        places |= {f"weight.{name}": parameter.data, f"m.{name}": optimizer.m[name], f"v.{name}": optimizer.v[name]}
    for name in sorted(places.keys() | tensors.keys()):
        saved, place = tensors.get(name), places.get(name)
        if saved is None or place is None or saved.shape != place.shape:
            shapes = ["absent" if array is None else array.shape for array in (saved, place)]
            raise ValueError(f"{path}: '{name}' is {shapes[0]}, expected {shapes[1]}; "
                             "the state belongs to another model")
    for name, place in places.items():
        place[...] = tensors[name]
    optimizer.steps = int(notes["optimizer_steps"])
    return Progress(**json.loads(notes["progress"]))
