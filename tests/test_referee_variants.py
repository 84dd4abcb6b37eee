"""GPT-2 in all its variants beside transformers: logits, gradients, folders in both directions, greedy ids."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from small import make_model, weights_of, write_tokenizer

from tinyft import generate, load_model, load_tokenizer, save_model

try:
    import torch
    import transformers
    from safetensors.torch import save_file
except ImportError as error:
    torch = transformers = None
    MISSING = f"no referee: {error} (pip install '.[referees]')"
else:
    MISSING = ""
    transformers.logging.set_verbosity_error()

pytestmark = [pytest.mark.referee, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

VARIANTS = {
    "usual": {}, "gelu": {"activation_function": "gelu"}, "gelu_fast": {"activation_function": "gelu_fast"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"}, "relu": {"activation_function": "relu"},
    "gelu_python": {"activation_function": "gelu_python"}, "gelu_accurate": {"activation_function": "gelu_accurate"},
    "gelu_python_tanh": {"activation_function": "gelu_python_tanh"},
    "inverse": {"scale_attn_by_inverse_layer_idx": True}, "unscaled": {"scale_attn_weights": False},
    "neither": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "reordered": {"reorder_and_upcast_attn": True}, "untied": {"tie_word_embeddings": False},
    "stanford": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "all": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "activation_function": "gelu",
            "tie_word_embeddings": False, "n_inner": 29},
}
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


def theirs(model, attention="sdpa"):
    """transformers' model of the same config and weights, in the same precision."""
    shape = {name: getattr(model.config, name) for name in (
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon",
        "activation_function", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
        "tie_word_embeddings")}
    config = transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None, embd_pdrop=0.0, resid_pdrop=0.0,
                                     attn_pdrop=0.0)
    other = transformers.GPT2LMHeadModel._from_config(config, attn_implementation=attention).eval()
    other = other.to(torch.float64 if model.wte.weight.dtype == np.float64 else torch.float32)
    state = {name if name.startswith("lm_head") else f"transformer.{name}": torch.from_numpy(array)
             for name, array in weights_of(model).items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return other


def logits_of(other, ids):
    with torch.no_grad():
        return other(input_ids=torch.from_numpy(np.atleast_2d(ids))).logits.numpy()


def assert_close(got, expected, tolerance, what=""):
    assert np.shape(got) == np.shape(expected)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max(), what


# ---- numbers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_logits_and_every_gradient(name, attention):
    # transformers' gelu_fast has sqrt(2 / pi) to 10 digits, and its reordered attention knows no float64.
    single = attention == "eager" and VARIANTS[name].get("reorder_and_upcast_attn", False)
    tolerance = 5e-6 if single else 1e-9 if name == "gelu_fast" else 1e-12
    model = make_model(seed=3, dtype=np.float32 if single else np.float64, n_layer=3, **VARIANTS[name])
    other = theirs(model, attention)
    rng = np.random.default_rng(1)
    inputs, targets = rng.integers(340, size=(2, 4, 16))
    targets[rng.random(targets.shape) < 0.3] = -100
    logits = other(input_ids=torch.from_numpy(inputs)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    assert_close(model(inputs).data, logits.detach().numpy(), tolerance)
    ours = model.loss(inputs, targets)
    assert abs(ours.item() - loss.item()) <= tolerance * loss.item()
    ours.backward()
    gradients = {name.removeprefix("transformer."): p.grad.numpy() for name, p in other.named_parameters()}
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], 20 * tolerance, name)


@EACH
def test_greedy_generation_gives_the_same_ids(variant):
    model = make_model(seed=9, dtype=np.float64, n_layer=3, **variant)
    other = theirs(model)
    for length in (1, 5, 11):
        prompt = np.random.default_rng(length).integers(340, size=length)
        expected = other.generate(torch.from_numpy(prompt[None]), do_sample=False, max_new_tokens=16 - length,
                                  pad_token_id=0, attention_mask=torch.ones(1, length, dtype=torch.long))
        assert list(generate(model, prompt, max_new_tokens=16 - length)) == expected[0, length:].tolist()


# ---- folders


@EACH
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_loads_what_tinyft_saves(tmp_path, variant, dtype):
    write_tokenizer(tmp_path / "tokenizer")
    model = make_model(seed=2, n_layer=3, **variant)
    save_model(model, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "model", dtype=dtype)
    other, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True,
                                                                      dtype="auto")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert other.dtype == other.config.dtype == getattr(torch, dtype)
    other = other.float().eval()
    ids = np.random.default_rng(6).integers(340, size=(2, 16))
    assert_close(load_model(tmp_path / "model")(ids).data, logits_of(other, ids), 1e-5)
    if dtype == "float32":
        assert_close(model(ids).data, logits_of(other, ids), 1e-5)
    assert other.config.tie_word_embeddings == model.config.tie_word_embeddings


@EACH
def test_tinyft_loads_what_transformers_saves(tmp_path, variant):
    model = make_model(seed=2, n_layer=3, **variant)
    theirs(model).save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    ids = np.random.default_rng(7).integers(340, size=(2, 16))
    np.testing.assert_array_equal(again(ids).data, model(ids).data)


# ---- folders as they are on the hub: keys, files and names of each, with small random weights

CEREBRAS = {  # Cerebras-GPT-111M
    "activation_function": "gelu", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.0, "bos_token_id": 336,
    "embd_pdrop": 0.0, "eos_token_id": 336, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_inner": 48, "n_layer": 2, "n_positions": 16,
    "reorder_and_upcast_attn": False, "resid_pdrop": 0.0, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "use_cache": True, "vocab_size": 340, "torch_dtype": "float32",
}
STANFORD = {  # stanford-crfm's gpt2s of the project Mistral
    "_name_or_path": "gpt2", "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1, "bos_token_id": 336, "embd_pdrop": 0.1, "eos_token_id": 336, "gradient_checkpointing": False,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 16, "n_embd": 12,
    "n_head": 3, "n_inner": None, "n_layer": 2, "n_positions": 16, "reorder_and_upcast_attn": True,
    "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": True,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "transformers_version": "4.12.0.dev0", "use_cache": False,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 1024}}, "vocab_size": 340,
    "torch_dtype": "float32",
}
DIALOGPT = {  # microsoft/DialoGPT
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 336,
    "embd_pdrop": 0.1, "eos_token_id": 336, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2, "n_positions": 16,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 340,
    "task_specific_params": {"conversational": {"max_length": 1000}},
}
FOLDERS = {  # config, prefix, type of the masks, whether the head is kept, type of the weights
    "Cerebras-GPT": (CEREBRAS, "transformer.", "uint8", True, "float32"),
    "Cerebras-GPT-half": (CEREBRAS | {"torch_dtype": "float16"}, "transformer.", None, False, "float16"),
    "Stanford-CRFM": (STANFORD, "transformer.", "float32", True, "float32"),
    "Stanford-CRFM-bool": (STANFORD, "transformer.", "bool", False, "float32"),
    "DialoGPT": (DIALOGPT, "transformer.", "uint8", True, "float16"),
    "OpenAI": (DIALOGPT, "", "float32", False, "float32"),
}


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_folders_of_the_hub(tmp_path, kind):
    config, prefix, masks, head, dtype = FOLDERS[kind]
    folder = tmp_path / "hub"
    write_tokenizer(folder)
    model = make_model(seed=8)
    state = {f"{prefix}{name}": torch.from_numpy(array).to(getattr(torch, dtype))
             for name, array in weights_of(model).items()}
    if head:
        state["lm_head.weight"] = state[f"{prefix}wte.weight"].clone()
    for layer in range(2) if masks else ():
        state[f"{prefix}h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 16, 16)).to(getattr(torch, masks))
        state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder)
    ids = np.random.default_rng(0).integers(340, size=(2, 16))
    assert_close(ours(ids).data, logits_of(other, ids), 1e-5)
    prompt = ids[:1, :4]
    expected = other.generate(torch.from_numpy(prompt), do_sample=False, max_new_tokens=12, pad_token_id=0,
                              eos_token_id=336, attention_mask=torch.ones(1, 4, dtype=torch.long))[0, 4:].tolist()
    assert list(generate(ours, prompt[0], max_new_tokens=12, stop=336)) == [id for id in expected if id != 336]

    for parameter in (parameter for _, parameter in ours.named_parameters()):  # tune it, save it, load it there
        parameter.data += 0.01
    save_model(ours, load_tokenizer(folder), tmp_path / "saved")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    assert_close(ours(ids).data, logits_of(other, ids), 1e-5)
    for name, value in config.items():
        if hasattr(ours.config, name):
            assert getattr(other.config, name) == value, name


# ---- which files transformers takes for which model


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("there", ["both, equal", "both, other", "head alone", "table alone"])
def test_either_transformers_logits_or_a_refusal(tmp_path, said, there):
    model = make_model(seed=8)
    state = {f"transformer.{name}": torch.from_numpy(array) for name, array in weights_of(model).items()}
    if there != "table alone":
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    if there == "both, other":
        state["lm_head.weight"] += torch.from_numpy(np.random.default_rng(0).standard_normal((340, 12)))
    if there == "head alone":
        del state["transformer.wte.weight"]
    (tmp_path / "config.json").write_text(json.dumps(DIALOGPT | said))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    untied = said == {"tie_word_embeddings": False}
    refused = {"both, equal": False, "both, other": not untied, "head alone": untied, "table alone": untied}[there]
    if refused:
        with pytest.raises(ValueError, match=r"lm_head\.weight"):
            load_model(tmp_path)
        return
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(340, size=(2, 16))
    assert_close(load_model(tmp_path)(ids).data, logits_of(other, ids), 1e-5)
