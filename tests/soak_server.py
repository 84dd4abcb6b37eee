"""Many requests of all kinds, good, bad and broken off: does examples/serve.py answer right, and stay small?

python tests/soak_server.py --requests 10000 --model FOLDER

Every greedy reply must be what the engine alone gives; in the end no row may be held, the server must end at SIGTERM,
and its memory must not have grown. Needs '.[serve]'; speaks with 127.0.0.1 only.
"""

import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tinyft import Turn, cli, generate
from tinyft.data.prompts import encode_prompt, end_of_reply, find_style
from tinyft.inference.engine import load_engine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = "  python tests/soak_server.py --requests 500 --model weights/tiny-world\n"
N_PROMPTS, LONGEST_REPLY = 48, 40
SETTLED = 0.3  # of the requests: what memory is compared with
MOST_GROWTH = 1.05
BROKEN_BODIES = [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b'{"prompt": NaN}', b'{"prompt": "a", "max_tokens": 1e9}',
                 b'{"prompt": "a", "tools": [{}]}', b'{"prompt": [1, "a"]}', b'{"prompt": "a", "n": 1000}',
                 b'{"prompt": "' + b"a " * 30_000 + b'"}', b"[" * 50_000]


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="a model folder")
    add("--requests", type=cli.positive_int, default=10_000, metavar="N", help="how many")
    add("--clients", type=cli.positive_int, default=16, metavar="N", help="at a time")
    add("--minutes", type=cli.positive_float, default=60.0, metavar="X", help="give up after that time")
    add("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="of the server's engine")
    add("--seed", type=cli.not_negative_int, default=0, metavar="N", help="of what is asked")
    parser.add_threads()
    return parser.parse_args()


class Question:
    """A prompt for both endpoints, and the tokens that the engine alone replies with."""

    def __init__(self, text: str, engine, tokenizer, style):
        self.text, self.tokenizer = text, tokenizer
        ids = {False: tokenizer.encode(text), True: encode_prompt([Turn("user", text)], style, tokenizer)}
        stop = (*tokenizer.stop_tokens, end_of_reply(style, tokenizer)[1])
        self.tokens = {chat: list(generate(engine, ids[chat], max_new_tokens=LONGEST_REPLY,
                                           stop=stop if chat else tokenizer.stop_tokens)) for chat in ids}

    def expected(self, chat: bool, count: int) -> str:
        """The greedy reply of at most so many tokens."""
        return self.tokenizer.decode(self.tokens[chat][:count])


def make_questions(options, rng: np.random.Generator) -> list[Question]:
    """Questions of random length, in words of the model's own."""
    engine, tokenizer = load_engine(options.model, weights=options.weights)
    style = find_style(tokenizer)
    room = engine.config.n_positions - LONGEST_REPLY - 1
    text = tokenizer.decode(generate(engine, [tokenizer.eot_token], max_new_tokens=room, stop=(), temperature=1.0,
                                     rng=rng))
    words, questions = text.split() or ["word"], []
    while len(questions) < N_PROMPTS:
        asked = " ".join(rng.choice(words, size=int(rng.integers(1, 120))))
        if len(encode_prompt([Turn("user", asked)], style, tokenizer)) < room:
            questions.append(Question(asked, engine, tokenizer, style))
    return questions


class Soak:
    """Asks, checks and counts."""

    def __init__(self, port: int, name: str, questions: list[Question], rng: np.random.Generator):
        self.port, self.name, self.questions, self.rng = port, name, questions, rng
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.resident: list[float] = []

    async def exchange(self, request: bytes, leave_after: float | None = None) -> tuple[int, bytes]:
        """Status and body; (0, b"") where it is left before the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            if leave_after is not None:
                await asyncio.sleep(leave_after)
                writer.transport.abort()
                return 0, b""
            answer = await asyncio.wait_for(reader.read(), 120)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = unchunked(body)
        return int(head.split()[1]) if head else -1, body

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        _, body = await self.exchange(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        samples = [line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    async def one(self) -> None:
        """One request of some kind."""
        kind = self.rng.choice(["greedy", "drawn", "vanishing", "broken"], p=[0.7, 0.1, 0.15, 0.05])
        chat, stream = bool(self.rng.integers(2)), bool(self.rng.integers(2))
        question, count = self.questions[self.rng.integers(N_PROMPTS)], int(self.rng.integers(1, LONGEST_REPLY + 1))
        n = int(self.rng.choice([1, 1, 1, 3]))
        path = "/v1/chat/completions" if chat else "/v1/completions"
        asked = {"messages": [{"role": "user", "content": question.text}]} if chat else {"prompt": question.text}
        asked |= {"model": self.name, "max_tokens": count, "temperature": 0.9 if kind == "drawn" else 0, "n": n,
                  "stream": stream}
        body = BROKEN_BODIES[self.rng.integers(len(BROKEN_BODIES))] if kind == "broken" else json.dumps(asked).encode()
        leave = float(self.rng.exponential(0.05)) if kind == "vanishing" else None
        status, answer = await self.exchange(post(path, body), leave)
        self.counts[f"{kind} {status}"] += 1
        if kind == "vanishing":
            return
        if status != (400 if kind == "broken" else 200):
            self.fault(f"{kind}: status {status}, {answer[:200]!r}")
        elif kind != "broken":
            texts = read_texts(answer, chat, stream, n)
            if kind == "greedy" and texts != [question.expected(chat, count)] * n:
                self.fault(f"{path}, stream {stream}, {count} tokens after {question.text[:40]!r}: {texts}, expected "
                           f"{question.expected(chat, count)!r}")

    def fault(self, what: str) -> None:
        """Something that must not be."""
        self.faults.append(what)
        if len(self.faults) <= 5:
            print(f"fault     {what}", flush=True)

    async def client(self, numbers, deadline: float, total: int) -> None:
        """Asks until the numbers or the time are used up."""
        for number in numbers:
            if time.monotonic() > deadline:
                return
            await self.one()
            if number % max(1, total // 50) == 0:
                self.resident.append((await self.metrics())["process_resident_memory_bytes"] / 1e6)
            if number % max(1, total // 10) == 0:
                print(f"  {number:6,} of {total:,} requests, {self.resident[-1]:.0f} MB", flush=True)


def unchunked(body: bytes) -> bytes:
    """The content of a body in chunks."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return content


def post(path: str, body: bytes) -> bytes:
    """A request as bytes."""
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def read_texts(answer: bytes, chat: bool, stream: bool, n: int) -> list[str]:
    """The text of each choice of an answer."""
    texts = [""] * n
    if stream:
        events = answer.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""], events[-2:]
        objects = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    else:
        objects = [json.loads(answer)]
    for choice in (choice for one in objects for choice in one["choices"]):
        texts[choice["index"]] += choice["delta" if stream else "message"]["content"] if chat else choice["text"]
    return texts


async def run(options, questions: list[Question], rng: np.random.Generator, log) -> list[str]:
    """Start the server, ask, end it -> what went wrong."""
    arguments = [] if options.threads is None else ["--threads", str(options.threads)]
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "examples" / "serve.py"), options.model, "--port", "0", "--max-rows", "12",
        "--weights", options.weights, "--name", "soaked", *arguments, stdout=asyncio.subprocess.PIPE, stderr=log)
    try:
        lines = [(await server.stdout.readline()).decode() for _ in range(2)]
        found = re.search(r"http://127.0.0.1:(\d+)", lines[-1])
        if not found:
            raise RuntimeError(f"the server doesn't start: {lines}")
        soak = Soak(int(found[1]), "soaked", questions, rng)
        numbers, began = iter(range(1, options.requests + 1)), time.monotonic()
        deadline = began + 60 * options.minutes
        await asyncio.gather(*(soak.client(numbers, deadline, options.requests) for _ in range(options.clients)))
        took = time.monotonic() - began
        await check_the_end(soak, server, took)
        return soak.faults
    finally:
        if server.returncode is None:
            server.kill()


async def check_the_end(soak: Soak, server, took: float) -> None:
    """What is held when all is over, and what it took."""
    for _ in range(100):
        metrics = await soak.metrics()
        held = {name: metrics[f"tinyft_replies_{name}"] for name in ("running", "waiting", "open")}
        if not any(held.values()):
            break
        await asyncio.sleep(0.1)
    else:
        soak.fault(f"rows are held in the end: {held}")
    settled, last = soak.resident[int(SETTLED * len(soak.resident))], soak.resident[-1]
    if last > MOST_GROWTH * settled:
        soak.fault(f"memory grew from {settled:.0f} to {last:.0f} MB")
    server.send_signal(signal.SIGTERM)
    status = await asyncio.wait_for(server.wait(), 30)
    if status != 0:
        soak.fault(f"exit status {status} after SIGTERM")
    tokens, read = metrics["tinyft_new_tokens_total"], metrics["tinyft_prompt_tokens_total"]
    print(f"asked     {sum(soak.counts.values()):,} requests in {took:.0f} s: "
          + ", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.counts.items())))
    print(f"server    {tokens:,.0f} tokens, {tokens / took:.0f} a second; {metrics['tinyft_shared_tokens_total']:,.0f} "
          f"of {read:,.0f} prompt tokens shared")
    print(f"memory    {soak.resident[0]:.0f} MB at first, {settled:.0f} MB after {SETTLED:.0%}, {last:.0f} MB at last")


def main() -> None:
    """Prepare, soak, say what came of it."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    questions = make_questions(options, rng)
    with tempfile.TemporaryFile("w+") as log:
        faults = asyncio.run(run(options, questions, rng, log))
        log.seek(0)
        said = "".join(line for line in log if not line.startswith("tinyft: compiling"))
    if said:
        faults.append(f"the server says on stderr: {said[:2000]}")
    if faults:
        raise RuntimeError(f"{len(faults)} faults; the first: {faults[0]}")
    print("all as it should be")


if __name__ == "__main__":
    cli.run(main)
