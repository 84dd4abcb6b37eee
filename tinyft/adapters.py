"""Adapter folders in PEFT's layout: LoRA's small matrices alone, and the name of the model that they belong to.

`adapter_config.json` and `adapter_model.safetensors` are what peft 0.21 writes for GPT-2 and reads; beside them stand
the tokenizer's files. Reading follows what the tensors say about which layers are adapted; settings that would make
other numbers of the same tensors are refused by name.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
from safetensors import safe_open

from .checkpoint import MODEL_FILES, load_model, model_description, save_model, weights_fingerprint
from .files import read_json, recover_folder, replacing_folder, to_json
from .gpt2 import GPT2
from .hub import find_model
from .lora import (
    LoraConfig,
    LoraLinear,
    has_lora,
    linear_layers,
    lora_config,
    lora_layers,
    lora_parameters,
    merge_lora,
    name_ends_in,
)
from .nn import Linear
from .safetensors_file import forget_pages, read_header, read_tensors
from .tensor_files import write_tensors
from .tokenizer import Tokenizer
from .tokenizer_files import load_tokenizer
from .untrusted import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.transformer."
# peft warns of keys in adapter_config.json that it doesn't know, so that this stands in the tensors' file.
FINGERPRINT = "tinyft_base"
# What would be another adapter than plain LoRA, besides all that is called use_... or ..._config: its name in words.
REFUSED = {
    "use_dora": "DoRA", "lora_bias": "biases on B", "modules_to_save": "whole layers saved beside the adapter",
    "rank_pattern": "ranks of their own for some layers", "alpha_pattern": "alphas of their own for some layers",
    "layer_replication": "layers that are used twice", "trainable_token_indices": "rows of the token table",
    "target_parameters": "adapters on parameters outside of layers", "alora_invocation_tokens": "an adapter that works "
    "behind certain tokens only",
}
HARMLESS = ("use_rslora", "eva_config")  # the second only says how A was drawn
# Ways to draw A and B that leave the base model as it is; PiSSA, OLoRA and their like change it.
INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# Parts of the names of tensors that are no LoRA of a GPT-2's layers: what they are.
OTHER_TENSORS = {"lora_magnitude_vector": "DoRA", "lora_embedding": "an adapter on a table of embeddings",
                 ".wte.": "the token table", ".wpe.": "the table of positions", "lm_head": "the output layer",
                 "modules_to_save": "a whole layer", ".bias": "a bias"}


# ---- writing


def save_adapter(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike, base: str | os.PathLike) -> None:
    """Write the adapters of a model as a folder that peft and `load_adapter` read; an old one is replaced at once.

    base: the folder or hub name of the model that they were added to. ValueError if there are none, or
    if more than they is trainable, which an adapter folder has no place for.

    >>> import tempfile
    >>> import numpy as np
    >>> from tinyft import LoraConfig, add_lora, load_adapter, load_model, load_tokenizer, save_adapter
    >>> model, tokenizer = load_model("weights/tiny-world"), load_tokenizer("weights/tiny-world")
    >>> add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    >>> base = load_model("weights/tiny-world")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(model, tokenizer, folder, base="weights/tiny-world")
    ...     load_adapter(base, folder)
    >>> base.h[0].attn.c_attn.lora_A.shape
    (2, 224)
    """
    config = lora_config(model)
    if config is None:
        raise ValueError("save_adapter: the model has no adapters; add_lora(model, ...) first, or save_model")
    adapters = lora_parameters(model)
    others = [name for name, _ in model.trainable_parameters() if name not in adapters]
    if others:
        raise ValueError(f"save_adapter: {others[0]} is trainable as well, and an adapter folder has no place for it; "
                         "freeze() it before training, or merge_lora(model) and save_model")
    contents = _tokenizer_files(model, tokenizer) | {CONFIG: to_json(_config_values(config, str(base))).encode()}
    tensors = {f"{PREFIX}{name}.weight": parameter.data for name, parameter in adapters.items()}
    with replacing_folder(folder, MODEL_FILES) as beside:
        for name, content in contents.items():
            (beside / name).write_bytes(content)
        write_tensors(beside / WEIGHTS, tensors, {"format": "pt", FINGERPRINT: base_fingerprint(model)}, np.float32)


def _tokenizer_files(model: GPT2, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a model folder holds for its tokenizer, but config.json, which would make it a whole model elsewhere."""
    contents = model_description(model.config, tokenizer)
    del contents["config.json"]
    settings = json.loads(contents.get("tokenizer_config.json", b"{}").decode("utf-8-sig"))
    if not settings.get("tokenizer_class"):  # then config.json would have said it
        settings["tokenizer_class"] = tokenizer.in_config.get("tokenizer_class", "GPT2Tokenizer")
        contents["tokenizer_config.json"] = to_json(settings).encode()
    return contents


def _config_values(config: LoraConfig, base: str) -> dict:
    """adapter_config.json: the keys that all versions of peft since 0.8 know."""
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": None,
        "inference_mode": True, "r": config.rank, "lora_alpha": alpha, "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised, "use_dora": False, "target_modules": list(config.layers),
        "fan_in_fan_out": True, "bias": "none", "modules_to_save": None, "init_lora_weights": True,
        "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {},
        "auto_mapping": None,
    }


def base_fingerprint(model: GPT2) -> str:
    """A short hash that tells base models apart: of what no adapter changes and `compact` leaves in float32.

    So a base into which an adapter has been merged has the hash that it had before.
    """
    return weights_fingerprint({name: parameter for name, parameter in model.named_parameters()
                                if parameter.ndim == 1 or name == "wpe.weight"})


def save_tuned(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike, base: str | os.PathLike) -> None:
    """Save what was trained: the adapters, or the whole model if it has none."""
    if has_lora(model):
        save_adapter(model, tokenizer, folder, base)
    else:
        save_model(model, tokenizer, folder)


# ---- reading


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(folder) / CONFIG).exists()


def load_adapter(model: GPT2, folder: str | os.PathLike) -> None:
    """Freeze a base model and put a folder's adapter onto it, unmerged. ValueError where they don't fit together,
    or where the folder holds what tinyft does not do; the model is as it was then.

    See `save_adapter` for an example.
    """
    if has_lora(model):
        raise ValueError("load_adapter: the model has adapters already; merge_lora(model) first")
    folder = Path(folder)
    raw = _read_config(folder)
    layers = {name: getattr(holder, attribute) for name, holder, attribute in linear_layers(model)}
    pairs = _read_pairs(folder, raw["r"], layers)
    config = _lora_config(folder, raw, list(layers), list(pairs))
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        trained_on = (file.metadata() or {}).get(FINGERPRINT)
    if trained_on not in (None, base_fingerprint(model)):
        raise ValueError(f"{folder}: the adapter was trained on another model than this one of the same shape; name "
                         "the right one with base_model (--base-model FOLDER)")
    model.freeze()
    for name, holder, attribute in linear_layers(model):
        if name in pairs:
            setattr(holder, attribute, LoraLinear(layers[name], config, *pairs[name]))


def restore_tuned(model: GPT2, folder: str | os.PathLike) -> None:
    """Put what `save_tuned` saved back into the model that it was saved from."""
    folder = Path(folder)
    if not has_lora(model):
        best = dict(load_model(folder).named_parameters())
        for name, parameter in model.trainable_parameters():
            parameter.data = best[name].data
        return
    layers = lora_layers(model)
    pairs = _read_pairs(folder, _read_config(folder)["r"], layers)
    for name, layer in layers.items():
        if name not in pairs or pairs[name][0].shape != layer.lora_A.shape:
            raise ValueError(f"{folder / WEIGHTS}: no adapter of rank {len(layer.lora_A)} for {name}; it is of another "
                             "run")
        layer.lora_A.data, layer.lora_B.data = pairs[name]


def load_unmerged(folder: str | os.PathLike, base_model: str | os.PathLike | None = None) -> tuple[GPT2, Tokenizer]:
    """A model folder, or an adapter folder with its base: for inference, which merges matrix by matrix as it copies.

    base_model: a folder or hub name instead of the one that the adapter names. ValueError if it cannot be found, or
    if there is no adapter that needs it; errors of `load_model` and `load_adapter`.
    """
    folder = Path(folder)
    recover_folder(folder)
    if not is_adapter(folder):
        if base_model is not None:
            raise ValueError(f"{folder} is no adapter (it has no {CONFIG}), so that it needs no base model; leave out "
                             "base_model (--base-model)")
        return load_model(folder), load_tokenizer(folder)
    if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ValueError(f"{folder} holds an adapter and a whole model, so that it could mean either; give {CONFIG} "
                         f"and {WEIGHTS} a folder of their own")
    base = find_base(folder, base_model)
    try:
        model = load_model(base)
    except ValueError as error:
        raise ValueError(f"{folder}: the base model of this adapter can't be read: {error}") from None
    load_adapter(model, folder)
    own = any((folder / name).exists() for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    tokenizer, n_rows = load_tokenizer(folder if own else base), model.config.vocab_size
    if max(tokenizer.vocab.values()) >= n_rows:
        raise ValueError(f"{folder}: the tokenizer has {max(tokenizer.vocab.values()) + 1} tokens, the base model "
                         f"{base} only {n_rows}; they don't belong together")
    tokenizer.n_rows = n_rows
    return model, tokenizer


def load_model_and_tokenizer(folder: str | os.PathLike,
                             base_model: str | os.PathLike | None = None) -> tuple[GPT2, Tokenizer]:
    """Both from one folder; an adapter is merged into its base. base_model, errors: see `load_unmerged`.

    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> tokenizer.decode(tokenizer.encode("The dog"))
    'The dog'
    """
    model, tokenizer = load_unmerged(folder, base_model)
    if has_lora(model):
        merge_lora(model, done_with=forget_pages)  # or file and copy would be in memory side by side
        model.unfreeze()
    return model, tokenizer


def find_base(folder: str | os.PathLike, base_model: str | os.PathLike | None = None) -> Path:
    """The folder of an adapter's base model. A path that the adapter names may start here, or in its own folder.

    base_model, errors: see `load_unmerged`.
    """
    folder = Path(folder)
    raw = _read_config(folder)
    recorded = raw.get("base_model_name_or_path")
    remedy = "name it with base_model (--base-model FOLDER), or merge the adapter first (examples/merge_adapter.py)"
    if base_model is not None:
        base = find_model(base_model)
    elif not isinstance(recorded, str) or not recorded.isprintable() or not 0 < len(recorded) <= 1000:
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path is {shown(recorded)}, expected the model that "
                         f"the adapter was trained on; {remedy}")
    elif raw.get("revision") not in (None, "main"):
        raise ValueError(f"{folder / CONFIG}: the base model is revision {shown(raw['revision'])} of {recorded}; fetch "
                         f"that and {remedy}")
    else:
        try:
            places = [place for place in (Path(recorded), folder / recorded) if place.is_dir()]
            base = find_model(places[0] if places else recorded)
        except (ValueError, OSError) as error:
            raise ValueError(f"{folder}: the base model of this adapter, {shown(recorded)}, can't be found ({error}); "
                             f"{remedy}") from None
    if is_adapter(base):
        raise ValueError(f"{folder}: its base model {base} is an adapter itself; merge that one first with "
                         "examples/merge_adapter.py")
    return base


def _read_config(folder: Path) -> dict:
    """adapter_config.json, checked but for what LoraConfig checks. ValueError where it isn't plain LoRA."""
    path = folder / CONFIG
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else raw
        raise ValueError(f"{path}: peft_type is {shown(kind)}, expected 'LORA'; merge it with peft's "
                         "model.merge_and_unload() and save the whole model")
    for name, value in raw.items():
        if value and (name in REFUSED or name.startswith("use_") or name.endswith("_config")) and name not in HARMLESS:
            raise ValueError(f"{path}: {shown(name)} is {shown(value)}, but {REFUSED.get(name, 'that')} can't be read; "
                             "merge it with peft's model.merge_and_unload() and save the whole model")
    for name, allowed in (("bias", ("none",)), ("task_type", (None, "CAUSAL_LM")), ("init_lora_weights", INITS)):
        if name in raw and not (isinstance(raw[name], str | bool | None) and raw[name] in allowed):
            raise ValueError(f"{path}: {name} is {shown(raw[name])}, expected one of "
                             f"{', '.join(map(repr, allowed))}; merge it with peft's model.merge_and_unload() and save "
                             "the whole model")
    if type(raw.get("r")) is not int or raw["r"] < 1:
        raise ValueError(f"{path}: r is {shown(raw.get('r'))}, expected a whole number of at least 1")
    return raw


def _lora_config(folder: Path, raw: dict, layers: list[str], adapted: list[str]) -> LoraConfig:
    """What adapter_config.json says. ValueError if a layer that it names is not adapted.

    Where it names layers by a pattern, which would have to be run, or leaves some out, the tensors' names say it all.
    """
    path, targets = folder / CONFIG, raw.get("target_modules")
    names = tuple(adapted)
    if isinstance(targets, list) and all(isinstance(target, str) and target for target in targets):
        targets = tuple(sorted(target.removeprefix("transformer.") for target in targets))
        meant = [name for name in layers if any(name_ends_in(name, target) for target in targets)]
        if meant == adapted:
            names = targets
        elif not (raw.get("layers_to_transform") is not None or raw.get("exclude_modules")):
            odd = min(set(meant) ^ set(adapted))
            raise ValueError(f"{path}: target_modules are {shown(raw['target_modules'])}, but {WEIGHTS} has "
                             f"{'an' if odd in adapted else 'no'} adapter for {odd}; the files don't belong together")
    try:
        return LoraConfig(raw["r"], raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0), names,
                          raw.get("use_rslora", False))
    except ValueError as error:
        raise ValueError(f"{path}: {shown(str(error), 300)[1:-1]}") from None


def _read_pairs(folder: Path, rank: int, layers: dict[str, Linear]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A (rank, n_in) and B (n_out, rank) of each layer that a folder has them for, in the order of `layers`.

    ValueError for anything else that its file has, or lacks; shapes are compared before memory is taken for them.
    """
    path = folder / WEIGHTS
    if not path.exists():
        pickled = "; adapter_model.bin is a PyTorch pickle: load it in peft and save it with save_pretrained" * (
            folder / "adapter_model.bin").exists()
        raise ValueError(f"{path} is missing, expected the adapter's tensors{pickled}")
    found: dict[str, dict[str, str]] = {}
    for stored, entry in read_header(path).items():
        match = re.fullmatch(r"base_model\.model\.(?:transformer\.)?(h\.\d+\.\w+\.\w+)\.lora_([AB])\.weight", stored)
        if match is None:
            what = next((what for part, what in OTHER_TENSORS.items() if part in stored), "something else")
            raise ValueError(f"{path}: tensor '{stored}' belongs to {what}, expected LoRA on a GPT-2's layers alone, "
                             f"with names like {PREFIX}h.0.attn.c_attn.lora_A.weight")
        name, letter = match.groups()
        if name not in layers:
            raise ValueError(f"{path}: there is an adapter for {name}, which the base model doesn't have; they don't "
                             "belong together")
        n_in, n_out = layers[name].weight.shape
        expected = (rank, n_in) if letter == "A" else (n_out, rank)
        if tuple(entry["shape"]) != expected:
            raise ValueError(f"{path}: tensor '{stored}' is {tuple(entry['shape'])}, expected {expected} for r = "
                             f"{shown(rank)} and this base model; they don't belong together")
        if found.setdefault(name, {}).setdefault(letter, stored) != stored:
            raise ValueError(f"{path}: '{found[name][letter]}' and '{stored}' are the same matrix; remove one of them")
    for name, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"{path}: lora_{'B' if 'A' in pair else 'A'} of {name} is missing; copy the adapter again")
    if not found:
        raise ValueError(f"{path} has no tensors; save the adapter again")
    tensors = read_tensors(path)
    return {name: tuple(tensors[found[name][letter]].astype(layer.bias.dtype) for letter in "AB")
            for name, layer in layers.items() if name in found}
