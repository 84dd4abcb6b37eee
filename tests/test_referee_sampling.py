"""Live comparisons with transformers: which tokens may be drawn and with which probabilities, in which order."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinyft.inference.sampling import Chooser, Sampling

pytestmark = pytest.mark.referee
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V = 23
TOKENS = st.integers(0, V - 1)
SETTINGS = {
    "temperature": st.floats(0.2, 3), "top_k": st.integers(1, V + 3), "top_p": st.floats(0.01, 0.999),
    "min_p": st.floats(0, 1), "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(TOKENS, st.integers(-40, 40).map(lambda number: number / 8) | st.just(-math.inf),
                                  min_size=1, max_size=6),
    "min_new_tokens": st.integers(1, 4),
}
CASES = dict(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.5, 6), prompt=st.lists(TOKENS, min_size=1, max_size=6),
             reply=st.lists(TOKENS, max_size=4), ends=st.sets(TOKENS, min_size=1, max_size=2))


class Following:
    """In place of a generator: a chooser that draws from it takes the token it is told."""

    def take(self, chooser, token, logits):
        ids, probabilities = chooser.probabilities(logits)
        place = ids.tolist().index(token)
        self.number = probabilities[:place].sum() + probabilities[place] / 2
        chooser.rng = self
        assert chooser.choose(logits) == token

    def random(self):
        return self.number


def their_names(options):
    """The settings as `generate` takes them."""
    named = {name: value for name, value in options.items() if name != "logit_bias"}
    if "logit_bias" in options:
        named["sequence_bias"] = {(token,): float(value) for token, value in options["logit_bias"].items()}
    return named


def processors(options, n_prompt, ends):
    """The list that `generate` puts together, in its order."""
    made = transformers.LogitsProcessorList()
    if "logit_bias" in options:
        made.append(transformers.SequenceBiasLogitsProcessor(their_names(options)["sequence_bias"]))
    if "repetition_penalty" in options:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "min_new_tokens" in options:
        made.append(transformers.MinNewTokensLengthLogitsProcessor(n_prompt, options["min_new_tokens"], list(ends)))
    for name, warper in (("temperature", transformers.TemperatureLogitsWarper),
                         ("top_k", transformers.TopKLogitsWarper), ("top_p", transformers.TopPLogitsWarper),
                         ("min_p", transformers.MinPLogitsWarper)):
        if name in options:
            made.append(warper(options[name]))
    return made


def nearest_to_a_limit(probabilities, top_p=None, min_p=None, **_):
    """How near a sum of the likeliest comes to top_p, or a share to min_p: where rounding decides, nothing is asked."""
    descending = np.sort(probabilities)[::-1]
    near = [1.0]
    if top_p is not None:
        near.append(np.abs(np.cumsum(descending) - top_p).min())
    if min_p is not None:
        near.append(np.abs(descending[1:] / descending[0] - min_p).min(initial=1.0))
    return min(near)


def check(options, seed, spread, prompt, reply, ends):
    reply = [token for token in reply if token not in ends and options.get("logit_bias", {}).get(token) != -math.inf]
    options = {"temperature": 1.0, **options}
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal(V)
    chooser, unlimited = (Chooser(Sampling(**chosen), prompt, ends, V, rng)
                          for chosen in (options, {**options, "top_p": None, "min_p": None}))
    for token in reply:
        Following().take(chooser, token, np.where(np.arange(V) == token, 1e6, 0.0))
        Following().take(unlimited, token, np.where(np.arange(V) == token, 1e6, 0.0))
    assume(nearest_to_a_limit(unlimited.probabilities(logits)[1], **options) > 1e-9)
    scores = processors(options, len(prompt), ends)(torch.tensor([prompt + reply]), torch.from_numpy(logits[None]))
    expected = torch.softmax(scores, -1)[0].numpy()
    ids, probabilities = chooser.probabilities(logits)
    np.testing.assert_array_equal(ids, np.flatnonzero(expected))
    np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-11)


@pytest.mark.parametrize("name", SETTINGS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_each_setting(name, data):
    check({name: data.draw(SETTINGS[name])}, **data.draw(st.fixed_dictionaries(CASES)))


@settings(deadline=None, max_examples=300)
@given(options=st.fixed_dictionaries({}, optional=SETTINGS), case=st.fixed_dictionaries(CASES))
def test_some_settings(options, case):
    check(options, **case)


@settings(deadline=None, max_examples=150)
@given(options=st.fixed_dictionaries(SETTINGS), case=st.fixed_dictionaries(CASES))
def test_all_settings(options, case):
    check(options, **case)


@settings(deadline=None, max_examples=100)
@given(logits=st.lists(st.integers(-3, 3), min_size=V, max_size=V), top_k=st.integers(1, V))
def test_ties_at_top_k(logits, top_k):
    logits = np.array(logits, np.float64)
    scores = transformers.TopKLogitsWarper(top_k)(None, torch.from_numpy(logits[None]))[0].numpy()
    ids, _ = Chooser(Sampling(temperature=1.0, top_k=top_k), [], [], V, np.random.default_rng(0)).probabilities(logits)
    np.testing.assert_array_equal(ids, np.flatnonzero(scores > -np.inf))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, n_positions=16, n_embd=8, n_layer=1, n_head=2,
                                     initializer_range=1.0, bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config).eval()


@settings(deadline=None, max_examples=40)
@given(options=st.fixed_dictionaries({}, optional=SETTINGS), prompt=st.lists(TOKENS, min_size=1, max_size=6),
       ends=st.sets(TOKENS, min_size=1, max_size=2), seed=st.integers(0, 2**31 - 1))
def test_a_reply_drawn_by_transformers(model, options, prompt, ends, seed):
    """Its own `generate`, asked for the logits and what it made of them: float32, and the order is its own."""
    options = {"temperature": 1.0, **options}
    theirs = {"top_k": 0, **their_names(options)}  # 0 is no limit there
    torch.manual_seed(seed)
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=5,
                          eos_token_id=list(ends), pad_token_id=0, output_logits=True, output_scores=True,
                          return_dict_in_generate=True, **theirs)
    chooser = Chooser(Sampling(**options), prompt, ends, V, np.random.default_rng(0))
    for token, logits, scores in zip(made.sequences[0, len(prompt) :].tolist(), made.logits, made.scores, strict=True):
        logits, expected = logits[0].numpy(), torch.softmax(scores[0].double(), -1).numpy()
        mine = np.zeros(V)
        kept, mine[kept] = chooser.probabilities(logits)
        # A token that stands at a limit falls to either side by rounding; then that step is not compared.
        if np.array_equal(mine > 0, expected > 0):
            np.testing.assert_allclose(mine, expected, rtol=1e-4)
        else:
            assert np.count_nonzero((mine > 0) != (expected > 0)) == 1
        if mine[token] == 0:
            return
        Following().take(chooser, token, logits)


@settings(deadline=None, max_examples=20)
@given(options=st.fixed_dictionaries({}, optional={name: SETTINGS[name] for name in
                                                   ("repetition_penalty", "logit_bias", "min_new_tokens")}),
       prompt=st.lists(TOKENS, min_size=1, max_size=6), ends=st.sets(TOKENS, min_size=1, max_size=2))
def test_a_greedy_reply_of_transformers(model, options, prompt, ends):
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, pad_token_id=0,
                          eos_token_id=list(ends), output_logits=True, return_dict_in_generate=True,
                          **their_names(options))
    chooser = Chooser(Sampling(**options), prompt, ends, V, None)
    reply = [chooser.choose(logits[0].numpy()) for logits in made.logits]
    assert reply == made.sequences[0, len(prompt) :].tolist()
