"""Writing safetensors files array by array, without a second copy of them all in memory."""

import json
import os

import numpy as np

# What a type of NumPy is called in a header (huggingface.co/docs/safetensors).
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "U16", "int8": "I8", "uint8": "U8"}


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str],
                  dtype: type | None = None) -> None:
    """Write a safetensors file; `dtype` converts each array while it is written. OSError if the disk is full, say.

    The safetensors package writes them too, but hides the number of an OSError, and leaves files of its own behind
    where it is killed.
    """
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    # The widest types first and then by name, as the format asks for: then every array is aligned.
    for name, array in sorted(tensors.items(), key=lambda item: (-np.dtype(dtype or item[1].dtype).itemsize, item[0])):
        stored, begin = np.dtype(dtype or array.dtype), end
        end += array.size * stored.itemsize
        header[name] = {"dtype": NAMES[stored.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in list(header)[1:]:
            array = tensors[name]
            stored = np.dtype(dtype or array.dtype).newbyteorder("<")
            file.write(np.ascontiguousarray(array, stored).reshape(-1).view(np.uint8).data)
