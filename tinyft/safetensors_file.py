"""Reading safetensors files as arrays that are views of the mapped file."""

import json
import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .untrusted import shown

STORED_AS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
LONGEST_NAME, MOST_ELEMENTS = 300, 2**48
QUANTISED = ("I8", "U8", "I4", "U4", "F8_", "F6_", "F4")  # beginnings of the types that quantised weights are stored in


def _diagnose(path: Path) -> str:
    """Name a file that carries the name of safetensors but not the format, and the remedy."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[8:9] == b"{":  # behind the length of a header, whose first byte may be any, that of "<" too
        return "it is not a whole safetensors file; copy or download it again"
    start = start.lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights; run 'git lfs pull' in that folder"
    if start[:1] == b"<":
        return "it is an HTML page, not the weights; the download failed, fetch the file again"
    if start.startswith((b"PK", b"\x80")):
        return ("it is a PyTorch pickle, not safetensors; load it in transformers and save it with "
                "save_pretrained(folder, safe_serialization=True)")
    return "it is not a whole safetensors file; copy or download it again"


def read_header(path: str | os.PathLike) -> dict[str, dict]:
    """What stands in a file: {name: {"dtype", "shape", "data_offsets"}}. ValueError if it is not what it says it is."""
    path = Path(path)
    if path.exists() and not path.is_file():  # to open a pipe waits for somebody to write into it
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'device'}, expected a safetensors file")
    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file's size
            pass
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {_diagnose(path)} ({shown(str(error), 200)[1:-1]})") from None
    # The format (huggingface.co/docs/safetensors): 8 bytes length of the header, the header as JSON, the data.
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{path}: a tensor is called {shown(name)}, expected at most {LONGEST_NAME} printable "
                             "characters; save the model again from transformers")
        # A tensor without elements may have any size in its other dimensions, more than NumPy has a number for.
        if len(tensor["shape"]) > 32 or math.prod(size or 1 for size in tensor["shape"]) > MOST_ELEMENTS:
            raise ValueError(f"{path}: tensor '{name}' has the shape {shown(tensor['shape'])}, expected one that fits "
                             "into memory; save the model again from transformers")
    return header


def read_tensors(path: str | os.PathLike, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, as views of the mapped file; bfloat16 becomes float32.

    float32 and float16 arrays are copy-on-write: changing one changes memory, never the file. wanted: whether a tensor
    of that name is to be read. ValueError if the file is not what it says it is, or a tensor has another type.
    """
    header = read_header(path)
    mapped = np.asarray(np.memmap(path, mode="c"))
    data_start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    tensors = {}
    for name in filter(wanted, header):
        dtype, shape, offsets = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if dtype not in STORED_AS:
            why = "the weights are quantised; save" if dtype.startswith(QUANTISED) else "save"
            raise ValueError(f"{path}: tensor '{name}' is {dtype}, expected one of {', '.join(STORED_AS)}; {why} the "
                             "model from transformers in float32, float16 or bfloat16")
        start, end = (data_start + offset for offset in offsets)
        raw, stored = mapped[start:end], STORED_AS[dtype]
        array = (raw if start % stored().itemsize == 0 else raw.copy()).view(stored).reshape(shape)
        if dtype == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def forget_pages(array: np.ndarray) -> None:
    """Give back the memory of an array of `read_tensors` that is done with for now; it can still be read.

    Not for arrays that have been changed: what is read again comes from the file.
    """
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return  # converted from 16 bits, or on a system that has no such thing
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < end:
        owner.madvise(mmap.MADV_DONTNEED, first, end - first)
