"""See which token of a batch is computed where, and which are shared.

Rows that begin alike have their common beginning computed once (tinyft/segments.py). This shows one batch of the
first epoch that finetune_alpaca.py goes through with the same options: its rows in the order in which they are laid
out, each with the tokens of its own. What stands after a row's last target, padding above all, is computed nowhere and
not shown. No model runs; a model's tokenizer and context are all that is needed.
"""

import itertools
import math
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyft import InstructionSet, cli, load_tokenizer, read_entries, split
from tinyft.data.prompts import PROMPT_STYLES
from tinyft.files import replacing
from tinyft.gpt2 import needed_lengths
from tinyft.hub import find_model
from tinyft.losses import IGNORE
from tinyft.model_config import read_config
from tinyft.segments import lay_out

HERE = Path(__file__).resolve().parent
BASE_MODEL = HERE.parent / "weights" / "tiny-world"
DATA = HERE / "data" / "train.json"
EXAMPLES = """\
  python examples/show_sharing.py
  python examples/show_sharing.py --batch 17 --batch-size 16
  python examples/show_sharing.py --data my-instructions.json --prompt-style chatml --output sharing.png
"""
COMPUTED, LEARNED, SHARED, INK = "#9dc3e6", "#1f5c99", "#e6e7e9", "#333333"  # differ in brightness, too
LARGEST_PICTURE = 8192  # tokens on a side of the attention matrix, beyond which it takes gigabytes


class Row(NamedTuple):
    """A row of a batch with its n tokens, up to the last that has a target."""

    number: int  # which row of the batch it is
    ids: np.ndarray  # (n,)
    computed_as: np.ndarray  # (n,): for each token the number of the one computed for it, as `lay_out` gives it
    learned: np.ndarray  # (n,): whether the computed token has a target, be it in another row
    shared: int  # how many of the n, at the beginning, are computed in rows above


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--data", metavar="FILE", action="append",
        help="any data that finetune_alpaca.py reads; may be given more than once (default: examples/data/train.json)")
    add("--model", default=str(BASE_MODEL), metavar="NAME",
        help="a model folder, or a GPT-2 on the Hugging Face hub, for its tokenizer (default: weights/tiny-world)")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around an instruction: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--mask-prompt", dest="mask_prompt", action="store_true", default=True,
        help="learn only the replies (default)")
    add("--no-mask-prompt", dest="mask_prompt", action="store_false", help="learn the prompts as well")
    add("--batch-size", type=cli.positive_int, default=8, metavar="N", help="entries in a batch")
    add("--batch", type=cli.not_negative_int, default=0, metavar="N", help="which batch of the epoch, from 0")
    add("--seed", type=cli.not_negative_int, default=123, metavar="N", help="seeds split and order")
    add("--output", type=cli.file_to_write, metavar="FILE", help="draw a picture as well, as .png, .svg or .pdf")
    return parser.parse_args()


def read_batches(options, tokenizer, context: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of all batches of finetune_alpaca.py's first epoch."""
    rng = np.random.default_rng(options.seed)  # drawn from as there: first for the split, then for the order
    training, _, _ = split(read_entries(options.data or DATA), rng=rng)
    data = InstructionSet(training, tokenizer, prompt_style=options.prompt_style, mask_prompt=options.mask_prompt,
                          max_length=context)
    if not len(data):
        raise ValueError(f"{', '.join(options.data or [str(DATA)])}: no entry to train on")
    return [data.collate(indices) for indices in data.batches(options.batch_size, rng)]


def lay_out_rows(inputs: np.ndarray, targets: np.ndarray) -> list[Row]:
    """The rows of a batch in the order in which they are laid out."""
    lengths = needed_lengths(targets)
    _, computed_as = lay_out(inputs, lengths)
    learned = np.zeros(computed_as.max() + 1, bool)
    learned[computed_as[targets != IGNORE]] = True
    rows, count = [], 0
    # A token of a row's own has a higher number than all tokens of the rows before it.
    for number in np.argsort(computed_as.max(axis=1), kind="stable"):
        tokens = computed_as[number, : lengths[number]]
        shared = int((tokens < count).sum())
        rows.append(Row(int(number), inputs[number, : len(tokens)], tokens, learned[tokens], shared))
        count += len(tokens) - shared
    return rows


def count_tokens(rows: list[Row]) -> tuple[int, int]:
    """How many tokens the rows have, and how many of them are computed."""
    total = sum(len(row.ids) for row in rows)
    return total, total - sum(row.shared for row in rows)


def percent(part: int, whole: int) -> str:
    """A share as text."""
    return f"{100 * part / whole:.0f} %"


def summary(rows: list[Row]) -> str:
    """The numbers of a batch in a sentence."""
    total, computed = count_tokens(rows)
    return f"{len(rows)} row{'s' * (len(rows) != 1)} of {total:,} tokens; " + (
        f"{computed:,} are computed ({percent(computed, total)}), the others are shared" if computed < total
        else "all are computed, none is shared")


# ---- in the terminal


def own_text(row: Row, tokenizer) -> list[tuple[str, bool]]:
    """What a row has of its own: characters, and whether they belong to a token with a target."""
    characters = []
    own = zip(row.ids[row.shared :].tolist(), row.learned[row.shared :].tolist(), strict=True)
    # Tokens of one kind are decoded together: one character can be spread over several of them.
    for learned, run in itertools.groupby(own, key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run])
        characters += [(shown, learned) for character in text for shown in printable(character)]
    return characters


def printable(text: str) -> str:
    r"""Text on one line: a line break as \n."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(characters: Sequence, width: int, gap, keep_end: bool = True) -> list:
    """What is too long is cut in the middle, or else at its end, where a gap is put."""
    if len(characters) <= width:
        return list(characters)
    end = width // 2 if keep_end else 0
    return [*characters[: max(0, width - 1 - end)], gap, *characters[len(characters) - end :]]


def show_rows(rows: list[Row], tokenizer, width: int, in_colour: bool) -> None:
    """Print a line for each row: dots for what it shares, then what it has of its own; green has a target."""
    def coloured(text: str, colour: int | None) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if in_colour and colour and text else text

    most = max(row.shared for row in rows)
    per_dot = max(1, math.ceil(most / (width // 4)))
    says = f"a dot is {per_dot} shared tokens, then the row's own" if per_dot > 1 else "a dot is a shared token"
    print(f" row  shared   own  {says if most else ''}".rstrip())
    for row in rows:
        dots = "·" * math.ceil(row.shared / per_dot)
        text = shortened(own_text(row, tokenizer), max(10, width - 20 - len(dots)), ("…", False))
        print(f"{row.number:4}  {row.shared:6}  {len(row.ids) - row.shared:4}  {coloured(dots, 90)}"
              + "".join(coloured("".join(character for character, _ in run), 32 if learned else None)
                        for learned, run in itertools.groupby(text, key=lambda pair: pair[1])))


# ---- as a picture


def attention_matrix(rows: list[Row]) -> np.ndarray:
    """Which of the N computed tokens sees which, (N, N): itself, and what stands before it in its row."""
    count = count_tokens(rows)[1]
    sees = np.zeros((count, count), bool)
    for row in rows:
        for i in range(row.shared, len(row.ids)):
            sees[row.computed_as[i], row.computed_as[: i + 1]] = True
    return sees


def draw_rows(axes, rows: list[Row], tokenizer, points_per_token: float) -> None:
    """A cell for each token with the words in it, and lines from a row's own part up to the token that it continues."""
    for place, row in enumerate(rows):
        n, shared = len(row.ids), row.shared
        own_colours = [LEARNED if has_target else COMPUTED for has_target in row.learned[shared:]]
        edges = dict(edgecolor="white", linewidth=0.5) if points_per_token > 3 else {}
        axes.broken_barh([(i, 1) for i in range(n)], (place - 0.36, 0.72), facecolors=[SHARED] * shared + own_colours,
                         **edges)
        if shared:
            continued = row.computed_as[shared - 1]
            above = next(i for i, other in enumerate(rows) if continued in other.computed_as)
            axes.annotate("", xy=(shared - 0.5, above + 0.36), xytext=(shared - 0.5, place), annotation_clip=False,
                          arrowprops=dict(arrowstyle="-|>,head_width=0.14,head_length=0.28", color=INK, linewidth=0.7,
                                          shrinkA=0, shrinkB=0))
            axes.plot([shared - 0.5, shared], [place, place], color=INK, linewidth=0.7)
        write_words(axes, place, row, tokenizer, points_per_token)
    axes.set(xlim=(0, max(len(row.ids) for row in rows)), ylim=(len(rows) - 0.5, -0.5), xlabel="position in the row")
    axes.set_yticks(range(len(rows)), [f"row {row.number} computes {len(row.ids) - row.shared} of {len(row.ids)}"
                                       for row in rows])


def write_words(axes, place: int, row: Row, tokenizer, points_per_token: float) -> None:
    """In the cells the row's own words up to the first target, as far as there is room; behind them its last reply."""
    size = 7.5
    of_one = 0.602 * size  # points; in this font all characters are equally wide
    text = dict(y=place, family="DejaVu Sans Mono", fontsize=size, va="center_baseline", parse_math=False)
    own, learned = row.ids[row.shared :].tolist(), row.learned[row.shared :].tolist()
    until = learned.index(True) if any(learned) and not learned[0] else len(own)
    words = printable(tokenizer.decode(own[:until]))
    words = "".join(shortened(words, int(until * points_per_token / of_one) - 1, "…", keep_end=False))
    axes.text(row.shared, s=" " + words, color="white" if learned and learned[0] else INK, **text)
    if row.learned.all():  # nothing says where the reply begins
        return
    # The first of the last tokens with a target is the prompt's last: the reply begins behind it.
    reply = 1 + int(np.flatnonzero(~row.learned)[-1]) + 1
    words = printable(tokenizer.decode(row.ids[reply:].tolist()).strip())
    axes.text(len(row.ids), s=" " + "".join(shortened(words, 24, "…")), color=LEARNED, **text)


def draw_attention(axes, rows: list[Row]) -> None:
    """The matrix of who sees whom, and beside it what there is to see."""
    sees = attention_matrix(rows)
    count, own = len(sees), np.array([len(row.ids) - row.shared for row in rows])
    axes.imshow(sees, cmap="binary", extent=(0, count, count, 0))
    ends = np.cumsum(own)
    for end in ends[:-1]:
        axes.axhline(end, color=COMPUTED, linewidth=0.6)
        axes.axvline(end, color=COMPUTED, linewidth=0.6)
    named = np.flatnonzero(own > 0.025 * count)  # the others are too thin for a name
    axes.set_yticks((ends - own / 2)[named], [f"row {rows[place].number}" for place in named])
    axes.set(xlabel=f"{count:,} tokens that are seen", ylabel=f"{count:,} tokens that see")
    in_all = min((row.shared for row in rows[1:]), default=0)
    if in_all > 0.06 * count and count - own[0] > 0.3 * count:  # else there is no room for words
        axes.text(in_all / 2, (own[0] + count) / 2, "shared by all", color="white", rotation=90, ha="center",
                  va="center", fontsize=11)
    axes.text(1.08, 0.97, "Black: a token of the batch sees another one.\n\n"
              "Triangles: a row's own tokens see themselves\nand those before them.\n\n"
              "Stripes: a beginning that several rows share\nis computed once and seen by all of them.\n\n"
              "White: no token sees what comes later,\nor what only other rows have.",
              transform=axes.transAxes, va="top", fontsize=11, color=INK, linespacing=1.4)


def draw(rows: list[Row], tokenizer, path: Path) -> None:
    """The picture of a batch, as a file."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    # In inches, and all sizes fixed, so that it is known how many letters fit into a cell.
    width, left, right, head, foot, between = 12.0, 2.0, 1.9, 0.85, 0.6, 0.85
    across, down, side = width - left - right, 0.3 * len(rows), 4.6
    height = head + down + between + side + foot
    figure = Figure(figsize=(width, height), dpi=100)
    top = figure.add_axes((left / width, 1 - (head + down) / height, across / width, down / height))
    draw_rows(top, rows, tokenizer, 72 * across / max(len(row.ids) for row in rows))
    bottom = figure.add_axes((left / width, foot / height, side / width, side / height))
    draw_attention(bottom, rows)
    for axes in (top, bottom):
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
        axes.spines[:].set_visible(axes is bottom)
    figure.text(left / width, 1 - 0.3 / height, summary(rows), fontsize=13, color=INK, va="center")
    handles = [Patch(color=COMPUTED, label="computed"), Patch(color=LEARNED, label="computed, with a target"),
               Patch(color=SHARED, label="shared, computed in a row above"),
               Line2D([], [], color=INK, linewidth=0.7, marker="^", markersize=4, label="what a row continues")]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(left / width, 1 - 0.62 / height), frameon=False,
                  ncols=4, fontsize=9.5, borderpad=0, borderaxespad=0, columnspacing=1.6)
    with replacing(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # scripts that the font lacks are drawn as boxes
        figure.savefig(beside, format=path.suffix.removeprefix(".") or "png")


def main() -> None:
    """Show one batch, and count all."""
    options = parse_arguments()
    if options.output:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ValueError("drawing needs matplotlib: pip install matplotlib") from None
    folder = find_model(options.model)
    tokenizer = load_tokenizer(folder)
    batches = read_batches(options, tokenizer, read_config(folder).n_positions)
    if options.batch >= len(batches):
        raise ValueError(f"--batch {options.batch}: the epoch has {len(batches)} batches, expected 0 to "
                         f"{len(batches) - 1}")
    rows = lay_out_rows(*batches[options.batch])
    show_rows(rows, tokenizer, shutil.get_terminal_size((100, 24)).columns, sys.stdout.isatty())
    print("\n" + summary(rows))
    total, computed = np.sum([count_tokens(lay_out_rows(*batch)) for batch in batches], axis=0)
    which = f"all {len(batches):,} batches" if len(batches) > 1 else "the only batch"
    print(f"{which}: {percent(computed, total)} of {total:,} tokens are computed")
    if options.output:
        count = count_tokens(rows)[1]
        if count > LARGEST_PICTURE:
            raise ValueError(f"--output: {count:,} computed tokens are too many for a picture, expected at most "
                             f"{LARGEST_PICTURE:,}; choose a smaller --batch-size")
        draw(rows, tokenizer, options.output)
        print(f"drawn to {options.output}")


if __name__ == "__main__":
    cli.run(main)
