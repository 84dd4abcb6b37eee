"""Model folders in Hugging Face's GPT-2 layout, and a training run's state."""

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .files import make_writable_folder, read_json, replacing, to_json
from .gpt2 import GPT2, GPT2Config
from .optim import AdamW
from .tokenizer import Tokenizer
from .tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from .train import Progress

STORED_AS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
SAVE_DTYPES = {"float32": np.float32, "float16": np.float16}


# ---- reading


def _what_it_is(path: Path) -> str:
    """Name a file that carries the name of safetensors but not the format, and the remedy."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights; run 'git lfs pull' in that folder"
    if start[:1] == b"<":
        return "it is an HTML page, not the weights; the download failed, fetch the file again"
    if start.startswith((b"PK", b"\x80")):
        return ("it is a PyTorch pickle, not safetensors; load it in transformers and save it with "
                "save_pretrained(folder, safe_serialization=True)")
    return "it is not a whole safetensors file; copy or download it again"


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name, as views of the mapped file; bfloat16 becomes float32.

    float32 and float16 arrays are copy-on-write: changing one changes memory, never the file. GPT-2's boolean
    masks are left out. ValueError if the file is not what it says it is.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a safetensors file")
    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file's size
            pass
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {_what_it_is(path)} ({error})") from None
    # The format (huggingface.co/docs/safetensors): 8 bytes length of the header, the header as JSON, the data.
    mapped = np.asarray(np.memmap(path, mode="c"))
    data_start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:data_start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        stored = STORED_AS.get(entry["dtype"])
        if stored is None:
            raise ValueError(f"{path}: tensor '{name}' is {entry['dtype']}, expected one of {', '.join(STORED_AS)}")
        start, end = (data_start + offset for offset in entry["data_offsets"])
        raw = mapped[start:end]
        array = (raw if start % stored().itemsize == 0 else raw.copy()).view(stored).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


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
    pickles = sorted(folder.glob("*.bin"))
    remedy = (f"; {pickles[0].name} is a PyTorch pickle: load it in transformers and save it with "
              "save_pretrained(folder, safe_serialization=True)" if pickles else "")
    raise ValueError(f"{folder} has no model.safetensors and no model.safetensors.index.json, "
                     f"expected a folder with weights{remedy}")


def read_config(folder: str | os.PathLike) -> GPT2Config:
    """The GPT2Config of a model folder; ValueError where config.json asks for what tinyft's GPT-2 is not."""
    path = Path(folder) / "config.json"
    if not path.exists():
        what = "has no config.json; is it a model folder" if Path(folder).is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}? Expected config.json, model.safetensors, vocab.json, merges.txt")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("model_type", "gpt2") != "gpt2":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path}: model_type is {kind!r}, expected 'gpt2'")
    if raw.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ValueError(f"{path}: activation_function is {raw['activation_function']!r}, expected 'gelu_new'")
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                        ("tie_word_embeddings", True), ("add_cross_attention", False)):
        if raw.get(name, usual) != usual:
            raise ValueError(f"{path}: {name} is {raw[name]}, only {usual} is supported")
    known = {field.name for field in fields(GPT2Config)}
    try:
        return GPT2Config(**{name: value for name, value in raw.items() if name in known})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_model(folder: str | os.PathLike) -> GPT2:
    """The model in a folder, in float32. Float32 weights stay in the mapped file until training writes them.

    ValueError names the missing or mis-shaped tensor.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(folder):
        tensors |= {name.removeprefix("transformer."): array for name, array in read_tensors(path).items()}
    model = GPT2(config)
    for name, parameter in model.named_parameters():
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise ValueError(f"{folder}: tensor '{name}' is missing; config.json says n_layer = {config.n_layer}")
        if tensor.shape != parameter.shape:
            raise ValueError(f"{folder}: tensor '{name}' is {tensor.shape}, "
                             f"expected {parameter.shape} from config.json")
        parameter.data = np.asarray(tensor, np.float32)
    head = tensors.pop("lm_head.weight", None)
    if head is not None and not np.array_equal(head, model.wte.weight.data):
        raise ValueError(f"{folder}: lm_head.weight differs from wte.weight, expected GPT-2's tied output layer")
    surplus = next((name for name in tensors if name.startswith("h.")), None)
    if surplus is not None:
        raise ValueError(f"{folder}: tensor '{surplus}' has no place in a model with n_layer = {config.n_layer}, "
                         "as config.json says; they don't belong together")
    return model


def load_model_and_tokenizer(folder: str | os.PathLike) -> tuple[GPT2, Tokenizer]:
    """Both from one folder; ValueError if the tokenizer has ids that the model has no row for."""
    return load_model(folder), load_tokenizer(folder)


# ---- writing


def _config_json(config: GPT2Config, dtype: str) -> dict:
    values = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
        **asdict(config), "attn_pdrop": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True,
        "torch_dtype": dtype,
    }
    return values


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
        "config.json": to_json(_config_json(model.config, dtype) | tokens).encode(),
        "generation_config.json": to_json(tokens | {"eos_token_id": ends if len(ends) > 1 else ends[0]}).encode(),
    }
    tensors = {f"transformer.{name}": np.ascontiguousarray(parameter.data, SAVE_DTYPES[dtype])
               for name, parameter in model.named_parameters()}
    with ExitStack() as together:
        for name, content in contents.items():
            together.enter_context(replacing(folder / name)).write_bytes(content)
        save_file(tensors, together.enter_context(replacing(folder / "model.safetensors")), metadata={"format": "pt"})
    for stale in {*TOKENIZER_FILES, "model.safetensors.index.json"} - contents.keys():
        (folder / stale).unlink(missing_ok=True)


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """bos_token_id, eos_token_id and, where the tokenizer has one, pad_token_id."""
    ids = {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token}
    for name in ("bos_token", "pad_token"):
        id = tokenizer.token_id(tokenizer.special_names.get(name, ""))
        if id is not None:
            ids[f"{name}_id"] = id
    return ids


# ---- the state of a training run


def save_training_state(path: str | os.PathLike, optimizer: AdamW, progress: Progress, settings: dict) -> None:
    """Everything that it takes to go on later: weights, both moments, progress. One file, whole or not at all."""
    tensors = {}
    for name, parameter in optimizer.parameters.items():
        tensors |= {f"weight.{name}": parameter.data, f"m.{name}": optimizer.m[name], f"v.{name}": optimizer.v[name]}
    notes = {"progress": json.dumps(asdict(progress)), "settings": json.dumps(settings),
             "optimizer_steps": str(optimizer.steps)}
    with replacing(path) as beside:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, beside, metadata=notes)


def model_fingerprint(model: GPT2) -> str:
    """A short hash of the first weights of every parameter, to tell whether two runs start from the same model."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
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
