"""OpenAI's protocol without a server: bodies read and refused, replies written down."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fake_scheduler import FakeScheduler, expected_text, make_served, prompt_for
from tiny import CONTEXT, TOKENIZER

from tinyft import Turn
from tinyft.data.prompts import encode_prompt, find_style
from tinyft.inference.answers import Writer, make_requests
from tinyft.inference.protocol import APIError, read_chat, read_completion
from tinyft.inference.sampling import Sampling
from tinyft.inference.service import TextStarts, _Reply
from tinyft.tokenizer import AddedToken

SERVED = make_served()
MESSAGES = [{"role": "user", "content": "Say word."}]


def completion(**fields):
    return read_completion(json.dumps({"model": "fake", "prompt": "a word", **fields}).encode(), SERVED)


def chat(**fields):
    return read_chat(json.dumps({"model": "fake", "messages": MESSAGES, **fields}).encode(), SERVED)


# ---- reading


def test_defaults_are_openais():
    asked = completion()
    assert asked.prompts == [TOKENIZER.encode("a word")]
    assert (asked.max_tokens, asked.n, asked.candidates, asked.stop, asked.seed) == (16, 1, 1, [], None)
    assert (asked.logprobs, asked.echo, asked.stream, asked.include_usage) == (None, False, False, False)
    assert asked.sampling == Sampling(temperature=1.0) and asked.ends == tuple(TOKENIZER.stop_tokens)
    asked = chat()
    assert asked.sampling == Sampling(temperature=1.0) and asked.n == 1 and asked.logprobs is None
    assert asked.max_tokens == CONTEXT - len(asked.prompts[0])


def test_null_is_as_if_absent():
    names = ("max_tokens", "temperature", "stop", "n", "best_of", "logprobs", "echo", "stream", "seed", "logit_bias",
             "suffix", "user", "top_p", "stream_options", "tools", "anything")
    assert completion(**dict.fromkeys(names)) == completion()


@pytest.mark.parametrize("prompt, ids", [
    ("a word", [TOKENIZER.encode("a word")]),
    (["a", "word"], [TOKENIZER.encode("a"), TOKENIZER.encode("word")]),
    ([5, 6], [[5, 6]]),
    ([[5, 6], [7]], [[5, 6], [7]]),
    ("<|endoftext|>", [[TOKENIZER.eot_token]]),
    (None, [[TOKENIZER.eot_token]]),
])
def test_forms_of_prompts(prompt, ids):
    assert completion(prompt=prompt).prompts == ids


def test_settings_reach_the_sampling():
    asked = completion(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=-1, frequency_penalty=2,
                       repetition_penalty=1.5, min_tokens=3, max_tokens=4, logit_bias={"5": -100, "6": 1.5},
                       stop=["x", "y"], seed=-3, stream=True, stream_options={"include_usage": True})
    assert asked.sampling == Sampling(0.5, 7, 0.9, 0.1, 1.5, -1, 2, {5: -100.0, 6: 1.5}, 3)
    assert (asked.max_tokens, asked.stop, asked.seed, asked.stream, asked.include_usage) == (4, ["x", "y"], -3, True,
                                                                                             True)
    assert completion(top_k=-1).sampling.top_k is None and completion(top_k=0).sampling.top_k is None
    assert completion(top_p=1).sampling.top_p is None and 0 < completion(top_p=0).sampling.top_p < 1e-6
    assert completion(min_p=0).sampling.min_p is None and completion(stop="x").stop == ["x"]


def test_chat_prompt_is_the_styles():
    turns = (Turn("system", "Be brief."), Turn("user", "Say word."), Turn("assistant", "word"),
             Turn("user", "Again.", "now"))
    asked = chat(messages=[
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "word."}],
         "name": "Me"},
        {"role": "assistant", "content": "word", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Again.", "input": "now"}])
    assert asked.prompts == [encode_prompt(turns, SERVED.style, TOKENIZER)]


def test_chat_ends_at_the_styles_token_too():
    sign = len(TOKENIZER.vocab)
    tokenizer = dataclasses.replace(TOKENIZER, added=TOKENIZER.added | {AddedToken("<|im_end|>"): sign},
                                    stop_tokens=())
    served = make_served(tokenizer=tokenizer, style=find_style(tokenizer, "chatml"), vocab_size=sign + 1)
    assert read_chat(json.dumps({"messages": MESSAGES}).encode(), served).ends == (TOKENIZER.eot_token, sign)
    assert read_completion(b'{"prompt": "a"}', served).ends == (TOKENIZER.eot_token,)


def test_harmless_fields_are_accepted_and_others_only_where_they_ask_for_nothing():
    assert chat(user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True, service_tier="auto", tools=[],
                tool_choice="none", response_format={"type": "text"}, modalities=["text"]) == chat()
    assert completion(suffix="", user="me") == completion()


@pytest.mark.parametrize("fields, param, said", [
    (dict(tools=[{"type": "function"}]), "tools", "not supported"),
    (dict(tool_choice={"type": "function"}), "tool_choice", "not supported"),
    (dict(response_format={"type": "json_schema"}), "response_format", "not supported"),
    (dict(response_format={"type": "json_object"}), "response_format", "not supported"),
    (dict(modalities=["text", "audio"]), "modalities", "not supported"),
    (dict(temperatur=0.5), "temperatur", "unknown"),
    (dict(echo=True), "echo", "unknown"),
    (dict(best_of=2), "best_of", "unknown"),
    (dict(messages=None), "messages", "missing"),
    (dict(messages=[]), "messages", "at least one"),
    (dict(messages="Hello"), "messages", "a list"),
    (dict(messages=["Hello"]), "messages", "an object"),
    (dict(messages=[{"role": "tool", "content": "x"}]), "messages[0].role", "tools are not supported"),
    (dict(messages=[{"role": ["user"], "content": "x"}]), "messages[0].role", "system"),
    (dict(messages=[{"content": "x"}]), "messages[0]", "role is missing"),
    (dict(messages=[{"role": "user"}]), "messages[0]", "content is missing"),
    (dict(messages=[{"role": "user", "content": 5}]), "messages[0].content", "expected a text"),
    (dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content", "parts"),
    (dict(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content", "expected a text"),
    (dict(messages=[{"role": "assistant", "content": "x", "tool_calls": [1]}]), "messages[0].tool_calls", "supported"),
    (dict(messages=[{"role": "user", "content": "x", "mood": "bad"}]), "messages[0].mood", "unknown"),
    (dict(top_logprobs=2), "top_logprobs", "set logprobs to true"),
    (dict(logprobs=True, top_logprobs=21), "top_logprobs", "from 0 to 20"),
    (dict(logprobs=1), "logprobs", "true or false"),
    (dict(max_completion_tokens=0), "max_completion_tokens", "at least 1"),
    (dict(messages=[{"role": "user", "content": "word " * 200}]), "messages", "context of 128"),
    (dict(messages=[{"role": "user", "content": "word " * 20000}]), "messages", "context of 128"),
])
def test_chat_refuses(fields, param, said):
    with pytest.raises(APIError) as caught:
        chat(**fields)
    assert caught.value.status == 400 and caught.value.param == param and said in caught.value.message


@pytest.mark.parametrize("fields, param, said", [
    (dict(prompt=""), "prompt", "a new text begins with <|endoftext|>"),
    (dict(prompt=[]), "prompt", "expected a text, a list of texts"),
    (dict(prompt=[""]), "prompt", "empty"),
    (dict(prompt=[[]]), "prompt", "empty"),
    (dict(prompt=["a", 5]), "prompt", "expected a text"),
    (dict(prompt=[True]), "prompt", "expected a text"),
    (dict(prompt={"text": "a"}), "prompt", "expected a text"),
    (dict(prompt="\udfff"), "prompt", "expected a text"),
    (dict(prompt=[TOKENIZER.n_vocab]), "prompt", f"ids from 0 to {TOKENIZER.n_vocab - 1}"),
    (dict(prompt=[-1]), "prompt", "no token -1"),
    (dict(prompt=[10**4000]), "prompt", "no token 1000"),
    (dict(prompt=["a"] * 25), "prompt", "at most 24"),
    (dict(prompt="a" * 128), "prompt", "128 tokens"),
    (dict(prompt="a" * 100_000), "prompt", "100000 characters"),
    (dict(prompt="a" * 100, max_tokens=29), "max_tokens", "at most 28"),
    (dict(max_tokens=10_000_000), "max_tokens", "10000000"),
    (dict(max_tokens=-1), "max_tokens", "at least 1"),
    (dict(max_tokens=0), "max_tokens", "at least 1"),
    (dict(max_tokens=2.5), "max_tokens", "a whole number"),
    (dict(max_tokens="5"), "max_tokens", "a whole number"),
    (dict(max_tokens=True), "max_tokens", "a whole number"),
    (dict(temperature=-0.1), "temperature", "from 0 to 2"),
    (dict(temperature=2.5), "temperature", "from 0 to 2"),
    (dict(temperature="hot"), "temperature", '"hot", expected a number'),
    (dict(top_p=1.5), "top_p", "from 0 to 1"),
    (dict(top_k=-2), "top_k", "at least -1"),
    (dict(min_p=2), "min_p", "from 0 to 1"),
    (dict(repetition_penalty=0), "repetition_penalty", "above 0"),
    (dict(presence_penalty=3), "presence_penalty", "from -2 to 2"),
    (dict(frequency_penalty=-3), "frequency_penalty", "from -2 to 2"),
    (dict(logit_bias={"x": 1}), "logit_bias", "token ids"),
    (dict(logit_bias={"99999": 1}), "logit_bias", "token ids"),
    (dict(logit_bias={"5": 101}), "logit_bias", "-100 to 100"),
    (dict(logit_bias=[5]), "logit_bias", "an object"),
    (dict(min_tokens=17), "min_tokens", "from 0 to 16"),
    (dict(n=0), "n", "from 1"),
    (dict(n=129), "n", "to 128"),
    (dict(n=25), "n", "at most 24"),
    (dict(n=3, best_of=2), "best_of", "from 3"),
    (dict(best_of=2, stream=True), "best_of", "can't be streamed"),
    (dict(logprobs=21), "logprobs", "from 0 to 20"),
    (dict(logprobs=True), "logprobs", "a whole number"),
    (dict(stop=""), "stop", "none of them empty"),
    (dict(stop=["a", ""]), "stop", "none of them empty"),
    (dict(stop=["a"] * 17), "stop", "at most 16"),
    (dict(stop=5), "stop", "expected a text"),
    (dict(seed=1.5), "seed", "a whole number"),
    (dict(seed=2**63), "seed", "a whole number"),
    (dict(stream="yes"), "stream", "true or false"),
    (dict(stream_options=[]), "stream_options", "an object"),
    (dict(stream_options={"include_usage": 1}), "stream_options.include_usage", "true or false"),
    (dict(stream_options={"more": 1}), "stream_options.more", "unknown"),
    (dict(suffix="the end"), "suffix", "not supported"),
    (dict(messages=MESSAGES), "messages", "unknown"),
    (dict(model=5), "model", "a text"),
])
def test_completion_refuses(fields, param, said):
    with pytest.raises(APIError) as caught:
        completion(**fields)
    assert caught.value.status == 400 and caught.value.param == param and said in caught.value.message
    assert len(caught.value.message) < 250


def test_another_model_is_not_found():
    for read in (completion, chat):
        with pytest.raises(APIError, match='there is no "gpt-4" here; this server has "fake"') as caught:
            read(model="gpt-4")
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert completion(model=None) == completion()


def test_too_long_has_openais_code():
    for fields in (dict(prompt="a" * 200), dict(max_tokens=10_000_000), dict(prompt="a" * 100_000)):
        with pytest.raises(APIError) as caught:
            completion(**fields)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("body", [
    b"", b"{", b"[1", b'"prompt"', b"[]", b"5", b"null", b"\xff\xfe", b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}', b'{"prompt": "a", "temperature": 1e999}', b"[" * 100_000,
    b'{"n": 1' + b"0" * 5000 + b"}",
])
def test_what_is_no_json_object(body):
    with pytest.raises(APIError) as caught:
        read_completion(body, SERVED)
    assert caught.value.status == 400 and len(caught.value.message) < 250


def test_a_full_context_can_be_scored_but_not_continued():
    asked = completion(prompt="a" * CONTEXT, max_tokens=0, echo=True, logprobs=0)
    assert asked.max_tokens == 0 and len(asked.prompts[0]) == CONTEXT


def test_default_length_is_cut_to_the_context():
    assert completion(prompt="a" * (CONTEXT - 3)).max_tokens == 3


# ---- writing


def run(asked):
    """All pieces of the replies that the fake makes, step by step, and the requests."""
    requests, scheduler, steps = make_requests(asked), FakeScheduler(), []
    logprobs = asked.logprobs is not None
    replies = [_Reply(None, i, request, TOKENIZER, asked.stop, logprobs) for i, request in enumerate(requests)]
    for request in requests:
        scheduler.submit(request)
    steps.append([reply.advance() for reply in replies if reply.request.finish_reason])  # nothing to compute
    while not scheduler.idle:
        steps.append([])
        for request in scheduler.step():
            piece = replies[requests.index(request)].advance()
            steps[-1].append(piece)
            if piece.finish_reason and not request.finish_reason:
                scheduler.cancel(request)
    return steps, Writer(asked, SERVED, requests)


def whole(asked) -> dict:
    steps, writer = run(asked)
    return writer.whole(piece for pieces in steps for piece in pieces)


def streamed(asked) -> list[dict]:
    steps, writer = run(asked)
    text = "".join(map(writer.events, steps)) + writer.last_events()
    events = text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_completion():
    body = whole(completion(prompt=prompt_for("w"), temperature=0))
    assert body["object"] == "text_completion" and body["model"] == "fake" and body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "wxyz", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5,
                             "prompt_tokens_details": {"cached_tokens": 0}}


def test_a_chat_completion():
    asked = chat(temperature=0, max_tokens=2)
    body = whole(asked)
    text = expected_text(asked.prompts[0], 2)
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    assert body["choices"] == [{"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None,
                                "finish_reason": "length"}]


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"logprobs": 0, "echo": True, "n": 2},
                                  {"n": 3, "best_of": 3, "seed": 1},
                                  {"stop": ["cd", "zz"]}, {"stop": "bcde", "logprobs": 1, "min_tokens": 9},
                                  {"echo": True, "max_tokens": 0, "logprobs": 1}, {"echo": True}])
def test_a_stream_adds_up_to_the_whole(more):
    fields = {"prompt": [prompt_for("a"), prompt_for("y")], "temperature": 0.0, "seed": 5, **more}
    asked = completion(**fields)
    expected = whole(asked)
    events = streamed(completion(**fields, stream=True))
    assert len({event["id"] for event in events}) == 1 and all("usage" not in event for event in events)
    for choice in expected["choices"]:
        pieces = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces][-1] == choice["finish_reason"]
        assert all(piece["finish_reason"] is None for piece in pieces[:-1])
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                assert sum((piece["logprobs"][name] for piece in pieces), []) == values


def test_completion_logprobs():
    prompt = TOKENIZER.encode("é") + prompt_for("b")
    asked = completion(prompt=prompt, temperature=0, max_tokens=2, logprobs=2, echo=True)
    choice = whole(asked)["choices"][0]
    first, second = expected_text(prompt, 2)
    letter = TOKENIZER.decode(prompt_for("b"))
    assert choice["text"] == f"é{letter}{first}{second}"
    scores = choice["logprobs"]
    assert scores["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", letter, first, second]
    assert scores["text_offset"] == [0, 0, 1, 2, 3]
    assert scores["token_logprobs"][:3] == [None, -0.25, -0.25] and scores["top_logprobs"][0] is None
    number = ord(first) - ord("a")
    assert scores["token_logprobs"][3:] == [-number / 10, -(number + 1) / 10]
    assert scores["top_logprobs"][3] == {first: -number / 10, "a": -3.0}


def test_chat_logprobs():
    asked = chat(temperature=0, max_tokens=1, logprobs=True, top_logprobs=1)
    text = expected_text(asked.prompts[0], 1)
    [entry] = whole(asked)["choices"][0]["logprobs"]["content"]
    assert entry["token"] == text and entry["bytes"] == [ord(text)]
    assert entry["top_logprobs"] == [{name: entry[name] for name in ("token", "logprob", "bytes")}]
    assert whole(chat(logprobs=True, max_tokens=1))["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_stop_strings_leave_no_tokens_behind():
    body = whole(completion(prompt=prompt_for("c"), temperature=0, stop=["ef", "zz"], logprobs=0))
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("cd", "stop")
    assert choice["logprobs"]["tokens"] == ["c", "d"]
    assert body["usage"]["completion_tokens"] == 4


def test_seeds():
    fields = dict(prompt=["a", "b"], n=2, seed=7, max_tokens=8)
    texts = [choice["text"] for choice in whole(completion(**fields))["choices"]]
    assert [choice["text"] for choice in whole(completion(**fields))["choices"]] == texts
    assert texts[0] != texts[1] and texts[:2] == texts[2:], "other prompts in the request change nothing"
    assert [choice["text"] for choice in whole(completion(**{**fields, "seed": 8}))["choices"]] != texts
    fields["seed"] = None
    assert whole(completion(**fields))["choices"] != whole(completion(**fields))["choices"]


def test_best_of_chooses_by_the_mean_logprob():
    fields = dict(prompt=["a", "b"], seed=3, max_tokens=5)
    every = whole(completion(**fields, n=6))["choices"]
    best = whole(completion(**fields, n=2, best_of=6))
    ranked = [sorted(every[first : first + 6], key=lambda choice: sum(map(ord, choice["text"]))) for first in (0, 6)]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for some in ranked for choice in some[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"]["completion_tokens"] == 60 and best["choices"][0]["logprobs"] is None


def test_usage_ends_a_stream_where_asked_for():
    *events, last = streamed(chat(temperature=0, max_tokens=3, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None]
    assert events[0]["object"] == "chat.completion.chunk"


def test_shared_tokens_are_counted_once_a_prompt():
    asked = completion(prompt=[prompt_for("y"), prompt_for("z")], n=2)
    requests = make_requests(asked)
    for request, shared in zip(requests, (3, 5, 0, 7), strict=True):
        request.n_shared = shared
    assert Writer(asked, SERVED, requests).usage()["prompt_tokens_details"] == {"cached_tokens": 3}


def test_requests_are_as_asked():
    asked = completion(prompt=[[5, 6], [7]], n=2, max_tokens=4, logprobs=3, echo=True, seed=1)
    requests = make_requests(asked)
    assert [request.prompt.tolist() for request in requests] == [[5, 6], [5, 6], [7], [7]]
    assert all(request.max_new_tokens == 4 and request.top_logprobs == 3 for request in requests)
    assert [request.scored_from for request in requests] == [0, None, 0, None], "once a prompt"
    requests = make_requests(completion(prompt=[5, 6], n=2, logprobs=3, echo=True, stream=True))
    assert [request.scored_from for request in requests] == [0, 0], "each is sent as it comes"
    requests = make_requests(completion(temperature=0))
    assert requests[0].rng is None and requests[0].top_logprobs is None and requests[0].scored_from is None


def test_errors_have_openais_form():
    for status, kind in ((400, "invalid_request_error"), (401, "invalid_request_error"), (404, "invalid_request_error"),
                         (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")):
        error = APIError("no", "n", status=status, code="c")
        assert error.body() == {"error": {"message": "no", "type": kind, "param": "n", "code": "c"}}


def test_text_starts_counts_whole_characters():
    starts = TextStarts(TOKENIZER)
    assert [starts.add(token) for token in TOKENIZER.encode("é🙂x")] == [0, 0, 1, 1, 1, 1, 2]


def test_a_character_that_never_ends_is_given_out_at_the_end():
    asked = completion(max_tokens=2, logprobs=0)
    [request] = make_requests(asked)
    reply = _Reply(None, 0, request, TOKENIZER, [], True)
    for token in TOKENIZER.encode("🙂")[:2]:
        request.tokens.append(token)
        request.logprobs.append(type("Scored", (), {"token": token, "logprob": -1.0, "top": ()})())
        request.finish_reason = "length" if len(request.tokens) == 2 else None
        piece = reply.advance()
    assert piece.text == "\ufffd" and len(piece.logprobs) == 2


def test_alpaca_is_the_style_of_a_model_that_says_none():
    served = make_served(style=find_style(TOKENIZER), context=1024)
    asked = read_chat(json.dumps({"messages": MESSAGES}).encode(), served)
    assert TOKENIZER.decode(asked.prompts[0]).endswith("### Instruction:\nSay word.\n\n### Response:\n")
