"""A real HTTP server on loopback that answers as a test says, in OpenAI's protocol or Ollama's."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Answer:
    """What the server does with one request. close_after: bytes of the body after which it hangs up."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    close_after: int | None = None
    type: str = "application/json"


def says(text: str | None, reason: str = "stop", **options) -> Answer:
    """A whole reply of OpenAI's protocol."""
    message = {"role": "assistant", "content": text}
    return Answer(json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode(), **options)


def ollama_says(text: str, reason: str = "stop") -> Answer:
    """A whole reply of Ollama's."""
    return Answer(json.dumps({"message": {"role": "assistant", "content": text}, "done": True,
                              "done_reason": reason}).encode())


def fails(status: int, message: str = "planted", **headers: str) -> Answer:
    """An error object as OpenAI sends it."""
    return Answer(json.dumps({"error": {"message": message, "param": None}}).encode(), status,
                  {name.replace("_", "-"): value for name, value in headers.items()})


class Scripted:
    """What the server got, and what it says. answer: f(body of a chat request, how many came before) -> Answer."""

    def __init__(self, answer: Callable[[dict, int], Answer], api: str = "openai",
                 models: tuple[str, ...] = ("judge",)):
        self.answer, self.api, self.models = answer, api, models
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock, self.running, self.most_running = threading.Lock(), 0, 0

    def list_of_models(self, path: str) -> Answer:
        if self.api == "openai" and path == "/v1/models":
            return Answer(json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode())
        if self.api == "ollama" and path == "/api/tags":
            return Answer(json.dumps({"models": [{"name": name} for name in self.models]}).encode())
        return fails(404, "no such path")

    def chat(self, path: str, body: dict) -> Answer:
        if path != {"openai": "/v1/chat/completions", "ollama": "/api/chat"}[self.api]:
            return fails(404, "no such path")
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            answer = self.answer(body, number)
            time.sleep(answer.seconds)
            return answer
        finally:
            with self.lock:
                self.running -= 1


def in_turn(*answers: Answer) -> Callable[[dict, int], Answer]:
    """These answers, the last of them again and again."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def quoted(body: dict, name: str = "reply") -> str:
    """What stands between the tags of this name in a prompt."""
    return re.search(rf"<{name}-(\w{{8}})>\n(.*)\n</{name}-\1>", body["messages"][-1]["content"], re.DOTALL)[2]


def longer(body, number):
    """A judge who likes what is long."""
    lengths = len(quoted(body, "reply-A")), len(quoted(body, "reply-B"))
    return says("A" if lengths[0] > lengths[1] else "B" if lengths[0] < lengths[1] else "TIE")


@contextlib.contextmanager
def scripted(answer, **options) -> Iterator[tuple[str, Scripted]]:
    """(address, server)"""
    script = Scripted(answer, **options)

    class Handler(http.server.BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # or each answer, sent in two parts, takes 40 ms
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments) -> None:
            pass

        def do_GET(self) -> None:
            script.paths.append(self.path)
            self.send(script.list_of_models(self.path))

        def do_POST(self) -> None:
            script.paths.append(self.path)
            script.headers.append(dict(self.headers))
            self.send(script.chat(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.type, "Content-Length": str(len(answer.body)),
                                **answer.headers}.items():
                self.send_header(name, value)
            with contextlib.suppress(ConnectionError):  # a client that has gone, as it may
                self.end_headers()
                self.wfile.write(answer.body[: answer.close_after])
            self.close_connection = self.close_connection or answer.close_after is not None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
