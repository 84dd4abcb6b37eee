"""The state of a training run: all that it takes to go on as if nothing had happened.

A run's folder holds the newest ones, `checkpoints/step-000120.safetensors`; where step 121 is half accumulated,
`checkpoints/step-000120-and-003.safetensors`. Each is a safetensors file with the trainable weights (`weight.<name>`),
both moments (`m.<name>`, `v.<name>`), the gradients of a half accumulated step (`grad.<name>`), and notes in its
metadata. Frozen weights stand in the model that the run started from.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .files import flush, one_line, parse_line, replacing
from .optim import AdamW
from .tensor_files import NAMES, write_tensors
from .train import Progress
from .untrusted import shown
from .version import VERSION

FOLDER = "checkpoints"
FORMAT = "tinyft state 2"
OLD_STATE = "training_state.safetensors"  # of versions that kept a single one
MOST_NAMED = 20  # differences in one message
NAME = re.compile(r"step-(\d+)(?:-and-(\d+))?\.safetensors")


class Damaged(ValueError):
    """A file that should be a state and cannot be read as one."""


# ---- files


def find_states(folder: str | os.PathLike) -> list[Path]:
    """The states in a run's folder, the newest first."""
    found = [path for path in (Path(folder) / FOLDER).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_position, reverse=True)


def _position(path: Path) -> tuple[int, int]:
    """Steps, and micro-batches of the next one, that a state's name speaks of."""
    step, accumulated = NAME.fullmatch(path.name).groups()
    return int(step), int(accumulated or 0)


def delete_state(folder: str | os.PathLike) -> None:
    """Delete the states of a run that is done with: each is three times as large as the trained weights.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     delete_state(folder)  # nothing to delete is no error
    """
    shutil.rmtree(Path(folder) / FOLDER, ignore_errors=True)
    for path in find_states(folder):  # where the folder is a link, to a larger disk say, which stays
        path.unlink(missing_ok=True)
    (Path(folder) / OLD_STATE).unlink(missing_ok=True)


def nothing_to_resume(folder: str | os.PathLike) -> str:
    """Why a folder without states cannot be resumed, in words."""
    old = Path(folder) / OLD_STATE
    if old.exists():
        return (f"{old} was saved by an earlier version of tinyft, and only that one can go on with it; start anew "
                "without --resume, with --overwrite")
    return (f"{Path(folder) / FOLDER} has no step-*.safetensors, so there is nothing to resume; start anew without "
            "--resume, with --overwrite if the folder holds a run")


# ---- writing


def save_state(folder: str | os.PathLike, optimizer: AdamW, progress: Progress, identity: dict[str, Any],
               keep: int = 2) -> Path:
    """Write the state of a run, whole or not at all, and then delete all but the newest `keep`; returns its path.

    identity: what a run that goes on must have in common with this one, by name; values as JSON has them.
    OSError if the disk is full, say: nothing is deleted then.

    >>> import tempfile
    >>> from tinyft import AdamW, Progress, load_model, load_state, save_state
    >>> optimizer = AdamW(load_model("weights/tiny-world"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_state(folder, optimizer, Progress(step=7), {"data": "mine"})
    ...     load_state(folder, optimizer, {"data": "mine"}).step
    7
    """
    tensors = _places(optimizer)
    if progress.accumulated:
        tensors |= {f"grad.{name}": p.grad for name, p in optimizer.parameters.items() if p.grad is not None}
    notes = json.dumps({"format": FORMAT, "tinyft": VERSION, "identity": identity, "progress": asdict(progress),
                        "optimizer_steps": optimizer.steps, "checksum": _checksum(tensors)})
    half = f"-and-{progress.accumulated:03d}" if progress.accumulated else ""
    path = Path(folder) / FOLDER / f"step-{progress.step:06d}{half}.safetensors"
    if not path.parent.is_dir():
        path.parent.mkdir()
        flush(path.parent.parent)
    with replacing(path) as beside:
        write_tensors(beside, tensors, {"notes": notes, "checksum": str(zlib.crc32(notes.encode()))})
    # Later ones are of a course that was given up, when a damaged file made the run go on from an older one.
    before = [other for other in find_states(folder) if _position(other) < _position(path)]
    for other in find_states(folder):
        if other != path and other not in before[: keep - 1]:
            other.unlink(missing_ok=True)
    return path


def _places(optimizer: AdamW) -> dict[str, np.ndarray]:
    """The arrays that a state is made of, and goes into."""
    places = {}
    for name, parameter in optimizer.parameters.items():
        places |= {f"weight.{name}": parameter.data, f"m.{name}": optimizer.m[name], f"v.{name}": optimizer.v[name]}
    return places


def _checksum(tensors: dict[str, np.ndarray]) -> int:
    """CRC-32 of all values: a disk that gives back something else must not be trained on with."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8), checksum)
    return checksum


# ---- reading


def check_state(folder: str | os.PathLike, identity: dict[str, Any]) -> Path:
    """The newest state with readable notes. ValueError if there is none, or it is of another run, naming what differs.

    Looks at the notes only; `load_state` at all numbers.
    """
    paths, damages = find_states(folder), []
    if not paths:
        raise ValueError(nothing_to_resume(folder))
    for path in paths:
        try:
            notes = _read_notes(path)
        except Damaged as damage:
            damages.append(str(damage))
            continue
        _check_identity(path, notes, identity)
        return path
    raise ValueError(_none_left(damages))


def load_state(folder: str | os.PathLike, optimizer: AdamW, identity: dict[str, Any],
               say: Callable[[str], None] = print) -> Progress:
    """Put the newest whole state into the optimizer, its parameters and their gradients; returns the progress.

    A damaged one is named with `say`, and the one before it is taken. ValueError if there is none, or it belongs to
    another model or run, naming all that differs; nothing is changed then.

    See `save_state` for an example.
    """
    paths, damages = find_states(folder), []
    if not paths:
        raise ValueError(nothing_to_resume(folder))
    for path in paths:
        try:
            progress = _load(path, optimizer, identity)
        except Damaged as damage:
            damages.append(str(damage))
            continue
        for damage in damages:
            say(f"{damage}; going on from {path.name}, the one before")
        return progress
    raise ValueError(_none_left(damages))


def _none_left(damages: list[str]) -> str:
    return f"{'; '.join(damages)}; no other state is left, start anew without --resume, with --overwrite"


def _read_notes(path: Path) -> dict[str, Any]:
    """What a state says of itself; Damaged if that is not what was written, or nothing that a run writes."""
    try:
        with safe_open(path, framework="numpy") as file:
            written = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path} is damaged ({_printable(one_line(error))})") from None
    text = written.get("notes", "")
    if written.get("checksum") != str(zlib.crc32(text.encode())):
        raise Damaged(f"{path} is damaged, or no state of a training run (its notes are not what was written)")
    notes = parse_line(text, str(path))
    kinds = {"format": str, "tinyft": str, "identity": dict, "progress": dict, "optimizer_steps": int, "checksum": int}
    if not isinstance(notes, dict) or any(type(notes.get(name)) is not kind for name, kind in kinds.items()):
        raise Damaged(f"{path} is no state of a training run (its notes say something else)")
    return notes


def _progress(path: Path, notes: dict[str, Any]) -> Progress:
    """The progress in a state's notes. Damaged unless every number is one, and the generators are some of NumPy's.

    NumPy's other generators hold arrays, which JSON can't, and an index into them, which NumPy doesn't check.
    """
    try:
        progress = Progress(**notes["progress"])
        for field in fields(Progress):
            value, plain = getattr(progress, field.name), field.default if field.default is not MISSING else None
            if plain is not None and (type(value) is not type(plain) or not value >= min(plain, 0)):
                raise ValueError(f"{field.name} is {shown(value)}")
        progress.recent_losses = [float(loss) for loss in progress.recent_losses]
        for state in filter(None, (progress.epoch_rng, progress.now_rng)):
            kind = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}[state["bit_generator"]]
            kind().state = state
        if notes["optimizer_steps"] < 0:
            raise ValueError("optimizer_steps is negative")
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise Damaged(f"{path} is no state that a run has written ({_printable(one_line(error))})") from None
    return progress


def _check_identity(path: Path, notes: dict[str, Any], identity: dict[str, Any]) -> None:
    """ValueError that names all in which the run that saved a state differs from this one."""
    ours = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    then = {"the version of tinyft": notes["tinyft"], "the format of the state": notes["format"]} | notes["identity"]
    now = {"the version of tinyft": VERSION, "the format of the state": FORMAT} | ours
    unknown = "unknown"
    differences = [f"{_printable(name)} = {_printable(then.get(name, unknown))}, now it is "
                   f"{_printable(now.get(name, unknown))}"
                   for name in {**then, **now} if then.get(name, unknown) != now.get(name, unknown)]
    if differences:
        more = f"; and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
        raise ValueError(f"{path}: the run was started with {'; '.join(differences[:MOST_NAMED])}{more}; "
                         "resume with the same, or start anew without --resume")


def _printable(value: Any) -> str:
    """A value from a file in a message: short, and a string without quotes."""
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def _load(path: Path, optimizer: AdamW, identity: dict[str, Any]) -> Progress:
    """`load_state` of one file. Damaged, or ValueError, before anything is changed."""
    notes = _read_notes(path)
    _check_identity(path, notes, identity)
    progress = _progress(path, notes)
    places = _places(optimizer)
    with safe_open(path, framework="numpy") as file:
        _check_tensors(path, file, places, optimizer)
        # Array by array: all at once would be as much memory again as the run itself needs.
        checksum = 0
        for name in sorted(file.keys()):
            checksum = zlib.crc32(file.get_tensor(name).reshape(-1).view(np.uint8), checksum)
        if checksum != notes["checksum"]:
            raise Damaged(f"{path} is damaged (its numbers are not what was written)")
        for name, place in places.items():
            place[...] = file.get_tensor(name)
        gradients = set(file.keys()) - places.keys()
        for name, parameter in optimizer.parameters.items():
            parameter.grad = file.get_tensor(f"grad.{name}") if f"grad.{name}" in gradients else None
    optimizer.steps = notes["optimizer_steps"]
    return progress


def _check_tensors(path: Path, file: Any, places: dict[str, np.ndarray], optimizer: AdamW) -> None:
    """ValueError unless a state's tensors, by its header, are those of this optimizer."""
    needed = {name: _kind(place) for name, place in places.items()}
    allowed = needed | {f"grad.{name}": _kind(p.data) for name, p in optimizer.parameters.items()}
    slices = {name: file.get_slice(name) for name in file.keys()}
    found = {name: f"{part.get_dtype()} {tuple(part.get_shape())}" for name, part in slices.items()}
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != allowed.get(name):
            raise ValueError(f"{path}: '{_printable(name)}' is {found.get(name, 'absent')}, expected "
                             f"{allowed.get(name, 'absent')}; the state belongs to another model")


def _kind(array: np.ndarray) -> str:
    """Type and shape as a state's header has them."""
    return f"{NAMES[array.dtype.name]} {array.shape}"
