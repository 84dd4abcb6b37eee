"""What is said of numbers that are not finite, and of numbers that look right but are not: faults are planted."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from small import Rows
from tiny import CONTEXT, TOKENIZER, assert_all_close, make_entries, make_model, make_set, weights
from tiny import one_thread as one_thread

from tinyft import AdamW, Entry, InstructionSet, Settings, ops, watch
from tinyft.data.text import TextSet
from tinyft.lora import LoraConfig, add_lora
from tinyft.nn import Linear

SETTINGS = Settings(learning_rate=1e-3)
DATA = make_set(make_entries(8))
STEP = [5, 0, 3, 6]


def explain(model, data=DATA, indices=STEP, **options) -> str:
    return watch.explain_not_finite(model, data, np.array(indices), SETTINGS, **options)


def plant(value: float, path: str, where=None, **shape):
    """A model with a bad number in a parameter: the first one, or where it is said."""
    model = make_model(**shape)
    data = dict(model.named_parameters())[path].data
    data[(0,) * data.ndim if where is None else where] = value
    return model


# ---- numbers that are not finite


@pytest.mark.parametrize("path", ["h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.0.attn.c_proj.bias", "h.1.ln_2.weight",
                                  "h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.bias", "ln_f.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_weight_is_named(path, value):
    text = explain(plant(value, path))
    module, name = path.rsplit(".", 1)
    assert f"is in the weights of {module} ({name}: 1 of " in text
    assert "in all 4 entries that were run" in text and text.endswith("with a lower --learning-rate")
    assert "checkpoint" not in text  # a run that is resumed keeps its learning rate
    assert ("in row 0" in text) == (name == "weight" and "ln_" not in path)


def own_token(index: int) -> int:
    """A token that only one entry of the step has, within what is computed."""
    others = np.concatenate([DATA.examples[i].ids for i in STEP if i != index])
    return next(int(token) for token in DATA.examples[index].ids[:-1] if token not in others)


def test_a_bad_row_of_the_embeddings_that_one_entry_uses():
    model = plant(math.nan, "wte.weight", own_token(3), tie_word_embeddings=False)
    text = explain(model)
    assert text.startswith("in entry 3 ")
    assert f"is in the weights of wte (weight: 16 of {model.wte.weight.size:,}, in row {own_token(3)})" in text
    assert "1 of the 4 that were run" in text and "look at these entries" in text


def test_a_bad_row_of_the_tied_table_is_bad_for_all():
    """A row of the output layer is in every softmax, the entry's own token or not."""
    text = explain(plant(math.nan, "wte.weight", own_token(3)), indices=[0, 5])
    assert "in all 2 entries" in text and "the weights of the output layer wte (weight: 16 of 5,680, in row " in text


def test_a_bad_output_layer_of_its_own():
    text = explain(plant(math.inf, "lm_head.weight", (7, 2), tie_word_embeddings=False))
    assert "is in the weights of the output layer lm_head (weight: 1 of 5,680, in row 7)" in text


def test_positions_that_only_longer_entries_reach():
    data = make_set([*make_entries(3), Entry.single("z" * 50, "", "now"), Entry.single("z" * 51, "", "ab")])
    text = explain(plant(math.nan, "wpe.weight", 60), data, range(5))
    assert text.startswith("in entries 3") and "2 of the 5 that were run" in text
    assert "the weights of wpe (weight: 16 of 2,048, in row 60)" in text


def test_an_overflow_is_told_from_bad_weights():
    model = make_model()
    model.h[1].mlp.c_proj.weight.data[...] = 3e38
    text = explain(model)
    assert "is in the output of h.1.mlp.c_proj (largest input " in text and "weight 3e+38" in text
    assert text.endswith("lower the --learning-rate") and "checkpoint" not in text


def test_an_overflow_between_modules():
    """Attention, an activation or a sum: what the next module is given is the first bad number."""
    model = make_model()
    model.h[1].attn.c_attn.weight.data *= 1e38  # queries and keys are finite, their products are not
    assert "is in the input of h.1.attn.c_proj, made from finite numbers" in explain(model)


def test_an_overflow_of_the_logits():
    model = make_model(tie_word_embeddings=False)
    model.ln_f.weight.data[...] = 1e30
    model.lm_head.weight.data[...] = 1e30
    assert "is in the logits or the loss, whose input is finite (largest " in explain(model)


def test_guilty_entries_are_some_and_counted():
    data = make_set([Entry.single("z" * 50, "", "now")] * 5 + make_entries(2))
    text = explain(plant(math.nan, "wpe.weight", 60), data, [6, 4, 3, 5, 2, 1, 0])
    assert text.startswith("in entries 4 (asks 'zzzz") and text.count("asks 'zzzz") == 3
    assert " and 2 more of the training set, 5 of the 7 that were run: " in text


def test_entries_are_called_in_the_words_of_their_set_or_by_their_number():
    model = plant(math.nan, "h.0.ln_1.bias")
    assert explain(model, indices=[5], of="validation set").startswith(
        "in entry 5 (asks 'Say word 5.') of the validation set, 1 of the 1 that were run: ")
    rows = Rows(9, TOKENIZER.n_vocab, CONTEXT, seed=0)
    assert explain(model, rows, [5]).startswith("in entry 5 of the training set, 1 of the 1 that were run: ")


def with_bad_gradient(layer: int, value: float, token: int | None = None):
    """A model in which the way back through one c_fc brings up a bad number; if `token` is there, where it is."""
    model = make_model()

    @ops.op
    def spoil(x):
        bad = token is None or token in model.ids_now

        def backward(dout):
            dout = dout.copy()
            dout[0, 0] = value if bad else dout[0, 0]
            return dout

        return x.copy(), backward

    class Spoiling(Linear):
        def __call__(self, x, *rest):
            return spoil(super().__call__(x, *rest))

    loss = model.loss

    def noting(inputs, *arguments, **options):
        model.ids_now = inputs
        return loss(inputs, *arguments, **options)

    model.loss = noting
    model.h[layer].mlp.c_fc.__class__ = Spoiling
    return model


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_bad_gradient_is_found_at_the_first_parameter_on_the_way_back(layer, value):
    model = with_bad_gradient(layer, value)
    before = weights(model)
    text = explain(model)
    assert f"the loss is finite, but not the gradient, on the way back first that of h.{layer}.mlp.c_fc.bias (" in text
    assert "checkpoint" not in text
    assert "in all 4 entries" in text and "input " in text and "nan" not in text
    assert all(parameter.grad is None for _, parameter in model.named_parameters())
    assert_all_close(weights(model), before, rtol=0)


def test_a_bad_gradient_of_one_entry():
    text = explain(with_bad_gradient(0, math.inf, own_token(5)))
    assert text.startswith("in entry 5 ") and "1 of the 4 that were run" in text and "h.0.mlp.c_fc.bias" in text


def test_a_bad_gradient_of_frozen_parameters_is_not_looked_for():
    model = with_bad_gradient(1, math.inf)
    model.freeze()
    model.unfreeze("h.0.attn.c_proj")
    assert "on the way back first that of h.0.attn.c_proj.bias" in explain(model)


def test_a_bad_gradient_by_overflow():
    """Without tricks: inputs of c_fc so large that their products with gradients overflow, the loss finite."""
    model = make_model()
    model.h[1].ln_2.weight.data *= 1e30
    model.h[1].mlp.c_fc.weight.data *= 1e-30
    model.h[1].mlp.c_proj.weight.data *= 1e15
    model.ln_f.weight.data *= 1e15
    text = explain(model)
    assert "h.1.mlp.c_fc.weight" in text and "input 2" in text and "e+30" in text, text


@pytest.mark.parametrize("path", ["h.1.attn.c_attn.lora_A", "h.0.mlp.c_proj.lora_B", "h.0.mlp.c_proj.weight"])
def test_adapters_are_looked_at_too(path):
    model = make_model()
    add_lora(model, LoraConfig(rank=2, layers=("c_attn", "c_proj")), np.random.default_rng(0))
    assert "each entry by itself has a finite loss and gradient" in explain(model)
    dict(model.named_parameters())[path].data[0, 0] = math.nan
    module, name = path.rsplit(".", 1)
    text = explain(model)
    assert f"is in the weights of {module} ({name}: 1 of " in text and "in all 4 entries" in text
    assert model.h[0].mlp.c_proj.lora_A.grad is None


@pytest.mark.parametrize("layer", [0, 1])
def test_blocks_that_are_computed_again_are_looked_at_too(layer):
    model = plant(math.nan, f"h.{layer}.mlp.c_fc.weight")
    model.recompute = True
    assert f"is in the weights of h.{layer}.mlp.c_fc (weight: 1 of 1,024, in row 0)" in explain(model)
    model = with_bad_gradient(layer, math.inf)
    model.recompute = True
    assert f"on the way back first that of h.{layer}.mlp.c_fc.bias (" in explain(model)


def test_an_entry_without_a_target_is_innocent():
    data = masked_set(4, [2])
    text = explain(plant(math.nan, "h.0.ln_1.bias"), data, range(4))
    assert "3 of the 4 that were run" in text and "entries 0 " in text
    assert "each entry by itself" in explain(make_model(), data, range(4))


def test_nothing_is_found_where_nothing_is():
    assert "each entry by itself has a finite loss and gradient" in explain(make_model())


def test_nobody_is_told_of_the_gradients_of_an_explanation():
    """In parallel training a finished block starts a sum over all ranks, and one rank alone would wait for ever."""
    model, told = make_model(), []
    model.on_block_done = told.append
    explain(model)
    assert told == [] and model.on_block_done == told.append


def test_the_callers_generator_and_the_classes_stay_as_they_are():
    model, rng = make_model(), np.random.default_rng(1)
    model.set_dropout(0.3)
    state, call = rng.bit_generator.state, Linear.__call__
    explain(plant(math.nan, "h.0.mlp.c_fc.bias"), rng=rng)
    explain(model, rng=rng)
    assert rng.bit_generator.state == state and Linear.__call__ is call
    with pytest.raises(IndexError):
        explain(model, indices=[99])
    assert Linear.__call__ is call


def test_other_models_are_not_overheard():
    heard = []
    model, other = make_model(), make_model()
    with watch._overheard(model, lambda name, *_: heard.append(name)):
        other(np.array([1, 2]))
        assert heard == []
        model.loss(np.array([[1, 2]]), np.array([[2, 3]]))
    assert heard[:4] == ["wte", "wpe", "drop", "h.0.ln_1"] and heard[-2:] == ["h.1", "ln_f"]


# ---- the first step


def test_a_start_above_a_blind_guess():
    assert watch.check_start(math.log(355), 355) is None and watch.check_start(math.log(355) + 0.9, 355) is None
    text = watch.check_start(12.5, 50257)
    assert "starts at 12.50" in text and "ln 50257 = 10.82" in text and "vocab.json" in text


def test_a_model_of_another_tokenizer_is_noticed():
    """Ids in another order: sure of what is wrong, its loss is above that of a guess."""
    model = make_model()
    inputs, targets = DATA.collate(STEP)
    optimizer = AdamW(model, weight_decay=0.0)
    for _ in range(60):
        loss = model.loss(inputs, targets)
        loss.backward()
        optimizer.step(1e-2)
    assert watch.check_start(loss.item(), TOKENIZER.n_vocab) is None
    model.wte.weight.data = np.roll(model.wte.weight.data, 31, axis=0)
    assert watch.check_start(model.loss(inputs, targets).item(), TOKENIZER.n_vocab)


# ---- gradients of zero


def trained(change=lambda model: None) -> tuple:
    model = make_model()
    change(model)
    model.loss(*DATA.collate(STEP)).backward()
    return model, AdamW(model)


def test_all_gradients_are_there():
    assert watch.check_gradients(trained()[1]) is None


def test_a_gradient_of_zero_is_named():
    def change(model):
        model.h[1].mlp.c_proj.weight.data[...] = 0  # what c_fc computes reaches nothing

    text = watch.check_gradients(trained(change)[1])
    assert text.startswith("h.1.ln_2.weight, h.1.ln_2.bias, h.1.mlp.c_fc.weight and 1 more: ")
    assert "exactly zero" in text and "freeze them" in text


def test_no_gradient_at_all_is_named_and_frozen_ones_are_not():
    model, _ = trained()
    model.freeze("wte", "h.0")
    model.wpe.weight.grad = None
    assert watch.check_gradients(AdamW(model)).startswith("wpe.weight: trained, but the gradient is exactly zero")


# ---- the sets


class Masked(InstructionSet):
    """A set of which some entries have no target."""

    masked: tuple[int, ...] = ()

    def collate(self, indices):
        inputs, targets = super().collate(indices)
        targets[np.isin(indices, self.masked)] = -100
        return inputs, targets


def masked_set(count: int, masked, seed: int = 0) -> Masked:
    data = Masked(make_entries(count, seed), TOKENIZER, prompt_style="phi3", max_length=CONTEXT)
    data.masked = tuple(masked)
    return data


def test_sets_that_have_nothing_in_common():
    other = [Entry.single(f"Another {i}", "", "now") for i in range(5)]
    assert watch.check_sets(DATA, None) == watch.check_sets(DATA, make_set(other)) == []
    assert watch.check_sets(DATA, make_set([])) == []


def test_validation_entries_that_are_trained_on_are_counted():
    entries = make_entries(200)
    other = [Entry.single(f"Another {i}", "", "now") for i in range(70)]
    [text] = watch.check_sets(make_set(entries), make_set([*other, entries[3], entries[150], entries[3]]))
    assert text.startswith("3 of 73 validation entries are in the training set as well") and "remove repeated" in text
    [text] = watch.check_sets(make_set(entries), make_set([entries[199]]))
    assert text.startswith("1 of 1 validation entries is in")


def test_another_reply_or_mask_is_another_entry():
    one, other = Entry.single("Say it", "", "now"), Entry.single("Say it", "", "new")
    assert watch.check_sets(make_set([one]), make_set([other])) == []
    assert watch.check_sets(make_set([one]), make_set([one], mask_prompt=True)) == []


def test_entries_without_a_target_are_counted():
    [text] = watch.check_sets(masked_set(70, [3, 66]), masked_set(4, [], seed=1))
    assert text.startswith("2 of 70 training entries have no target")
    assert watch.check_sets(masked_set(70, [3, 66]), masked_set(4, [1, 3], seed=1)) == [
        text, text.replace("2 of 70 training", "2 of 4 validation")]


def test_a_set_without_any_target():
    [first, second] = watch.check_sets(masked_set(5, range(5)), masked_set(4, range(4)))
    assert first.startswith("the training set has no target at all") and "--show-mask" in first
    assert second.startswith("the validation set has no target at all")


def test_blocks_of_text_overlap():
    ids = np.random.default_rng(0).integers(0, 300, 400)
    [text] = watch.check_sets(TextSet(ids, 16), TextSet(ids[160:320], 16))
    assert text.startswith("9 of 9 validation entries are in")
    assert watch.check_sets(TextSet(ids[:160], 16), TextSet(ids[160:320], 16)) == []


@pytest.mark.heavy
def test_large_sets_are_checked_in_seconds():
    entries = make_entries(100_000)
    training, validation = make_set(entries), make_set(entries[::100])
    begin = time.perf_counter()
    [text] = watch.check_sets(training, validation)
    assert time.perf_counter() - begin < 20 and text.startswith("1000 of 1000")
