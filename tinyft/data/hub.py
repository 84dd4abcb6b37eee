"""Data sets of the Hugging Face hub: which of a repository's files are meant, and how they are fetched."""

import re
from pathlib import Path

from ..files import one_line

ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".jsonl.zst")
SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev", "eval"),
          "test": ("test", "testing")}
NOT_DATA = ("dataset_infos.json", "dataset_info.json", "state.json", "package.json", "config.json")


def fetch_dataset(name: str) -> list[Path]:
    """Files of a data set "owner/name" (its training split) or "owner/name:split", fetched into the hub's usual cache.

    ValueError in one line without huggingface_hub, without network, or where it is not clear which files are meant.
    """
    repository, _, split = name.partition(":")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{name} is missing here, and fetching it as a data set of the Hugging Face hub needs "
                         "huggingface_hub: pip install huggingface_hub, or name a file") from None
    try:
        info = huggingface_hub.HfApi().dataset_info(repository, timeout=20)
        listed = [file.rfilename for file in info.siblings]
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        raise ValueError(f"{name} is missing here, and the Hugging Face hub did not list it as a data set "
                         f"({one_line(error)}); check name and network, or download its files and name them"
                         ) from None
    files = choose_files(listed, name, split)
    try:
        return [Path(huggingface_hub.hf_hub_download(repository, file, repo_type="dataset")) for file in files]
    except Exception as error:
        raise ValueError(f"{name}: could not be fetched from the Hugging Face hub ({one_line(error)}); try again, "
                         "or download its files and name them") from None


def choose_files(listed: list[str], name: str, split: str = "") -> list[str]:
    """The files of one split among all of a repository's: of one kind and from one folder."""
    data = [file for file in sorted(listed) if file.lower().endswith(ENDINGS) and file.split("/")[-1] not in NOT_DATA
            and not file.startswith(".")]
    if not data:
        raise ValueError(f"{name}: no JSON, CSV or Parquet files in this data set; it may be made by a script: save it "
                         "as JSON lines and name the file")
    splits = {file: _split_of(file) for file in data}
    wanted = SPLITS.get(split, (split,))[0] if split else "train"
    wanted = next((known for known, words in SPLITS.items() if split in words), wanted)
    chosen = [file for file in data if splits[file] == wanted or split and split in _words(file)]
    if not chosen and not split:
        chosen = [file for file in data if splits[file] is None]
    if not chosen:
        known = sorted({found for found in splits.values() if found})
        raise ValueError(f"{name}: no files of the split '{wanted}'; name one of its splits "
                         f"({', '.join(known) or 'none is told by the names of its files'}) as owner/name:split")
    kinds = [ending for ending in ENDINGS if any(file.lower().endswith(ending) for file in chosen)]
    chosen = [file for file in chosen if file.lower().endswith(kinds[0])]
    folders = sorted({file.rpartition("/")[0] for file in chosen})
    # One file, or parts of one: train-00000-of-00002.parquet
    stems = {re.sub(r"[-_.]?\d+(-of-\d+)?(?=\.)", "", file) for file in chosen}
    if len(folders) > 1 or len(stems) > 1:
        shown = ", ".join(chosen[:6]) + (f" and {len(chosen) - 6} more" if len(chosen) > 6 else "")
        raise ValueError(f"{name}: several files could be meant: {shown}; download the one you want and name it")
    return chosen


def _words(file: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", file.lower())


def _split_of(file: str) -> str | None:
    words = _words(file)
    return next((split for split, names in SPLITS.items() if any(word in names for word in words)), None)
