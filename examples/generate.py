"""Ask a model: one prompt, a file of prompts, or a conversation.

A prompt is put into the form that the model was tuned on, as its folder says; --raw continues it as it stands. The
reply appears word by word as the model finds it.
"""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from tinyft import Sampling, Turn, cli, load_engine
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt, end_of_reply, find_style
from tinyft.files import replacing
from tinyft.hub import find_model
from tinyft.inference.chat import Chat, ContextFull
from tinyft.inference.generate import MANY, generate, stream
from tinyft.inference.prompt_files import check_text, read_prompts
from tinyft.inference.replies import generators_for, run_all
from tinyft.inference.scheduler import Request, TokenLogprob, scheduler_of
from tinyft.inference.text import TextStream
from tinyft.inference.weights import KEPT_AS

EXAMPLES = """\
  python examples/generate.py --model runs/tiny-world/model "What is the capital of France?"
  python examples/generate.py --model runs/tiny-world/model "Make this plural." --input "a mouse"
  python examples/generate.py --model runs/tiny-world/model --chat
  python examples/generate.py --model runs/tiny-world/model --prompts questions.jsonl --output replies.jsonl
  python examples/generate.py --model weights/tiny-world --raw --temperature 0.8 --samples 3 "The dog"
  echo "Name a fruit." | python examples/generate.py --model gpt2 --weights int8 --json -
"""
CHAT_HELP = "/reset begins a new conversation, /history shows this one, /quit or Ctrl-D ends, Ctrl-C cuts a reply short"


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("prompt", nargs="?", help="the instruction, or with --raw the beginning of a text; - reads standard input")
    add("--model", required=True, metavar="NAME",
        help="a model folder, an adapter's, or a GPT-2 on the Hugging Face hub")
    add("--base-model", metavar="NAME",
        help="where --model is an adapter: the model that it belongs to (default: the one that the adapter names)")
    add("--prompts", type=Path, metavar="FILE",
        help="many prompts, a JSON value on each line: a text, or an object with prompt, with instruction (and input, "
             "system), or with messages")
    add("--output", type=cli.file_to_write, metavar="FILE",
        help="write replies to --prompts there, a JSON object on each line: that of the prompt with reply and "
             "finish_reason (default: standard output)")
    add("--chat", action="store_true", help="a conversation: " + CHAT_HELP)
    add("--on-overflow", choices=("error", "slide"), default="error",
        help="when the conversation no longer fits: say so, or forget its oldest turns")
    add("--input", default="", metavar="TEXT", help="what the instruction is about, if it needs that")
    add("--system", default="", metavar="TEXT", help="a system message in front")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around an instruction: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--raw", action="store_true", help="continue the prompt itself")
    add("--weights", choices=tuple(KEPT_AS), default="float32",
        help="how weights are kept: 16 bits are about twice as fast and 8 bits four times, at a small loss of quality")
    add_sampling(add)
    add("--json", action="store_true", help="print an object with the reply's tokens and their log-probabilities")
    add("--stats", action="store_true", help="say on stderr how fast it was")
    parser.add_threads()
    return parser.parse_args()


def add_sampling(add) -> None:
    """The options that choose tokens."""
    add("--max-new-tokens", type=cli.positive_int, default=200, metavar="N", help="longest reply")
    add("--min-new-tokens", type=cli.not_negative_int, default=0, metavar="N", help="shortest reply")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given more than once")
    add("--temperature", type=cli.not_negative_float, default=0.0, metavar="X", help="0: always the likeliest token")
    add("--top-k", type=cli.positive_int, metavar="N", help="draw from the N likeliest tokens only")
    add("--top-p", type=cli.positive_float, metavar="P", help="draw from the likeliest that together have this share")
    add("--min-p", type=cli.not_negative_float, metavar="P",
        help="draw from those at least this share as likely as the likeliest")
    add("--repetition-penalty", type=cli.positive_float, default=1.0, metavar="X",
        help="make tokens of prompt and reply less likely; 1: not")
    add("--presence-penalty", type=float, default=0.0, metavar="X", help="the same of the reply's tokens, once")
    add("--frequency-penalty", type=float, default=0.0, metavar="X", help="the same, each time that they occur")
    add("--logit-bias", action="append", default=[], metavar="ID=X", help="add X to a token's logit; -inf forbids it")
    add("--samples", type=cli.positive_int, default=1, metavar="N", help="replies to each prompt, which is read once")
    add("--seed", type=cli.not_negative_int, default=0, metavar="N", help="of the draws")


def check(options) -> None:
    """ValueError for options that don't go together."""
    if sum([options.prompt is not None, options.prompts is not None, options.chat]) != 1:
        raise ValueError("give one of these: a prompt, --prompts FILE, or --chat")
    if options.top_p and options.top_p > 1:
        raise ValueError(f"--top-p {options.top_p}: expected a share above 0 and at most 1")
    if (options.top_k or options.top_p or options.min_p) and not options.temperature:
        raise ValueError("--top-k, --top-p and --min-p limit what is drawn from; give a --temperature above 0 as well")
    if options.samples > 1 and not options.temperature:
        raise ValueError("--samples: without a --temperature above 0 all are the same")
    if options.raw and (options.system or options.input or options.prompt_style):
        raise ValueError("--raw continues the prompt itself; leave out --system, --input and --prompt-style")
    if options.chat and (options.raw or options.input or options.json or options.samples > 1):
        raise ValueError("--chat goes without --raw, --input, --json and --samples")
    if options.prompts and (options.input or options.system):
        raise ValueError("--input and --system stand in the lines of --prompts")
    if options.output and not options.prompts:
        raise ValueError("--output is for the replies to --prompts")
    if options.output and options.output.resolve() == options.prompts.resolve():
        raise ValueError(f"--output {options.output} would replace the prompts; choose another name")


def sampling_of(options) -> Sampling:
    """How tokens are chosen."""
    bias = {}
    for text in options.logit_bias:
        id, _, value = text.partition("=")
        try:
            bias[int(id)] = float(value)
        except ValueError:
            raise ValueError(f"--logit-bias {text}: expected a token's id and a number, such as 50256=-inf") from None
    return Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
                    repetition_penalty=options.repetition_penalty, presence_penalty=options.presence_penalty,
                    frequency_penalty=options.frequency_penalty, logit_bias=bias,
                    min_new_tokens=options.min_new_tokens)


def requests_for(options, tokenizer, style, asked) -> list[Request]:
    """--samples requests for each (turns, text)."""
    rng, sampling, requests = np.random.default_rng(options.seed), sampling_of(options), []
    generators = iter(generators_for(rng, len(asked) * options.samples))
    for turns, text in asked:
        ids = tokenizer.encode(text) if options.raw else encode_prompt(turns, style, tokenizer)
        ends = tokenizer.stop_tokens if options.raw else (*tokenizer.stop_tokens, end_of_reply(style, tokenizer)[1])
        requests += [Request(ids, max_new_tokens=options.max_new_tokens, ends=ends, sampling=sampling,
                             rng=next(generators), top_logprobs=5 if options.json else None)
                     for _ in range(options.samples)]
    return requests


def as_json(request: Request, text: str, tokenizer) -> dict:
    """A reply with its tokens."""

    def token(id: int, logprob: float) -> dict:
        return {"id": id, "text": tokenizer.decode([id]), "logprob": round(logprob, 6)}

    def described(found: TokenLogprob) -> dict:
        return token(found.token, found.logprob) | {"top": [token(*pair) for pair in found.top]}

    return {"reply": text, "finish_reason": request.finish_reason, "prompt_tokens": len(request.prompt),
            "tokens": [described(found) for found in request.logprobs]}


class Stopwatch:
    """How long reading and writing took."""

    def __init__(self):
        self.begin, self.times = time.perf_counter(), []

    def __call__(self, tokens):
        """The same tokens, each noted."""
        for token in tokens:
            self.times.append(time.perf_counter())
            yield token

    def say(self, request: Request) -> None:
        """Print that on stderr."""
        if len(self.times) < 2:
            return
        first, last = self.times[0], self.times[-1]
        shared = f" ({request.n_shared} of them known)" if request.n_shared else ""
        print(f"{len(request.prompt)} tokens read{shared} and the first written in {first - self.begin:.3f} s, "
              f"{(len(request.prompt) - request.n_shared) / (first - self.begin):.0f} tokens/s; then "
              f"{(len(self.times) - 1) / (last - first):.1f} tokens/s", file=sys.stderr)


def answer_one(options, engine, tokenizer, style) -> None:
    """Print the reply to one prompt as it comes; several, or --json, when they are complete."""
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not check_text(text, "the prompt").strip():
        raise ValueError("the prompt is empty")
    system = (Turn("system", options.system),) if options.system else ()
    requests = requests_for(options, tokenizer, style, [((*system, Turn("user", text, options.input)), text)])
    if options.samples > 1 or options.json:
        texts = dict(run_all(engine, tokenizer, requests, stop_strings=options.stop))
        for number, request in enumerate(requests):
            if options.json:
                print(json.dumps({"prompt": text} | as_json(request, texts[number], tokenizer), ensure_ascii=False))
            else:
                print(f"[{number + 1}] {text + texts[number] if options.raw else texts[number].strip()}")
        return
    request, watch, out = requests[0], Stopwatch(), TextStream(tokenizer, options.stop)
    scheduler_of(engine).check(request)
    if options.raw:
        print(text, end="", flush=True)
    for token in watch(stream(scheduler_of(engine), request)):
        print(out.add(token), end="", flush=True)
        if out.stopped:
            break
    print(out.finish())
    if not out.text:
        print("(the model ended at once)", file=sys.stderr)
    if options.stats:
        watch.say(request)


def answer_file(options, engine, tokenizer, style) -> None:
    """Write the replies to a file of prompts, in its order."""
    asked = read_prompts(options.prompts)
    if options.raw and not all(line.text for line in asked):
        raise ValueError(f"--raw continues texts, but {options.prompts} has conversations; leave out --raw")
    requests = requests_for(options, tokenizer, style, [(line.turns, line.text) for line in asked])
    begin, texts, written = time.perf_counter(), {}, 0
    with replacing(options.output) if options.output else nullcontext() as path:
        with open(path, "w", encoding="utf-8") if path else nullcontext(sys.stdout) as file:
            for number, text in run_all(engine, tokenizer, requests, stop_strings=options.stop, what="replies"):
                texts[number] = text
                while written in texts:
                    request, text = requests[written], texts.pop(written)
                    found = (as_json(request, text, tokenizer) if options.json else
                             {"reply": text if options.raw else text.strip(),
                              "finish_reason": request.finish_reason})
                    record = asked[written // options.samples].record | found
                    print(json.dumps(record, ensure_ascii=False), file=file, flush=not path)
                    written += 1
    if options.stats:
        counts, seconds = scheduler_of(engine).counts, time.perf_counter() - begin
        print(f"{len(requests)} replies in {seconds:.1f} s: {counts.prompt_tokens} tokens of prompts, "
              f"{counts.shared_tokens} of them shared, {counts.new_tokens} new ones, "
              f"{counts.new_tokens / seconds:.0f} tokens/s", file=sys.stderr)


def answer_chat(options, engine, tokenizer, style) -> None:
    """Ask and answer until the person has enough."""
    try:
        import readline  # noqa: F401 (line editing and earlier lines, where the system has it)
    except ImportError:
        pass
    chat = Chat(engine, tokenizer, style, system=options.system, max_new_tokens=options.max_new_tokens,
                on_overflow=options.on_overflow, stop_strings=tuple(options.stop), sampling=sampling_of(options),
                rng=np.random.default_rng(options.seed))
    if sys.stdin.isatty():
        print(CHAT_HELP, file=sys.stderr)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if said == "/quit":
            return
        if said == "/reset":
            chat.reset()
        elif said == "/history":
            print("".join(f"{'>' if turn.role == 'user' else ' '} {turn.content}\n" for turn in chat.turns), end="")
        elif said.startswith("/"):
            print(CHAT_HELP, file=sys.stderr)
        elif said:
            try:
                say(options, chat, check_text(said, "the message"))
            except ValueError as error:
                print(f"({error})", file=sys.stderr)


def say(options, chat: Chat, said: str) -> None:
    """One question and its reply."""
    watch, pieces = Stopwatch(), None
    try:
        pieces = chat.say(said)
        if chat.forgotten:
            print(f"(the context is full: {chat.forgotten} of the oldest turns are forgotten)", file=sys.stderr)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except ContextFull as error:
        print(f"({error}; see /reset and --on-overflow slide)" if chat.turns else f"({error})", file=sys.stderr)
        return
    except KeyboardInterrupt:
        if pieces:
            pieces.close()
        print(" (cut short)", file=sys.stderr)
        return
    if chat.request.finish_reason == "length":
        full = "the context is full" if len(chat.request.tokens) < options.max_new_tokens else "--max-new-tokens"
        print(f"(the reply was cut: {full})", file=sys.stderr)
    if options.stats:
        seconds, request = time.perf_counter() - watch.begin, chat.request
        print(f"{len(request.prompt)} tokens in the context ({request.n_shared} known), {len(request.tokens)} written, "
              f"{seconds:.2f} s", file=sys.stderr)


def main() -> None:
    """Load, answer."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    check(options)
    rows = MANY if options.prompts else min(MANY, options.samples)
    engine, tokenizer = load_engine(find_model(options.model), weights=options.weights, base_model=options.base_model,
                                    max_rows=rows)
    style = None if options.raw else find_style(tokenizer, options.prompt_style)
    if options.stats:  # the time to compile kernels is not the model's
        list(generate(engine, [tokenizer.eot_token], max_new_tokens=2))
    if options.chat:
        answer_chat(options, engine, tokenizer, style)
    elif options.prompts:
        answer_file(options, engine, tokenizer, style)
    else:
        answer_one(options, engine, tokenizer, style)


if __name__ == "__main__":
    cli.run(main)
