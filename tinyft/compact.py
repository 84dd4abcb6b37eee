"""Frozen matrices in 16 or 8 bits: what a model's base takes in memory while something small is tuned on it.

It is QLoRA's idea (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023) for a CPU: gradients flow
through a matrix that is kept in few bits, and only what is added to it learns. Products expand it while they pack it
(`kernels/kept.py`), so that they are as fast as others.
"""

import numpy as np

from .gpt2 import GPT2
from .kernels.kept import Kept, keep
from .safetensors_file import forget_pages
from .tensor import Tensor


class CompactWeight(Tensor):
    """A frozen matrix (rows, columns) that is kept as "bfloat16" or "int8" (`kernels/kept.py`).

    The ops `linear`, `matmul` (on the right), `embedding` and `linear_cross_entropy` take it as it is. `data` is the
    float32 array in full, made anew whenever it is asked for; what is assigned to it is rounded again.
    """

    __slots__ = ("operand", "kept_as")

    def __init__(self, matrix: np.ndarray | Kept, kept_as: str):
        """ValueError for another form, an array that isn't float32 with two axes, or one that int8 cannot hold."""
        self.kept_as = kept_as
        self.operand = matrix if isinstance(matrix, Kept) else keep(matrix, kept_as)
        self.node, self._grad, self._grad_is_shared = None, None, False

    @property
    def data(self) -> np.ndarray:
        """The rounded matrix as a float32 array."""
        return self.operand[...]

    @data.setter
    def data(self, matrix: np.ndarray) -> None:
        self.operand = keep(matrix, self.kept_as)

    @property
    def requires_grad(self) -> bool:
        """False: there is no gradient of it."""
        return False

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted:
            raise ValueError(f"a matrix that is kept as {self.kept_as} cannot learn; leave it frozen, or load the "
                             "model again and keep it in float32")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.operand.shape

    @property
    def ndim(self) -> int:
        """2"""
        return self.operand.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.operand.stored.size

    @property
    def dtype(self) -> np.dtype:
        """float32, which it is computed in."""
        return self.operand.dtype

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.operand.stored.nbytes + self.operand.scales.nbytes

    @property
    def T(self) -> "CompactWeight":
        """The transpose, without a copy."""
        return CompactWeight(self.operand.T, self.kept_as)

    def __len__(self) -> int:
        return len(self.operand)

    def __repr__(self) -> str:
        return f"CompactWeight({self.shape}, {self.kept_as})"


def compact(model: GPT2, kept_as: str) -> None:
    """Keep the frozen matrices of a model's blocks, its token table and its output layer as "bfloat16" or "int8".

    What is trainable stays as it is, and so do vectors and the positions' table. Each float32 matrix is freed as soon
    as it is rounded. ValueError for another form, a float64 model, or where nothing is frozen.
    """
    layers = [layer for block in model.h
              for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
    tables = [model.wte] if model.config.tie_word_embeddings else [model.wte, model.lm_head]
    frozen = [layer for layer in (*layers, *tables) if not layer.weight.requires_grad]
    if not frozen:
        raise ValueError(f"no matrix of the model is frozen, so that none can be kept as {kept_as}; freeze() them, or "
                         "tune with LoRA")
    names = {module: name for name, module in model.named_modules()}
    for layer in frozen:
        matrix = layer.weight.data
        try:
            layer.weight = CompactWeight(matrix, kept_as)
        except ValueError as error:
            raise ValueError(f"{names[layer]}.weight: {error}") from None
        forget_pages(matrix)
