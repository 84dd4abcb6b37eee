"""The chart of `examples/benchmark.py --chart`, drawn from the rows of its tables."""

import importlib.util
from pathlib import Path

from tinyft.files import read_json, replacing

from .kernels import ROWS
from .machine import PEAK
from .processes import PREFIX

OURS, OTHERS, INK = "#1f6fb4", "#c3c7cc", "#333333"
DTYPES = {"float32": "", "bfloat16": "_bf16"}  # and the end of a peer's name that goes with it
NAMES = {"transformers": "transformers", "chapter7": "LLMs-from-scratch", "jax": "JAX"}
ARITHMETIC = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "llama-cpp-python": "llama-cpp-python"}
LEARNED = {"shared_full": "prompts learned", "shared_masked": "prompts masked"}
WRITTEN = {"weights in 32 bits": ("float32", "F32"), "16 bits": ("bfloat16", "F16"), "8 bits": ("int8", "Q8_0")}
Bars = dict[str, dict[str, float]]  # heading -> peer -> length of its bar


def check(path: Path) -> None:
    """ValueError if no chart could be drawn there, found out before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--chart needs matplotlib, which is not installed: pip install matplotlib")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--chart {path}: expected a name that ends in .png")


def read_numbers(path: Path) -> dict:
    """What --json wrote. ValueError if it is something else."""
    try:
        numbers = read_json(path)
    except OSError as error:
        raise ValueError(f"--from {path}: cannot read it ({error.strerror})") from None
    rows = numbers.get("rows") if isinstance(numbers, dict) else None
    if not (isinstance(rows, list) and all(isinstance(row, dict) and "table" in row for row in rows)):
        raise ValueError(f"--from {path}: not the numbers of a benchmark; "
                         "make them with python examples/benchmark.py --json FILE")
    return numbers


def _training_bars(rows: list[dict]) -> Bars:
    """Seconds of the whole step on batches whose rows share their beginning, as instructions usually do."""
    return {f"{dtype}, {learned}": {row["what"].removesuffix(end): row["whole_step"] / 1000 for row in rows
                                    if row["table"] == f"step_{batch}_{dtype}"}
            for dtype, end in DTYPES.items() for batch, learned in LEARNED.items()}


def _matmul_bars(rows: list[dict]) -> Bars:
    """GFLOP/s over all products of a training step."""
    totals = {row["what"].split()[-1]: row for row in rows if row["table"] == "matmul_total"}
    return {dtype: {peer: totals[dtype][peer + end] for peer in ("tinyft", "NumPy", "PyTorch")
                    if peer + end in totals.get(dtype, {})} for dtype, end in DTYPES.items()}


def _writing_bars(rows: list[dict]) -> Bars:
    """Tokens/s of one reply, by how many bits the weights have."""
    written = [row for row in rows if row["table"] == "decode" and "decoding" in row]
    return {heading: {row["what"].rsplit(" ", 1)[0]: row["decoding"] for row in written
                      if row["what"].rsplit(" ", 1)[1] in forms and "generate" not in row["what"]}
            for heading, forms in WRITTEN.items()}


def _bounds(rows: list[dict]) -> dict[str, float]:
    """Tokens/s if all that tinyft does is to read its weights once for each."""
    ours = {row["what"]: row.get("bound") for row in rows if row["table"] == "decode"}
    return {heading: ours[f"tinyft {forms[0]}"] for heading, forms in WRITTEN.items() if f"tinyft {forms[0]}" in ours}


def _height(bars: Bars) -> float:
    """Of a panel, where a bar and its distance to the next are 1."""
    return sum(len(lengths) + 1.3 for lengths in bars.values() if lengths)


def _draw_bars(axes, bars: Bars) -> dict[str, dict[str, float]]:
    """Bars under their headings; returns at which height each stands."""
    y, heights, names = 0.0, {}, {}
    for heading, lengths in ((heading, lengths) for heading, lengths in bars.items() if lengths):
        axes.text(0, y, f" {heading}", va="center", weight="bold", color=INK)
        heights[heading] = {peer: y + 1 + i for i, peer in enumerate(lengths)}
        for peer, height in heights[heading].items():
            axes.barh(height, lengths[peer], height=0.72, color=OURS if peer == "tinyft" else OTHERS)
            names[height] = NAMES.get(peer, peer)
        y += len(lengths) + 1.3
    axes.set_yticks(list(names), list(names.values()))
    axes.spines["left"].set_bounds(-0.6, y - 0.6)
    return heights


def _clean(axes, title: str) -> None:
    """Numbers stand at the bars, so that no axis has to be read."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=10)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(OTHERS)


def _draw_training(axes, bars: Bars) -> None:
    """Seconds behind the bars, and how many times as long as tinyft's."""
    heights = _draw_bars(axes, bars)
    for heading, at in heights.items():
        for peer, y in at.items():
            seconds, ours = bars[heading][peer], bars[heading]["tinyft"]
            times = "" if peer == "tinyft" else f"  ({seconds / ours:.1f} ×)"
            axes.text(seconds, y, f" {seconds:.2f} s{times}", va="center", color=INK)
    axes.set_xlim(0, 1.45 * max(seconds for lengths in bars.values() for seconds in lengths.values()))
    _clean(axes, f"Training step of GPT-2 124M: less is better\n8 rows that share their first {PREFIX} tokens")


def _draw_matmul(axes, bars: Bars, peak: float) -> None:
    """Speeds in the bars, and how fast float32 could be."""
    heights = _draw_bars(axes, bars)
    for dtype, at in heights.items():
        for peer, y in at.items():
            axes.text(bars[dtype][peer], y, f"{bars[dtype][peer]:.0f} ", ha="right", va="center",
                      color="white" if peer == "tinyft" else INK)
    float32 = heights["float32"].values()
    axes.plot([peak, peak], [min(float32) - 0.6, max(float32) + 0.6], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    # Beside the line: above it, the heading may stand.
    axes.text(peak, max(float32), f"  the CPU's peak: {peak:.0f}", ha="left", va="center", fontsize=8.5, color=INK)
    axes.set_xlim(0, 1.3 * max(1.2 * peak, *bars["float32"].values(), *bars["bfloat16"].values()))
    _clean(axes, f"Matrix products, GFLOP/s: more is better\nall of a training step with {ROWS:,} rows")


def _draw_writing(axes, bars: Bars, bounds: dict[str, float]) -> None:
    """Speeds behind the bars, and a line where all weights are read once for a token."""
    for heading, at in _draw_bars(axes, bars).items():
        for peer, y in at.items():
            axes.text(bars[heading][peer], y, f" {bars[heading][peer]:.0f}", va="center", color=INK)
        if heading in bounds:
            axes.plot([bounds[heading]] * 2, [min(at.values()) - 0.5, max(at.values()) + 0.5], color=INK, linewidth=1,
                      linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.15 * max(bounds.values()))
    _clean(axes, "GPT-2 124M writes, tokens/s: more is better\none reply; dashed: to read all weights once a token")


def _footer(numbers: dict) -> str:
    """Under what conditions; the versions of those who do the arithmetic."""
    versions = numbers.get("versions", {})
    shown = ", ".join(f"{name} {versions[package]}" for package, name in ARITHMETIC.items() if package in versions)
    threads = numbers.get("threads", "?")
    cpu = numbers.get("cpu", {}).get("name", "CPU")
    return f"Steps: rows of 40 to 75 tokens. Replies: 128 tokens after 64.\n{threads} threads on {cpu}.\n{shown}"


def draw(numbers: dict, path: Path) -> None:
    """A panel for each part of which there are numbers. ValueError if there are none."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = numbers["rows"]
    training, matmul, writing = _training_bars(rows), _matmul_bars(rows), _writing_bars(rows)
    panels = [bars for bars in (training, matmul, writing) if any(bars.values())]
    if not panels:
        raise ValueError("--chart: there are no numbers of the parts matmul, step and decode to draw")
    with rc_context({"font.size": 9.5}):
        height = max(map(_height, panels))  # of all panels, so that all bars are equally thick
        figure = Figure(figsize=(4.7 * len(panels), 1 + 0.22 * height), dpi=200, layout="constrained")
        for bars, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            axes.set_ylim(height - 0.6, -0.6)
            if bars is training:
                _draw_training(axes, bars)
            elif bars is writing:
                _draw_writing(axes, bars, _bounds(rows))
            else:
                _draw_matmul(axes, bars, next(row["measured"] for row in rows if row["what"] == PEAK))
        figure.supxlabel(_footer(numbers), x=0.01, ha="left", fontsize=7.5, color="#777777")
        with replacing(path) as beside:
            figure.savefig(beside, format="png")
