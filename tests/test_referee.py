"""Live comparisons with PyTorch and transformers: numbers, model folders in both directions, tokens, generation."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
from small import (
    CORPUS,
    GPT2_TOKENIZER,
    NASTY_TEXTS,
    assert_same_weights,
    make_model,
    weights_of,
    write_tokenizer,
)

from tinyft import (
    GPT2,
    AdamW,
    GPT2Config,
    generate,
    load_model,
    load_model_and_tokenizer,
    load_tokenizer,
    no_grad,
    read_entries,
    save_model,
    save_tokenizer,
)
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt

try:
    import torch
    import transformers
except ImportError as error:
    torch = transformers = None
    MISSING = f"no referee: {error} (pip install '.[referees]')"
else:
    MISSING = ""
    transformers.logging.set_verbosity_error()

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.referee, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

SHAPES = [
    dict(vocab_size=61, n_positions=24, n_embd=20, n_layer=2, n_head=4),
    dict(vocab_size=97, n_positions=17, n_embd=13, n_layer=3, n_head=1),
    dict(vocab_size=331, n_positions=31, n_embd=21, n_layer=1, n_head=3, n_inner=29),
    dict(vocab_size=257, n_positions=40, n_embd=34, n_layer=2, n_head=2, n_inner=7),
    dict(vocab_size=1, n_positions=3, n_embd=1, n_layer=1, n_head=1),
    dict(vocab_size=509, n_positions=70, n_embd=64, n_layer=2, n_head=2, layer_norm_epsilon=1e-3),
    dict(vocab_size=127, n_positions=19, n_embd=77, n_layer=5, n_head=7, n_inner=131),
]


def their_config(config: GPT2Config, **more):
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head",
                                                       "n_inner", "layer_norm_epsilon")}
    ends = dict(bos_token_id=None, eos_token_id=None)
    dropout = dict(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    return transformers.GPT2Config(**shape, **ends, **dropout, **more)


def theirs(model: GPT2, attention: str = "eager"):
    """transformers' GPT-2 with the same weights, in the same precision."""
    other = transformers.GPT2LMHeadModel._from_config(their_config(model.config), attn_implementation=attention)
    other = other.to(torch.float64 if model.wte.weight.dtype == np.float64 else torch.float32).eval()
    state = {f"transformer.{name}": torch.from_numpy(array) for name, array in weights_of(model).items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return other


def logits_of(other, ids) -> np.ndarray:
    with torch.no_grad():
        return other(input_ids=torch.from_numpy(np.atleast_2d(ids))).logits.numpy()


def assert_close(actual, expected, tolerance, what=""):
    """Largest error as a share of the largest number; exactly equal where that is 0."""
    assert np.shape(actual) == np.shape(expected), what
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max(), what


def a_batch(config: GPT2Config, seed: int, rows: int = 4):
    """Ids and targets; rows of different lengths, dead targets anywhere, one row without any."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(config.vocab_size, size=(2, rows, config.n_positions))
    targets[rng.random(targets.shape) < 0.3] = -100
    targets[1, config.n_positions // 3 + 1 :] = -100
    targets[2] = -100
    targets[0, 0] = 0
    return inputs, targets


def tied_folder(tmp_path, **shape):
    """A model with the small tokenizer, saved by tinyft."""
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    return make_model(**shape), tokenizer, tmp_path / "model"


# ---- numbers


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_every_gradient(shape, attention):
    model = make_model(seed=len(SHAPES), dtype=np.float64, **shape)
    other = theirs(model, attention)
    inputs, targets = a_batch(model.config, seed=3)
    logits = other(input_ids=torch.from_numpy(inputs)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    expected.backward()
    assert_close(model(inputs).data, logits.detach().numpy(), 1e-12)
    loss = model.loss(inputs, targets)
    assert abs(loss.item() - expected.item()) <= 1e-12 * max(1, expected.item())
    loss.backward()
    scale = max(p.grad.abs().max().item() for p in other.parameters())
    gradients = {name.removeprefix("transformer."): p.grad.numpy() for name, p in other.named_parameters()}
    for name, parameter in model.named_parameters():
        # A gradient that is 0 but for rounding (all behind a norm of one number) is measured by the largest one.
        tolerance = 1e-11 * max(np.abs(gradients[name]).max(), 1e-6 * scale)
        assert np.abs(parameter.grad - gradients[name]).max() <= tolerance, name


def test_the_loss_is_transformers_own():
    """transformers shifts its labels itself; tinyft's targets are shifted already."""
    model = make_model(dtype=np.float64)
    inputs, _ = a_batch(model.config, seed=4)
    labels = inputs.copy()
    labels[:, :5] = -100
    expected = theirs(model)(input_ids=torch.from_numpy(inputs), labels=torch.from_numpy(labels)).loss.item()
    assert abs(model.loss(inputs[:, :-1], labels[:, 1:]).item() / expected - 1) < 1e-6  # theirs is float32


def test_twenty_steps_of_adamw():
    model = make_model(dtype=np.float64)
    other = theirs(model)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    their_optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.3},
                                         {"params": vectors, "weight_decay": 0.0}], betas=(0.8, 0.95), eps=1e-6)
    optimizer = AdamW(model, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    for step in range(20):
        inputs, targets = a_batch(model.config, seed=step)
        for group in their_optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        their_optimizer.zero_grad()
        logits = other(input_ids=torch.from_numpy(inputs)).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
        their_optimizer.step()
        model.loss(inputs, targets).backward()
        optimizer.step(0.01 / (step + 1))
    expected = {name.removeprefix("transformer."): p.detach().numpy() for name, p in other.named_parameters()}
    for name, weights in weights_of(model).items():
        assert_close(weights, expected[name], 1e-10, name)


def test_a_padded_batch_is_its_rows_alone():
    model = make_model(dtype=np.float64)
    other = theirs(model)
    rng = np.random.default_rng(5)
    lengths = [16, 3, 9, 1]
    rows = [rng.integers(340, size=n) for n in lengths]
    padded, mask = np.full((4, 16), 7), np.zeros((4, 16), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, 1
    with torch.no_grad():
        expected = other(input_ids=torch.from_numpy(padded), attention_mask=torch.from_numpy(mask)).logits.numpy()
    together = model(padded).data
    for i, row in enumerate(rows):
        alone = model(row).data[0]
        assert_close(together[i, : len(row)], alone, 1e-13)
        assert_close(alone, expected[i, : len(row)], 1e-12)


# ---- folders


@pytest.mark.parametrize("shape", [{}, {"n_inner": 29, "n_embd": 21, "n_head": 3, "layer_norm_epsilon": 1e-3}])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_loads_what_tinyft_saves(tmp_path, shape, dtype):
    model, tokenizer, folder = tied_folder(tmp_path, **shape)
    save_model(model, tokenizer, folder, dtype=dtype)
    other, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    ids = np.random.default_rng(6).integers(model.config.vocab_size, size=(2, 16))
    assert_close(load_model(folder)(ids).data, logits_of(other.eval(), ids), 1e-5)
    if dtype == "float32":
        assert_close(model(ids).data, logits_of(other, ids), 1e-5)
    assert other.config.eos_token_id == tokenizer.eot_token == other.generation_config.eos_token_id
    asked = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert asked.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", [None, "9KB"])
def test_tinyft_loads_what_transformers_saves(tmp_path, dtype, shard):
    other = theirs(make_model(seed=2)).to(getattr(torch, dtype))
    other.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shard)
    model = load_model(tmp_path)
    ids = np.random.default_rng(7).integers(340, size=(2, 16))
    assert_close(model(ids).data, logits_of(other.float(), ids), 1e-5)
    assert all(parameter.dtype == np.float32 for _, parameter in model.named_parameters())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_tinyft_loads_a_state_dict_in_the_old_layout(tmp_path, prefix):
    """OpenAI's gpt2 on the hub: no prefix, and a causal mask beside each layer's weights."""
    from safetensors.torch import save_file

    model = make_model(seed=2)
    other = theirs(model)
    other.save_pretrained(tmp_path)
    state = {prefix + name.removeprefix("transformer."): tensor.contiguous().clone()
             for name, tensor in other.state_dict().items() if name != "lm_head.weight"}
    for layer in range(model.config.n_layer):
        state[f"{prefix}h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 16, 16))
        state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_weights(load_model(tmp_path), model)


def test_tinyft_loads_the_body_alone(tmp_path):
    """GPT2Model without its language-model head."""
    model = make_model(seed=2)
    theirs(model).transformer.save_pretrained(tmp_path)
    assert_same_weights(load_model(tmp_path), model)


def test_a_folder_goes_round_through_both(tmp_path):
    model, tokenizer, folder = tied_folder(tmp_path)
    save_model(model, tokenizer, folder)
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert_same_weights(load_model(tmp_path / "theirs"), model)
    ours, again = (json.loads((place / "config.json").read_text("utf-8")) for place in (folder, tmp_path / "theirs"))
    # transformers writes again what it understood; it must have understood all that tinyft said.
    assert {name for name in ours if name in again and ours[name] != again[name]} == set()
    assert set(ours) - set(again) <= {"torch_dtype"}


def test_the_model_that_ships_loads_as_it_is():
    folder = ROOT / "weights" / "tiny-world"
    model, tokenizer = load_model_and_tokenizer(folder)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for entry in read_entries(ROOT / "examples" / "data" / "test_items.json")[:20]:
        ids = encode_prompt(entry.turns[:-1], PROMPT_STYLES["alpaca"], tokenizer)
        text = tokenizer.decode(ids)
        assert ids == their_tokenizer(text)["input_ids"]
        with no_grad():
            assert_close(model(np.array([ids])).data, logits_of(other, ids), 1e-5, text)


# ---- tokens


@pytest.fixture(scope="module", params=["small", "gpt2"])
def tokenizers(request, tmp_path_factory):
    """tinyft's tokenizer, and transformers' from the folder that tinyft saved it to."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "gpt2":
        if not (GPT2_TOKENIZER / "vocab.json").exists():
            pytest.skip(f"GPT-2's vocab.json and merges.txt are not in {GPT2_TOKENIZER}")
        ours = load_tokenizer(GPT2_TOKENIZER)
    else:
        write_tokenizer(folder / "original")
        ours = load_tokenizer(folder / "original")
    save_model(make_model(vocab_size=ours.n_vocab, n_embd=2, n_head=1), ours, folder / "saved")
    return ours, transformers.AutoTokenizer.from_pretrained(folder / "saved")


def test_the_same_ids(tokenizers):
    ours, other = tokenizers
    for text in [*NASTY_TEXTS, CORPUS, " ".join(NASTY_TEXTS), "".join(NASTY_TEXTS)]:
        ids = other(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_ordinary(text) == ids, repr(text)
        assert other.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids)


def test_the_same_ids_of_random_text(tokenizers):
    ours, other = tokenizers
    rng = np.random.default_rng(8)
    alphabet = [*"aAbz 019'.,!_-\n\t\r\"", "  ", "'s", "'ll", "é", "ß", "Ж", "東", "🙂", "\u0301", "\u200d", "\u00a0",
                "½", "٣", "\u3000", "\x00", "\ufffd", "\U0001f1e9"]
    for _ in range(400):
        text = "".join(rng.choice(alphabet, size=rng.integers(1, 40)))
        assert ours.encode_ordinary(text) == other(text, add_special_tokens=False)["input_ids"], repr(text)


def test_the_same_end_of_text(tokenizers):
    ours, other = tokenizers
    assert len(other) == ours.n_vocab
    assert other.eos_token_id == other.bos_token_id == ours.eot_token
    assert other("<|endoftext|>")["input_ids"] == [ours.eot_token]


def test_tinyft_loads_the_tokenizer_that_transformers_saves(tokenizers, tmp_path, monkeypatch):
    """Whatever files it writes: GPT-2's own must not quietly take the place of another tokenizer."""
    ours, other = tokenizers
    other.save_pretrained(tmp_path)
    monkeypatch.setattr("tinyft.tokenizer_files.tiktoken.get_encoding", lambda name: pytest.fail("took GPT-2's own"))
    again = load_tokenizer(tmp_path)
    for text in NASTY_TEXTS:
        assert again.encode(text) == ours.encode(text)


def test_the_tokenizers_library_reads_what_tinyft_saves(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path / "original")
    ours = load_tokenizer(tmp_path / "original")
    (tmp_path / "saved").mkdir()
    save_tokenizer(ours, tmp_path / "saved")
    paths = (str(tmp_path / "saved" / name) for name in ("vocab.json", "merges.txt"))
    other = tokenizers.ByteLevelBPETokenizer(*paths, add_prefix_space=False)
    for text in NASTY_TEXTS:
        assert ours.encode_ordinary(text) == other.encode(text).ids, repr(text)
    (tmp_path / "theirs").mkdir()
    other.save_model(str(tmp_path / "theirs"))
    again = load_tokenizer(tmp_path / "theirs")
    for text in NASTY_TEXTS:
        assert ours.encode_ordinary(text) == again.encode_ordinary(text), repr(text)


# ---- generation


@pytest.mark.parametrize("shape", [{}, SHAPES[1], SHAPES[2], SHAPES[6]], ids=["usual", "one-head", "inner", "deep"])
def test_greedy_generation_gives_the_same_ids(shape):
    model = make_model(seed=9, dtype=np.float64, **shape)
    other = theirs(model)
    rng = np.random.default_rng(10)
    for length in (1, 2, 5, 11):
        prompt = rng.integers(model.config.vocab_size, size=length)
        room = model.config.n_positions - length
        expected = other.generate(torch.from_numpy(prompt[None]), do_sample=False, max_new_tokens=room, use_cache=True,
                                  pad_token_id=0, attention_mask=torch.ones(1, length, dtype=torch.long))
        assert list(generate(model, prompt, max_new_tokens=room)) == expected[0, length:].tolist()


def test_greedy_generation_from_a_saved_folder(tmp_path):
    model, tokenizer, folder = tied_folder(tmp_path, vocab_size=337)
    save_model(model, tokenizer, folder)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("The cat", "they sit!", "東京 and"):
        prompt = their_tokenizer(text, return_tensors="pt")
        room = 16 - prompt["input_ids"].shape[1]
        expected = other.generate(**prompt, do_sample=False, max_new_tokens=room, pad_token_id=0)[0].tolist()
        ours = list(generate(load_model(folder), tokenizer.encode_ordinary(text), max_new_tokens=room,
                             stop=tokenizer.eot_token))
        assert tokenizer.encode_ordinary(text) + ours == [id for id in expected if id != tokenizer.eot_token]
