"""Live comparisons of generation with transformers, in float32: token for token, and log-probabilities."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from small import make_model
from test_referee import MISSING, logits_of, theirs

from tinyft import Engine, generate, load_model_and_tokenizer, read_entries
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt
from tinyft.inference.scheduler import Request, Scheduler

if not MISSING:
    import torch
    import transformers

FOLDER = Path(__file__).resolve().parent.parent / "weights" / "tiny-world"
pytestmark = [pytest.mark.referee, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
LONGEST = 24  # tokens of a reply
SHAPES = [{}, {"n_embd": 130, "n_head": 2, "n_layer": 3}, {"n_embd": 21, "n_inner": 29, "vocab_size": 61}]


@pytest.fixture(scope="module", params=[*SHAPES, "tiny-world"], ids=["usual", "wide", "inner", "tiny-world"])
def both(request):
    """A model, transformers' own, and 64 prompts of different lengths, of which some begin alike."""
    if request.param == "tiny-world":
        model, tokenizer = load_model_and_tokenizer(FOLDER)
        entries = read_entries(FOLDER.parent.parent / "examples" / "data" / "test_items.json")[:64]
        prompts = [encode_prompt(entry.turns[:-1], PROMPT_STYLES["alpaca"], tokenizer) for entry in entries]
        return model, transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval(), prompts
    model, rng = make_model(seed=9, n_positions=120, **request.param), np.random.default_rng(10)
    preamble = rng.integers(model.config.vocab_size, size=50)
    prompts = [[*preamble[: rng.integers(51)], *rng.integers(model.config.vocab_size, size=rng.integers(1, 40))]
               for _ in range(64)]
    return model, theirs(model), [list(map(int, prompt)) for prompt in prompts]


def their_replies(other, prompts, count=LONGEST):
    """Greedy ones, in a batch that is padded on the left."""
    longest = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    out = other.generate(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), do_sample=False,
                         max_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return out[:, longest:].tolist()


def our_replies(engine, prompts, count=LONGEST):
    scheduler, requests = Scheduler(engine), [Request(prompt, max_new_tokens=count) for prompt in prompts]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    return [request.tokens for request in requests], scheduler.counts


def test_alone(both):
    model, other, prompts = both
    for prompt in prompts[:6]:
        assert list(generate(model, prompt, max_new_tokens=LONGEST)) == their_replies(other, [prompt])[0]


@pytest.mark.parametrize("step_rows", [64, 512])
def test_64_together(both, step_rows):
    """They are of different lengths, and begin alike: what is shared is not computed again."""
    model, other, prompts = both
    replies, counts = our_replies(Engine(model, max_rows=64, step_rows=step_rows), prompts)
    assert counts.shared_tokens > counts.prompt_tokens / 10
    assert len({len(prompt) for prompt in prompts}) > 5
    assert replies == their_replies(other, prompts)


def test_a_conversation_that_goes_on(both):
    """Each prompt begins with the last one and its reply, which are in the cache."""
    model, other, prompts = both
    engine = Engine(model)
    prompt = prompts[0][:40]
    for turn in range(3):
        expected = their_replies(other, [prompt], 10)[0]
        assert list(generate(engine, prompt, max_new_tokens=10)) == expected
        prompt = [*prompt, *expected, 1 + turn]
    assert engine.scheduler.counts.shared_tokens > 60


def test_log_probabilities(both):
    model, other, prompts = both
    scheduler = Scheduler(Engine(model))
    for prompt in prompts[:5]:
        request = Request(prompt, max_new_tokens=5, scored_from=0, top_logprobs=4)
        scheduler.submit(request)
        while not scheduler.idle:
            scheduler.step()
        ids = [*prompt, *request.tokens]
        expected = torch.log_softmax(torch.from_numpy(logits_of(other, np.array(ids))[0]).double(), -1).numpy()
        found = [*request.prompt_logprobs[1:], *request.logprobs]
        assert len(found) == len(ids) - 1
        # Of float32: logits are wrong by some of their rounding units, and so are their logarithms of probabilities.
        bound = 1e-5 * np.abs(logits_of(other, np.array(ids))).max()
        for token, one, row in zip(ids[1:], found, expected[:-1], strict=True):
            assert one.token == token and abs(one.logprob - row[token]) <= bound
            assert [at for at, _ in one.top] == np.argsort(-row, kind="stable")[:4].tolist()
            np.testing.assert_allclose([value for _, value in one.top], np.sort(row)[::-1][:4], rtol=0, atol=bound)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_the_model_that_ships_says_nearly_the_same_in_fewer_bits(form):
    """Rounded weights are another model, but one that has learned the same."""
    model, tokenizer = load_model_and_tokenizer(FOLDER)
    entries = read_entries(FOLDER.parent.parent / "examples" / "data" / "test_items.json")[:20]
    prompts = [encode_prompt(entry.turns[:-1], PROMPT_STYLES["alpaca"], tokenizer) for entry in entries]
    firsts = [our_replies(Engine(model, weights=kept), prompts, 1)[0] for kept in ("float32", form)]
    assert np.mean([one == other for one, other in zip(*firsts, strict=True)]) >= 0.8
