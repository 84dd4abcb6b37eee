"""Model folders: written whole, read as they are, refused with one clear message."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small import assert_same_weights, learn_merges, make_model, weights_of, write_tokenizer

import tinyft.checkpoint
from tinyft import (
    GPT2,
    AdamW,
    load_model,
    load_model_and_tokenizer,
    load_tokenizer,
    save_model,
)
from tinyft.files import NotWritable
from tinyft.lora import LoraConfig, add_lora


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-bpe")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """(folder, model): a model and the folder that it was saved to."""
    model = make_model()
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model", model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata=None) -> None:
    """The format by hand: {name: (dtype, shape, bytes)}, with a header that is not filled up with spaces."""
    header, data = ({} if metadata is None else {"__metadata__": metadata}), b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def float32_tensors(model: GPT2, prefix: str = "") -> dict[str, tuple]:
    return {prefix + name: ("F32", array.shape, array.tobytes()) for name, array in weights_of(model).items()}


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def refusal(function, *args) -> str:
    """The one line that a ValueError says."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    assert type(caught.value) in (ValueError, NotWritable), "another error than the one that the user should see"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- there and back


def test_float32_round_trip(saved, tokenizer):
    folder, model = saved
    again, again_tokenizer = load_model_and_tokenizer(folder)
    assert_same_weights(again, model)
    assert again.config == model.config
    ids = tokenizer.encode_ordinary("The cat sat on the mat.")
    assert again_tokenizer.encode_ordinary("The cat sat on the mat.") == ids
    np.testing.assert_array_equal(again(np.array(ids)).data, model(np.array(ids)).data)


def test_float16_round_trip(tmp_path, tokenizer):
    model = make_model()
    save_model(model, tokenizer, tmp_path, dtype="float16")
    again = load_model(tmp_path)
    for name, weights in weights_of(model).items():
        loaded = dict(again.named_parameters())[name].data
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, weights.astype(np.float16).astype(np.float32), err_msg=name)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * model.n_parameters() * 4


def test_every_setting_of_the_model_survives(tmp_path, tokenizer):
    model = make_model(n_inner=20, layer_norm_epsilon=1e-6, embd_pdrop=0.25, resid_pdrop=0.125, n_head=4)
    save_model(model, tokenizer, tmp_path)
    assert load_model(tmp_path).config == model.config


def test_a_float64_model_is_saved_in_float32(tmp_path, tokenizer):
    model = make_model(dtype=np.float64)  # its numbers are float32's
    save_model(model, tokenizer, tmp_path)
    assert_same_weights(load_model(tmp_path), make_model())


def test_what_a_folder_holds(saved):
    folder, _ = saved
    assert sorted(content(folder)) == ["config.json", "generation_config.json", "merges.txt", "model.safetensors",
                                       "vocab.json"]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["bos_token_id"] == config["eos_token_id"] == 336


def test_saving_over_the_folder_that_is_mapped(saved, tokenizer):
    """Train what was loaded and save it to where it came from."""
    folder, model = saved
    loaded = load_model(folder)
    untouched = load_model(folder)
    loaded.wte.weight.data += 1
    save_model(loaded, tokenizer, folder)
    assert_same_weights(load_model(folder), loaded)
    assert_same_weights(untouched, model)


def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path, tokenizer):
    message = refusal(save_model, make_model(), tokenizer, tmp_path / "model", "bfloat16")
    assert "bfloat16" in message and "float16" in message
    assert not (tmp_path / "model").exists() or content(tmp_path / "model") == {}


# ---- mapped, not read


def mapped_file(array: np.ndarray) -> np.memmap | None:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array


def test_float32_weights_are_the_mapped_file(saved):
    folder, _ = saved
    files = {id(mapped_file(parameter.data)) for _, parameter in load_model(folder).named_parameters()}
    assert len(files) == 1 and id(None) not in files


def test_training_does_not_touch_the_file(saved):
    folder, model = saved
    before = content(folder)
    loaded = load_model(folder)
    optimizer = AdamW(loaded)
    inputs = np.arange(10).reshape(2, 5)
    for _ in range(3):
        loaded.loss(inputs, inputs + 1).backward()
        optimizer.step(1e-2)
    assert all(mapped_file(parameter.data) is not None for _, parameter in loaded.named_parameters())
    assert all((parameter.data != weights_of(model)[name]).any() for name, parameter in loaded.named_parameters())
    assert content(folder) == before
    assert_same_weights(load_model(folder), model)


# ---- what others write


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_with_and_without_prefix(saved, prefix):
    folder, model = saved
    write_safetensors(folder / "model.safetensors", float32_tensors(model, prefix))
    assert_same_weights(load_model(folder), model)


def test_masks_and_a_tied_head_are_ignored(saved):
    folder, model = saved
    tensors = float32_tensors(model, "transformer.")
    mask = np.tril(np.ones((1, 1, 16, 16), np.float32))
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = ("BOOL", mask.shape, mask.astype(bool).tobytes())
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = ("F32", (), np.float32(-1e4).tobytes())
    tensors["h.0.attn.bias"] = ("F32", mask.shape, mask.tobytes())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    assert_same_weights(load_model(folder), model)


def test_bfloat16(saved):
    folder, model = saved
    cut = {name: array.view(np.uint32) & np.uint32(0xFFFF0000) for name, array in weights_of(model).items()}
    write_safetensors(folder / "model.safetensors", {
        name: ("BF16", bits.shape, (bits >> 16).astype(np.uint16).tobytes()) for name, bits in cut.items()})
    for name, parameter in load_model(folder).named_parameters():
        assert parameter.dtype == np.float32
        np.testing.assert_array_equal(parameter.data, cut[name].view(np.float32), err_msg=name)


def test_shards(saved):
    folder, model = saved
    names = list(weights_of(model))
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for shard, held in shards.items():
        save_file({f"transformer.{name}": weights_of(model)[name] for name in held}, folder / shard)
    (folder / "model.safetensors").unlink()
    weight_map = {f"transformer.{name}": shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_weights(load_model(folder), model)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(load_model, folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json: 'weight_map' is missing" in refusal(load_model, folder)


def test_a_header_of_any_length(saved):
    """Its length is the file's first byte, so that a file may begin with any; an odd one leaves data unaligned."""
    folder, model = saved
    for filling in range(256):
        write_safetensors(folder / "model.safetensors", float32_tensors(model), {"filling": "x" * filling})
        assert_same_weights(load_model(folder), model)


def test_metadata_may_have_any_key(saved):
    folder, model = saved
    write_safetensors(folder / "model.safetensors", float32_tensors(model), {"dtype": "F32", "format": "pt"})
    assert_same_weights(load_model(folder), model)


# ---- one clear message


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_no_folder(tmp_path, name):
    (tmp_path / "file").write_text("text")
    message = refusal(load_model, tmp_path / name)
    assert str(tmp_path / name) in message and "is no folder" in message and "config.json" in message


def test_no_config(saved):
    folder, _ = saved
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json" in refusal(load_model, folder)


@pytest.mark.parametrize("values, words", [
    ({"model_type": "llama"}, "model_type is 'llama', expected 'gpt2'"),
    ({"activation_function": "silu"}, "activation_function is 'silu', expected one of gelu_new"),
    ({"scale_attn_weights": 0}, "scale_attn_weights is 0, expected true or false"),
    ({"n_layer": 0}, "n_layer is 0, expected a positive integer"),
    ({"n_embd": "12"}, "n_embd is '12', expected a positive integer"),
    ({"n_head": 5}, "n_embd = 12 is not divisible by n_head = 5"),
    ({"n_inner": -3}, "n_inner is -3"),
    ({"n_inner": "48"}, "n_inner is '48'"),
    ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
    ({"resid_pdrop": 1.5}, "resid_pdrop is 1.5"),
    ({"embd_pdrop": None}, "embd_pdrop is None"),
])
def test_a_config_for_another_model(saved, values, words):
    folder, _ = saved
    change_config(folder, **values)
    message = refusal(load_model, folder)
    assert f"{folder / 'config.json'}: " in message and words in message


@pytest.mark.parametrize("text, words", [("[]", "model_type is 'list'"), ("{", "line 1, column 2: not JSON")])
def test_a_config_that_is_none(saved, text, words):
    folder, _ = saved
    (folder / "config.json").write_text(text)
    message = refusal(load_model, folder)
    assert str(folder / "config.json") in message and words in message


def test_a_tensor_is_missing(saved):
    folder, model = saved
    tensors = float32_tensors(model)
    del tensors["h.1.mlp.c_fc.bias"]
    write_safetensors(folder / "model.safetensors", tensors)
    message = refusal(load_model, folder)
    assert str(folder) in message and "tensor 'h.1.mlp.c_fc.bias' is missing" in message


def test_a_tensor_has_another_shape(saved):
    folder, model = saved
    turned = model.h[1].attn.c_attn.weight.data.T
    tensors = float32_tensors(model) | {"h.1.attn.c_attn.weight": ("F32", turned.shape, turned.tobytes())}
    write_safetensors(folder / "model.safetensors", tensors)
    message = refusal(load_model, folder)
    assert str(folder) in message and "'h.1.attn.c_attn.weight' is (36, 12), expected (12, 36)" in message


def test_more_layers_in_the_config_than_in_the_file(saved):
    folder, _ = saved
    change_config(folder, n_layer=3)
    message = refusal(load_model, folder)
    assert "tensor 'h.2.ln_1.weight' is missing" in message and "n_layer = 3" in message


def test_fewer_layers_in_the_config_than_in_the_file(saved):
    """Half a model must not be taken for a whole one."""
    folder, _ = saved
    change_config(folder, n_layer=1)
    message = refusal(load_model, folder)
    assert "n_layer = 1" in message and "h.1." in message


def test_a_type_of_number_that_is_not_read(saved):
    folder, model = saved
    head = model.wte.weight.data.astype(np.float64)
    tensors = float32_tensors(model) | {"wte.weight": ("F64", head.shape, head.tobytes())}
    write_safetensors(folder / "model.safetensors", tensors)
    message = refusal(load_model, folder)
    assert "wte.weight" in message and "F64" in message


def test_only_a_pickle(saved):
    folder, _ = saved
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(load_model, folder)
    assert f"{folder} has no model.safetensors" in message
    assert "pytorch_model.bin is a PyTorch pickle" in message and "safe_serialization=True" in message


def test_no_weights_at_all(saved):
    folder, _ = saved
    (folder / "model.safetensors").unlink()
    message = refusal(load_model, folder)
    assert f"{folder} has no model.safetensors" in message and "pickle" not in message


@pytest.mark.parametrize("data, words", [
    (b"PK\x03\x04" + bytes(2000), "is a PyTorch pickle, not safetensors"),
    (b"\x80\x02}q\x00." + bytes(2000), "is a PyTorch pickle, not safetensors"),
    (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page, not the weights"),
    (b"\n  <html>Sign in</html>" + b" " * 500, "is an HTML page, not the weights"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n", "is a git-lfs pointer"),
    (b"", "not a whole safetensors file"),
    (b"\x10", "not a whole safetensors file"),
    (bytes(8), "not a whole safetensors file"),
    (b"\xff" * 4000, "not a whole safetensors file"),
    (b"\x08" + bytes(7) + b"not json", "not a whole safetensors file"),
    # A header of 60, or 128, characters, whose length begins as a page, or a pickle, does.
    (b"\x3c" + bytes(7) + b'{"wte.weight":', "not a whole safetensors file"),
    (b"\x80" + bytes(7) + b'{"wte.weight":', "not a whole safetensors file"),
    (b" \x01" + bytes(6) + b'{"wte.weight":', "not a whole safetensors file"),
])
def test_a_file_that_only_has_the_name(saved, data, words):
    folder, _ = saved
    (folder / "model.safetensors").write_bytes(data)
    message = refusal(load_model, folder)
    assert str(folder / "model.safetensors") in message and words in message


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file(saved, share):
    folder, _ = saved
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: max(9, int(share * len(data)))])
    message = refusal(load_model, folder)
    assert str(path) in message and "not a whole safetensors file" in message


def test_a_tokenizer_that_is_larger_than_the_vocabulary(tmp_path, tokenizer):
    save_model(make_model(vocab_size=300), tokenizer, tmp_path)
    message = refusal(load_model_and_tokenizer, tmp_path)
    assert "the tokenizer has 337 tokens, the model's vocabulary only 300" in message


# ---- writing that fails


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_folder_that_cannot_be_written(tmp_path, tokenizer, below):
    (tmp_path / "file").write_text("kept")
    message = refusal(save_model, make_model(), tokenizer, tmp_path / "file" / below)
    assert str(tmp_path / "file") in message and "cannot write there" in message
    assert (tmp_path / "file").read_text() == "kept"


def test_a_model_with_adapters_on_it_is_no_model_folder(tmp_path, tokenizer):
    model = make_model()
    add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    message = refusal(save_model, model, tokenizer, tmp_path / "model")
    assert "merge_lora(model) first" in message and not (tmp_path / "model").exists()


def fail_while_saving(monkeypatch, name="write_tensors"):
    """Let the weights fail when half of them are written."""

    def fail(path, *arguments):
        Path(path).write_bytes(b"half of the weights")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tinyft.checkpoint, name, fail)


def test_saving_fails_in_the_middle(saved, tokenizer, monkeypatch):
    folder, model = saved
    before = content(folder)
    fail_while_saving(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(seed=1), tokenizer, folder)
    assert content(folder) == before
    assert_same_weights(load_model(folder), model)


@pytest.mark.parametrize("other", ["shape", "tokenizer"])
def test_saving_another_model_over_one_fails_in_the_middle(saved, tmp_path, monkeypatch, other):
    """The old weights must not be left with the new model's config or tokenizer."""
    folder, model = saved
    before = content(folder)
    write_tokenizer(tmp_path / "other", learn_merges(count=50 if other == "tokenizer" else 80))
    shape = {"n_head": 2, "n_layer": 3} if other == "shape" else {}
    fail_while_saving(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(seed=1, **shape), load_tokenizer(tmp_path / "other"), folder)
    assert content(folder) == before
    assert_same_weights(load_model(folder), model)


def test_a_first_save_that_fails_leaves_nothing_that_looks_like_a_model(tmp_path, tokenizer, monkeypatch):
    fail_while_saving(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(), tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
