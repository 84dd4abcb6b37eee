"""AdamW with decay groups, clipping by the global norm, and the learning rate's course."""

import math
import zlib

import numpy as np

from .kernels.adamw import adamw_step
from .kernels.sums import sum_of_squares
from .nn import Module


class AdamW:
    """AdamW on the trainable parameters of a module. Matrices decay; biases and norms (one axis) do not.

    What is frozen now has no moments and is never updated; freeze and unfreeze before. lr is handed to each
    `step`; betas, eps, weight_decay as in the paper (see `kernels/adamw.py`). ValueError if all is frozen.

    moments: "float32", that is of the parameters' dtype, or "bfloat16" for half of that memory. Then `m` and `v` are
    arrays of uint16, and rounded at random; what is drawn depends on seed, step, parameter and element alone.

    >>> import numpy as np
    >>> from tinyft import AdamW, GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1), np.random.default_rng(0))
    >>> optimizer = AdamW(model)
    >>> loss = model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
    >>> loss.backward()
    >>> norm = optimizer.step(1e-2, max_norm=1.0)
    >>> bool(model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]])).item() < loss.item())
    True
    """

    def __init__(self, module: Module, *, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1,
                 moments: str = "float32", seed: int = 0):
        self.parameters = dict(module.trainable_parameters())
        if not self.parameters:
            raise ValueError(f"AdamW: {type(module).__name__} has no parameter with requires_grad, so there is nothing "
                             "to learn; unfreeze() some")
        if moments not in ("float32", "bfloat16"):
            raise ValueError(f"AdamW: moments are {moments!r}, expected float32 or bfloat16")
        if moments == "bfloat16" and any(p.dtype != np.float32 for p in self.parameters.values()):
            raise ValueError("AdamW: moments in bfloat16 are for float32 parameters, some here are float64")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moments, self.seed = moments, seed
        self.steps = 0
        kept = np.uint16 if moments == "bfloat16" else None
        self.m = {name: np.zeros(p.shape, kept or p.dtype) for name, p in self.parameters.items()}
        self.v = {name: np.zeros(p.shape, kept or p.dtype) for name, p in self.parameters.items()}

    def _key(self, name: str) -> int:
        """What a parameter's moments are rounded with in this step."""
        if self.moments == "float32":
            return 0
        words = np.random.SeedSequence([self.seed, self.steps, zlib.crc32(name.encode())]).generate_state(1, np.uint64)
        return int(words[0]) >> 1

    def gradient_norm(self) -> float:
        """Root of the sum of all squared gradients."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        return math.sqrt(math.fsum(sum_of_squares(grad.reshape(-1)) for grad in grads))

    def step(self, lr: float, *, max_norm: float | None = None) -> float:
        """Update all parameters and forget their gradients; returns the gradient's norm before clipping.

        max_norm: a longer gradient is shortened to it (Pascanu et al., 2013). If the norm is not finite,
        nothing is updated.
        """
        norm = self.gradient_norm()
        if math.isfinite(norm):
            scale = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
            self.steps += 1
            for name, p in self.parameters.items():
                if p.grad is not None:
                    p.data = np.asarray(p.data, order="C")  # a flat view of anything else would be a copy
                    decay = self.weight_decay if p.ndim > 1 else 0.0
                    adamw_step(p.data.reshape(-1), p.grad.reshape(-1), self.m[name].reshape(-1),
                               self.v[name].reshape(-1), scale, lr, *self.betas, self.eps, decay, self.steps,
                               self._key(name))
        for p in self.parameters.values():
            p.grad = None
        return norm


def cosine_with_warmup(step: int, steps: int, *, peak: float, warmup: int, floor: float = 0.0) -> float:
    """The learning rate of step 0, 1, ... steps - 1: a straight climb to `peak`, then half a cosine to `floor`.

    >>> [round(cosine_with_warmup(step, 6, peak=1.0, warmup=2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress)))
