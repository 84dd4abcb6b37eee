"""Answer one prompt, word by word as the model finds it.

The prompt is put into the form that the model was tuned on, as its folder says; --raw continues it as it stands.
"""

import sys
import time

import numpy as np

from tinyft import Turn, cli, generate, load_model_and_tokenizer, stream_text
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt, end_of_reply, find_style
from tinyft.hub import find_model

EXAMPLES = """\
  python examples/generate.py --model runs/tiny-world/model "What is the capital of France?"
  python examples/generate.py --model runs/tiny-world/model "Make this plural." --input "a mouse"
  python examples/generate.py --model weights/tiny-world --raw --temperature 0.8 "The dog"
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("prompt", help="the instruction, or with --raw the beginning of a text; - reads it from standard input")
    add("--model", required=True, metavar="NAME", help="a model folder, or a GPT-2 on the Hugging Face hub")
    add("--input", default="", metavar="TEXT", help="what the instruction is about, if it needs that")
    add("--system", default="", metavar="TEXT", help="a system message in front")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around an instruction: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--raw", action="store_true", help="continue the prompt itself")
    add("--max-new-tokens", type=cli.positive_int, default=200, metavar="N", help="longest reply")
    add("--temperature", type=cli.not_negative_float, default=0.0, metavar="X", help="0: always the likeliest token")
    add("--top-k", type=cli.positive_int, metavar="N", help="draw from the N likeliest tokens only")
    add("--top-p", type=cli.positive_float, metavar="P", help="draw from the likeliest that together have this share")
    add("--seed", type=cli.not_negative_int, default=0, metavar="N", help="of the draws")
    add("--stats", action="store_true", help="say on stderr how fast it was")
    parser.add_threads()
    return parser.parse_args()


def main() -> None:
    """Load, answer."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    model, tokenizer = load_model_and_tokenizer(find_model(options.model))
    if options.top_p and options.top_p > 1:
        raise ValueError(f"--top-p {options.top_p}: expected a share above 0 and at most 1")
    if (options.top_k or options.top_p) and not options.temperature:
        raise ValueError("--top-k and --top-p limit what is drawn from; give a --temperature above 0 as well")
    if options.raw and (options.system or options.input or options.prompt_style):
        raise ValueError("--raw continues the prompt itself; leave out --system, --input and --prompt-style")
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not text.strip():
        raise ValueError("the prompt is empty")
    if options.raw:
        ids, stop = tokenizer.encode(text), tokenizer.stop_tokens
    else:
        style = find_style(tokenizer, options.prompt_style)
        system = (Turn("system", options.system),) if options.system else ()
        ids = encode_prompt((*system, Turn("user", text, options.input)), style, tokenizer)
        stop = (*tokenizer.stop_tokens, end_of_reply(style, tokenizer)[1])
    tokens = generate(model, ids, max_new_tokens=options.max_new_tokens, stop=stop,
                      temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                      rng=np.random.default_rng(options.seed))
    times = [time.perf_counter()]

    def timed():
        for token in tokens:
            times.append(time.perf_counter())
            yield token

    if options.raw:
        print(text, end="", flush=True)
    for piece in stream_text(timed(), tokenizer):
        print(piece, end="", flush=True)
    print()
    if len(times) == 1:
        print("(the model ended at once)", file=sys.stderr)
    if options.stats and len(times) > 2:
        print(f"{len(ids)} tokens read and the first written in {times[1] - times[0]:.2f} s, then "
              f"{(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
