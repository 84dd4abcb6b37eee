"""GPT-2 in its variants, against one line of NumPy after the other: logits, every gradient, decoding, config."""

import math

import numpy as np
import pytest
from reference import layer_norm, softmax
from small import make_model

from tinyft import GPT2, AdamW, Engine, GPT2Config, no_grad
from tinyft.inference.engine import Span

TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")
VARIANTS = [
    {}, {"activation_function": "gelu"}, {"activation_function": "relu"},
    {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"reorder_and_upcast_attn": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False},
    {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
]
EACH = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)) or "usual")


def activate(x: np.ndarray, name: str) -> np.ndarray:
    """As transformers' documentation defines them."""
    if name in ("gelu", "gelu_python"):
        return x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2
    if name == "relu":
        return np.where(x > 0, x, 0)
    assert name in TANH
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def naive_logits(model: GPT2, ids: np.ndarray) -> np.ndarray:
    """(T,) -> (T, V): the whole of GPT-2 once more, one head and one query at a time."""
    config, epsilon = model.config, model.config.layer_norm_epsilon
    w = {name: np.asarray(parameter.data, np.float64) for name, parameter in model.named_parameters()}

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    size = config.n_embd // config.n_head
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for layer in range(config.n_layer):
        q, k, v = np.split(linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn"), 3, axis=1)
        mixed = np.zeros_like(x)
        for head in range(config.n_head):
            columns = slice(head * size, (head + 1) * size)
            for t in range(len(ids)):
                scores = k[: t + 1, columns] @ q[t, columns]
                if config.scale_attn_weights:
                    scores = scores / size**0.5
                if config.scale_attn_by_inverse_layer_idx:
                    scores = scores / (layer + 1)
                mixed[t, columns] = softmax(scores) @ v[: t + 1, columns]
        x = x + linear(mixed, f"h.{layer}.attn.c_proj")
        inner = activate(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"), config.activation_function)
        x = x + linear(inner, f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight" if config.tie_word_embeddings else "lm_head.weight"].T


def assert_near(got, expected, tolerance=1e-12):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


# ---- numbers


@EACH
def test_logits(variant):
    model = make_model(seed=4, dtype=np.float64, n_layer=3, **variant)
    ids = np.random.default_rng(0).integers(340, size=16)
    assert_near(model(ids).data[0], naive_logits(model, ids))
    single = make_model(seed=4, n_layer=3, **variant)
    assert single(ids).dtype == np.float32
    assert_near(single(ids).data[0], naive_logits(model, ids), 5e-6)


def test_variants_are_not_the_same():
    """Or the tests above would not see that a setting is ignored."""
    ids = np.random.default_rng(0).integers(340, size=16)
    seen = [make_model(seed=4, dtype=np.float64, n_layer=3, **variant)(ids).data for variant in VARIANTS]
    same = {(i, j) for i in range(len(VARIANTS)) for j in range(i) if np.abs(seen[i] - seen[j]).max() < 1e-6}
    assert same == {(5, 0)}, "only reorder_and_upcast_attn is the usual model"


@pytest.mark.parametrize("name", [*TANH, "gelu_python"])
def test_other_names_of_an_activation(name):
    ids = np.arange(16)
    usual = "gelu" if name == "gelu_python" else "gelu_new"
    logits, expected = (make_model(seed=4, activation_function=which)(ids).data for which in (name, usual))
    np.testing.assert_array_equal(logits, expected)


@EACH
def test_every_gradient_by_central_differences(variant):
    model = make_model(seed=5, dtype=np.float64, scale=0.4, vocab_size=7, n_positions=4, n_embd=4, n_head=2, n_inner=5,
                       **variant)
    inputs = np.array([[1, 2, 3, 6], [5, 0, 5, 5]])
    targets = np.array([[2, -100, 6, 0], [-100, 5, 1, -100]])
    model.loss(inputs, targets).backward()
    for name, parameter in model.named_parameters():
        values = parameter.data.reshape(-1)
        assert np.shares_memory(values, parameter.data)
        expected = np.empty_like(values)
        for i in range(values.size):
            kept, losses = values[i], []
            for moved in (kept + 1e-6, kept - 1e-6):
                values[i] = moved
                with no_grad():
                    losses.append(model.loss(inputs, targets).item())
            values[i], expected[i] = kept, (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(parameter.grad.reshape(-1), expected, rtol=1e-5, atol=1e-8, err_msg=name)


@EACH
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_decoding_with_the_cache(variant, dtype):
    model = make_model(seed=6, dtype=dtype, **variant)
    ids = np.random.default_rng(1).integers(340, size=16)
    with no_grad():
        whole = model(ids).data[0]
    engine = Engine(model)
    steps = [engine.step([Span(ids[:5], 0, [0])]), *(engine.step([Span(ids[t : t + 1], t, [0])]) for t in range(5, 16))]
    assert_near(np.concatenate([logits for _, logits in steps]), whole[4:], 1e-12 if dtype == np.float64 else 5e-6)


# ---- an output layer of its own


def test_an_untied_head_learns_apart_from_the_token_table():
    model = make_model(dtype=np.float64, tie_word_embeddings=False)
    names = [name for name, _ in model.named_parameters()]
    assert names[-1] == "lm_head.weight" and model.lm_head.weight.shape == (340, 12)
    before = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    inputs = np.array([[1, 2, 3]])
    optimizer = AdamW(model, weight_decay=0.0)
    model.loss(inputs, inputs + 1).backward()
    assert np.flatnonzero(model.wte.weight.grad.any(axis=1)).tolist() == [1, 2, 3]
    assert model.lm_head.weight.grad.any(axis=1).all()
    optimizer.step(1e-2)
    assert all((parameter.data != before[name]).any() for name, parameter in model.named_parameters())


def test_a_tied_head_is_no_parameter_of_its_own():
    model = make_model()
    assert not hasattr(model, "lm_head") and model.output_weight is model.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_an_untied_model_draws_the_same_other_weights():
    tied, untied = (GPT2(GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1,
                                    tie_word_embeddings=tie), np.random.default_rng(0)) for tie in (True, False))
    own = dict(untied.named_parameters())
    for name, parameter in tied.named_parameters():
        np.testing.assert_array_equal(parameter.data, own[name].data)
    assert 0.01 < own["lm_head.weight"].data.std() < 0.03


# ---- config


@pytest.mark.parametrize("values, words", [
    ({"activation_function": "silu"}, "activation_function is 'silu', expected one of gelu_new"),
    ({"activation_function": ["gelu"]}, "activation_function is \\['gelu'\\]"),
    ({"activation_function": None}, "activation_function is None"),
    ({"scale_attn_weights": 1}, "scale_attn_weights is 1, expected true or false"),
    ({"scale_attn_by_inverse_layer_idx": "false"}, "scale_attn_by_inverse_layer_idx is 'false'"),
    ({"reorder_and_upcast_attn": None}, "reorder_and_upcast_attn is None"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
    ({"n_layer": True}, "n_layer is True, expected a positive integer"),
    ({"initializer_range": -1}, "initializer_range is -1"),
    ({"attn_pdrop": "0.1"}, "attn_pdrop is '0.1'"),
])
def test_a_config_that_makes_no_sense(values, words):
    with pytest.raises(ValueError, match=words):
        GPT2Config(**values)


def test_the_scale_of_attention():
    assert GPT2Config().attention_scale(5) == 1 / 8
    assert GPT2Config(scale_attn_weights=False).attention_scale(5) == 1
    assert GPT2Config(scale_attn_by_inverse_layer_idx=True).attention_scale(5) == 1 / 48


def test_initializer_range_is_the_spread_of_fresh_weights():
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=2, n_head=2, initializer_range=0.5,
                        tie_word_embeddings=False)
    for name, parameter in GPT2(config, np.random.default_rng(0)).named_parameters():
        if parameter.data.ndim == 2:
            expected = 0.5 / 2 if "c_proj" in name else 0.5
            assert abs(parameter.data.std() / expected - 1) < 0.05, name
