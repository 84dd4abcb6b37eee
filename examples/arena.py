"""Compare models by vote: two reply to your prompt, without their names, and you say which reply is better.

A page in the browser shows both replies side by side; the names come after the vote. Votes are lines of a file, from
which the page makes ratings.
"""

import os
import sys
from pathlib import Path

import numpy as np

from tinyft import cli
from tinyft.evaluation.contestants import load_contestants, read_specs
from tinyft.evaluation.journal import Journal
from tinyft.evaluation.ratings import lmsys_rows, rate, table
from tinyft.evaluation.votes import check_vote, read_votes
from tinyft.files import write_json
from tinyft.inference.prompt_files import read_prompts

try:
    from tinyft.inference import web
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
        raise
    web = None

EXAMPLES = """\
  python examples/arena.py weights/tiny-world runs/tiny-world/model
  python examples/arena.py tuned=runs/mine/model http://127.0.0.1:8000/v1#other --prompts questions.jsonl
  python examples/arena.py --votes votes.jsonl --export lmsys.json
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL",
        help="at least two: model folders, GPT-2s on the Hugging Face hub, or endpoints, OpenAI's protocol or "
             "Ollama's, as URL#NAME; NAME=MODEL says what one is called")
    add("--votes", type=Path, default=Path("votes.jsonl"), metavar="FILE",
        help="where votes are added, a JSON object on each line")
    add("--prompts", type=Path, metavar="FILE",
        help="vote on these one after the other: a JSON value on each line, a text, or an object with prompt, with "
             "instruction (and input, system), or with messages; those that have been voted on aren't asked again")
    add("--shuffle", action="store_true", help="ask them in an order that the seed gives, not in the file's")
    add("--temperature", type=cli.not_negative_float, default=0.0, metavar="X", help="0: always the likeliest token")
    add("--max-new-tokens", type=cli.positive_int, default=200, metavar="N", help="longest reply")
    add("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="how weights are kept in memory")
    add("--seed", type=cli.not_negative_int, default=0, metavar="N", help="of pairs, sides, replies and intervals")
    add("--api-key", metavar="KEY",
        help="what endpoints want to see, sent to all that are named. Other users of this machine can see it on the "
             "command line; they can't in the environment variable TINYFT_API_KEY")
    add("--port", type=cli.not_negative_int, default=8001, metavar="N", help="0 takes one that is free")
    add("--export", type=cli.file_to_write, metavar="FILE",
        help="write the votes there in the fields of LMSYS' data set, print the ratings, and end")
    parser.add_threads()
    return parser.parse_args()


def main() -> None:
    """Load, listen, take votes; or export those that there are."""
    options = parse_arguments()
    for path in (options.votes, options.prompts):
        if options.export and path and options.export.resolve() == path.resolve():
            raise ValueError(f"--export {options.export}: this file is read, and would be lost; choose another name")
    if options.export:
        return export(options)
    if web is None:
        raise ValueError("the arena needs starlette and uvicorn: pip install -e '.[arena]'")
    from tinyft.evaluation.arena import Arena
    from tinyft.evaluation.arena_server import ArenaServer

    if options.port > 65535:
        raise ValueError(f"--port {options.port}: expected at most 65535")
    named = read_specs(options.models)
    prompts = read_prompts(options.prompts) if options.prompts else []
    listener = web.listen("127.0.0.1", options.port)  # before large models are read for nothing
    journal = Journal(options.votes, check_vote)  # and so is this file checked
    if journal.repaired:
        print(journal.repaired, file=sys.stderr)
    cli.use_threads(options.threads)
    # Other draws than those of the last time, on the same file.
    rng = np.random.default_rng([options.seed, len(journal.records)])
    if options.shuffle:
        prompts = [prompts[i] for i in np.random.default_rng(options.seed).permutation(len(prompts))]
    models = load_contestants(named, weights=options.weights,
                              api_key=options.api_key or os.environ.get("TINYFT_API_KEY"),
                              on_loaded=lambda line: print(f"model     {line}", flush=True))
    arena = Arena(models, journal, rng, prompts=prompts, temperature=options.temperature,
                  max_new_tokens=options.max_new_tokens)
    print(f"votes     {options.votes}: {len(arena.votes)} so far" + (
        f"; {arena.queue.n_done} of {len(arena.queue.turns)} prompts are done" if arena.queue else ""))
    ready = f"serving   http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends)"
    if web.serve_until_signal(ArenaServer(arena, seed=options.seed), listener, lambda: print(ready, flush=True)):
        raise KeyboardInterrupt


def export(options) -> None:
    """Votes as LMSYS has them, and the ratings as text."""
    votes = read_votes(options.votes)
    write_json(options.export, lmsys_rows(votes))
    try:
        print(table(rate(votes, np.random.default_rng(options.seed))))
    except ValueError as error:  # too few votes, or no evalica
        print(f"no ratings: {error}")
    print(f"{len(votes)} vote{'s' * (len(votes) != 1)} written to {options.export}")


if __name__ == "__main__":
    cli.run(main)
