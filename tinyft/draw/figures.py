"""A matplotlib Figure that belongs to nobody's window."""


def new_figure(width: float, height: float):
    """An empty Figure of so many inches. ImportError with the remedy where matplotlib isn't installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), dpi=110)
