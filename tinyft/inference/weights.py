"""A model's weights prepared for inference: packed once, in 32, 16 or 8 bits (`kernels/panels.py`)."""

from collections.abc import Callable, Iterator

import numpy as np
from numba import get_num_threads

from ..gpt2 import GPT2, GPT2Config
from ..kernels.jit import VECTOR_BYTES
from ..kernels.matmul import aligned
from ..kernels.packing import TILE_VECTORS
from ..kernels.panels import GROUP, prepare_bfloat16, prepare_floats, prepare_int8
from ..kernels.whole_model import EXACT_GELU, GELU, RELU, Shape, Weights
from ..nn import Embedding, Linear

KEPT_AS = {"float32": np.float32, "bfloat16": np.uint32, "int8": np.int8}
PART_BYTES = 1 << 24  # of a table that is copied at a time
_KINDS = {"gelu": EXACT_GELU, "gelu_python": EXACT_GELU, "relu": RELU}


def shape_of(config: GPT2Config) -> Shape:
    """What the compiled step needs to know of a config."""
    return Shape(config.n_layer, config.n_head, config.n_embd, config.n_inner or 4 * config.n_embd, config.vocab_size,
                 _KINDS.get(config.activation_function, GELU), config.layer_norm_epsilon)


def _matrices(model: GPT2) -> list[tuple[Linear | Embedding, bool]]:
    """What holds the matrices in the order of `Weights.matrices`, and whether each is stored transposed."""
    found = [(layer, False) for block in model.h for layer in
             (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
    found.append((model.wte, True))
    if not model.config.tie_word_embeddings:
        found.append((model.lm_head, True))
    return found


def _vectors(model: GPT2) -> list[np.ndarray]:
    """All vectors in the order of `Weights.vectors`."""
    found = []
    for block in model.h:
        found += [layer.bias.data for layer in
                  (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
        found += [block.ln_1.weight.data, block.ln_1.bias.data, block.ln_2.weight.data, block.ln_2.bias.data]
    return [*found, model.ln_f.weight.data, model.ln_f.bias.data, model.wpe.weight.data]


def _size_of(shape: tuple[int, int], transposed: bool, width: int, kept_as: str) -> tuple[int, int]:
    """Items that a matrix takes as panels, and its scales in int8."""
    depth, columns = shape[::-1] if transposed else shape
    columns = -(-columns // width) * width
    return (depth * columns // (2 if kept_as == "bfloat16" else 1),
            -(-depth // GROUP) * columns if kept_as == "int8" else 0)


def _parts(matrix: np.ndarray, transposed: bool, width: int) -> Iterator[np.ndarray]:
    """A matrix in parts that are copied one after the other: a table row by row, so that little of it is in memory."""
    step = PART_BYTES // (matrix.shape[1] * matrix.itemsize * width) * width if transposed else len(matrix)
    for first in range(0, len(matrix), max(width, step)):
        yield matrix[first : first + max(width, step)]


def prepare(model: GPT2, kept_as: str = "float32", done_with: Callable[[np.ndarray], None] | None = None) -> Weights:
    """Copy a model's weights into panels. ValueError for an unknown form.

    kept_as: "float32" (float64 if the model is), "bfloat16" or "int8"; norms, biases and positions stay as they are.
    done_with: called with each part of the model's matrices that has been copied.
    """
    if kept_as not in KEPT_AS:
        raise ValueError(f"weights are to be kept as {kept_as!r}, expected one of {', '.join(KEPT_AS)}")
    number = model.wte.weight.dtype if kept_as == "float32" else np.dtype(np.float32)
    matrices, width = _matrices(model), TILE_VECTORS * VECTOR_BYTES // number.itemsize
    sizes = [_size_of(layer.weight.shape, transposed, width, kept_as) for layer, transposed in matrices]
    places = np.cumsum([(0, 0), *sizes], axis=0, dtype=np.int64)
    # NumPy asks for large pages where the system has them, so that fewer addresses have to be looked up.
    n_kept = int(places[-1, 0])
    kept = aligned((n_kept,), number if kept_as == "float32" else np.dtype(KEPT_AS[kept_as]))[:n_kept]
    scales = np.empty(places[-1, 1], number)
    for (layer, transposed), (start, scales_start) in zip(matrices, places[:-1].tolist(), strict=True):
        # Adapters are merged, and compact matrices expanded, one after the other as they are copied.
        matrix = layer.weight.data if transposed else layer.effective_weight()
        for part in _parts(matrix, transposed, width):
            _copy(part, transposed, number, kept_as, kept, start, scales, scales_start)
            size, n_scales = _size_of(part.shape, transposed, width, kept_as)
            start, scales_start = start + size, scales_start + n_scales
            if done_with:
                done_with(part)
    vectors = _vectors(model)
    ends = np.cumsum([0, *(vector.size for vector in vectors)])
    plain = np.concatenate([vector.reshape(-1) for vector in vectors]).astype(number)
    attention = np.array([model.config.attention_scale(layer) for layer in range(model.config.n_layer)], number)
    places = places[:-1]
    if model.config.tie_word_embeddings:
        places = np.concatenate([places, places[-1:]])  # the token table is the output layer
    return Weights(kept, scales, plain, places, ends[:-1], attention)


def _copy(matrix: np.ndarray, transposed: bool, number: np.dtype, kept_as: str, kept: np.ndarray, start: int,
          scales: np.ndarray, scales_start: int) -> None:
    """Copy a matrix, or a part of a table, to where it is kept."""
    depth, columns = matrix.shape[::-1] if transposed else matrix.shape
    source = np.require(matrix, number, ["C", "W", "A"]).reshape(-1)
    if kept_as == "float32":
        prepare_floats(source, transposed, depth, columns, kept, start)
    elif kept_as == "bfloat16":
        prepare_bfloat16(source, transposed, depth, columns, kept, start, get_num_threads())
    else:
        prepare_int8(source, transposed, depth, columns, kept, start, scales, scales_start, get_num_threads())


def bytes_of(weights: Weights) -> int:
    """How much memory prepared weights take."""
    return sum(array.nbytes for array in (weights.panels, weights.scales, weights.plain))
