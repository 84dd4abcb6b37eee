"""Pictures of what `inside.py` found: maps of attention, and the likeliest next tokens through the layers."""

from collections.abc import Callable, Sequence

import numpy as np

from .figures import clipped, new_figure
from .inside import Inside

LABELLED = 24  # tokens at most beside whose maps their texts stand
LONGEST = 24  # positions of a lens, unless it is told another number
WIDEST = 11  # letters of a token in a cell of a lens
SIGNS = "\u00b7 a space, \u23ce a newline"


def attention_maps(inside: Inside, decode: Callable[[int], str], layers: Sequence[int] | None = None,
                   heads: Sequence[int] | None = None):
    """A map for each head: rows are layers, columns heads; a matplotlib Figure.

    A token stands at its row of a map, and what it attends to at the columns; dark is much. decode: the text of a token
    id. layers, heads: which ones, counted from 0; all by default. Texts stand beside a map if it is the only one, and
    has few tokens.
    """
    layers = _chosen("layers", layers, len(inside.attention))
    heads = _chosen("heads", heads, inside.attention.shape[1])
    alone = len(layers) * len(heads) == 1
    side = max(3.0, 0.3 * len(inside.ids)) if alone else 1.1
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
            if alone and len(inside.ids) <= LABELLED:
                _label(axes, [_visible(decode(token)) for token in inside.ids.tolist()])
    figure.set_layout_engine("constrained")
    return figure


def _chosen(what: str, numbers: Sequence[int] | None, there: int) -> Sequence[int]:
    """All numbers by default. ValueError for one that there isn't."""
    numbers = range(there) if numbers is None else list(numbers)
    if not numbers or not all(0 <= number < there for number in numbers):
        raise ValueError(f"draw.attention_maps: {what} are {numbers}, expected some of 0 to {there - 1}")
    return numbers


def _label(axes, names: Sequence[str]) -> None:
    axes.set(xlabel=f"attended to ({SIGNS})", ylabel="token")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)


def lens(inside: Inside, decode: Callable[[int], str], last: int = LONGEST):
    """The likeliest next token at each position (columns), after the embeddings and each block (rows, upwards).

    The darker, the more probable. decode: the text of a token id. last: how many positions, those at the end of the
    text. A matplotlib Figure.
    """
    if last < 1:
        raise ValueError(f"draw.lens: last is {last}, expected at least 1 position")
    first = max(0, len(inside.ids) - last)
    best = inside.probabilities[:, first:, 0]
    n_levels, length = best.shape
    figure = new_figure(max(4.0, 0.85 * length + 1.2), 0.34 * n_levels + 1.0)
    axes = figure.subplots()
    axes.imshow(best, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for level in range(n_levels):
        for position in range(length):
            text = clipped(_visible(decode(int(inside.likeliest[level, first + position, 0]))), WIDEST)
            axes.text(position, level, text, ha="center", va="center", fontsize=8,
                      color="white" if best[level, position] > 0.6 else "black", parse_math=False)
    names = [_visible(decode(token)) for token in inside.ids[first:].tolist()]
    axes.set_xticks(range(length), names, fontsize=8, rotation=45, ha="right", parse_math=False)
    axes.set_xlabel(f"token, and above it what would follow, the darker the more certain ({SIGNS})", fontsize=8)
    axes.set_yticks(range(n_levels), ["embeddings", *(f"layer {layer}" for layer in range(1, n_levels))], fontsize=8)
    figure.set_layout_engine("constrained")
    return figure


def _visible(text: str) -> str:
    """A token as one line in which a space at its beginning can be seen."""
    text = text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u00b7")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
