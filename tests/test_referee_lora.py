"""LoRA beside peft, live: logits, every gradient, twenty steps of AdamW, and folders in both directions."""

import json
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
from small import make_model, weights_of, write_tokenizer

from tinyft import AdamW, load_model, load_tokenizer, no_grad, save_model
from tinyft.adapters import load_adapter, load_model_and_tokenizer, load_unmerged, save_adapter
from tinyft.lora import LoraConfig, add_lora, lora_config, lora_layers, lora_parameters, merge_lora

try:
    import peft
    import torch
    import transformers
except ImportError as error:
    peft = torch = transformers = None
    MISSING = f"no referee: {error} (pip install '.[referees]')"
else:
    MISSING = ""
    transformers.logging.set_verbosity_error()

pytestmark = [pytest.mark.referee, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

CONFIGS = [
    LoraConfig(rank=4, alpha=8),
    LoraConfig(rank=1, alpha=3, layers=("c_attn",)),
    LoraConfig(rank=5, alpha=7.5, layers=("attn.c_proj", "c_fc"), rank_stabilised=True),
    LoraConfig(rank=17, alpha=1, layers=("h.1.mlp.c_proj", "h.0.attn.c_attn")),
]
IDS, TARGETS = np.random.default_rng(1).integers(340, size=(2, 3, 16))
TARGETS[:, ::3] = -100


def adapted(config: LoraConfig, dtype=np.float64):
    """A model whose adapters do something."""
    model = make_model(dtype=dtype)
    add_lora(model, config, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for name, parameter in lora_parameters(model).items():
        if name.endswith("lora_B"):
            parameter.data = 0.1 * rng.standard_normal(parameter.shape).astype(dtype)
    return model


def their_base(model):
    """transformers' GPT-2 with the weights that stand below the adapters."""
    shape = {name: getattr(model.config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    config = transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None, embd_pdrop=0.0, resid_pdrop=0.0,
                                     attn_pdrop=0.0)
    other = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    other = other.to(torch.float64 if model.wte.weight.dtype == np.float64 else torch.float32)
    state = {f"transformer.{name}": torch.from_numpy(array) for name, array in weights_of(model).items()
             if ".lora_" not in name}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return other


def theirs(model):
    """peft's adapters with the same values, on the same base."""
    config = lora_config(model)
    other = peft.get_peft_model(their_base(model), peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.layers),
        use_rslora=config.rank_stabilised, fan_in_fan_out=True, task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameters[their_name(name)].copy_(torch.from_numpy(parameter.data))
    assert sum(p.requires_grad for p in parameters.values()) == len(lora_parameters(model))
    return other.to(torch.float64 if model.wte.weight.dtype == np.float64 else torch.float32).eval()


def their_name(name: str) -> str:
    return f"base_model.model.transformer.{name}.default.weight"


def loss_of(other):
    logits = other(input_ids=torch.from_numpy(IDS)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten())


def logits_of(model):
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    with no_grad():
        return model(IDS).data


def assert_close(actual, expected, tolerance, what=""):
    """Largest error as a share of the largest number."""
    assert np.shape(actual) == np.shape(expected), what
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max(), what


# ---- numbers


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"rank{config.rank}")
def test_logits_and_every_gradient(config):
    model = adapted(config)
    other = theirs(model)
    assert_close(logits_of(model), logits_of(other), 1e-12)
    loss, expected = model.loss(IDS, TARGETS), loss_of(other)
    assert abs(loss.item() - expected.item()) <= 1e-12 * expected.item()
    loss.backward()
    expected.backward()
    gradients = {name: p.grad.numpy() for name, p in other.named_parameters() if p.grad is not None}
    assert set(gradients) == {their_name(name) for name in lora_parameters(model)}
    for name, parameter in lora_parameters(model).items():
        assert_close(parameter.grad, gradients[their_name(name)], 1e-11, name)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"rank{config.rank}")
def test_twenty_steps_of_adamw(config):
    """From a fresh adapter, whose B is zero, as training begins; all of it decays, as with PyTorch's AdamW alone."""
    model = make_model(dtype=np.float64)
    add_lora(model, config, np.random.default_rng(0))
    other = theirs(model)
    settings = dict(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    their_optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], **settings)
    optimizer = AdamW(model, **settings)
    frozen = {name: array for name, array in weights_of(model).items() if ".lora_" not in name}
    losses, expected = [], []
    for step in range(20):
        for group in their_optimizer.param_groups:
            group["lr"] = 0.02 / (step + 1)
        their_optimizer.zero_grad()
        loss = loss_of(other)
        loss.backward()
        their_optimizer.step()
        expected.append(loss.item())
        loss = model.loss(IDS, TARGETS)
        loss.backward()
        optimizer.step(0.02 / (step + 1))
        losses.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert losses[-1] < 0.995 * losses[0]
    after = dict(other.named_parameters())
    for name, parameter in lora_parameters(model).items():
        assert_close(parameter.data, after[their_name(name)].detach().numpy(), 1e-10, name)
    for name, array in frozen.items():
        np.testing.assert_array_equal(dict(model.named_parameters())[name].data, array)


def test_fresh_adapters_are_drawn_alike():
    """The same bounds and spread as peft's, which are those of PyTorch's Linear."""
    model = make_model(n_embd=60)
    add_lora(model, LoraConfig(rank=40), np.random.default_rng(0))
    other = peft.get_peft_model(their_base(model), peft.LoraConfig(r=40, target_modules=["c_attn", "c_proj", "c_fc"],
                                                                   fan_in_fan_out=True, task_type="CAUSAL_LM"))
    parameters = dict(other.named_parameters())
    for name, parameter in lora_parameters(model).items():
        ours, their = parameter.data, parameters[their_name(name)].detach().numpy()
        assert ours.shape == their.shape
        assert abs(np.abs(ours).max() - np.abs(their).max()) <= 0.02 * np.abs(their).max()
        assert abs(ours.std() - their.std()) <= 0.1 * their.std()


# ---- folders


@pytest.fixture
def base(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    save_model(make_model(), load_tokenizer(tmp_path / "tokenizer"), tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"rank{config.rank}")
def test_peft_loads_what_tinyft_saves(tmp_path, base, config):
    model = adapted(config, np.float32)
    save_adapter(model, load_tokenizer(base), tmp_path / "adapter", str(base))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        other = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base),
                                               tmp_path / "adapter")
    assert not [str(w.message) for w in warned if "eft" in w.filename and "transformers" not in w.filename]
    assert_close(logits_of(model), logits_of(other.eval()), 1e-5)
    state = peft.get_peft_model_state_dict(other)
    assert len(state) == len(lora_parameters(model))
    for name, parameter in lora_parameters(model).items():
        np.testing.assert_array_equal(state[f"base_model.model.transformer.{name}.weight"].numpy(), parameter.data)
    merge_lora(model)
    assert_close(logits_of(model), logits_of(other.merge_and_unload().eval()), 1e-5)


def test_the_auto_classes_load_what_tinyft_saves(tmp_path, base):
    """By the base that the adapter names, and the tokenizer that lies beside it."""
    model = adapted(CONFIGS[0], np.float32)
    save_adapter(model, load_tokenizer(base), tmp_path / "adapter", str(base))
    for auto in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
        assert_close(logits_of(model), logits_of(auto.from_pretrained(tmp_path / "adapter").eval()), 1e-5, auto)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    text = "The cat sat on the mat."
    assert tokenizer(text)["input_ids"] == load_tokenizer(tmp_path / "adapter").encode(text)


THEIR_SETTINGS = [
    dict(target_modules=["c_attn", "c_proj", "c_fc"]), dict(), dict(target_modules="all-linear"),
    dict(target_modules=r".*\.h\.\d+\.mlp\.c_.*"), dict(target_modules=["c_attn", "mlp.c_proj"], use_rslora=True),
    dict(target_modules=["c_attn", "c_fc"], layers_to_transform=[1]),
    dict(target_modules=["c_fc"], init_lora_weights=False),
    dict(target_modules=["c_attn", "c_proj"], exclude_modules=["mlp.c_proj"]),
    dict(target_modules=["c_attn"], init_lora_weights="gaussian", lora_dropout=0.2, lora_alpha=3),
]


@pytest.mark.parametrize("settings", THEIR_SETTINGS, ids=str)
def test_tinyft_loads_what_peft_saves(tmp_path, base, settings):
    other = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peft.get_peft_model(other, peft.LoraConfig(r=3, task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    other.save_pretrained(tmp_path / "adapter")
    model, _ = load_unmerged(tmp_path / "adapter")
    assert_close(logits_of(model), logits_of(other), 1e-5)
    assert np.abs(logits_of(model) - logits_of(load_model(base))).max() > 1e-3
    merged, _ = load_model_and_tokenizer(tmp_path / "adapter")
    assert_close(logits_of(merged), logits_of(other), 1e-5)
    # And once more through tinyft.
    save_adapter(model, load_tokenizer(base), tmp_path / "again", str(base))
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "again")
    assert_close(logits_of(again.eval()), logits_of(other), 1e-5)
    state, ours = peft.get_peft_model_state_dict(again), peft.get_peft_model_state_dict(other)
    assert state.keys() == ours.keys() and all((state[name] == ours[name]).all() for name in state)
    assert len(lora_layers(model)) * 2 == len(ours)


@pytest.mark.parametrize(("settings", "says"), [
    (dict(use_dora=True), "DoRA"), (dict(bias="all"), "bias is 'all'"), (dict(bias="lora_only"), "bias is 'lora_only'"),
    (dict(modules_to_save=["lm_head"]), "whole layers"), (dict(rank_pattern={"c_attn": 2}), "ranks of their own"),
    (dict(alpha_pattern={"c_attn": 2}), "alphas of their own"), (dict(init_lora_weights="pissa"), "'pissa'"),
    (dict(init_lora_weights="olora"), "'olora'"), (dict(target_modules=["c_attn", "wte"]), "token table|embeddings"),
    (dict(trainable_token_indices={"wte": [1]}), "rows of the token table"), (dict(lora_bias=True), "biases on B"),
    (dict(target_modules=["c_attn", "lm_head"]), "the output layer"),
])
def test_what_tinyft_does_not_do_is_refused(tmp_path, base, settings, says):
    other = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peft.get_peft_model(other, peft.LoraConfig(
            **{"r": 3, "task_type": "CAUSAL_LM", "target_modules": ["c_attn"]} | settings))
        other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=says):
        load_adapter(load_model(base), tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["IA3Config", "PromptTuningConfig", "VeraConfig", "LoHaConfig"])
def test_other_kinds_of_adapters_are_refused(tmp_path, base, kind):
    options = {"num_virtual_tokens": 3} if kind.startswith("Prompt") else {"target_modules": ["c_attn"]}
    options |= {"feedforward_modules": []} if kind == "IA3Config" else {}
    other = transformers.AutoModelForCausalLM.from_pretrained(base)
    try:
        peft.get_peft_model(other, getattr(peft, kind)(task_type="CAUSAL_LM", **options)).save_pretrained(
            tmp_path / "adapter")
    except (ValueError, TypeError) as error:
        pytest.skip(f"peft itself has none for GPT-2: {error}")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))["peft_type"]
    with pytest.raises(ValueError, match=f"peft_type is '{named}', expected 'LORA'"):
        load_adapter(load_model(base), tmp_path / "adapter")
