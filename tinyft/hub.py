"""Models on the Hugging Face hub, by name."""

import os
import re
from pathlib import Path

from .gpt2 import SIZES
from .tokenizer_files import TOKENIZER_FILES

WANTED = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
          "model-*-of-*.safetensors", "adapter_config.json", "adapter_model.safetensors", *TOKENIZER_FILES]


def find_model(name: str | os.PathLike) -> Path:
    """The folder of a model: a folder as it is, or one fetched from the hub into huggingface_hub's usual cache.

    name: a folder, "owner/name" as the hub has it, or one of OpenAI's four (gpt2, gpt2-medium, gpt2-large, gpt2-xl).
    ValueError in one line without network, without the library, or where the hub has no such model in safetensors.
    """
    if Path(name).is_dir():
        return Path(name)
    name = str(name)
    if name not in SIZES and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(f"{name}: neither a folder nor a model of the Hugging Face hub, which is 'owner/name' or one "
                         f"of {', '.join(SIZES)}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{name} is no folder; as a model of the Hugging Face hub it is fetched with huggingface_hub: "
                         "pip install huggingface_hub") from None
    try:
        folder = Path(snapshot_download(f"openai-community/{name}" if name in SIZES else name, allow_patterns=WANTED))
    except Exception as error:  # the hub's library raises what its network layers raise
        raise ValueError(f"{name} is no folder, and no model that is in the cache or could be fetched from the Hugging "
                         f"Face hub ({type(error).__name__}); check the name and the network, or give a folder"
                         ) from None
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name} has no weights in safetensors on the Hugging Face hub; load it in transformers, save "
                         "it with save_pretrained(folder), and give that folder")
    return folder


def name_of(model: str | os.PathLike) -> str:
    """What to call a model: its folder's name, or that of the run whose model/ it is; as it is if it is no folder."""
    folder = Path(model).resolve()
    if not folder.is_dir():
        return str(model)
    return folder.parent.name if folder.name == "model" else folder.name
