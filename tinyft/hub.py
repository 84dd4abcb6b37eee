"""Models on the Hugging Face hub, by name."""

import os
import re
from pathlib import Path

HUB_NAMES = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
             "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl"}
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
               "model-*.safetensors", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]


def find_model(name: str | os.PathLike) -> Path:
    """The folder of a model: as given, or fetched from the hub into its usual cache.

    name: a folder, gpt2, gpt2-medium, gpt2-large or gpt2-xl, or any "owner/name" on the hub. ValueError in one line
    without network, without the library, or if there is no such model.
    """
    name = str(name)
    if Path(name).is_dir():
        return Path(name)
    if name not in HUB_NAMES and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"--model {name}: neither a folder, nor one of {', '.join(HUB_NAMES)}, nor OWNER/NAME on the "
                         "Hugging Face hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"--model {name} is no folder; from the Hugging Face hub it is fetched with huggingface_hub: "
                         "pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(HUB_NAMES.get(name, name), allow_patterns=MODEL_FILES))
    except Exception as error:  # the hub's library raises what its network layers raise
        raise ValueError(f"--model {name} is no folder, and could not be fetched from the Hugging Face hub "
                         f"({type(error).__name__}); check the name and the network, or give a folder") from None
