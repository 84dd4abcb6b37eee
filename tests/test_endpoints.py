"""The client of chat servers, against a real server on loopback that answers as each test says."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Answer, fails, in_turn, ollama_says, says, scripted

pytest.importorskip("httpx", reason="needs pip install '.[judge]'")

from tinyft.evaluation import endpoints  # noqa: E402 - what stands above may skip all this
from tinyft.evaluation.apis import read_pieces, read_url, unsupported_field  # noqa: E402
from tinyft.evaluation.endpoints import Endpoint, EndpointError, key_from_environment  # noqa: E402

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.001)


def chat(url: str, *options, messages=MESSAGES, **more) -> str:
    """The reply to one question."""
    asked = {name: more.pop(name) for name in ("seed", "temperature", "max_tokens") if name in more}

    async def ask() -> str:
        async with Endpoint(url, *options, **more) as endpoint:
            return await endpoint.chat(messages, **asked)

    return asyncio.run(ask())


def stream(url: str, messages=MESSAGES, **options) -> list[str]:
    """The pieces of one reply; the error that ends them, if one does, is the last."""

    async def ask() -> list[str]:
        pieces = []
        async with Endpoint(url, **options) as endpoint:
            try:
                async for piece in endpoint.stream(messages, max_tokens=9):
                    pieces.append(piece)
            except EndpointError as error:
                pieces.append(error)
        return pieces

    return asyncio.run(ask())


def events(*texts: str, done: bool = True, **options) -> Answer:
    """A reply in server-sent events, with all that others put between them."""
    lines = [": a comment", "event: message", ""]
    for text in texts:
        chunk = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
        lines += ["data: " + json.dumps(chunk, ensure_ascii=False), ""]
    lines += ["data: " + json.dumps({"choices": [], "usage": {}}), "", *["data: [DONE]", ""] * done]
    return Answer("\r\n".join(lines).encode(), type="text/event-stream", **options)


# ---- what is sent


def test_openai_is_asked_in_its_way():
    with scripted(in_turn(says("Because."))) as (url, server):
        assert chat(url, api_key="sk-secret", seed=7, max_tokens=9) == "Because."
    assert server.bodies == [{"model": "judge", "messages": MESSAGES, "stream": False, "temperature": 0.0, "seed": 7,
                              "max_tokens": 9}]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


def test_ollama_is_asked_in_its_way():
    with scripted(in_turn(ollama_says("Because.")), api="ollama", models=("llama:8b",)) as (url, server):
        assert chat(url, temperature=0.5, max_tokens=9) == "Because."
    assert server.bodies == [{"model": "llama:8b", "messages": MESSAGES, "stream": False,
                              "options": {"temperature": 0.5, "num_predict": 9}}]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_urls_of_openai(ending):
    with scripted(in_turn(says("yes"))) as (url, server):
        assert chat(url + ending) == "yes"
        assert chat(url + ending, "judge", "openai") == "yes"


@pytest.mark.parametrize("ending", ["", "/", "/api/chat"])
def test_urls_of_ollama(ending):
    with scripted(in_turn(ollama_says("yes")), api="ollama") as (url, server):
        assert chat(url + ending) == chat(url + ending, "judge", "ollama") == "yes"


@pytest.mark.parametrize("url, api, root, found", [
    ("http://localhost:11434", "auto", "http://localhost:11434", "ollama"),
    ("http://localhost:11434/v1", "auto", "http://localhost:11434/v1", "openai"),
    ("http://localhost:11434/v1", "ollama", "http://localhost:11434", "ollama"),
    ("http://localhost:11434/api", "ollama", "http://localhost:11434", "ollama"),
    ("http://localhost:8000", "auto", "http://localhost:8000", "auto"),
    ("https://api.openai.com/v1", "auto", "https://api.openai.com/v1", "openai"),
    ("https://example.org/paas/v4", "openai", "https://example.org/paas/v4", "openai"),
    ("https://example.org/api", "openai", "https://example.org/api/v1", "openai"),
    ("http://[::1]:11434/", "auto", "http://[::1]:11434", "ollama"),
])
def test_what_a_url_says(url, api, root, found):
    assert read_url(url, api) == (root, found)


@pytest.mark.parametrize("url, said", [
    ("localhost:11434", "expected a URL such as"), ("", "expected a URL"), ("http://", "expected a URL"),
    ("ftp://x", "expected a URL"), ("http://x:port", "is no URL"), ("http://[::1", "is no URL"),
    ("http://x\x00y", "is no URL"), ("http://" + "ä" * 100, "is no URL"),
    ("https://me:secret@example.org", "more than an address"), ("https://example.org/v1?key=secret", "more than"),
])
def test_urls_that_are_none(url, said):
    with pytest.raises(ValueError, match=said) as caught:
        Endpoint(url)
    assert "secret" not in str(caught.value)


def test_a_model_is_only_needed_where_there_are_several():
    with scripted(in_turn(says("yes")), models=("one", "two")) as (url, server):
        with pytest.raises(EndpointError, match=r"serves 2 models \(one, two\); say which"):
            chat(url)
        assert chat(url, "two") == "yes" and server.bodies[-1]["model"] == "two"

        async def models():
            async with Endpoint(url) as endpoint:
                return await endpoint.models()

        assert asyncio.run(models()) == ["one", "two"]
    with scripted(in_turn(says("yes")), models=()) as (url, _):
        with pytest.raises(EndpointError, match="serves no model"):
            chat(url)


def test_fields_that_a_server_does_not_take_are_left_out():
    def answer(body, number):
        if "max_tokens" in body:
            return fails(400, "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens'.")
        if "temperature" in body:
            return Answer(json.dumps({"error": {"message": "Unsupported value", "param": "temperature"}}).encode(), 400)
        return says("yes")

    with scripted(answer) as (url, server):

        async def ask():
            async with Endpoint(url) as endpoint:
                assert [await endpoint.chat(MESSAGES, max_tokens=9, seed=1) for _ in range(2)] == ["yes", "yes"]
                return endpoint.left_out

        assert asyncio.run(ask()) == {"max_tokens", "temperature"}
    assert [sorted(body) for body in server.bodies[2:]] == [
        ["max_completion_tokens", "messages", "model", "seed", "stream"]] * 2


@pytest.mark.parametrize("said, field", [
    ("max_tokens is too large: 5000. This model supports at most 4096 completion tokens", None),
    ("Unsupported parameter: 'max_tokens'", "max_tokens"), ("temperature does not support 0.0", "temperature"),
    ("This model doesn't support seed", "seed"), ("Unrecognized request argument supplied: seed", "seed"),
    ("unknown field max_tokens", "max_tokens"), ("body.seed: Extra inputs are not permitted", "seed"),
    ("an extra word in max_tokens", None), ("it is not supported", None),
])
def test_fields_that_are_not_taken(said, field):
    assert unsupported_field(said, None) == field


def test_a_limit_that_is_too_large_is_said():
    said = "max_tokens is too large: 5000. This model supports at most 4096 completion tokens"
    with scripted(in_turn(fails(400, said))) as (url, server):
        with pytest.raises(EndpointError, match=said) as caught:
            chat(url, max_tokens=5000)
    assert caught.value.refused and len(server.bodies) == 1


def test_a_field_that_is_always_refused_is_an_error():
    with scripted(lambda body, number: fails(400, "temperature is not supported")) as (url, server):
        with pytest.raises(EndpointError, match="answers 400: temperature is not supported"):
            chat(url)
    assert len(server.bodies) == 2


# ---- failures


@pytest.mark.parametrize("failure", [
    *(fails(status) for status in (408, 429, 500, 502, 503, 504, 529)), Answer(b"{", 200), Answer(b"[]"),
    Answer(b"<html>", type="text/html"), Answer(b"{}"), Answer(b'{"choices": []}'), Answer(b'{"choices": [3]}'),
    Answer(b'{"choices": [{"message": {"content": 5}}]}'), Answer(b'{"error": {"message": "overloaded"}}'),
    Answer(b"[" * 100_000), Answer(b"no gzip", headers={"Content-Encoding": "gzip"}),
    says("a longer text", close_after=20), says("a text", close_after=0), Answer(b"\xff"),
])
def test_what_may_be_gone_is_tried_again(failure):
    with scripted(in_turn(failure, failure, says("yes"))) as (url, server):
        assert chat(url) == "yes" and len(server.bodies) == 3
    with scripted(in_turn(failure)) as (url, server):
        with pytest.raises(EndpointError, match=r"\(tried 4 times\)") as caught:
            chat(url, retries=3)
        assert len(server.bodies) == 4 and url in str(caught.value)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("status, said, refused", [
    (400, "planted", True), (413, "planted", True), (422, "planted", True), (401, "the right API key", False),
    (403, "an API key that may do this", False), (404, "the model's name", False), (307, "redirects to", False),
])
def test_what_stays_is_said_at_once(status, said, refused):
    with scripted(in_turn(fails(status))) as (url, server):
        with pytest.raises(EndpointError, match=f"answers {status}.*{said}") as caught:
            chat(url)
        assert len(server.bodies) == 1 and caught.value.status == status and caught.value.refused == refused


@pytest.mark.parametrize("body, said", [
    (b'{"error": "model not found"}', "400: model not found"), (b'{"detail": [{"loc": 1}]}', "400: .*loc"),
    (b"plain words", "400: plain words"), (b"", "400: nothing"), (b"[1]", "400: .1"), (b'{"error": null}', "400"),
])
def test_what_servers_say_of_errors(body, said):
    with scripted(in_turn(Answer(body, 400))) as (url, _), pytest.raises(EndpointError, match=said):
        chat(url)


def test_the_key_is_shown_nowhere():
    key = "sk-very-secret"
    for answer in (fails(401, f"Incorrect API key provided: {key}."), Answer(f"no {key}".encode(), 403),
                   Answer(key.encode())):
        with scripted(in_turn(answer)) as (url, _):
            with pytest.raises(EndpointError) as caught:
                chat(url, api_key=key, retries=0)
            assert key not in str(caught.value) and key not in repr(Endpoint(url, api_key=key))
    redirect = fails(307, location=f"https://example.org/?key={key}&more=x")
    with scripted(in_turn(redirect)) as (url, _), pytest.raises(EndpointError, match="redirects to, https") as caught:
        chat(url, api_key=key)
    assert key not in str(caught.value) and "key=[the API key]&more=x" in str(caught.value)
    with pytest.raises(ValueError, match="signs that can't be sent") as caught:
        Endpoint("http://localhost:1", api_key=key + " ")
    assert key not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-" + "s" * 40, "a/b+c/" + "s" * 30, 'a"b\\c' + "s" * 30])
@pytest.mark.parametrize("answer", [
    lambda text: fails(403, text), lambda text: Answer(text.encode(), 403), lambda text: Answer(text.encode()),
    lambda text: Answer(json.dumps([text]).replace("/", "\\/").encode()),
    lambda text: Answer(json.dumps({"choices": [text]}).encode()), lambda text: fails(307, location=f"/{quote(text)}"),
    lambda text: events(text + "end", done=False), lambda text: Answer(b"data: " + text.encode(),
                                                                      type="text/event-stream"),
])
def test_no_part_of_a_key_is_shown_where_a_text_is_cut(key, answer):
    for before in range(130, 201, 7):
        with scripted(in_turn(answer("x" * before + key))) as (url, _):
            with pytest.raises(EndpointError) as caught:
                chat(url, "judge", "openai", api_key=key, retries=0)
            *_, error = stream(url, model="judge", api="openai", api_key=key, retries=0)
        for said in (str(caught.value), str(error)):
            assert "ssss" not in said and len(said) < 500


def test_a_key_of_the_environment_goes_where_nobody_can_read_it(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_from_environment("http://example.org/v1") == (None, "")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    for url in ("https://api.openai.com/v1", " HTTPS://example.org", "http://localhost:11434", "http://127.0.0.9/v1",
                "http://[::1]:8000"):
        assert key_from_environment(url) == ("sk-mine", "")
    for url in ("http://example.org/v1", "http://127.0.0.1.example.org", "http://localhost@example.org", "http://[", "",
                "http://192.168.0.1:8000"):
        key, said = key_from_environment(url)
        assert key is None and said.startswith("OPENAI_API_KEY isn't sent over plain http") and "--api-key" in said


@pytest.mark.parametrize("header, least", [
    (lambda: "0.3", 0.3), (lambda: email.utils.formatdate(time.time() + 2, usegmt=True), 0.5),  # in whole seconds
])
def test_retry_after_is_honoured(header, least):
    with scripted(lambda body, number: says("yes") if number else fails(429, retry_after=header())) as (url, server):
        assert chat(url) == "yes"
    assert server.times[1] - server.times[0] >= least


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "inf", "Thu, 01 Jan 1970 00:00:00 GMT", "", "99 Foo 9999"])
def test_retry_after_without_sense(value):
    began = time.monotonic()
    with scripted(in_turn(fails(429, retry_after=value), says("yes"))) as (url, _):
        assert chat(url) == "yes"
    assert time.monotonic() - began < 5


def test_a_pause_that_is_too_long_is_said():
    with scripted(in_turn(fails(429, "out of credit", retry_after="86400"))) as (url, server):
        with pytest.raises(EndpointError, match=r"out of credit .it asks to wait for 86400 s"):
            chat(url)
    assert len(server.bodies) == 1


def test_waits_double(monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.04)
    monkeypatch.setattr(endpoints.random, "uniform", lambda low, high: high)
    with scripted(in_turn(*[fails(500)] * 4, says("yes"))) as (url, server):
        chat(url)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert all(wait <= gap < wait + 5 for wait, gap in zip((0.04, 0.08, 0.16, 0.32), gaps, strict=True))


def test_a_server_that_is_too_slow():
    with scripted(in_turn(says("late", seconds=0.5))) as (url, server):
        with pytest.raises(EndpointError, match="no answer in time"):
            chat(url, timeout=0.1, retries=1)
        assert chat(url, timeout=5) == "late"


def test_no_server():
    with pytest.raises(EndpointError, match=r"no connection.*is it running.*\(tried 3 times\)"):
        chat("http://127.0.0.1:1")
    with pytest.raises(EndpointError, match="no connection"):
        chat("http://127.0.0.1:1", "judge", "openai")


def test_another_server():
    with scripted(in_turn(says("yes")), api="none") as (url, _):
        with pytest.raises(EndpointError, match="neither OpenAI's API nor Ollama's .*/v1/models: 404"):
            chat(url)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with scripted(in_turn(says("yes"))) as (url, _):
        assert chat(url) == "yes"


def test_replies_without_words():
    thought = Answer(b'{"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]}')
    with scripted(in_turn(thought)) as (url, server):
        assert chat(url) == "" and len(server.bodies) == 1
    thought = Answer(b'{"message": {"role": "assistant", "thinking": "Hm"}, "done": true, "done_reason": "length"}')
    with scripted(in_turn(thought), api="ollama") as (url, server):
        assert chat(url) == "" and len(server.bodies) == 1
    with scripted(in_turn(says(None, "length"), says("\ud800!"))) as (url, _):
        assert chat(url) == ""
    with scripted(in_turn(says("\ud800!"))) as (url, _):
        assert chat(url) == "?!"


def test_httpx_is_missing(run_python):
    result = run_python("import sys; sys.modules['httpx'] = None\nfrom tinyft.evaluation.endpoints import Endpoint\n"
                        "try:\n    Endpoint('http://localhost:1')\nexcept RuntimeError as error:\n    print(error)")
    assert result.stdout.strip() == "asking a server needs httpx: pip install -e '.[judge]'", result.stderr


# ---- streams


TEXTS = ("Be", "", "cause\u2028 \x85of ", "äöü 🙂", "\n\n")


def test_a_stream_of_openai():
    with scripted(in_turn(events(*TEXTS))) as (url, server):
        assert stream(url) == [text for text in TEXTS if text]
    assert server.bodies[0]["stream"] is True and server.bodies[0]["max_tokens"] == 9


def test_a_stream_of_ollama():
    lines = [json.dumps({"message": {"content": text}, "done": False}, ensure_ascii=False) for text in TEXTS]
    body = "\n".join([*lines, "", json.dumps({"message": {"content": ""}, "done": True})]).encode()
    with scripted(in_turn(Answer(body, type="application/x-ndjson")), api="ollama") as (url, server):
        assert stream(url) == [text for text in TEXTS if text]
    assert server.bodies[0]["stream"] is True and server.bodies[0]["options"]["num_predict"] == 9
    half = Answer(body[:60], type="application/x-ndjson")
    for end in (half, Answer(lines[0].encode() + b'\n{"error": "out of memory"}')):
        end.type = "application/x-ndjson"
        with scripted(in_turn(end), api="ollama") as (url, server):
            *pieces, error = stream(url)
            assert pieces[:1] == ["Be"] and isinstance(error, EndpointError) and len(server.bodies) == 1


def test_a_server_that_does_not_stream():
    with scripted(in_turn(says("Because."))) as (url, _):
        assert stream(url) == ["Because."]


def test_a_stream_is_begun_anew_only_before_its_first_piece():
    with scripted(in_turn(fails(503), events("yes"))) as (url, server):
        assert stream(url) == ["yes"] and len(server.bodies) == 2
    broken = {
        "broke off": events("Be", done=False), "closed too early": events("Be", close_after=150),
        "planted": Answer(events("Be", done=False).body + b'data: {"error": {"message": "planted"}}\r\n',
                          type="text/event-stream"),
        "not a JSON object": Answer(events("Be", done=False).body + b"data: {\n", type="text/event-stream"),
        "without a message": Answer(events("Be", done=False).body + b'data: {"choices": [3]}\n',
                                    type="text/event-stream"),
        "is no text": Answer(events("Be", done=False).body + b'data: {"choices": [{"delta": {"content": [1]}}]}\n',
                             type="text/event-stream"),
    }
    for said, answer in broken.items():
        with scripted(in_turn(answer)) as (url, server):
            *pieces, error = stream(url)
            assert pieces == ["Be"] and said in str(error) and len(server.bodies) == 1


def test_a_stream_may_end_with_its_reason_alone():
    body = b'data: {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}\n\n'
    with scripted(in_turn(Answer(body, type="text/event-stream"))) as (url, _):
        assert stream(url) == ["yes"]


def read_chunks(chunks: list[bytes]) -> str:
    """The text of a stream that comes in these chunks."""

    class Response:
        async def aiter_bytes(self):
            for chunk in chunks:
                yield chunk

    async def read():
        return [piece async for piece in read_pieces("openai", endpoints._lines(Response()))]

    return "".join(asyncio.run(read()))


def test_lines_may_be_cut_anywhere():
    body = events(*TEXTS).body
    for cut in range(len(body)):
        assert read_chunks([body[:cut], body[cut:]]) == "".join(TEXTS)
    assert read_chunks([body[i : i + 1] for i in range(len(body))]) == "".join(TEXTS)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_text_comes_through(texts):
    assert read_chunks([events(*texts).body]) == "".join(texts)


def test_a_stream_that_is_left():
    with scripted(in_turn(events(*"abcdef" * 1000), says("yes"))) as (url, server):

        async def ask():
            async with Endpoint(url) as endpoint:
                pieces = endpoint.stream(MESSAGES)
                first = await anext(pieces)
                await pieces.aclose()
                assert not endpoint._client._transport._pool.connections  # nothing goes on reading it
                return first, await endpoint.chat(MESSAGES)

        assert asyncio.run(ask()) == ("a", "yes")


# ---- tinyft's own server


def test_our_own_server():
    pytest.importorskip("starlette", reason="needs pip install '.[serve]'")
    pytest.importorskip("uvicorn", reason="needs pip install '.[serve]'")
    from fake_scheduler import expected_text, fake_server, make_served
    from tiny import TOKENIZER

    from tinyft import Turn
    from tinyft.data.prompts import encode_prompt

    messages = [MESSAGES[0], {"role": "user", "content": "Say word."}]
    turns = [Turn(message["role"], message["content"]) for message in messages]
    text = expected_text(encode_prompt(turns, make_served().style, TOKENIZER), 9)
    with fake_server(api_key="sk-x") as (url, _):
        assert chat(url, api_key="sk-x", messages=messages, seed=1, max_tokens=9) == text
        assert stream(url, messages, api_key="sk-x") == list(text)
        [error] = stream(url, MESSAGES, api_key="sk-x", retries=0)  # the fake fails at a question mark
        assert "answers 500: no finite numbers" in str(error)
        with pytest.raises(EndpointError, match="answers 401"):
            chat(url, api_key="wrong")
        with pytest.raises(EndpointError, match="answers 400.*context") as caught:
            chat(url, api_key="sk-x", messages=[{"role": "user", "content": "x" * 500}])
        assert caught.value.refused
