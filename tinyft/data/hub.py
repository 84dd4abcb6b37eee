"""Data sets on the Hugging Face hub, by name."""

from pathlib import Path

READABLE = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")


def fetch_dataset(name: str) -> list[Path]:
    """The files of one split of a data set, "owner/name" or "owner/name:split", in huggingface_hub's usual cache.

    ValueError in one line without network, without the library, or where it isn't clear which files are meant.
    """
    repository, _, split = name.partition(":")
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise ValueError(f"{name} is no file; as a data set of the Hugging Face hub it is fetched with "
                         "huggingface_hub: pip install huggingface_hub") from None
    try:
        files = HfApi().list_repo_files(repository, repo_type="dataset")
        return [Path(hf_hub_download(repository, file, repo_type="dataset"))
                for file in choose_files(name, files, split or "train")]
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the hub's library raises what its network layers raise
        raise ValueError(f"{name} is no file, and no data set that could be fetched from the Hugging Face hub "
                         f"({type(error).__name__}); check the name and the network, or give a file") from None


def choose_files(name: str, files: list[str], split: str) -> list[str]:
    """The data files of a split among all files of a repository.

    Files of a split have its name in theirs or in their folder's; where no file has that of any split, all are taken.
    """
    data = sorted(file for file in files if file.lower().endswith(READABLE) and not _is_about(file))
    of_split = [file for file in data if split in _words(file)]
    if not of_split and not any({"train", "test", "validation", "valid", "dev"} & _words(file) for file in data):
        of_split = data
    endings = {Path(file).suffix for file in of_split}
    if len(endings) > 1:  # the same rows in several forms: the plainest will do
        plainest = min(endings, key=lambda ending: READABLE.index(ending) if ending in READABLE else len(READABLE))
        of_split = [file for file in of_split if file.endswith(plainest)]
    if not of_split:
        raise ValueError(f"{name}: no JSON, CSV or Parquet files of the split '{split}' in that data set; there are "
                         f"{', '.join(data[:8]) or 'none'}")
    folders = {str(Path(file).parent) for file in of_split}
    if len(folders) > 1:
        raise ValueError(f"{name}: several sets of files of the split '{split}', in {', '.join(sorted(folders))}; "
                         "download the one you mean and give its files")
    return of_split


def _is_about(file: str) -> bool:
    return Path(file).name.lower() in ("dataset_infos.json", "dataset_dict.json", "state.json", "package.json")


def _words(file: str) -> set[str]:
    return set(file.lower().replace("/", " ").replace("-", " ").replace("_", " ").replace(".", " ").split())
