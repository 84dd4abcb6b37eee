"""The models of an arena: computed here, or asked over HTTP; and what they are called."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_scheduler import BREAKS, FakeScheduler, expected_text
from tiny import CONTEXT, TOKENIZER

from tinyft import Turn
from tinyft.data.prompts import encode_prompt, find_style
from tinyft.evaluation.apis import EndpointError
from tinyft.evaluation.contestants import LocalModel, NoReply, RemoteModel, read_specs, split_spec
from tinyft.inference.service import Service


def make_local(**options) -> LocalModel:
    service = Service(FakeScheduler(**options), TOKENIZER)
    return LocalModel("local", service, find_style(TOKENIZER, "phi3"), CONTEXT)


def all_of(model, text: str = "Say word.", **how) -> str:
    """The whole reply."""
    how = {"temperature": 0.0, "seed": 0, "max_new_tokens": 50} | how

    async def run():
        model.start()
        try:
            return "".join([piece async for piece in model.stream((Turn("user", text),), **how)])
        finally:
            await model.close()

    return asyncio.run(run())


def test_a_model_in_this_process():
    prompt = encode_prompt((Turn("user", "Say word."),), find_style(TOKENIZER, "phi3"), TOKENIZER)
    assert all_of(make_local()) == expected_text(prompt, 26)
    assert all_of(make_local(), max_new_tokens=2) == expected_text(prompt, 2)
    first, again, other = (all_of(make_local(), temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again != other and len(first) == 50
    assert len(all_of(make_local(), temperature=1.0, max_new_tokens=1000)) == CONTEXT - len(prompt)


def test_a_model_in_this_process_that_fails(capsys):
    with pytest.raises(NoReply, match="too long for this model"):
        all_of(make_local(), "a" * CONTEXT)
    with pytest.raises(RuntimeError, match="no finite numbers"):
        all_of(make_local(), "Why?")
    with pytest.raises(RuntimeError, match="the engine failed"):
        all_of(make_local(), TOKENIZER.decode([BREAKS]))


def test_a_reply_that_nobody_waits_for_is_given_up():
    async def run():
        model = make_local(seconds=0.01)
        model.start()
        reply = model.stream((Turn("user", "Say word."),), temperature=1.0, seed=0, max_new_tokens=90)
        await anext(reply)
        await reply.aclose()
        assert model.service.n_open == 0
        while not model.service.scheduler.idle:
            await asyncio.sleep(0.01)
        made = model.service.scheduler.counts.new_tokens
        await model.close()
        return made

    assert asyncio.run(run()) < 90


class FakeEndpoint:
    """Takes so many tokens at most, and notes what it was asked."""

    def __init__(self, most: int = 1000, error: str = "max_tokens: {} is too large"):
        self.most, self.error, self.asked, self.closed = most, error, [], False

    async def close(self):
        self.closed = True

    async def stream(self, messages, *, temperature, seed, max_tokens):
        self.asked.append((messages, temperature, seed, max_tokens))
        if max_tokens > self.most:
            raise EndpointError(self.error.format(max_tokens))
        yield "Yes"
        yield "."


def test_a_model_behind_an_endpoint():
    endpoint = FakeEndpoint()

    async def run(endpoint):
        turns = (Turn("system", "Be brief."), Turn("user", "Plural?", "a cat"))
        return [piece async for piece in RemoteModel("r", endpoint).stream(turns, temperature=0.5, seed=3,
                                                                          max_new_tokens=200)]

    assert asyncio.run(run(endpoint)) == ["Yes", "."]
    assert endpoint.asked == [([{"role": "system", "content": "Be brief."},
                                {"role": "user", "content": "Plural?\na cat"}], 0.5, 3, 200)]
    short = FakeEndpoint(most=60)
    assert asyncio.run(run(short)) == ["Yes", "."] and [asked[3] for asked in short.asked] == [200, 100, 50]
    for endpoint in (FakeEndpoint(most=3), FakeEndpoint(most=3, error="overloaded")):
        with pytest.raises(EndpointError):
            asyncio.run(run(endpoint))
        assert len(endpoint.asked) == (4 if "max" in endpoint.error else 1)


@pytest.mark.parametrize("said", ["max_tokens is too large", "max_completion_tokens is too large"])
def test_fewer_tokens_are_asked_for_whatever_the_field_is_called(said):
    endpoint = FakeEndpoint(most=100, error=said)
    assert all_of(RemoteModel("r", endpoint), max_new_tokens=200) == "Yes." and endpoint.closed
    assert [asked[3] for asked in endpoint.asked] == [200, 100]


def test_names_that_votes_cannot_hold():
    with pytest.raises(ValueError, match="UTF-8 can't write"):
        read_specs(["a", "b\udcff=other"])
    assert read_specs(["a", "\U0001f600=other"])[1] == ("\U0001f600", "other")


def test_what_models_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine/model", "other", "odd=name"):
        Path(folder).mkdir(parents=True)
    assert split_spec("runs/mine/model") == ("mine", "runs/mine/model")
    assert split_spec("runs/mine/model/") == ("mine", "runs/mine/model/")
    assert split_spec("other") == ("other", "other") and split_spec("odd=name") == ("odd=name", "odd=name")
    assert split_spec("best=runs/mine/model") == ("best", "runs/mine/model")
    assert split_spec("gpt2") == ("gpt2", "gpt2") and split_spec("owner/name") == ("owner/name", "owner/name")
    url = "http://127.0.0.1:8000/v1"
    assert split_spec(f"{url}#m") == ("m", f"{url}#m") and split_spec(f"x={url}") == ("x", url)
    assert split_spec(f"{url}?a=b#m") == ("m", f"{url}?a=b#m")
    with pytest.raises(ValueError, match="which of its models"):
        split_spec(url)
    with pytest.raises(ValueError, match="expected at least 2"):
        read_specs(["other"])
    with pytest.raises(ValueError, match="two models are called other; give them names: one="):
        read_specs(["other", "x=runs/mine/model", f"{url}#other"])
