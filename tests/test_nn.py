"""Parameters: found whether they want a gradient or not, frozen and unfrozen by name, saved and loaded alike."""

import numpy as np
import pytest
from tiny import TOKENIZER, make_model

from tinyft import AdamW, Tensor, load_model, save_model
from tinyft.nn import Linear, Module


class Pair(Module):
    """Two layers in a list, a plain array, and a tensor."""

    def __init__(self):
        self.layers = [Linear(3, 4, rng=np.random.default_rng(0)), Linear(4, 2, rng=np.random.default_rng(1))]
        self.constant = np.ones(5)
        self.scale = Tensor(np.float32([2.0]), requires_grad=True)


NAMES = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "scale"]


def trainable(module):
    return [name for name, _ in module.trainable_parameters()]


def test_names_do_not_depend_on_gradients():
    module = Pair()
    assert [name for name, _ in module.named_parameters()] == NAMES == trainable(module)
    module.freeze()
    assert [name for name, _ in module.named_parameters()] == NAMES and trainable(module) == []
    assert module.n_parameters() == 12 + 4 + 8 + 2 + 1 and module.n_parameters(trainable=True) == 0


def test_results_that_a_module_keeps_are_no_parameters():
    module = Pair()
    module.last = module.scale * 2
    assert [name for name, _ in module.named_parameters()] == NAMES


@pytest.mark.parametrize(("names", "left"), [
    (["scale"], NAMES[:4]), (["layers.1"], [*NAMES[:2], "scale"]), (["layers"], ["scale"]),
    (["layers.0.bias", "layers.1.bias"], [NAMES[0], NAMES[2], "scale"]),
])
def test_freeze_by_name(names, left):
    module = Pair()
    module.scale.grad = np.float32([1.0])
    module.freeze(*names)
    assert trainable(module) == left and (module.scale.grad is None) == ("scale" in names)
    module.unfreeze(*names)
    assert trainable(module) == NAMES


@pytest.mark.parametrize("name", ["layer", "layers.2", "scal", "scale.0", ""])
def test_unknown_names_are_refused(name):
    module = Pair()
    with pytest.raises(ValueError, match=f"Pair: no parameter or module is called '{name}'.*layers.0.weight"):
        module.freeze("scale", name)
    assert trainable(module) == NAMES


def test_adamw_leaves_frozen_parameters_alone():
    module = Pair()
    module.freeze("layers.0", "scale")
    optimizer = AdamW(module)
    assert list(optimizer.parameters) == list(optimizer.m) == list(optimizer.v) == NAMES[2:4]
    before = {name: p.data.copy() for name, p in module.named_parameters()}
    (module.layers[1](module.layers[0](Tensor(np.ones((2, 3), np.float32)))) * module.scale).sum().backward()
    optimizer.step(0.1)
    for name, parameter in module.named_parameters():
        assert (parameter.data != before[name]).any() == (name in optimizer.parameters)
        assert parameter.grad is None


def test_adamw_of_nothing_is_refused():
    module = Pair()
    module.freeze()
    with pytest.raises(ValueError, match="AdamW: Pair.*unfreeze"):
        AdamW(module)


def test_frozen_weights_are_saved_and_loaded(tmp_path):
    model = make_model()
    model.freeze("wte", "h.0.attn")
    save_model(model, TOKENIZER, tmp_path)
    again = dict(load_model(tmp_path).named_parameters())
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(again[name].data, parameter.data)
