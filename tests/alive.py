"""What a graph keeps for its backward pass."""

from types import FunctionType

import numpy as np

from tinyft import Tensor
from tinyft.tensor import Node


def kept_bytes(result: Tensor, besides=()) -> int:
    """Bytes of the float and bool arrays behind a result, each once, without those of `besides`."""
    seen, total, stack = {id(tensor) for tensor in besides}, 0, [result.node]
    seen |= {id(_owner(tensor.data)) for tensor in besides}
    while stack:
        thing = stack.pop()
        if isinstance(thing, np.ndarray):
            thing = _owner(thing)
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            total += thing.nbytes if thing.dtype.kind in "fb" else 0
        elif isinstance(thing, Node):
            stack += [*thing.parents, thing.backward]
        elif isinstance(thing, Tensor):
            stack += [thing.data, thing.node]
        elif isinstance(thing, FunctionType):
            stack += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, tuple | list):
            stack += thing
    return total


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
