"""Adapter folders: written, read back, put onto their base, and refused where they are something else."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import EXAMPLES, TOKENIZER, error_line, example, in_process, make_model, save_tiny_model

from tinyft import generate, load_engine, load_model, load_tokenizer, no_grad, save_model
from tinyft.adapters import (
    is_adapter,
    load_adapter,
    load_model_and_tokenizer,
    load_unmerged,
    restore_tuned,
    save_adapter,
    save_tuned,
)
from tinyft.lora import LoraConfig, add_lora, has_lora, lora_config, lora_parameters, merge_lora

IDS = np.random.default_rng(0).integers(TOKENIZER.n_vocab, size=(2, 20))
PREFIX = "base_model.model.transformer."
NAME = f"{PREFIX}h.0.attn.c_attn.lora_A.weight"


def logits_of(model):
    with no_grad():
        return model(IDS).data


def adapted(model, seed=1, **settings):
    """The same model with adapters that do something."""
    add_lora(model, LoraConfig(**{"rank": 3, "alpha": 6, **settings}), np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    for parameter in lora_parameters(model).values():
        parameter.data = 0.1 * rng.standard_normal(parameter.shape).astype(np.float32)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(base, adapter), to be read alone."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny_model(folder / "base")
    save_adapter(adapted(load_model(base)), TOKENIZER, folder / "adapter", str(base))
    return base, folder / "adapter"


@pytest.fixture
def change(folders, tmp_path):
    """f(settings, tensors) -> a copy of the adapter with other settings or tensors; None removes one."""

    def make(settings: dict = {}, tensors: dict = {}) -> Path:  # noqa: B006 (not changed)
        folder = tmp_path / "changed"
        folder.mkdir()
        raw = json.loads((folders[1] / "adapter_config.json").read_text("utf-8")) | settings
        (folder / "adapter_config.json").write_text(json.dumps(raw), "utf-8")
        arrays = load_file(folders[1] / "adapter_model.safetensors") | tensors
        save_file({name: array for name, array in arrays.items() if array is not None},
                  folder / "adapter_model.safetensors")
        return folder

    return make


# ---- there and back


@pytest.mark.parametrize("settings", [
    {}, {"rank": 1, "alpha": 2.5, "rank_stabilised": True}, {"layers": ("attn.c_proj", "c_fc"), "dropout": 0.25},
    {"layers": ("h.1.mlp.c_proj",)},
])
def test_round_trip(tmp_path, settings):
    base = save_tiny_model(tmp_path / "base")
    model = adapted(load_model(base), **settings)
    save_adapter(model, TOKENIZER, tmp_path / "adapter", str(base))
    again = load_model(base)
    load_adapter(again, tmp_path / "adapter")
    assert lora_config(again).layers == tuple(sorted(lora_config(model).layers))
    for field in ("rank", "alpha", "dropout", "rank_stabilised"):
        assert getattr(lora_config(again), field) == getattr(lora_config(model), field)
    assert list(lora_parameters(again)) == list(lora_parameters(model))
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data, err_msg=name, strict=True)
        assert one.requires_grad == other.requires_grad == (".lora_" in name)
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    save_adapter(again, TOKENIZER, tmp_path / "second", str(base))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = (json.loads(text) if name.endswith("json") else text
                      for text in ((tmp_path / folder / name).read_bytes() for folder in ("adapter", "second")))
        if isinstance(one, dict):
            one["target_modules"], other["target_modules"] = map(sorted, (one["target_modules"],
                                                                          other["target_modules"]))
        assert one == other


def test_what_a_folder_holds(folders):
    base, adapter = folders
    raw = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert raw["peft_type"] == "LORA" and raw["task_type"] == "CAUSAL_LM" and raw["fan_in_fan_out"] is True
    assert (raw["r"], raw["lora_alpha"], raw["lora_dropout"], raw["bias"]) == (3, 6, 0.0, "none")
    assert raw["base_model_name_or_path"] == str(base) and raw["use_rslora"] is raw["use_dora"] is False
    assert sorted(raw["target_modules"]) == ["c_attn", "c_fc", "c_proj"]
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt" and len(file.metadata()["tinyft_base"]) == 16
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert len(shapes) == 16 and shapes[NAME] == (3, 16)
    assert shapes[f"{PREFIX}h.1.mlp.c_fc.lora_B.weight"] == (64, 3)
    assert not any((adapter / name).exists() for name in ("model.safetensors", "config.json"))
    assert is_adapter(adapter) and not is_adapter(base)
    assert load_tokenizer(adapter).encode("The cat sat") == TOKENIZER.encode("The cat sat")


def test_an_adapter_takes_the_place_of_a_model_and_the_other_way_round(tmp_path):
    base, folder = save_tiny_model(tmp_path / "base"), save_tiny_model(tmp_path / "tuned")
    (folder / "notes.txt").write_text("mine")
    model = adapted(load_model(base))
    save_tuned(model, TOKENIZER, folder, str(base))
    assert is_adapter(folder) and not (folder / "model.safetensors").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    merge_lora(model)
    save_tuned(model, TOKENIZER, folder, str(base))
    assert not is_adapter(folder) and not (folder / "adapter_model.safetensors").exists()
    np.testing.assert_array_equal(logits_of(load_model(folder)), logits_of(model))
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("with_adapters", [False, True])
def test_restore_what_was_saved(tmp_path, with_adapters):
    base = save_tiny_model(tmp_path / "base")
    model = load_model(base)
    model = adapted(model) if with_adapters else model
    best = logits_of(model)
    save_tuned(model, TOKENIZER, tmp_path / "best", str(base))
    for _, parameter in model.trainable_parameters():
        parameter.data = parameter.data + np.float32(0.1)
    assert np.abs(logits_of(model) - best).max() > 0.01
    restore_tuned(model, tmp_path / "best")
    np.testing.assert_array_equal(logits_of(model), best)
    assert has_lora(model) == with_adapters


def test_adapters_of_another_shape_are_not_restored(folders):
    model = adapted(load_model(folders[0]), layers=("c_attn",))
    with pytest.raises(ValueError, match="an adapter for h.0.attn.c_proj"):
        restore_tuned(model, folders[1])
    model = adapted(load_model(folders[0]), rank=4)
    with pytest.raises(ValueError, match="no adapter of rank 4 for h.0.attn.c_attn"):
        restore_tuned(model, folders[1])


def test_without_adapters_there_is_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no adapters; add_lora"):
        save_adapter(make_model(), TOKENIZER, tmp_path / "adapter", "base")
    with pytest.raises(ValueError, match="has LoRA adapters"):
        save_model(adapted(make_model()), TOKENIZER, tmp_path / "model")


def test_what_an_adapter_folder_has_no_place_for_is_not_lost(tmp_path):
    model = adapted(make_model())
    model.unfreeze("wte.weight")
    with pytest.raises(ValueError, match="wte.weight is trainable as well.*merge_lora"):
        save_adapter(model, TOKENIZER, tmp_path / "adapter", "base")
    assert not (tmp_path / "adapter").exists()


def test_the_base_may_be_a_path(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    save_adapter(adapted(load_model(base)), TOKENIZER, tmp_path / "adapter", base)
    assert has_lora(load_unmerged(tmp_path / "adapter")[0])


# ---- with its base


def test_merged_and_unmerged(folders):
    base, adapter = folders
    expected = logits_of(adapted(load_model(base)))
    unmerged, _ = load_unmerged(adapter)
    np.testing.assert_array_equal(logits_of(unmerged), expected)
    merged, tokenizer = load_model_and_tokenizer(adapter)
    assert not has_lora(merged) and merged.n_parameters(trainable=True) == merged.n_parameters()
    np.testing.assert_allclose(logits_of(merged), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - logits_of(load_model(base))).max() > 0.05
    of_base = load_tokenizer(base)
    for name in ("vocab", "merges", "added", "eot_token", "stop_tokens", "bos_tokens", "n_rows", "chat_template"):
        assert getattr(tokenizer, name) == getattr(of_base, name), name
    for load in (load_unmerged, load_model_and_tokenizer):
        whole, _ = load(base)
        np.testing.assert_array_equal(logits_of(whole), logits_of(load_model(base)))


def test_the_base_is_found_from_here_and_from_the_adapter(tmp_path, monkeypatch):
    base = save_tiny_model(tmp_path / "models" / "base")
    model = adapted(load_model(base))
    expected, elsewhere = logits_of(model), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for recorded, cwd in (("models/base", tmp_path), ("../../models/base", elsewhere), (str(base), elsewhere)):
        save_adapter(model, TOKENIZER, tmp_path / "runs" / "adapter", recorded)
        monkeypatch.chdir(cwd)
        np.testing.assert_array_equal(logits_of(load_unmerged(tmp_path / "runs" / "adapter")[0]), expected)


def test_a_base_that_has_gone(folders, change, monkeypatch, tmp_path):
    base, _ = folders
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = change({"base_model_name_or_path": "gone/for good"})
    with pytest.raises(ValueError, match=r"changed: the base model of this adapter, 'gone/for good', can't be found "
                                         r"\(.*\); name it with base_model \(--base-model FOLDER\)"):
        load_model_and_tokenizer(adapter)
    model, _ = load_model_and_tokenizer(adapter, base_model=base)
    np.testing.assert_array_equal(logits_of(model), logits_of(load_model_and_tokenizer(folders[1])[0]))


@pytest.mark.parametrize("recorded", [None, "", 3, ["gpt2"], "a\0b", "a\nb", "x" * 2000])
def test_a_base_that_is_no_name(change, recorded):
    with pytest.raises(ValueError, match="base_model_name_or_path is .*, expected the model.*--base-model"):
        load_model_and_tokenizer(change({"base_model_name_or_path": recorded}))


def test_a_base_that_is_no_model(change, tmp_path):
    folder = change({"base_model_name_or_path": str(tmp_path)})
    with pytest.raises(ValueError, match="changed: the base model of this adapter can't be read: .* no config.json"):
        load_model_and_tokenizer(folder)


def test_a_name_that_is_too_long_for_a_file(change):
    with pytest.raises(ValueError, match="can't be found"):
        load_model_and_tokenizer(change({"base_model_name_or_path": "x" * 999}))


def test_another_revision_of_the_base_is_refused(change, folders):
    folder = change({"revision": "v2"})
    with pytest.raises(ValueError, match="revision 'v2' of"):
        load_model_and_tokenizer(folder)
    load_model_and_tokenizer(folder, folders[0])


def test_an_adapter_of_an_adapter_is_refused(change, folders, monkeypatch):
    folder = change({"base_model_name_or_path": "."})  # itself
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="is an adapter itself; merge that one first"):
        load_model_and_tokenizer(folder)
    with pytest.raises(ValueError, match="is an adapter itself"):
        load_model_and_tokenizer(folder, folders[1])


def test_another_base_of_the_same_shape_is_refused(folders, change, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="trained on another model than this one.*--base-model"):
        load_model_and_tokenizer(folders[1], other)
    model = load_model(other)
    with pytest.raises(ValueError, match="trained on another model"):
        load_adapter(model, folders[1])
    assert not has_lora(model) and model.n_parameters(trainable=True) == model.n_parameters()
    load_adapter(model, change())  # peft's folders have no fingerprint


@pytest.mark.parametrize(("shape", "says"), [
    ({"n_embd": 24}, r"lora_A.weight' is \(3, 16\), expected \(3, 24\)"),
    ({"n_layer": 1}, "adapter for h.1.attn.c_attn, which the base model doesn't have"),
    ({"n_layer": 3}, "target_modules are .*has no adapter for h.2"),
    ({"n_inner": 32}, r"c_fc.lora_B.weight' is \(64, 3\), expected \(32, 3\)"),
])
def test_a_base_of_another_shape_is_refused(folders, shape, says):
    with pytest.raises(ValueError, match=says):
        load_adapter(make_model(**shape), folders[1])


def test_a_folder_that_is_both_is_refused(folders, change):
    folder = change()
    (folder / "model.safetensors").write_bytes((folders[0] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds an adapter and a whole model"):
        load_unmerged(folder)


def test_a_whole_model_has_no_base(folders):
    with pytest.raises(ValueError, match="is no adapter.*leave out"):
        load_unmerged(folders[0], folders[0])


def test_adapters_twice_are_refused(folders):
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapter(adapted(load_model(folders[0])), folders[1])


def test_the_tokenizer_of_an_adapter_without_one_is_the_base_s(folders, change):
    _, tokenizer = load_model_and_tokenizer(change())
    assert tokenizer.files == load_tokenizer(folders[0]).files


def test_a_tokenizer_that_is_too_large_for_the_base_is_refused(tmp_path, change):
    base = save_tiny_model(tmp_path / "base")
    save_adapter(adapted(load_model(base)), TOKENIZER, tmp_path / "adapter", str(base))
    path = tmp_path / "adapter" / "vocab.json"
    vocab = json.loads(path.read_text("utf-8"))
    vocab["<|one_more|>"] = len(vocab)
    path.write_text(json.dumps(vocab), "utf-8")
    with pytest.raises(ValueError, match="the tokenizer has .* tokens, the base model"):
        load_model_and_tokenizer(tmp_path / "adapter")


# ---- settings and tensors of others


@pytest.mark.parametrize("settings", [
    {"peft_version": "0.30.0", "megatron_core": "megatron.core", "a_setting_of_tomorrow": 3}, {"fan_in_fan_out": False},
    {"target_modules": ["transformer.h.0.attn.c_attn"], "layers_to_transform": [0, 1]}, {"target_modules": ".*c_attn"},
    {"target_modules": None}, {"task_type": None}, {"init_lora_weights": "gaussian"}, {"eva_config": {"rho": 2}},
    {"exclude_modules": ["ln_1"], "target_modules": ["c_attn"]},
])
def test_settings_that_change_nothing(folders, change, settings):
    model, same = (load_model(folders[0]) for _ in range(2))
    load_adapter(model, change(settings))
    load_adapter(same, folders[1])
    np.testing.assert_array_equal(logits_of(model), logits_of(same))


def test_layers_that_a_pattern_chose(folders, change, tmp_path):
    """What such a run saves again names its layers one by one."""
    gone = {f"{PREFIX}h.1.{name}.lora_{letter}.weight": None for letter in "AB"
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    model = load_model(folders[0])
    load_adapter(model, change({"layers_to_transform": 0, "target_modules": ["c_attn", "c_fc", "c_proj"]}, gone))
    layers = ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj")
    assert lora_config(model).layers == layers
    save_adapter(model, TOKENIZER, tmp_path / "again", str(folders[0]))
    again, _ = load_unmerged(tmp_path / "again")
    np.testing.assert_array_equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize(("settings", "says"), [
    ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"), ({"peft_type": None}, "peft_type is None"),
    ({"use_dora": True}, "'use_dora' is True, but DoRA"), ({"lora_bias": True}, "biases on B"),
    ({"modules_to_save": ["lm_head"]}, "whole layers saved"), ({"rank_pattern": {"c_attn": 4}}, "ranks of their own"),
    ({"alpha_pattern": {"c_attn": 4}}, "alphas of their own"), ({"layer_replication": [[0, 1]]}, "used twice"),
    ({"trainable_token_indices": [3]}, "rows of the token table"), ({"use_qalora": True}, "'use_qalora' is True"),
    ({"use_of_tomorrow": {}}, None), ({"use_of_tomorrow": 1}, "'use_of_tomorrow' is 1"),
    ({"loftq_config": {"bits": 4}}, "'loftq_config' is"), ({"alora_invocation_tokens": [1]}, "certain tokens"),
    ({"bias": "all"}, "bias is 'all', expected one of 'none'"), ({"bias": ["none"]}, "bias is"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"), ({"init_lora_weights": "pissa"}, "weights is 'pissa'"),
    ({"init_lora_weights": {}}, "init_lora_weights is {}"), ({"r": 0}, "r is 0, expected"), ({"r": True}, "r is True"),
    ({"r": 10**12}, r"lora_A.weight' is \(3, 16\), expected \(1000000000000, 16\)"), ({"r": "3"}, "r is '3'"),
    ({"r": 4}, r"is \(3, 16\), expected \(4, 16\)"), ({"r": [3]}, r"r is \[3\]"), ({"r": None}, "r is None"),
    ({"lora_alpha": float("nan")}, "alpha is nan"), ({"lora_alpha": 10**400}, "alpha is "),
    ({"lora_alpha": "x" * 10_000}, "alpha is 'xxx"), ({"lora_alpha": -1}, "alpha is -1"),
    ({"lora_dropout": 1.5}, "dropout is 1.5"), ({"lora_dropout": {}}, "dropout is {}"),
    ({"use_rslora": 1}, "rank_stabilised is 1"), ({"target_modules": ["c_attn"]}, "has an adapter for h.0.attn.c_proj"),
    ({"target_modules": ["wte"]}, "has an adapter for"), ({"target_modules": []}, "has an adapter for"),
])
def test_settings_that_are_refused(folders, change, settings, says):
    folder, model = change(settings), load_model(folders[0])
    if says is None:
        load_adapter(model, folder)
        return
    with pytest.raises(ValueError, match=says) as caught:
        load_adapter(model, folder)
    assert str(caught.value).startswith(str(folder)) and len(str(caught.value)) < 700
    assert not has_lora(model) and model.n_parameters(trainable=True) == model.n_parameters()


@pytest.mark.parametrize(("content", "says"), [
    ("", "not JSON"), ("[]", r"peft_type is \[\]"), ("{", "not JSON"), ("[" * 100_000, "nested"), ("null", "peft_type"),
])
def test_settings_that_are_no_settings(folders, change, content, says):
    folder = change()
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        load_adapter(load_model(folders[0]), folder)


@pytest.mark.parametrize(("tensors", "says"), [
    ({NAME: None}, "lora_A of h.0.attn.c_attn is missing"),
    ({NAME: np.ones((16, 3), np.float32)}, r"is \(16, 3\), expected \(3, 16\)"),
    ({NAME: np.ones(48, np.float32)}, r"is \(48,\), expected"),
    ({NAME: np.ones((3, 16), np.int64)}, "is I64, expected one of"),
    ({NAME.replace("lora_A", "lora_B").replace("c_attn", "c_fc"): np.ones((64, 3), np.float32)}, "doesn't have"),
    ({NAME.replace("transformer.", ""): np.ones((3, 16), np.float32)}, "are the same matrix"),
    ({NAME.replace("h.0", "h.00"): np.ones((3, 16), np.float32)}, "h.00.attn.c_attn, which the base"),
    ({NAME.replace("lora_A", "lora_magnitude_vector"): np.ones(48, np.float32)}, "belongs to DoRA"),
    ({f"{PREFIX}wte.lora_embedding_A": np.ones((3, 5), np.float32)}, "an adapter on a table"),
    ({f"{PREFIX}wte.lora_A.weight": np.ones((3, 16), np.float32)}, "the token table"),
    ({"base_model.model.lm_head.lora_A.weight": np.ones((3, 16), np.float32)}, "the output layer"),
    ({f"{PREFIX}h.0.attn.c_attn.lora_B.bias": np.ones(48, np.float32)}, "a bias"),
    ({"../../x": np.ones(1, np.float32)}, "something else, expected LoRA"),
])
def test_tensors_that_are_refused(folders, change, tensors, says):
    folder, model = change({}, tensors), load_model(folders[0])
    with pytest.raises(ValueError, match=says) as caught:
        load_adapter(model, folder)
    assert str(caught.value).startswith(str(folder))
    assert not has_lora(model) and model.n_parameters(trainable=True) == model.n_parameters()


def test_tensors_that_are_not_there(folders, change):
    folder = change()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapter_model.safetensors is missing, expected the adapter's tensors$"):
        load_adapter(load_model(folders[0]), folder)
    (folder / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match="PyTorch pickle: load it in peft"):
        load_adapter(load_model(folders[0]), folder)
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has no tensors"):
        load_adapter(load_model(folders[0]), folder)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_tensors_of_other_types(folders, change, dtype):
    tensors = load_file(folders[1] / "adapter_model.safetensors")
    folder, model = change({}, {name: array.astype(dtype) for name, array in tensors.items()}), load_model(folders[0])
    if dtype == np.float64:
        with pytest.raises(ValueError, match="is F64, expected one of F32"):
            load_adapter(model, folder)
        return
    load_adapter(model, folder)
    found = lora_parameters(model)["h.0.attn.c_attn.lora_A"].data
    np.testing.assert_array_equal(found, tensors[NAME].astype(dtype).astype(np.float32), strict=True)


# ---- inference


@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "int8"])
def test_the_engine_has_the_merged_weights(folders, kept_as):
    merged, _ = load_model_and_tokenizer(folders[1])
    (engine, _), expected = load_engine(folders[1], weights=kept_as), type(load_engine(folders[0])[0])(
        merged, weights=kept_as)
    for one, other in zip(engine.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_replies_during_training_need_no_merging(folders):
    model = adapted(load_model(folders[0]))
    merged, _ = load_model_and_tokenizer(folders[1])
    prompt = list(IDS[0, :5])
    expected = list(generate(merged, prompt, max_new_tokens=12))
    assert list(generate(model, prompt, max_new_tokens=12)) == expected
    assert expected != list(generate(load_model(folders[0]), prompt, max_new_tokens=12))
    assert has_lora(model)


def test_one_merged_matrix_at_a_time(folders, monkeypatch):
    model, alive = adapted(load_model(folders[0])), []
    original = type(model.h[0].attn.c_attn).effective_weight

    def watched(layer):
        merged = original(layer)
        alive.append(weakref.ref(merged))
        assert sum(each() is not None for each in alive) <= 2  # the last one goes when the next has come
        return merged

    monkeypatch.setattr(type(model.h[0].attn.c_attn), "effective_weight", watched)
    list(generate(model, [1, 2], max_new_tokens=1))
    assert len(alive) == 8 and not any(each() is not None for each in alive)


# ---- scripts


def printed(script, arguments, monkeypatch, capsys) -> str:
    """What a script says that ends well, run here."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return capsys.readouterr().out


def test_generate_from_an_adapter(folders, capsys, monkeypatch, tmp_path):
    base, adapter = folders
    arguments = ["--raw", "--max-new-tokens", "8", "The cat"]
    merged = tmp_path / "merged"
    assert f"saved     {merged}" in printed("merge_adapter.py", [adapter, merged], monkeypatch, capsys)
    assert not is_adapter(merged)
    replies = [printed("generate.py", [*model, *arguments], monkeypatch, capsys) for model in (
        ["--model", adapter], ["--model", merged], ["--model", adapter, "--base-model", base])]
    assert replies[0] == replies[1] == replies[2] and replies[0].startswith("The cat")


@pytest.mark.parametrize(("arguments", "says"), [
    (["{base}", "{new}"], "is no adapter .*nothing to merge"),
    (["{adapter}", "{adapter}"], "which would be replaced; choose another folder"),
    (["{adapter}", "{base}"], "holds a model; replace it with --overwrite"),
    (["{adapter}", "{base}", "--overwrite"], "is the adapter's base model, which is still needed"),
    (["{adapter}", "{new}", "--base-model", "{adapter}"], "is an adapter itself"),
])
def test_merge_adapter_refuses(folders, tmp_path, monkeypatch, capsys, arguments, says):
    places = {"base": folders[0], "adapter": folders[1], "new": tmp_path / "new"}
    before = sorted(os.listdir(folders[0])), sorted(os.listdir(folders[1]))
    code = in_process("merge_adapter.py", [text.format(**places) for text in arguments], monkeypatch, capsys)
    assert re.search(says, code), code
    assert not (tmp_path / "new").exists()
    assert before == (sorted(os.listdir(folders[0])), sorted(os.listdir(folders[1])))


def test_an_adapter_is_not_tuned_with_another_on_top(folders, tmp_path, monkeypatch, capsys):
    arguments = ["--model", folders[1], "--lora-rank", "2", "--output-dir", tmp_path / "run"]
    code = in_process("finetune_alpaca.py", arguments, monkeypatch, capsys)
    assert "is an adapter, and one can't be put onto another: merge it first" in code
    assert not (tmp_path / "run").exists()


def test_base_model_of_a_whole_model_is_refused(folders, tmp_path):
    result = example("generate.py", "--model", folders[0], "--base-model", folders[0], "hi", cwd=tmp_path)
    assert "leave out base_model (--base-model)" in error_line(result)
