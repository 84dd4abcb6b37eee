"""Pictures of what `inside.py` found: maps of attention, and the likeliest next tokens through the layers."""

from collections.abc import Sequence

import numpy as np

from .figures import new_figure
from .inside import Inside

LABELLED = 24  # tokens at most beside whose maps their texts stand
LONGEST = 24  # tokens at most of a lens


def attention_maps(inside: Inside, tokens: Sequence[str], layers: Sequence[int] | None = None,
                   heads: Sequence[int] | None = None):
    """A map for each head: rows are layers, columns heads; a matplotlib Figure.

    A token stands at its row of a map, and what it attends to at the columns; dark is much. tokens: their texts (T,).
    layers, heads: which ones, counted from 0; all by default. Texts stand beside a map if it is the only one, and has
    few tokens.
    """
    layers = range(len(inside.attention)) if layers is None else layers
    heads = range(inside.attention.shape[1]) if heads is None else heads
    alone = len(layers) * len(heads) == 1
    side = max(3.0, 0.3 * len(tokens)) if alone else 1.1
    figure = new_figure(side * len(heads) + (1.4 if alone else 0.5), side * len(layers) + (1.2 if alone else 0.4))
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for layer, row in zip(layers, grid, strict=True):
        for head, axes in zip(heads, row, strict=True):
            # The root, since most weights are small: 0.04 is a fifth of the way to black.
            axes.imshow(np.sqrt(inside.attention[layer, head]), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if layer == layers[0]:
                axes.set_title(f"head {head + 1}", fontsize=8)
            if head == heads[0]:
                axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
            if alone and len(tokens) <= LABELLED:
                _label(axes, tokens)
    figure.set_layout_engine("constrained")
    return figure


def _label(axes, tokens: Sequence[str]) -> None:
    names = [visible(token) for token in tokens]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)


def lens(inside: Inside, tokens: Sequence[str], texts: Sequence[Sequence[str]]):
    """The likeliest next token at each position (columns), after the embeddings and each block (rows, upwards).

    tokens: texts of the tokens (T,), of which the last LONGEST are shown. texts: those of inside.likeliest[..., 0],
    (L + 1, T). The darker, the more probable. A matplotlib Figure.
    """
    first = max(0, len(tokens) - LONGEST)
    best = inside.probabilities[:, first:, 0]
    n_levels, length = best.shape
    figure = new_figure(max(4.0, 0.85 * length + 1.2), 0.34 * n_levels + 1.0)
    axes = figure.subplots()
    axes.imshow(best, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for level in range(n_levels):
        for position in range(length):
            axes.text(position, level, visible(texts[level][first + position])[:11], ha="center", va="center",
                      fontsize=8, color="white" if best[level, position] > 0.6 else "black", parse_math=False)
    axes.set_xticks(range(length), [visible(token) for token in tokens[first:]], fontsize=8, rotation=45, ha="right",
                    parse_math=False)
    axes.set_yticks(range(n_levels), ["embeddings", *(f"layer {layer}" for layer in range(1, n_levels))], fontsize=8)
    figure.set_layout_engine("constrained")
    return figure


def visible(text: str) -> str:
    """A token as one line in which a space at its beginning can be seen."""
    return text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u00b7")
