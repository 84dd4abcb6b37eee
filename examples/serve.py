"""Serve a model over HTTP in OpenAI's protocol, with a page to chat in.

Clients of OpenAI's API reach it at http://127.0.0.1:8000/v1; a browser at http://127.0.0.1:8000. Requests are computed
together. SIGTERM and Ctrl-C let what runs finish.
"""

import os

from tinyft import cli
from tinyft.data.prompts import PROMPT_STYLES, find_style
from tinyft.hub import find_model, name_of
from tinyft.inference.engine import load_engine
from tinyft.inference.protocol import Served
from tinyft.inference.scheduler import Request, Scheduler, scheduler_of
from tinyft.inference.service import Limits, Service

try:
    from tinyft.inference import server as http
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
        raise
    http = None

EXAMPLES = """\
  python examples/serve.py runs/tiny-world/model
  python examples/serve.py gpt2 --weights int8 --port 8080
  TINYFT_API_KEY=secret python examples/serve.py runs/mine/model --host 0.0.0.0
"""
WARM_UP_TOKENS = 3


def parse_arguments():
    """The command line."""
    limits = Limits()
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("model", metavar="FOLDER", help="a model folder, an adapter's, or a GPT-2 on the Hugging Face hub")
    add("--base-model", metavar="NAME",
        help="where that is an adapter: the model that it belongs to (default: the one that the adapter names)")
    add("--name", metavar="NAME",
        help="what clients call the model (default: the folder's name, or that of the run that it is of)")
    add("--host", default="127.0.0.1", help="where to listen; any other than this machine's own needs an API key")
    add("--port", type=cli.not_negative_int, default=8000, metavar="N", help="0 takes one that is free")
    add("--api-key", metavar="KEY", help="what clients must show; other users of this machine can't see it in the "
        "environment variable TINYFT_API_KEY, but can on the command line")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around a conversation: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="how weights are kept in memory")
    add("--max-rows", type=cli.positive_int, default=64, metavar="N", help="replies that are computed together")
    add("--max-queue", type=cli.not_negative_int, default=limits.queue, metavar="N",
        help="replies that may wait for that; more are refused")
    add("--max-body", type=cli.positive_int, default=limits.body_bytes, metavar="BYTES", help="largest request")
    add("--max-seconds", type=cli.positive_float, default=limits.seconds, metavar="X",
        help="longest time for one request, waiting included")
    parser.add_threads()
    return parser.parse_args()


def main() -> None:
    """Load, listen, answer."""
    options = parse_arguments()
    if http is None:
        raise ValueError("serving needs starlette and uvicorn: pip install -e '.[serve]'")
    key = check_access(options.host, options.api_key or os.environ.get("TINYFT_API_KEY"))
    if options.port > 65535:
        raise ValueError(f"--port {options.port}: expected at most 65535")
    listener = http.listen(options.host, options.port)  # before a large model is read for nothing
    threads = cli.use_threads(options.threads)
    folder = find_model(options.model)
    engine, tokenizer = load_engine(folder, weights=options.weights, base_model=options.base_model,
                                    max_rows=options.max_rows)
    name = options.name or name_of(options.model)
    style = find_style(tokenizer, options.prompt_style)
    print(f"model     {name}: context {engine.config.n_positions}, weights in {options.weights} "
          f"({engine.weight_bytes / 1e6:.0f} MB), {threads} threads", flush=True)
    warm_up(scheduler_of(engine), tokenizer.eot_token)
    limits = Limits(options.max_queue, options.max_body, options.max_seconds)
    served = Served(name, tokenizer, style, engine.config.n_positions, engine.config.vocab_size,
                    most_replies=options.max_rows + limits.queue, fingerprint=f"tinyft-{options.weights}")
    server = http.Server(Service(scheduler_of(engine), tokenizer), served, api_key=key, limits=limits)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    ready = f"serving   {address} (OpenAI's API under /v1; Ctrl-C ends)"
    http.serve(server, listener, lambda: print(ready, flush=True))


def check_access(host: str, key: str | None) -> str | None:
    """The API key, if there is one. ValueError if there must be one, or it can't be sent in a header."""
    if not key and not http.is_loopback(host):
        raise ValueError(f"--host {host}: others can reach this address; give them a key with TINYFT_API_KEY in the "
                         "environment or --api-key, or keep to 127.0.0.1")
    if key and not all("!" <= letter <= "~" for letter in key):
        raise ValueError("--api-key: expected letters, digits and signs of ASCII, without spaces")
    return key or None


def warm_up(scheduler: Scheduler, token: int) -> None:
    """Make short replies, and score a prompt, so that no client waits for kernels to be compiled."""
    for length in (1, 2):
        scheduler.submit(Request([token] * length, max_new_tokens=WARM_UP_TOKENS))
    many = min(scheduler.engine.config.n_positions - 1, scheduler.engine.max_rows + 2)
    scheduler.submit(Request([token] * many, max_new_tokens=1, top_logprobs=1, scored_from=1))
    while not scheduler.idle:
        failed = [request.error for request in scheduler.step() if request.error]
        if failed:
            raise ValueError(f"this model can't be served: {failed[0]}")


if __name__ == "__main__":
    cli.run(main)
