"""Draw what a model does with a prompt: what each head attends to, and what it would say after each layer.

Leaves attention.png, lens.png and inside.html, a page to walk through with the keys, which needs no network.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tinyft import cli, draw, load_model_and_tokenizer
from tinyft.data.entries import Turn
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt, find_style
from tinyft.files import make_writable_folder, replacing
from tinyft.hub import find_model
from tinyft.inference.prompt_files import check_text

ROOT = Path(__file__).resolve().parents[1]
TUNED, SHIPPED = ROOT / "runs" / "tiny-world" / "model", ROOT / "weights" / "tiny-world"
EXAMPLES = """\
  python examples/look_inside.py "What is the capital of France?"
  python examples/look_inside.py "What is the capital of France?" --compare weights/tiny-world
  python examples/look_inside.py --raw "A lemon is yellow. A banana is" --model gpt2 --output-dir runs/lemon
"""


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("prompt", help="an instruction, or with --raw any text")
    add("--model", metavar="NAME",
        help="a model folder, one of an adapter, or a GPT-2 on the Hugging Face hub (default: runs/tiny-world/model, "
             "which finetune_alpaca.py leaves)")
    add("--compare", metavar="NAME", help="a second model with the same tokenizer, such as the untuned one")
    add("--raw", action="store_true", help="take the prompt as it is, without a prompt style")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around an instruction: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--output-dir", type=Path, default=Path("runs/inside"), metavar="FOLDER", help="gets the pictures and the page")
    options = parser.parse_args(arguments)
    if options.raw and options.prompt_style:
        raise ValueError("--raw takes the prompt as it is, so that --prompt-style would do nothing; leave out one of "
                         "the two")
    if not options.prompt:
        raise ValueError("the prompt is empty, expected a text to look at")
    check_text(options.prompt, "the prompt")
    return options


def default_model() -> Path:
    """The tuned model, or what ships where there is none yet."""
    if (TUNED / "config.json").exists():
        return TUNED
    print(f"{TUNED.relative_to(ROOT)} isn't there yet, so this looks into the untuned {SHIPPED.relative_to(ROOT)}; "
          "python examples/finetune_alpaca.py tunes it", file=sys.stderr)
    return SHIPPED


def token_ids(options, tokenizer) -> list[int]:
    """The prompt as a model is asked."""
    if options.raw:
        return tokenizer.encode(options.prompt)
    return encode_prompt([Turn("user", options.prompt)], find_style(tokenizer, options.prompt_style), tokenizer)


def save(figure, path: Path) -> None:
    """Write a picture whole or not at all."""
    with replacing(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are drawn as boxes
        figure.savefig(beside, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Look, draw, and say where the pictures are."""
    options = parse_arguments(arguments)
    name = str(default_model()) if options.model is None else options.model
    model, tokenizer = load_model_and_tokenizer(find_model(name))
    ids, context = token_ids(options, tokenizer), model.config.n_positions
    if len(ids) > context:
        raise ValueError(f"the prompt makes {len(ids):,} tokens, expected at most {context:,}, the context of {name}; "
                         "shorten it")
    make_writable_folder(options.output_dir)
    views = {name: draw.look(model, ids)}
    if options.compare:
        other, other_tokenizer = load_model_and_tokenizer(find_model(options.compare))
        if token_ids(options, other_tokenizer) != ids:
            raise ValueError(f"--compare {options.compare}: its tokenizer or prompt style makes other tokens of the "
                             f"prompt than {name}'s, so that the two can't be laid side by side; try --raw")
        views = {options.compare: draw.look(other, ids), **views}

    def decode(token: int) -> str:
        return tokenizer.decode([token])

    view, folder = views[name], options.output_dir
    save(draw.attention_maps(view, decode), folder / "attention.png")
    save(draw.lens(view, decode), folder / "lens.png")
    draw.page(folder / "inside.html", views, decode, options.prompt)
    print(f"{len(ids)} token{'s' * (len(ids) != 1)}; likeliest next ones: "
          + ", ".join(f"{decode(int(token))!r} {share:.0%}" for token, share in
                      zip(view.likeliest[-1, -1], view.probabilities[-1, -1], strict=True)))
    for file in ("attention.png", "lens.png", "inside.html"):
        print(folder / file)


if __name__ == "__main__":
    cli.run(main)
