"""Requests that run together: each gets what it would get alone, whatever the company, the order and the room."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_model

from tinyft import Engine, Sampling, no_grad
from tinyft.inference.cache import CachedSequence
from tinyft.inference.engine import Span
from tinyft.inference.generate import generate
from tinyft.inference.scheduler import Request, Scheduler, describe, scheduler_of
from tinyft.kernels.cached_attention import BLOCK

CONTEXT, V = 100, 40
SHAPE = dict(n_positions=CONTEXT, vocab_size=V, seed=4)
MODEL = make_model(dtype=np.float64, **SHAPE)
SINGLE = make_model(**SHAPE)
PREAMBLES = [list(np.random.default_rng(i).integers(V, size=BLOCK + 9 * i)) for i in range(3)]
# Beginnings of a preamble, and something of one's own.
PROMPTS = st.builds(lambda which, count, own: [*PREAMBLES[which][:count], *own][: CONTEXT - 1] or [0],
                    st.integers(0, 2), st.integers(0, 60), st.lists(st.integers(0, V - 1), max_size=12))
GREEDY = {}


def greedy(prompt, count):
    """What the whole model says, without a cache, an engine or company."""
    known = GREEDY.setdefault(tuple(prompt), [])
    while len(known) < min(count, CONTEXT - len(prompt) + 1):
        ids = np.array([*prompt, *known])
        with no_grad():
            known.append(int(np.argmax(MODEL(ids).data[0, -1])))
    return known[:count]


def log_softmax(ids):
    """(T,) -> (T, V) in float64: what is said of the token after each."""
    with no_grad():
        logits = MODEL(np.asarray(ids)).data[0]
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def run(scheduler, *requests):
    """All of them together, to the end."""
    for request in requests:
        scheduler.submit(request)
    finish(scheduler)
    return requests


def finish(scheduler):
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
        assert steps < 5000, "it never ends"
    assert scheduler.step() == []


def alone(prompt, model=MODEL, **options):
    """A request on an engine of its own."""
    request, = run(Scheduler(Engine(model, max_rows=1)), Request(prompt, **options))
    return request


def assert_all_free(scheduler):
    """Nobody has a block any more: there is room for a sequence that takes them all, if finished ones are forgotten."""
    assert scheduler.idle
    n_blocks = scheduler.engine.n_blocks
    assert scheduler.cache.open(CachedSequence([0]), n_blocks * BLOCK, 0) == 0
    assert scheduler.cache.free_blocks == 0


# ---- the same as alone


@settings(max_examples=40)
@given(prompts=st.lists(st.tuples(PROMPTS, st.integers(0, 9), st.integers(0, 12), st.none() | st.integers(0, 6)),
                        min_size=1, max_size=10),
       max_rows=st.sampled_from([1, 2, 3, 16]), step_rows=st.sampled_from([4, 30, 512]),
       n_blocks=st.sampled_from([4, 7, None]))
def test_greedy_replies_are_those_that_each_gets_alone(prompts, max_rows, step_rows, n_blocks):
    """Submitted at any step, some cancelled after a while, in any room: token for token."""
    scheduler = Scheduler(Engine(MODEL, max_rows=max_rows, step_rows=step_rows, n_blocks=n_blocks))
    arrivals = sorted(enumerate(prompts), key=lambda item: item[1][1])
    requests, step, cancels = {}, 0, {}
    while arrivals or not scheduler.idle:
        while arrivals and (arrivals[0][1][1] <= step or scheduler.idle):
            number, (prompt, _, count, patience) = arrivals.pop(0)
            requests[number] = Request(prompt, max_new_tokens=count)
            scheduler.submit(requests[number])
            cancels[number] = None if patience is None else step + patience
        for number, when in cancels.items():
            if when is not None and step >= when and requests[number].finish_reason is None:
                scheduler.cancel(requests[number])
                assert requests[number].finish_reason == "cancelled"
        assert scheduler.n_running <= max_rows
        before = {number: len(request.tokens) for number, request in requests.items() if request.finish_reason is None}
        changed = scheduler.step()
        assert {id(requests[number]) for number, count in before.items()
                if requests[number].finish_reason or len(requests[number].tokens) > count} == set(map(id, changed))
        step += 1
        assert step < 2000
    for number, request in requests.items():
        prompt, _, count, _ = prompts[number]
        expected = greedy(prompt, count)
        if request.finish_reason == "cancelled":
            expected = expected[: len(request.tokens)]
        else:
            assert request.finish_reason == "length"
        assert request.tokens == expected
    assert_all_free(scheduler)


@settings(max_examples=25)
@given(prompts=st.lists(st.tuples(PROMPTS, st.integers(1, 12), st.integers(0, CONTEXT)), min_size=2, max_size=8),
       step_rows=st.sampled_from([5, 512]), max_rows=st.sampled_from([2, 16]))
def test_what_is_shared_changes_nothing(prompts, step_rows, max_rows):
    """To the last bit: draws, log-probabilities of replies and prompts."""
    def requests():
        return [Request(prompt, max_new_tokens=count, rng=np.random.default_rng(i), sampling=Sampling(temperature=1.5),
                        top_logprobs=3, scored_from=scored if i % 2 else None)
                for i, (prompt, count, scored) in enumerate(prompts)]

    scheduler = Scheduler(Engine(SINGLE, step_rows=step_rows, max_rows=max_rows))
    together = run(scheduler, *requests()) + run(scheduler, *requests())
    apart = [run(Scheduler(Engine(SINGLE, max_rows=1)), request)[0] for request in requests()]
    for one, other in zip(together, [*apart, *apart], strict=True):
        assert one.tokens == other.tokens and one.logprobs == other.logprobs
        assert one.prompt_logprobs == other.prompt_logprobs and other.n_shared == 0
    assert all(request.n_shared == request.may_share or request.may_share % 8 for request in together[len(prompts) :]
               if request.may_share >= 8)


def test_company_does_not_change_what_a_seed_gives():
    def request(i):
        return Request(PREAMBLES[i % 3][: 5 + 3 * i], max_new_tokens=15, rng=np.random.default_rng(i),
                       sampling=Sampling(temperature=1.0, top_p=0.9, top_k=20))

    apart = [run(Scheduler(Engine(SINGLE)), request(i))[0].tokens for i in range(9)]
    for max_rows, order in ((64, range(9)), (2, range(8, -1, -1))):
        together = run(Scheduler(Engine(SINGLE, max_rows=max_rows)), *map(request, order))
        assert [request.tokens for request in together] == [apart[i] for i in order]
    assert len(set(map(tuple, apart))) > 5


def test_settings_of_one_do_not_touch_the_others():
    plain = Request(PREAMBLES[0][:9], max_new_tokens=9)
    forbidden = greedy(PREAMBLES[0][:9], 9)[0]
    others = [Request(PREAMBLES[0][:9], max_new_tokens=9, sampling=Sampling(logit_bias={forbidden: -np.inf})),
              Request(PREAMBLES[0][:9], max_new_tokens=9, sampling=Sampling(repetition_penalty=3.0)),
              Request(PREAMBLES[0][:9], max_new_tokens=9, ends={forbidden}, sampling=Sampling(min_new_tokens=4))]
    run(Scheduler(Engine(MODEL)), others[0], plain, *others[1:])
    assert plain.tokens == greedy(PREAMBLES[0][:9], 9)
    assert forbidden not in others[0].tokens and others[0].tokens[0] != forbidden
    assert forbidden not in others[2].tokens and len(others[2].tokens) >= 4
    for request in others:
        assert request.tokens == alone(PREAMBLES[0][:9], max_new_tokens=9, ends=request.ends,
                                       sampling=request.sampling).tokens


# ---- what is computed


def watched(engine):
    """Have the engine note how many tokens each of its steps computes."""
    rows, step = [], engine.step
    engine.step = lambda spans, **more: rows.append(sum(len(span.ids) for span in spans)) or step(spans, **more)
    return rows


def test_one_prompt_is_read_once_for_all_that_have_it():
    engine = Engine(MODEL)
    scheduler, rows, prompt = Scheduler(engine), watched(engine), PREAMBLES[2]
    requests = run(scheduler, *(Request(prompt, max_new_tokens=3) for _ in range(8)))
    counts = scheduler.counts
    assert (counts.prompt_tokens, counts.shared_tokens, counts.new_tokens) == (8 * 50, 7 * 49, 24)
    assert counts.steps == len(rows) == 4 and rows == [50, 7 + 1, 8, 7]
    assert sorted(request.n_shared for request in requests) == [0] + [49] * 7
    again = run(scheduler, *(Request(prompt, max_new_tokens=3) for _ in range(2)))
    assert [request.n_shared for request in again] == [49, 49]
    assert {tuple(request.tokens) for request in (*requests, *again)} == {tuple(greedy(prompt, 3))}


def test_short_beginnings_are_not_waited_for():
    engine = Engine(MODEL)
    rows = watched(engine)
    run(Scheduler(engine), *(Request([*PREAMBLES[0][:15], i], max_new_tokens=1) for i in range(3)))
    assert rows == [48]


def test_a_conversation_goes_on_where_it_was():
    scheduler = Scheduler(Engine(MODEL))
    first, = run(scheduler, Request(PREAMBLES[0], max_new_tokens=20))
    following = [*PREAMBLES[0], *first.tokens, 1, 2, 3]
    second, = run(scheduler, Request(following, max_new_tokens=5))
    assert second.n_shared == len(following) - 4  # the last token of the reply was never computed
    assert second.tokens == greedy(following, 5)


def test_long_prompts_are_cut_and_replies_go_on_meanwhile():
    engine = Engine(MODEL, step_rows=16, max_rows=8)
    scheduler, rows = Scheduler(engine), watched(engine)
    first, second = Request([1, 2, 3], max_new_tokens=20), Request(PREAMBLES[2], max_new_tokens=2)
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(second)
    for step in range(4):
        scheduler.step()
        assert len(first.tokens) == step + 2 and len(second.tokens) == (step == 3)
    assert rows == [3, 16, 16, 16, 6]
    finish(scheduler)
    assert first.tokens == greedy([1, 2, 3], 20) and second.tokens == greedy(PREAMBLES[2], 2)


# ---- how requests end


def test_why_a_reply_ended():
    prompt = PREAMBLES[1]
    tokens = greedy(prompt, 12)
    request = alone(prompt, max_new_tokens=5)
    assert (request.finish_reason, request.tokens) == ("length", tokens[:5])
    for end in set(tokens):
        request = alone(prompt, max_new_tokens=12, ends=(end,))
        assert (request.finish_reason, request.tokens) == ("stop", tokens[: tokens.index(end)])
    request = alone(prompt, max_new_tokens=12, ends=[V, V + 7])
    assert (request.finish_reason, request.tokens) == ("length", tokens)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("scored_from", [None, 0, 3])
def test_few_tokens_or_none(count, scored_from):
    request = alone([4, 5, 6, 7, 8], max_new_tokens=count, scored_from=scored_from)
    assert request.finish_reason == "length" and request.tokens == greedy([4, 5, 6, 7, 8], count)
    assert len(request.prompt_logprobs) == {None: 0, 0: 5, 3: 2}[scored_from]


@pytest.mark.parametrize("length", [1, 60, CONTEXT - 1])
def test_a_full_context_ends_a_reply(length):
    """The last token is chosen by all that fit, and need not fit itself."""
    prompt = ([*PREAMBLES[0], *PREAMBLES[1], *PREAMBLES[2]] * 2)[:length]
    request = alone(prompt, max_new_tokens=1000)
    assert request.finish_reason == "length" and len(request.tokens) == CONTEXT - length + 1
    assert request.tokens == greedy(prompt, 1000)


def test_a_prompt_may_fill_the_context_if_it_is_only_scored():
    prompt = (PREAMBLES[0] * 4)[:CONTEXT]
    request = alone(prompt, max_new_tokens=0, scored_from=0)
    assert request.finish_reason == "length" and len(request.prompt_logprobs) == CONTEXT


def test_cancelled():
    scheduler = Scheduler(Engine(MODEL, max_rows=1))
    running, waiting, other = (Request(PREAMBLES[i], max_new_tokens=9) for i in range(3))
    for request in (running, waiting, other):
        scheduler.submit(request)
    for _ in range(3):
        scheduler.step()
    assert (scheduler.n_running, scheduler.n_waiting) == (1, 2)
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    assert (scheduler.n_running, scheduler.n_waiting) == (0, 1)
    finish(scheduler)
    assert [r.finish_reason for r in (running, waiting, other)] == ["cancelled", "cancelled", "length"]
    assert running.tokens == greedy(PREAMBLES[0], 3) and waiting.tokens == []
    assert other.tokens == greedy(PREAMBLES[2], 9)
    for request in (running, other):
        scheduler.cancel(request)  # it has ended: nothing happens
    assert (running.finish_reason, other.finish_reason) == ("cancelled", "length")
    assert_all_free(scheduler)


def test_those_that_wait_for_a_prompt_which_is_cancelled():
    scheduler = Scheduler(Engine(MODEL, step_rows=20, max_rows=8))
    first, second = Request(PREAMBLES[2], max_new_tokens=3), Request(PREAMBLES[2], max_new_tokens=3)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.step()
    assert (scheduler.n_running, scheduler.n_waiting) == (1, 1)
    scheduler.cancel(first)
    finish(scheduler)
    assert second.n_shared == 20 and second.tokens == greedy(PREAMBLES[2], 3)


def test_weights_that_are_no_numbers_end_the_requests_that_meet_them():
    """Also those that come later into the same blocks are not touched."""
    model = make_model(dtype=np.float64, tie_word_embeddings=False, **SHAPE)
    expected = [alone(PREAMBLES[0][:i], model, max_new_tokens=6).tokens for i in (5, 7)]
    unused = next(t for t in range(V) if t not in PREAMBLES[0] and all(t not in tokens for tokens in expected))
    model.wte.weight.data[unused] = np.nan
    scheduler = Scheduler(Engine(model, n_blocks=3))
    bad = [Request([*PREAMBLES[0][:12], unused], max_new_tokens=6, sampling=Sampling(temperature=temperature),
                   rng=np.random.default_rng(0)) for temperature in (0, 1)]
    good = [Request(PREAMBLES[0][:i], max_new_tokens=6) for i in (5, 7)]
    run(scheduler, bad[0], *good, bad[1])
    for request in bad:
        assert request.finish_reason == "error" and request.tokens == []
        assert "not finite numbers, so the weights can't be" in request.error
    later = run(scheduler, *(Request(PREAMBLES[0][:i], max_new_tokens=6) for i in (5, 7)))
    for request, tokens in zip((*good, *later), expected * 2, strict=True):
        assert (request.finish_reason, request.tokens, request.error) == ("length", tokens, "")
    assert_all_free(scheduler)


def test_settings_that_leave_no_token_end_a_request():
    nothing = Sampling(logit_bias=dict.fromkeys(range(V), -np.inf))
    request, other = run(Scheduler(Engine(MODEL)), Request([1, 2], max_new_tokens=3, sampling=nothing),
                         Request([1, 2], max_new_tokens=3))
    assert request.finish_reason == "error" and "no token is left" in request.error
    assert other.tokens == greedy([1, 2], 3)


# ---- little room


@pytest.mark.parametrize("n_blocks", [3, 4, 5, 9])
def test_with_few_blocks_requests_wait_and_all_end(n_blocks):
    engine = Engine(MODEL, n_blocks=n_blocks)
    scheduler = Scheduler(engine)
    requests = [Request(PREAMBLES[i % 3][: 3 + 9 * (i % 5)], max_new_tokens=10 + 3 * i) for i in range(12)]
    for request in requests:
        scheduler.submit(request)
    scheduler.step()
    assert scheduler.n_waiting > 0
    finish(scheduler)
    for request in requests:
        assert request.tokens == greedy(request.prompt.tolist(), request.max_new_tokens)
    assert_all_free(scheduler)


def test_they_come_in_the_order_in_which_they_were_submitted():
    scheduler, ended = Scheduler(Engine(MODEL, max_rows=2)), []
    requests = [Request([i, i + 1], max_new_tokens=4) for i in range(7)]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        ended += [requests.index(request) for request in scheduler.step() if request.finish_reason]
    assert ended == list(range(7))


def test_those_that_wait_for_a_prompt_keep_their_order():
    scheduler, ended = Scheduler(Engine(MODEL, max_rows=2, step_rows=20)), []
    requests = [Request(PREAMBLES[2], max_new_tokens=3) for _ in range(5)]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        ended += [requests.index(request) for request in scheduler.step() if request.finish_reason]
    assert ended == list(range(5)) and [request.n_shared for request in requests] == [0] + [49] * 4


@pytest.mark.parametrize("prompt, count, n_blocks, words", [
    ([], 5, None, f"the prompt has 0 tokens, expected 1 to {CONTEXT - 1}"),
    ([1] * CONTEXT, 1, None, f"the prompt has {CONTEXT} tokens, expected 1 to {CONTEXT - 1}"),
    ([1] * (CONTEXT + 2), 0, None, f"the prompt has {CONTEXT + 2} tokens, expected 1 to {CONTEXT + 1}"),
    ([1, V], 5, None, f"the token {V}, expected 0 to {V - 1}"), ([1, -1], 5, None, "the token -1"),
    ([1] * 60, 10, 2, "take 3 blocks of the cache, which has 2; ask for fewer tokens"),
    ([1], 1000, 3, "take 4 blocks of the cache"),
])
def test_requests_that_can_never_be_met(prompt, count, n_blocks, words):
    scheduler = Scheduler(Engine(MODEL, n_blocks=n_blocks))
    for act in (scheduler.check, scheduler.submit):
        with pytest.raises(ValueError, match=words):
            act(Request(prompt, max_new_tokens=count))
    assert scheduler.idle
    run(scheduler, Request([1] * 60, max_new_tokens=4))  # 64 tokens: what two blocks hold


def test_a_temperature_needs_a_generator():
    scheduler = Scheduler(Engine(MODEL))
    with pytest.raises(ValueError, match="needs a random generator"):
        scheduler.submit(Request([1], max_new_tokens=1, sampling=Sampling(temperature=1.0)))
    assert scheduler.idle


def test_an_engine_has_one_scheduler():
    engine = Engine(MODEL)
    assert scheduler_of(engine) is scheduler_of(engine) is not scheduler_of(Engine(MODEL))


# ---- log-probabilities


def assert_scored(found, token, expected, n_top=0):
    """expected: (V,), the logarithms of all probabilities."""
    assert found.token == token and found.likeliest == np.argmax(expected)
    assert abs(found.logprob - expected[token]) <= 1e-12
    order = np.argsort(-expected, kind="stable")[:n_top]
    assert [at for at, _ in found.top] == order.tolist()
    np.testing.assert_allclose([value for _, value in found.top], expected[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("step_rows", [7, 512])
@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("scored_from", [0, 1, 20, 49, 50])
def test_log_probabilities_of_a_prompt(scored_from, count, step_rows):
    """From its first token, the second, one in the middle, the last, or none."""
    prompt = PREAMBLES[2]
    scheduler = Scheduler(Engine(MODEL, step_rows=step_rows, max_rows=3))
    expected = log_softmax(prompt)
    found = 0 if scored_from == len(prompt) and not count else max(0, scored_from - 1)
    for shared in (0, found):  # the second finds the first one's, if there is anything to compute
        request, = run(scheduler, Request(prompt, max_new_tokens=count, scored_from=scored_from, top_logprobs=2))
        assert request.n_shared == (shared if shared >= 8 else 0)
        found = request.prompt_logprobs
        if scored_from == 0:
            assert found.pop(0) is None
        first = max(1, scored_from)
        assert len(found) == len(prompt) - first
        for at, one in enumerate(found, start=first):
            assert_scored(one, prompt[at], expected[at - 1], 2)
        assert request.tokens == greedy(prompt, count)
        assert len(request.logprobs) == count


@pytest.mark.parametrize("temperature", [0, 2.0])
@pytest.mark.parametrize("n_top", [None, 0, 1, 5, V, V + 3])
def test_log_probabilities_of_a_reply(n_top, temperature):
    """They are the model's own, whatever the settings do with them."""
    prompt = PREAMBLES[0][:11]
    request = alone(prompt, max_new_tokens=9, top_logprobs=n_top, rng=np.random.default_rng(0),
                    sampling=Sampling(temperature=temperature, repetition_penalty=1.5))
    assert len(request.logprobs) == (0 if n_top is None else 9)
    expected = log_softmax([*prompt, *request.tokens])[len(prompt) - 1 :]
    for one, token, row in zip(request.logprobs, request.tokens, expected, strict=False):
        assert_scored(one, token, row, min(n_top, V))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, -128, 4096])
def test_describing_logits(rng, dtype, offset):
    """To a few units in the last place, wherever logits lie: GPT-2's are about -100."""
    logits = (rng.integers(-200, 1, (6, 300)) / 8).astype(dtype)
    logits[:, 7] = 0
    logits[1, [3, 9, 250]] = 0  # several likeliest ones
    tokens = [7, 9, 0, 299, 7, 100]
    whole = logits.astype(np.float64)
    expected = whole - np.log(np.exp(whole).sum(axis=1, keepdims=True))
    found = describe(logits + dtype(offset), tokens, [0, 1, 2, 5, 300, 4])
    rounding = 30 * np.finfo(dtype).eps
    for one, token, row, n_top in zip(found, tokens, expected, [0, 1, 2, 5, 300, 4], strict=True):
        assert one.token == token and one.likeliest == np.argmax(row)
        np.testing.assert_allclose(one.logprob, row[token], rtol=rounding, atol=rounding)
        order = np.argsort(-row, kind="stable")[:n_top]
        assert [at for at, _ in one.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in one.top], row[order], rtol=rounding, atol=rounding)
        assert all(value == one.logprob for at, value in one.top if at == token)


def test_describing_what_is_no_number():
    logits = np.zeros((2, 5), np.float32)
    logits[0, 2] = np.nan
    bad, good = describe(logits, [1, 1], [0, 2])
    assert np.isnan(bad.logprob) and abs(good.logprob + np.log(5)) < 1e-6 and [at for at, _ in good.top] == [0, 1]


def test_threads_that_share_an_engine_take_turns():
    engine = Engine(MODEL, max_rows=4)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: list(generate(engine, PREAMBLES[i % 3], max_new_tokens=12)), range(12)))
    assert found == [greedy(PREAMBLES[i % 3], 12) for i in range(12)]


def test_a_score_that_is_no_number_ends_a_request_once(monkeypatch):
    engine = Engine(MODEL)
    compute = engine.step

    def with_infinity(spans, logits=True):
        hidden, found = compute(spans, logits)
        found[0] = np.inf
        return hidden, found

    monkeypatch.setattr(engine, "step", with_infinity)
    scheduler = Scheduler(engine)
    request = Request([1, 2, 3], max_new_tokens=4, scored_from=0, top_logprobs=0)
    scheduler.submit(request)
    assert scheduler.step() == [request] and (request.finish_reason, request.tokens) == ("error", [])


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"step_rows": 0}, {"n_blocks": -1}])
def test_an_engine_of_no_size(options):
    with pytest.raises(ValueError, match="expected at least 1"):
        Engine(MODEL, **options)


def test_blocks_that_are_not_there():
    engine = Engine(MODEL, n_blocks=4)
    for block in (-1, 4, 10**7):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            engine.step([Span(np.array([1, 2]), 0, [block])])
