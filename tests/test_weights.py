"""Weights as people have them: prefixes, heads, masks, other layouts; read as they are, or refused with the reason."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from small import assert_same_weights, make_model, weights_of, write_tokenizer

from tinyft import load_model, load_tokenizer, save_model
from tinyft.weight_names import PARTS, is_buffer, plain_names

CONFIG = {"model_type": "gpt2", "vocab_size": 340, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}


@pytest.fixture
def model():
    return make_model()


def full(model) -> dict[str, np.ndarray]:
    """Weights under transformers' names."""
    return {name if name.startswith("lm_head") else f"transformer.{name}": array
            for name, array in weights_of(model).items()}


def write(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    return folder


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


# ---- names


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "model.", "module._orig_mod.",
                                    "_orig_mod.module.", "base_model.model.model.", "pretrained_model.", "gpt2.net.",
                                    "state_dict.", "_forward_module.module."])
@pytest.mark.parametrize("body", ["", "transformer."])
@pytest.mark.parametrize("head", ["none", "kept", "only"])
def test_prefixes_that_all_share(tmp_path, model, prefix, body, head):
    tensors = {f"{prefix}{body}{name}": array for name, array in weights_of(model).items()}
    if head != "none":
        tensors[f"{prefix}lm_head.weight"] = model.wte.weight.data
    if head == "only":
        del tensors[f"{prefix}{body}wte.weight"]
    assert_same_weights(load_model(write(tmp_path / "model", tensors)), model)


def test_wrappers_in_the_middle_of_names(tmp_path, model):
    """Of layers that were compiled, sharded or checkpointed one by one."""
    tensors = {}
    for name, array in full(model).items():
        parts = name.split(".")
        if parts[1] == "h":
            parts[3:3] = ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"]
        tensors[".".join(parts)] = array
    assert_same_weights(load_model(write(tmp_path / "model", tensors)), model)


def test_a_prefix_over_several_files(tmp_path, model):
    folder = tmp_path / "model"
    write(folder, {})
    (folder / "model.safetensors").unlink()
    names = list(full(model))
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({f"_orig_mod.{name}": full(model)[name] for name in held}, folder / shard)
    weight_map = {f"_orig_mod.{name}": shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_weights(load_model(folder), model)


def test_a_tensor_in_two_files(tmp_path, model):
    """Of two sharded models whose files were copied over each other, nobody can say which is meant."""
    folder = write(tmp_path / "model", full(model))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"transformer.ln_f.bias": model.ln_f.bias.data + 1}, folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors",
                                                                                    "y": "b.safetensors"}}))
    assert "'transformer.ln_f.bias' stands in a.safetensors and in b.safetensors" in refusal(folder)


def test_a_layer_is_no_prefix():
    names = ["h.0.ln_1.weight", "h.0.ln_1.bias"]
    assert plain_names("f", names) == dict(zip(names, names, strict=True))
    assert plain_names("f", []) == {}
    assert plain_names("f", ["wte.weight"]) == {"wte.weight": "wte.weight"}
    assert plain_names("f", ["a.b", "a.c"]) == {"a.b": "b", "a.c": "c"}
    assert set(PARTS) == {name.split(".")[0] for name in weights_of(make_model(tie_word_embeddings=False))}


def test_two_names_for_one_tensor(tmp_path, model):
    tensors = full(model) | {"wte.weight": model.wte.weight.data + 1}
    message = refusal(write(tmp_path / "model", tensors))
    assert "'transformer.wte.weight' and 'wte.weight' are both wte.weight; remove one" in message


@pytest.mark.parametrize("name", ["h.0.attn.bias", "transformer.h.11.attn.masked_bias", "transformer.position_ids",
                                  "position_ids", "h.1.crossattention.attn.bias", "_orig_mod.h.0.attn.bias"])
def test_what_is_no_weight(name):
    assert is_buffer(name)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32, np.float16])
def test_masks_and_positions_are_left_out(tmp_path, model, dtype):
    mask = np.tril(np.ones((1, 1, 16, 16))).astype(dtype)
    tensors = {f"module.{name}": array for name, array in full(model).items()}
    for layer in range(2):
        tensors[f"module.transformer.h.{layer}.attn.bias"] = mask
        tensors[f"module.transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors |= {"module.lm_head.weight": model.wte.weight.data, "position_ids": np.arange(16)}
    assert_same_weights(load_model(write(tmp_path / "model", tensors)), model)


# ---- the output layer


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": True}])
def test_a_tied_head_may_be_there_or_stand_for_the_table(tmp_path, model, said):
    tensors = full(model) | {"lm_head.weight": model.wte.weight.data}
    assert_same_weights(load_model(write(tmp_path / "both", tensors, **said)), model)
    del tensors["transformer.wte.weight"]
    assert_same_weights(load_model(write(tmp_path / "head", tensors, **said)), model)


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("head", ["other", "more-rows"])
def test_versions_disagree_on_a_head_that_differs(tmp_path, model, said, head):
    table = model.wte.weight.data
    tensors = full(model) | {"lm_head.weight": table + 1 if head == "other" else np.concatenate([table, table])}
    message = refusal(write(tmp_path / "model", tensors, **said))
    assert "lm_head.weight differs from wte.weight" in message and "transformers 4" in message
    assert "say false in config.json, or remove lm_head.weight" in message


@pytest.mark.parametrize("equal", [True, False])
def test_an_untied_head(tmp_path, model, equal):
    head = model.wte.weight.data + (0 if equal else 1)
    folder = write(tmp_path / "model", full(model) | {"lm_head.weight": head}, tie_word_embeddings=False)
    loaded = load_model(folder)
    np.testing.assert_array_equal(loaded.lm_head.weight.data, head)
    np.testing.assert_array_equal(loaded.wte.weight.data, model.wte.weight.data)
    assert not np.shares_memory(loaded.lm_head.weight.data, loaded.wte.weight.data)


def test_an_untied_head_that_is_missing(tmp_path, model):
    message = refusal(write(tmp_path / "model", full(model), tie_word_embeddings=False))
    assert "'lm_head.weight' is missing" in message and "say true if the token table" in message
    tensors = full(model) | {"lm_head.weight": model.wte.weight.data}
    del tensors["transformer.wte.weight"]
    message = refusal(write(tmp_path / "model", tensors, tie_word_embeddings=False))
    assert "'wte.weight' is missing" in message and "say true if the output layer" in message


@pytest.mark.parametrize("variant", [
    {"tie_word_embeddings": False}, {"activation_function": "relu"}, {"activation_function": "gelu_fast"},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "scale_attn_weights": False},
    {"attn_pdrop": 0.1, "initializer_range": 0.01},
])
def test_what_is_saved_loads_as_the_same_model(tmp_path, variant):
    write_tokenizer(tmp_path / "tokenizer")
    model = make_model(**variant)
    save_model(model, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert variant.items() <= config.items()
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert_same_weights(again, model)


def test_frozen_weights_are_saved_too(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    model = make_model()
    model.freeze("wte", "h.0")
    save_model(model, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "model")
    assert_same_weights(load_model(tmp_path / "model"), make_model())


# ---- refused, with the true reason


@pytest.mark.parametrize("added, removed, words", [
    ("base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight", None, "belongs to an adapter (LoRA"),
    ("transformer.h.0.attn.c_attn.base_layer.weight", "transformer.h.0.attn.c_attn.weight", "merge_and_unload"),
    ("lm_head.modules_to_save.default.weight", None, "belongs to an adapter"),
    ("v_head.summary.weight", None, "a value head of reinforcement learning"),
    ("score.weight", None, "a head for another task than language modelling"),
    ("multiple_choice_head.summary.weight", None, "AutoModelForCausalLM"),
    ("transformer.h.0.attn.c_attn.qweight", "transformer.h.0.attn.c_attn.weight", "belongs to quantised weights"),
    ("transformer.h.0.attn.c_attn.SCB", None, "belongs to quantised weights"),
    ("transformer.h.0.mlp.c_fc.weight.quant_state.bitsandbytes__nf4", None, "belongs to quantised weights"),
    ("transformer.h.0.crossattention.c_attn.weight", None, "cross-attention to an encoder"),
    ("transformer.h.0.mlp.c_extra.weight", None, "'h.0.mlp.c_extra.weight' has no place in a GPT-2"),
    ("lm_head.bias", None, "'lm_head.bias' has no place in a GPT-2"),
    ("transformer.h.2.ln_1.weight", None, "'h.2.ln_1.weight' has no place in a GPT-2 with n_layer = 2"),
])
def test_a_file_that_is_more_than_a_gpt2(tmp_path, model, added, removed, words):
    tensors = full(model) | {added: np.zeros(3, np.float32)}
    tensors.pop(removed, None)
    message = refusal(write(tmp_path / "model", tensors))
    assert added.removeprefix("transformer.") in message and words in message


@pytest.mark.parametrize("names, words", [
    (["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"], "a name from Llama"),
    (["language_model.encoder.layers.0.self_attention.query_key_value.weight",
      "language_model.embedding.word_embeddings.weight"], "a name from Megatron-LM"),
    (["gpt_neox.layers.0.attention.query_key_value.weight", "embed_out.weight"], "a name from GPT-NeoX"),
    (["transformer.h.0.attn.q_proj.weight", "transformer.wpe.weight"], "a name from GPT-J"),
    (["transformer.h.0.attn.attention.q_proj.weight"], "a name from GPT-Neo"),
    (["tok_emb.weight", "trf_blocks.0.att.W_query.weight"], "(From Scratch)"),
    (["model/wte", "model/h0/attn/c_attn/w"], "OpenAI's TensorFlow"),
    (["bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.dense.weight"], "BERT"),
    (["conv1.weight", "conv2.weight"], "'conv1.weight', 'conv2.weight'"),
    ([], "the file has 0 tensors"),
])
def test_names_of_other_models(tmp_path, names, words):
    message = refusal(write(tmp_path / "model", {name: np.zeros((2, 2), np.float32) for name in names}))
    assert "is missing" in message and words in message


def test_matrices_of_nn_linear(tmp_path, model):
    tensors = {name: array.T if array.ndim == 2 and ".h." in name else array for name, array in full(model).items()}
    message = refusal(write(tmp_path / "model", tensors))
    assert "'h.0.attn.c_attn.weight' is (36, 12), expected (12, 36)" in message
    assert "it is transposed" in message and "nanoGPT" in message


def test_a_model_without_biases(tmp_path, model):
    tensors = {name: array for name, array in full(model).items() if not name.endswith(".bias")}
    assert "no biases at all" in refusal(write(tmp_path / "model", tensors))


@pytest.mark.parametrize("rows", [300, 384])
@pytest.mark.parametrize("name, key, said", [("wte", "vocab_size", 340), ("wpe", "n_positions", 16)])
def test_a_table_with_other_rows_than_the_config_says(tmp_path, model, rows, name, key, said):
    tensors = full(model) | {f"transformer.{name}.weight": np.zeros((rows, 12), np.float32)}
    message = refusal(write(tmp_path / "model", tensors))
    assert f"'{name}.weight' is ({rows}, 12)" in message and f"{key} = {said}" in message and f"{rows}" in message
    if name == "wte":
        assert load_model(write(tmp_path / "model", tensors, vocab_size=rows)).config.vocab_size == rows


@pytest.mark.parametrize("dtype, words", [(np.float64, "is F64, expected one of F32, F16, BF16; save the model from"),
                                          (np.int8, "is I8, expected"), (np.int64, "is I64, expected")])
def test_numbers_of_other_types(tmp_path, model, dtype, words):
    tensors = full(model) | {"transformer.ln_f.bias": np.zeros(12, dtype)}
    message = refusal(write(tmp_path / "model", tensors))
    assert "'transformer.ln_f.bias'" in message and words in message
    assert ("quantised" in message) == (dtype == np.int8)


@pytest.mark.parametrize("name, words", [
    ("pytorch_model.bin", "is a PyTorch pickle"), ("ckpt.pt", "is a PyTorch pickle"), ("tf_model.h5", "TensorFlow's"),
    ("model.fp16.safetensors", "rename it"), ("gpt2.gguf", "llama.cpp's"), ("flax_model.msgpack", "Flax's"),
])
def test_weights_under_another_name(tmp_path, model, name, words):
    folder = write(tmp_path / "model", full(model))
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert "has no model.safetensors" in message and name in message and words in message


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_alone_or_beside_its_model(tmp_path, model, beside):
    """transformers with peft applies what stands beside the weights of the model."""
    folder = write(tmp_path / "model", full(model)) if beside else tmp_path
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json) for a model; tinyft's" in refusal(folder)


# ---- config.json


@pytest.mark.parametrize("values, words", [
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights can't be read"),
    ({"add_cross_attention": True}, "attention to an encoder can't be read"),
    ({"pruned_heads": {"0": [1]}}, "layers with fewer heads"),
    ({"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu', expected one of gelu_new"),
    ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo', expected 'gpt2'"),
    ({"num_attention_heads": 2}, "num_attention_heads is 2 and n_head is 3, but they are the same"),
])
def test_a_config_for_another_model(tmp_path, model, values, words):
    message = refusal(write(tmp_path / "model", full(model), **values))
    assert "config.json: " in message and words in message


def test_settings_under_their_other_names(tmp_path, model):
    folder = write(tmp_path / "model", full(model))
    names = {"n_embd": "hidden_size", "n_positions": "max_position_embeddings", "n_head": "num_attention_heads",
             "n_layer": "num_hidden_layers"}
    (folder / "config.json").write_text(json.dumps({names.get(name, name): value for name, value in CONFIG.items()}))
    assert load_model(folder).config == model.config


def test_what_does_not_change_the_mathematics_is_passed_over(tmp_path, model):
    folder = write(tmp_path / "model", full(model), n_ctx=16, task_specific_params={"text-generation": {}}, use_cache=1,
                   summary_type="cls_index", transformers_version="2.0", quantization_config=None, pruned_heads={})
    assert load_model(folder).config == model.config
