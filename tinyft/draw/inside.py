"""What a GPT-2 does with one text: what each head attends to, and what the model would say after each layer.

The second is the "logit lens" (nostalgebraist, "interpreting GPT: the logit lens", 2020): a block only adds to the
stream of hidden states, so that the last norm and the output layer can read it after any block as if it were the end.
"""

from dataclasses import dataclass

import numpy as np

from ..gpt2 import GPT2
from ..kernels.softmax import softmax_forward
from ..segments import segments_of
from ..tensor import Tensor, no_grad


@dataclass(frozen=True)
class Inside:
    """Of T tokens in a model with L layers of H heads.

    attention: (L, H, T, T), how much the token of a row takes from that of a column; each row sums to 1.
    likeliest: (L + 1, T, K) ids, the K likeliest next tokens after the embeddings (0) and after each block, best first.
    probabilities: (L + 1, T, K), theirs.
    """

    ids: np.ndarray
    attention: np.ndarray
    likeliest: np.ndarray
    probabilities: np.ndarray


def look(model: GPT2, ids: np.ndarray | list[int], most: int = 5) -> Inside:
    """Run the model on token ids (T,), without dropout, and keep what one wants to see.

    most: how many of the likeliest tokens, K. ValueError for no tokens, or more than the model's context.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"draw.look: ids are {ids.dtype}, expected token ids, such as tokenizer.encode(text) gives")
    if most < 1:
        raise ValueError(f"draw.look: most is {most}, expected at least 1 token")
    if ids.ndim != 1 or not 1 <= len(ids) <= model.config.n_positions:
        raise ValueError(f"draw.look: ids are {ids.shape}, expected one row of 1 to {model.config.n_positions} tokens, "
                         "the model's context")
    ids = ids.astype(np.int64)
    segments, attention = segments_of([len(ids)]), []
    with no_grad():
        x = model.wte(ids) + model.wpe(np.arange(len(ids)))
        read = [_read(model, x, most)]
        for layer, block in enumerate(model.h):

            def attend(qkv: Tensor, layer: int = layer) -> Tensor:
                attention.append(attention_weights(qkv.data, model.config.n_head, model.config.attention_scale(layer)))
                return model.attend_within_rows(segments, layer, qkv)

            x = block(x, attend)
            read.append(_read(model, x, most))
    likeliest, probabilities = (np.stack(arrays) for arrays in zip(*read, strict=True))
    return Inside(ids, np.stack(attention), likeliest, probabilities)


def attention_weights(qkv: np.ndarray, n_head: int, scale: float) -> np.ndarray:
    """The weights that attention takes values by: (T, 3C) -> (H, T, T), 0 where a token would see the future."""
    length, width = qkv.shape
    # (T, 3C) -> (3, H, T, D)
    query, key, _ = qkv.reshape(length, 3, n_head, width // (3 * n_head)).transpose(1, 2, 0, 3)
    scores = scale * query @ key.swapaxes(-1, -2)
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    return softmax_forward(scores.reshape(-1, length)).reshape(scores.shape)


def _read(model: GPT2, x: Tensor, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens of the stream x (T, C) and their probabilities, (T, K) each, best first."""
    probabilities = softmax_forward(model.logits(model.ln_f(x)).data)
    most = min(most, probabilities.shape[1])
    best = np.argpartition(-probabilities, most - 1, axis=1)[:, :most]
    order = np.argsort(-np.take_along_axis(probabilities, best, 1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, 1)
    return best, np.take_along_axis(probabilities, best, 1)
