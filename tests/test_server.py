"""The HTTP server, asked by the official client, by plain HTTP and by clients that misbehave."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import numba
import pytest
from fake_scheduler import FakeScheduler, expected_text, fake_server, make_served, prompt_for
from tiny import CONTEXT, EXAMPLES, TOKENIZER, error_line, example

WHY_NOT = "needs pip install '.[serve]' openai httpx"
openai = pytest.importorskip("openai", reason=WHY_NOT)
httpx = pytest.importorskip("httpx", reason=WHY_NOT)
pytest.importorskip("starlette", reason=WHY_NOT)
pytest.importorskip("uvicorn", reason=WHY_NOT)

from tinyft import Turn  # noqa: E402 - what stands above may skip all this
from tinyft.data.prompts import encode_prompt  # noqa: E402
from tinyft.inference import server as server_module  # noqa: E402
from tinyft.inference.server import is_loopback  # noqa: E402
from tinyft.inference.service import Limits  # noqa: E402

LONG = {"temperature": 0, "min_tokens": 100, "max_tokens": 100}  # a reply of 100 tokens


@pytest.fixture(scope="module")
def quick():
    """A server whose steps take no time."""
    with fake_server() as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(quick):
    return connect(quick)


def connect(url: str, **options):
    return openai.OpenAI(**{"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30, **options})


def post(url: str, path: str = "/v1/completions", **fields):
    return httpx.post(url + path, json={"prompt": "a", **fields}, timeout=30)


def metrics(url: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def wait_for(check, seconds: float = 30.0):
    """What check() gives once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


def nothing_held(url: str) -> bool:
    found = metrics(url)
    return not any(found[f"tinyft_replies_{state}"] for state in ("running", "waiting", "open"))


# ---- with the official client


def test_models(client):
    [model] = client.models.list().data
    assert model.id == "fake" and client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="no model other"):
        client.models.retrieve("other")


@pytest.mark.parametrize("prompt", ["abc", ["abc", "x"], [5, 6], [[5, 6], [7]]])
def test_completions(client, prompt):
    reply = client.completions.create(model="fake", prompt=prompt, temperature=0, max_tokens=3)
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    ids = [TOKENIZER.encode(one) if isinstance(one, str) else one for one in prompts]
    assert [choice.text for choice in reply.choices] == [expected_text(one, 3) for one in ids]
    assert [choice.index for choice in reply.choices] == list(range(len(ids)))
    assert reply.usage.prompt_tokens == sum(map(len, ids))
    assert reply.usage.completion_tokens == sum(len(choice.text) for choice in reply.choices)


def test_chat(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say word."}]
    ids = encode_prompt([Turn("system", "Be brief."), Turn("user", "Say word.")], make_served().style, TOKENIZER)
    reply = client.chat.completions.create(model="fake", messages=messages, temperature=0, max_completion_tokens=3)
    assert reply.choices[0].message.content == expected_text(ids, 3) and reply.choices[0].message.role == "assistant"
    again = client.chat.completions.create(model="fake", messages=[*messages, reply.choices[0].message.model_dump(),
                                                                   messages[1]])
    assert again.usage.prompt_tokens > reply.usage.prompt_tokens == len(ids)


def test_streams(client):
    fields = dict(model="fake", temperature=0, stream=True, stream_options={"include_usage": True})
    chunks = list(client.completions.create(prompt=prompt_for("e"), max_tokens=5, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "efghi"
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 5
    messages = [{"role": "user", "content": "Say word."}]
    chunks = list(client.chat.completions.create(messages=messages, n=2, logprobs=True, max_tokens=3, **fields))
    whole = client.chat.completions.create(model="fake", messages=messages, temperature=0, max_tokens=3)
    for index in (0, 1):
        choices = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert "".join(choice.delta.content for choice in choices) == whole.choices[0].message.content
        assert sum(len(choice.logprobs.content) for choice in choices) == 3


def test_a_stream_is_server_sent_events(quick):
    reply = post(quick, prompt=prompt_for("x"), temperature=0, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])


def test_logprobs_and_echo(client):
    reply = client.completions.create(model="fake", prompt=prompt_for("b"), temperature=0, max_tokens=2, logprobs=1,
                                      echo=True)
    letter = TOKENIZER.decode(prompt_for("b"))
    assert reply.choices[0].text == letter + "bc"
    assert reply.choices[0].logprobs.tokens == [letter, "b", "c"]
    assert reply.choices[0].logprobs.token_logprobs == [None, -0.1, -0.2]
    assert reply.choices[0].logprobs.text_offset == [0, 1, 2]
    scored = client.completions.create(model="fake", prompt="word", max_tokens=0, logprobs=0, echo=True)
    assert scored.choices[0].text == "word" and scored.usage.completion_tokens == 0


def test_n_seed_and_stop(client):
    fields = dict(model="fake", prompt="a", n=3, seed=11, max_tokens=12)
    texts = [choice.text for choice in client.completions.create(**fields).choices]
    assert len(set(texts)) == 3
    assert [choice.text for choice in client.completions.create(**fields).choices] == texts
    stopped = client.completions.create(model="fake", prompt=prompt_for("a"), temperature=0, stop=["fg", "x"])
    assert stopped.choices[0].text == "abcde" and stopped.choices[0].finish_reason == "stop"
    best = client.completions.create(model="fake", prompt="a", best_of=3, seed=11, max_tokens=12)
    assert best.choices[0].text in texts


def test_extensions(client):
    fields = dict(model="fake", prompt=prompt_for("y"), temperature=0)
    assert client.completions.create(**fields).choices[0].text == "yz"
    extra = dict(min_tokens=4, top_k=5, min_p=0.1, repetition_penalty=1.1)
    assert client.completions.create(**fields, extra_body=extra).choices[0].text == "yzab"


def test_many_at_once(client):
    def ask(i):
        prompt = [100 + i]
        reply = client.completions.create(model="fake", prompt=prompt, temperature=0, max_tokens=1 + i % 9)
        return reply.choices[0].text == expected_text(prompt, 1 + i % 9)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(60)))


# ---- errors


@pytest.mark.parametrize("body, said", [
    (b"", "not JSON"), (b"{", "not JSON"), (b"[]", "expected a JSON object"), (b"\xff", "not JSON"),
    (b'{"prompt": "a", "temperature": NaN}', "NaN"), (b"[" * 200_000, "nested too deeply"),
    (b'{"prompt": "a", "tools": [1]}', "tools: not supported"),
    (b'{"prompt": "' + b"a" * 50_000 + b'"}', "more than fits this model's context"),
    (b'{"prompt": "a", "max_tokens": 10000000}', "ask for at most 127"),
])
def test_bad_bodies(quick, body, said):
    reply = httpx.post(f"{quick}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert said in error["message"] and len(error["message"]) < 250 and "\n" not in error["message"]


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v2/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/", 405),
    ("GET", "/v1/models/gpt-4", 404), ("POST", "/v1/embeddings", 404), ("GET", "/../../etc/passwd", 404),
])
def test_wrong_paths_and_methods(quick, method, path, status):
    reply = httpx.request(method, quick + path)
    assert reply.status_code == status and reply.json()["error"]["message"]
    assert status != 405 or "Allow" in reply.headers


def test_the_clients_exceptions(client):
    with pytest.raises(openai.BadRequestError, match="tools: not supported") as caught:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "a"}],
                                       tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.param == "tools" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError, match="there is no \"gpt-4\" here") as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"


def test_only_json_is_taken(quick):
    reply = httpx.post(f"{quick}/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 415 and "Content-Type" in reply.json()["error"]["message"]


def test_names_of_other_machines_are_refused_without_a_key(quick):
    reply = httpx.get(f"{quick}/v1/models", headers={"Host": "example.org"})
    assert reply.status_code == 403 and "example.org" in reply.json()["error"]["message"]
    for host in ("localhost:8000", "127.0.0.1", "[::1]:1"):
        assert httpx.get(f"{quick}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", [b"[", b"a b", b"", b"\xff", b"localhost:port", b"@localhost", b"127.0.0.1#x"])
def test_strange_host_headers(quick, host):
    status = int(raw(quick, b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").split()[1])
    assert status in (400, 403)


def test_api_key():
    with fake_server(api_key="secret") as (url, _):
        assert connect(url, api_key="secret").models.list().data[0].id == "fake"
        for wrong in ("Secret", "secret2", "é"):
            reply = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {wrong}".encode()})
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
        assert post(url).status_code == httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/nowhere").status_code == 401
        for path in ("/", "/health"):
            assert httpx.get(url + path, headers={"Host": "example.org"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            connect(url).models.list()


def test_large_bodies():
    with fake_server(limits=Limits(body_bytes=10_000)) as (url, _):
        assert post(url, prompt="a" * 20, user="b" * 9_000).status_code == 200
        for size in (10_001, 150_000):
            reply = post(url, prompt="a" * size)
            assert reply.status_code == 413 and "10,000 bytes" in reply.json()["error"]["message"]

        def chunks():
            for _ in range(30):
                yield b" " * 1000

        reply = httpx.post(f"{url}/v1/completions", content=chunks(), headers={"Content-Type": "application/json"})
        assert reply.status_code == 413
        expecting = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert raw(url, expecting).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue():
    with fake_server(max_rows=1, seconds=0.02, served={"most_replies": 2}) as (url, _):
        with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "a", "n": 2, "stream": True, **LONG}):
            reply = post(url)
            assert reply.status_code == 429 and reply.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(reply.headers["Retry-After"]) <= 60
            with pytest.raises(openai.RateLimitError):
                connect(url).completions.create(model="fake", prompt="a")
        wait_for(lambda: nothing_held(url))
        assert post(url).status_code == 200


def test_a_time_limit():
    with fake_server(seconds=0.05, limits=Limits(seconds=0.4)) as (url, _):
        reply = post(url, **LONG)
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "timeout"
        stream = post(url, **LONG, stream=True)
        assert stream.status_code == 200 and '"code": "timeout"' in stream.text.split("\n\n")[-2]
        with pytest.raises(openai.APIError, match="limit of 0.4 s"):
            list(connect(url).completions.create(model="fake", prompt="a", stream=True, temperature=0, max_tokens=100,
                                                 extra_body={"min_tokens": 100}))
        wait_for(lambda: nothing_held(url))


def test_a_body_that_never_comes(monkeypatch):
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.3)
    with fake_server() as (url, _):
        reply = raw(url, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 50\r\n\r\n{\"prompt\":")
        assert reply.startswith(b"HTTP/1.1 408 ") and b"within 0.3 s" in reply


def test_a_reply_that_fails(quick):
    for stream in (False, True):
        reply = post(quick, prompt="why?", stream=stream)
        assert reply.status_code == 500 and reply.json()["error"] == {
            "message": "no finite numbers", "type": "server_error", "param": None, "code": None}


def test_a_request_that_the_scheduler_refuses():
    with fake_server(served={"context": 10 * CONTEXT}) as (url, _):
        reply = post(url, prompt=[5] * CONTEXT)
        assert reply.status_code == 400 and "the fake's context is full" in reply.json()["error"]["message"]


def test_an_engine_that_breaks(capsys):
    with fake_server(seconds=0.2) as (url, server):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            running = pool.submit(post, url, **LONG)
            wait_for(lambda: metrics(url)["tinyft_replies_running"])
            replies = [post(url, prompt="break!"), running.result()]
        assert [reply.status_code for reply in replies] == [500, 500]
        assert all("the engine failed: RuntimeError: planted" in reply.text for reply in replies)
        wait_for(lambda: server.ended_with)
    assert str(server.ended_with) == "the engine failed: RuntimeError: planted"
    assert "RuntimeError: planted" in capsys.readouterr().err


# ---- clients that go away, and bytes that are no HTTP


def raw(url: str, data: bytes, *, reset: bool = False, read: bool = True) -> bytes:
    """What comes back for bytes on a connection of its own. reset: hang up without a word."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while read and not is_whole(answer) and (received := connection.recv(65536)):
            answer += received
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return answer


def is_whole(answer: bytes) -> bool:
    """Whether an answer has as many bytes as it says."""
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(found and length) and len(body) >= int(length[1])


def http_request(**fields) -> bytes:
    body = json.dumps({"prompt": "a", **fields}).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_vanishes_frees_its_rows(stream, reset):
    with fake_server(max_rows=2, seconds=0.2, served={"most_replies": 6}) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(http_request(**LONG, n=4, stream=stream))
        wait_for(lambda: metrics(url)["tinyft_replies_running"] == metrics(url)["tinyft_replies_waiting"] == 2)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        wait_for(lambda: nothing_held(url), 15)
        status = 200 if stream else 499
        assert metrics(url)[f'tinyft_requests_total{{path="/v1/completions",status="{status}"}}'] == 1


def test_a_client_that_vanishes_while_it_sends(quick):
    raw(quick, http_request()[:-5], read=False)
    raw(quick, b"POST /v1/completions HT", read=False)
    raw(quick, http_request(stream=True), reset=True, read=False)
    assert post(quick).status_code == 200
    wait_for(lambda: nothing_held(quick))


def test_a_client_that_does_not_read():
    with fake_server(max_rows=1) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(http_request(**LONG, stream=True))
            wait_for(lambda: metrics(url)["tinyft_new_tokens_total"] == 100)
            assert nothing_held(url) and post(url).status_code == 200
            assert b"data: [DONE]" in b"".join(iter(lambda: connection.recv(65536) if wait(connection) else b"", b""))


def wait(connection: socket.socket) -> bool:
    connection.settimeout(0.5)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


@pytest.mark.parametrize("data", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n",
                                  b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"])
def test_what_is_no_http(quick, data):
    assert raw(quick, data).startswith(b"HTTP/1.1 400 ")
    assert post(quick).status_code == 200


# ---- health, metrics, the page


def test_health(quick):
    reply = httpx.get(f"{quick}/health")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


def test_metrics_are_prometheus_text():
    with fake_server() as (url, _):
        post(url, prompt=prompt_for("x"), temperature=0)
        post(url, temperature=5)
        httpx.get(f"{url}/secret")
        reply = httpx.get(f"{url}/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
        comment = re.compile(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))")
        assert all(sample.fullmatch(line) or comment.fullmatch(line) for line in reply.text.splitlines())
        found = metrics(url)
    assert found['tinyft_requests_total{path="/v1/completions",status="200"}'] == 1
    assert found['tinyft_requests_total{path="/v1/completions",status="400"}'] == 1
    assert found['tinyft_requests_total{path="other",status="404"}'] == 1
    assert found["tinyft_prompt_tokens_total"] == 1 and found["tinyft_new_tokens_total"] == 3
    for name in ("first_token", "request"):
        assert found[f'tinyft_{name}_seconds_bucket{{le="+Inf"}}'] == found[f"tinyft_{name}_seconds_count"] == 1
        assert found[f"tinyft_{name}_seconds_sum"] > 0


def test_the_page_needs_nothing_from_elsewhere(quick):
    reply = httpx.get(quick)
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"https?://|//[a-z]", reply.text.replace("// ", ""))


# ---- the end


def test_draining_finishes_what_runs_and_refuses_the_rest():
    with fake_server(seconds=0.02) as (url, server):
        with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "a", "stream": True, **LONG}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.drain()
            refused = post(url)
            assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
            assert httpx.get(f"{url}/health").json() == {"status": "shutting down"}
            text = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
            assert len("".join(text)) == 99
        wait_for(lambda: refuses_connections(url))


def refuses_connections(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:
        return True
    return False


# ---- examples/serve.py


class Serving:
    """The script in a process of its own, on a port that is free."""

    def __init__(self, *arguments, **environment):
        kept = {name: value for name, value in os.environ.items() if name != "TINYFT_API_KEY"}
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "serve.py"), *map(str, arguments), "--port", "0"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**kept, "PYTHONPATH": str(EXAMPLES.parent), "NUMBA_NUM_THREADS": "1", **environment})
        self.said = [self.process.stdout.readline(), self.process.stdout.readline()]
        found = re.search(r"http://\S+", self.said[1])
        assert found, (self.said, self.process.stderr.read() if self.process.poll() else "")
        self.url = found[0]

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, sent: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and what was said on stderr, but for the notice that kernels are compiled."""
        self.process.send_signal(sent)
        _, said = self.process.communicate(timeout=30)
        lines = [line for line in said.splitlines() if not line.startswith("tinyft: compiling")]
        return self.process.returncode, "\n".join(lines)


@pytest.fixture(scope="module")
def real(model_folder):
    with Serving(model_folder) as serving:
        yield serving.url
        assert serving.end() == (0, "")


def test_replies_are_the_engines(real, model_folder):
    from tinyft import generate, load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(model_folder)
    prompts = ["a word", "Say word 1.", "###"]
    expected = [tokenizer.decode(generate(model, tokenizer.encode(prompt), max_new_tokens=20,
                                          stop=tokenizer.stop_tokens)) for prompt in prompts]
    client, fields = connect(real), dict(model=model_folder.resolve().name, temperature=0, max_tokens=20)
    reply = client.completions.create(prompt=prompts, **fields)
    assert [choice.text for choice in reply.choices] == expected
    for prompt, text in zip(prompts, expected, strict=True):
        chunks = client.completions.create(prompt=prompt, stream=True, **fields)
        assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_logprobs_are_the_models(real, model_folder):
    import numpy as np

    from tinyft import load_model_and_tokenizer, no_grad

    model, tokenizer = load_model_and_tokenizer(model_folder)
    ids = tokenizer.encode("Write a response that")
    fields = dict(prompt=ids, temperature=0, max_tokens=4, logprobs=3)
    echoed = post(real, **fields, echo=True).json()["choices"][0]["logprobs"]
    replied = post(real, **fields).json()["choices"][0]["logprobs"]
    assert echoed["token_logprobs"][len(ids):] == pytest.approx(replied["token_logprobs"], abs=1e-5)
    with no_grad():
        logits = model(np.array([ids])).data[0].astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [scores[i, token] for i, token in enumerate(ids[1:])]
    assert echoed["token_logprobs"][0] is None
    assert echoed["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    assert len(replied["top_logprobs"][0]) in (3, 4)
    assert max(replied["top_logprobs"][0].values()) == replied["token_logprobs"][0]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0, "n": 2}, {"prompt": [5], "logprobs": 0}])
def test_nothing_to_compute_is_answered_at_once(real, fields):
    choices = post(real, **{"prompt": "word", "max_tokens": 0, "echo": True, **fields}).json()["choices"]
    assert len(choices) == fields.get("n", 1) and all(choice["finish_reason"] == "length" for choice in choices)


def test_text_that_utf8_cannot_write_is_refused(real):
    for body in (r'{"messages": [{"role": "user", "content": "\ud800"}]}', r'{"stop": "\ud800"}', r'{"\ud800": 1}'):
        answer = httpx.post(real + ("/v1/chat/completions" if "messages" in body else "/v1/completions"), content=body,
                            headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "ud800" in answer.json()["error"]["message"]


def test_a_seed_makes_a_reply_repeatable_beside_others(real):
    fields = dict(prompt="a word", seed=5, n=2, max_tokens=20)
    alone = post(real, **fields).json()["choices"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        others = [pool.submit(post, real, prompt=f"word {i}", max_tokens=40) for i in range(5)]
        assert post(real, **fields).json()["choices"] == alone
    assert all(other.result().status_code == 200 for other in others)


def test_sigterm_finishes_what_runs(model_folder):
    fields = dict(prompt=[[token] for token in range(100)], temperature=0, max_tokens=120, min_tokens=120)
    with Serving(model_folder, "--max-rows", "2") as serving, concurrent.futures.ThreadPoolExecutor(1) as pool:
        expected = post(serving.url, **fields).json()["choices"]
        running = pool.submit(post, serving.url, **fields)
        wait_for(lambda: metrics(serving.url)["tinyft_replies_waiting"])
        assert serving.end() == (0, "")
        assert running.result().json()["choices"] == expected


def test_control_c_ends_as_a_shell_expects(model_folder):
    with Serving(model_folder) as serving:
        assert serving.end(signal.SIGINT) == (130, "")


def test_the_second_signal_ends_at_once(model_folder):
    with Serving(model_folder, "--max-rows", "1") as serving:
        host, port = serving.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(http_request(prompt=[[5]] * 256, temperature=0, max_tokens=120, min_tokens=120))
            wait_for(lambda: metrics(serving.url)["tinyft_replies_running"])
            serving.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(serving.url + "/health").status_code == 503)
            serving.end()
            received = connection.recv(65536)
    assert b'"usage"' not in received, "it was not waited for"


def test_a_port_in_use(model_folder, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        line = error_line(example("serve.py", model_folder, "--port", port, cwd=tmp_path))
    assert f"--port {port}" in line and "choose another --port" in line


@pytest.mark.parametrize("arguments, said", [
    (["nothing-here"], "neither a folder nor a model"),
    (["{empty}"], "config.json"),
    (["{model}", "--host", "0.0.0.0"], "TINYFT_API_KEY"),
    (["{model}", "--host", "192.0.2.1", "--api-key", "x"], "can't listen on 192.0.2.1"),
    (["{model}", "--host", "no.such.host.invalid", "--api-key", "x"], "no.such.host.invalid"),
    (["{model}", "--api-key", "two words"], "--api-key"),
    (["{model}", "--port", "65536"], "at most 65535"),
    (["{model}", "--prompt-style", "none"], "--prompt-style none"),
])
def test_a_start_that_fails_says_why_in_one_line(model_folder, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    names = {"{model}": model_folder, "{empty}": tmp_path / "empty"}
    arguments = [names.get(argument, argument) for argument in arguments]
    more = [] if "--port" in arguments else ["--port", "0"]
    assert said in error_line(example("serve.py", *arguments, *more, cwd=tmp_path))


def test_what_is_missing_is_named(model_folder, tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no', name='uvicorn')")
    result = subprocess.run([sys.executable, str(EXAMPLES / "serve.py"), str(model_folder)], text=True, timeout=60,
                            capture_output=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{EXAMPLES.parent}"})
    assert error_line(result) == "error: serving needs starlette and uvicorn: pip install -e '.[serve]'"


def test_a_key_from_the_environment(model_folder):
    with Serving(model_folder, "--host", "0.0.0.0", "--name", "mine", TINYFT_API_KEY="secret") as serving:
        url = serving.url.replace("0.0.0.0", "127.0.0.1")
        assert connect(url, api_key="secret").models.list().data[0].id == "mine"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert serving.end() == (0, "")


@pytest.mark.parametrize("host, loopback", [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True),
                                            ("::1", True), ("0.0.0.0", False), ("::", False), ("192.168.0.1", False),
                                            ("example.org", False), ("", False)])
def test_loopback(host, loopback):
    assert is_loopback(host) == loopback


def test_the_engines_thread_has_as_many_threads_as_asked_for(monkeypatch):
    seen = []
    step = FakeScheduler.step
    monkeypatch.setattr(FakeScheduler, "step", lambda self: seen.append(numba.get_num_threads()) or step(self))
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with fake_server() as (url, _):
            assert post(url).status_code == 200
    finally:
        numba.set_num_threads(before)
    assert set(seen) == {1}
