"""What all pictures share: a matplotlib Figure that belongs to nobody's window, and texts that fit."""


def new_figure(width: float, height: float):
    """An empty Figure of so many inches. ImportError with the remedy where matplotlib isn't installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), dpi=110)


def clipped(text: str, most: int) -> str:
    """The text, or its beginning with an ellipsis where it has more than so many letters."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"
