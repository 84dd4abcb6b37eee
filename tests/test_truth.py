"""A small GPT-2 against what PyTorch recorded (record_truth.py): logits, loss, every gradient, ten AdamW steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from tinyft import GPT2, AdamW, GPT2Config, no_grad

TRUTH = Path(__file__).with_name("truth_gpt2.npz")
# Largest error as a share of the largest number in the tensor.
TOLERANCE = {np.float64: 1e-13, np.float32: 5e-6}
# PyTorch clips by max_norm / (norm + 1e-6), tinyft by max_norm / norm: that is what float64 shows.
STEP_TOLERANCE = {np.float64: 2e-7, np.float32: 5e-6}
BOTH = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    with np.load(TRUTH, allow_pickle=False) as file:
        return dict(file)


def make_model(truth, dtype) -> GPT2:
    model = GPT2(GPT2Config(**json.loads(truth["config"].item())), dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.shape == truth[f"weight.{name}"].shape
        parameter.data = truth[f"weight.{name}"].astype(dtype)
    return model


def error(actual, expected) -> float:
    assert np.shape(actual) == np.shape(expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def test_the_batch_has_what_makes_batches_hard(truth):
    live = truth["targets"] != -100
    assert (live.sum(axis=1) == 0).any(), "a row without a target"
    ends = [np.flatnonzero(row)[-1] for row in live if row.any()]
    assert len(set(ends)) >= 3, "rows of different lengths"
    assert any(not row[: np.flatnonzero(row)[-1]].all() for row in live if row.any()), "dead targets in the middle"


def test_every_parameter_was_recorded(truth):
    names = [name for name, _ in make_model(truth, np.float32).named_parameters()]
    assert sorted(names) == sorted(name.removeprefix("weight.") for name in truth if name.startswith("weight."))
    assert sorted(names) == sorted(name.removeprefix("gradient.") for name in truth if name.startswith("gradient."))


@BOTH
def test_logits(truth, dtype):
    logits = make_model(truth, dtype)(truth["inputs"]).data
    assert logits.dtype == dtype
    assert error(logits, truth["logits"]) < TOLERANCE[dtype]


@BOTH
def test_logits_without_recording_the_graph(truth, dtype):
    with no_grad():
        assert error(make_model(truth, dtype)(truth["inputs"]).data, truth["logits"]) < TOLERANCE[dtype]


@BOTH
def test_loss_and_every_gradient(truth, dtype):
    model = make_model(truth, dtype)
    loss = model.loss(truth["inputs"], truth["targets"])
    assert abs(loss.item() / truth["loss"] - 1) < TOLERANCE[dtype]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == dtype
        assert error(parameter.grad, truth[f"gradient.{name}"]) < TOLERANCE[dtype], name


@BOTH
def test_micro_batches_add_up_to_the_batch(truth, dtype):
    model = make_model(truth, dtype)
    total = int((truth["targets"] != -100).sum())
    loss = 0.0
    for rows in ([0], [1, 2], [2], [3, 4]):  # one part has no target at all
        part = model.loss(truth["inputs"][rows], truth["targets"][rows], total=total)
        part.backward()
        loss += part.item()
    assert abs(loss / truth["loss"] - 1) < TOLERANCE[dtype]
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, truth[f"gradient.{name}"]) < TOLERANCE[dtype], name


@BOTH
def test_ten_steps_of_adamw(truth, dtype):
    model = make_model(truth, dtype)
    optimizer = AdamW(model, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(10):
        loss = model.loss(truth["inputs"], truth["targets"])
        losses.append(loss.item())
        loss.backward()
        norms.append(optimizer.step(1e-2, max_norm=1.0))
    losses.append(model.loss(truth["inputs"], truth["targets"]).item())
    np.testing.assert_allclose(losses, truth["step_losses"], rtol=STEP_TOLERANCE[dtype])
    np.testing.assert_allclose(norms, truth["step_norms"], rtol=2 * STEP_TOLERANCE[dtype])


def test_padding_changes_nothing(truth):
    """Rows in one padded batch, whatever stands in the padding, against each row alone and cut."""
    model = make_model(truth, np.float64)
    inputs, targets = truth["inputs"].copy(), truth["targets"]
    total = int((targets != -100).sum())
    losses, alone = 0.0, {name: 0.0 for name, _ in model.named_parameters()}
    for ids, row_targets in zip(inputs, targets, strict=True):
        if (row_targets != -100).any():
            end = np.flatnonzero(row_targets != -100)[-1] + 1
            part = model.loss(ids[:end], row_targets[:end], total=total)
            part.backward()
            losses += part.item()
    for name, parameter in model.named_parameters():
        alone[name], parameter.grad = parameter.grad, None
    live = targets != -100
    ends = np.array([np.flatnonzero(row)[-1] + 1 if row.any() else 0 for row in live])
    inputs[np.arange(inputs.shape[1]) >= ends[:, None]] = 60
    loss = model.loss(inputs, targets)
    loss.backward()
    assert abs(loss.item() / losses - 1) < 1e-13
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, alone[name]) < 1e-12, name


def test_a_batch_without_any_target_has_no_loss_and_no_gradient(truth):
    model = make_model(truth, np.float64)
    loss = model.loss(truth["inputs"], np.full_like(truth["targets"], -100))
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for _, parameter in model.named_parameters())
