"""One HTML page, without network, in which one can walk through what `inside.py` found."""

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..files import write_text
from .inside import Inside

TEMPLATE = Path(__file__).with_name("pages") / "inside.html"
LARGEST = 24_000_000  # bytes of attention maps that a page may hold


def page(path: str | os.PathLike, views: Mapping[str, Inside], decode: Callable[[int], str], title: str = "") -> None:
    """Write a page about one text, seen by one model or several.

    views: by the models' names, all of the same tokens. decode: the text of a token id. title: stands above. ValueError
    where the views are of different tokens, or so large that no browser would like the page.
    """
    if not views:
        raise ValueError("draw.page: no views, expected at least one model's, {name: draw.look(model, ids)}")
    first = next(iter(views.values()))
    size = sum(view.attention.size for view in views.values())
    if size > LARGEST:
        raise ValueError(f"draw.page: the maps of {len(first.ids)} tokens take {size / 1e6:.0f} MB, expected at most "
                         f"{LARGEST / 1e6:.0f}; take a shorter text, or one model at a time")
    if any(not np.array_equal(view.ids, first.ids) for view in views.values()):
        raise ValueError("draw.page: the views are of different token ids, expected one text for all of them")
    data = {"title": title, "tokens": [decode(int(token)) for token in first.ids],
            "models": [_model(name, view, decode) for name, view in views.items()]}
    # Within a script element only "<" could end it; as an escape it is the same JSON.
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    write_text(path, TEMPLATE.read_text("utf-8").replace("{{data}}", content))


def _model(name: str, view: Inside, decode: Callable[[int], str]) -> dict:
    """What the page has of one model: maps in steps of 1/255, and texts with probabilities in thousandths."""
    layers, heads = view.attention.shape[:2]
    texts: dict[int, str] = {int(token): decode(int(token)) for token in np.unique(view.likeliest)}
    likeliest = [[[[texts[int(token)], round(float(share), 3)] for token, share in zip(*best, strict=True)]
                  for best in zip(*level, strict=True)]
                 for level in zip(view.likeliest, view.probabilities, strict=True)]
    maps = base64.b64encode(np.round(255 * view.attention).astype(np.uint8).tobytes()).decode()
    return {"name": name, "layers": layers, "heads": heads, "attention": maps, "likeliest": likeliest}
