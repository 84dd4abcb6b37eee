"""Training: the loss of padded and split batches, the loop, and whole runs that stop, break and go on."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import CONTEXT, TOKENIZER, assert_all_close, gradients, make_entries, make_model, make_set, weights
from tiny import one_thread as one_thread

from tinyft import (
    GPT2,
    AdamW,
    Entry,
    GPT2Config,
    Progress,
    Settings,
    fit,
    load_model,
    train,
)
from tinyft.losses import IGNORE, cross_entropy
from tinyft.report import plot_losses, smooth
from tinyft.train import Accumulated, Evaluated, Noticed, Started, Stepped, TrainingDiverged, evaluate

# ---- the loss of a batch


def batch_of(data, *indices):
    inputs, targets = data.collate(indices or range(len(data)))
    assert len(set((targets != IGNORE).sum(axis=1))) > 1, "the rows should have unequally many targets"
    return inputs, targets


def naive_loss_sum(model, inputs, targets) -> tuple[float, int]:
    """Sum of -log p(target) and number of targets, in float64 NumPy from full logits."""
    logits = model(inputs).data.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    live = targets != IGNORE
    return float(-log_p[live, targets[live]].sum()), int(live.sum())


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_dead_tails_change_nothing(mask_prompt):
    model = make_model(dtype=np.float64)
    inputs, targets = batch_of(make_set(make_entries(6), mask_prompt=mask_prompt))
    short = model.loss(inputs, targets)
    short.backward()
    short_gradients = gradients(model)
    full = cross_entropy(model(inputs), targets)
    full.backward()
    assert short.item() == pytest.approx(full.item(), rel=1e-13)
    assert_all_close(short_gradients, gradients(model), rtol=1e-9, atol=1e-14)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_dead_tails_of_any_mask(live):
    model = make_model(dtype=np.float64)
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, 300, (2, len(live), 6))
    targets = np.where(live, targets, IGNORE)
    short, full = model.loss(inputs, targets), cross_entropy(model(inputs), targets)
    assert short.item() == pytest.approx(full.item(), rel=1e-13)
    short.backward()
    short_gradients = gradients(model)
    full.backward()
    assert_all_close(short_gradients, gradients(model), rtol=1e-9, atol=1e-14)


def test_padded_batch_is_its_rows_alone():
    model = make_model(dtype=np.float64)
    data = make_set(make_entries(7), mask_prompt=True)
    together = model.loss(*batch_of(data), total=1)
    together.backward()
    in_one = gradients(model)
    alone = 0.0
    for i in range(len(data)):
        loss = model.loss(*data.collate([i]), total=1)
        loss.backward()
        alone += loss.item()
    assert together.item() == pytest.approx(alone, rel=1e-12)
    assert_all_close(in_one, gradients(model), rtol=1e-9, atol=1e-12)


def test_more_padding_changes_nothing():
    model = make_model(dtype=np.float64)
    inputs, targets = batch_of(make_set(make_entries(4)))
    wider = [np.pad(array, ((0, 0), (0, 9)), constant_values=value)
             for array, value in ((inputs, TOKENIZER.eot_token), (targets, IGNORE))]
    losses = []
    for batch in ((inputs, targets), wider):
        loss = model.loss(*batch)
        loss.backward()
        losses.append((loss.item(), gradients(model)))
    assert losses[0][0] == losses[1][0]
    assert_all_close(losses[0][1], losses[1][1], rtol=0)


def test_batch_without_a_live_target():
    model = make_model()
    loss = model.loss(np.ones((2, 5), int), np.full((2, 5), IGNORE))
    assert loss.item() == 0
    loss.backward()
    for grad in gradients(model).values():
        assert not grad.any()


class Fixed:
    """A training set of one given batch."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def batches(self, batch_size, rng=None):
        return [np.arange(len(self.inputs))]

    def collate(self, indices):
        return self.inputs[indices], self.targets[indices]


def run_steps(model, data, rng_seed=0, validation=None, **changes):
    """All events of a run."""
    changes = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2} | changes
    return list(train(model, AdamW(model), data, validation, Settings(**changes), Progress(),
                      np.random.default_rng(rng_seed)))


def steps_of(events) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_step_without_a_live_target(micro_batch_size):
    model = make_model()
    data = Fixed(np.ones((3, 5), int), np.full((3, 5), IGNORE))
    step = steps_of(run_steps(model, data, micro_batch_size=micro_batch_size))[0]
    assert (step.loss, step.gradient_norm, step.tokens) == (0, 0, 0)
    assert all(np.isfinite(array).all() for array in weights(model).values())
    assert math.isnan(evaluate(model, data, 8))


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8, 20])
def test_micro_batches_give_the_same_step(micro_batch_size):
    data = make_set(make_entries(8), mask_prompt=True)
    batch_of(data)
    whole, parts = make_model(dtype=np.float64), make_model(dtype=np.float64)
    one, = steps_of(run_steps(whole, data))
    many, = steps_of(run_steps(parts, data, micro_batch_size=micro_batch_size))
    assert (one.step, one.tokens) == (many.step, many.tokens)
    assert many.loss == pytest.approx(one.loss, rel=1e-12)
    assert many.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-12)
    assert_all_close(weights(parts), weights(whole), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype, rtol, atol", [(np.float64, 1e-9, 1e-13), (np.float32, 1e-3, 1e-6)])
def test_gradients_of_eight_micro_batches_of_one(dtype, rtol, atol):
    model = make_model(dtype=dtype)
    data = make_set(make_entries(8), mask_prompt=True)
    inputs, targets = batch_of(data)
    whole = model.loss(inputs, targets)
    whole.backward()
    in_one = gradients(model)
    total = int((targets != IGNORE).sum())
    losses = []
    for i in range(8):
        part = model.loss(*data.collate([i]), total=total)
        part.backward()
        losses.append(part.item())
    assert sum(losses) == pytest.approx(whole.item(), rel=1e-12 if dtype == np.float64 else 1e-6)
    assert_all_close(gradients(model), in_one, rtol=rtol, atol=atol)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("mask_prompt", [True, False])
def test_evaluate_is_the_mean_over_all_targets(batch_size, mask_prompt):
    model = make_model(dtype=np.float64)
    data = make_set(make_entries(11), mask_prompt=mask_prompt)
    total, count = naive_loss_sum(model, *batch_of(data))
    assert evaluate(model, data, batch_size) == pytest.approx(total / count, rel=1e-12)


def test_evaluate_leaves_no_gradient_and_needs_no_dropout():
    model = make_model()
    data = make_set(make_entries(5))
    plain = evaluate(model, data, 2)
    model.set_dropout(0.5)
    assert evaluate(model, data, 2) == plain
    assert all(parameter.grad is None for _, parameter in model.named_parameters())


def test_dropout_is_on_in_training_only():
    data = make_set(make_entries(8))
    model = make_model()
    model.set_dropout(0.5)
    without = make_model().loss(*data.collate(range(8))).item()
    events = run_steps(model, data, validation=data)
    assert events[2].loss != pytest.approx(without, rel=1e-3)
    assert events[1].loss == pytest.approx(without, rel=1e-6)
    assert events[3].loss == evaluate(model, data, 8)


# ---- the loop


def test_events_of_a_run():
    data, validation = make_set(make_entries(20), mask_prompt=True), make_set(make_entries(3, seed=9))
    events = run_steps(make_model(), data, validation=validation, epochs=2, batch_size=4, evaluate_every=3, patience=0)
    steps = [event for event in events if isinstance(event, Stepped)]
    looks = [event for event in events if isinstance(event, Evaluated)]
    assert events[0] == Started(10, 5)
    assert isinstance(events[1], Evaluated)
    assert [step.step for step in steps] == list(range(1, 11))
    assert [look.step for look in looks] == [0, 3, 6, 9, 10]
    assert [step.epoch for step in steps] == pytest.approx([i / 5 for i in range(1, 11)])
    assert looks[0].train_loss is None
    for before, look in zip(looks, looks[1:], strict=False):
        losses = [step.loss for step in steps if before.step < step.step <= look.step]
        assert look.train_loss == pytest.approx(np.mean(losses), rel=1e-12)
    targets = sum(int(example.learned.sum()) for example in data.examples)
    assert sum(step.tokens for step in steps) == looks[-1].tokens == 2 * targets
    assert steps[0].learning_rate == pytest.approx(1e-2) and steps[-1].learning_rate < 2e-3
    bests = np.minimum.accumulate([look.loss for look in looks[1:]])
    assert [look.improved for look in looks[1:]] == [True, *(np.diff(bests) < 0)]


def test_every_epoch_learns_every_entry_once():
    class Watched(type(make_set([]))):
        def collate(self, indices):
            seen.extend(int(i) for i in indices)
            return super().collate(indices)

    seen: list[int] = []
    data = Watched(make_entries(13), TOKENIZER, prompt_style="phi3", max_length=64)
    run_steps(make_model(), data, epochs=3, batch_size=4)
    epochs = [seen[i : i + 13] for i in (0, 13, 26)]
    assert len(seen) == 39 and all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_max_steps_stops_within_and_across_epochs():
    data = make_set(make_entries(12))
    for limit in (1, 3, 4):
        events = run_steps(make_model(), data, epochs=5, batch_size=4, max_steps=limit)
        assert events[0] == Started(limit, 3)
        assert [event.step for event in events[1:]] == list(range(1, limit + 1))


def test_processed_counts_what_goes_through_the_model():
    data = make_set(make_entries(8), mask_prompt=True)
    _, step = run_steps(make_model(), data)
    assert step.processed == sum(len(example.ids) - 1 for example in data.examples)


def test_empty_training_set():
    with pytest.raises(ValueError, match="training set is empty"):
        run_steps(make_model(), make_set([]))


def test_loss_falls_on_a_task_to_learn_by_heart():
    data = make_set(make_entries(8), mask_prompt=True)
    steps = run_steps(make_model(), data, epochs=60, learning_rate=2e-2)[1:]
    assert steps[0].loss > 4
    assert steps[-1].loss < 0.2


def test_clip_norm_reaches_the_optimizer():
    data = make_set(make_entries(8))
    clipped, free = make_model(), make_model()
    reports = [run_steps(model, data, epochs=3, clip_norm=norm)
               for model, norm in ((clipped, 1e-6), (free, None))]
    assert reports[0][1].gradient_norm == reports[1][1].gradient_norm > 1e-3
    assert np.abs(clipped.wte.weight.data - free.wte.weight.data).max() > 1e-3


def test_same_seed_same_run_and_another_seed_another():
    def run(seed):
        model = make_model()
        model.set_dropout(0.1)
        data = make_set(make_entries(30))
        events = run_steps(model, data, seed, validation=make_set(make_entries(4, 7)), epochs=2, batch_size=4)
        return [without_seconds(event.__dict__) for event in events], weights(model)

    (first, first_weights), (again, again_weights), (other, _) = run(1), run(1), run(2)
    assert first == again
    assert_all_close(first_weights, again_weights, rtol=0)
    assert first != other


def without_seconds(event: dict) -> dict:
    return {name: value for name, value in event.items() if name != "seconds"}


def test_micro_batches_are_told():
    data = make_set(make_entries(8))
    events = run_steps(make_model(), data, micro_batch_size=3, batch_size=7, epochs=1)[1:]
    assert events[0] == Accumulated(step=1, done=1, of=3) and events[1] == Accumulated(step=1, done=2, of=3)
    assert [type(event) for event in events] == [Accumulated, Accumulated, Stepped, Stepped]
    whole = steps_of(run_steps(make_model(), data, batch_size=7, epochs=1))
    assert [step.processed for step in steps_of(events)] == [step.processed for step in whole]
    assert [step.loss for step in steps_of(events)] == pytest.approx([step.loss for step in whole], rel=1e-4)


def copies(optimizer, progress) -> dict:
    """All that it takes to go on, as a state keeps it."""
    return {"progress": json.loads(json.dumps(asdict(progress))), "steps": optimizer.steps,
            "arrays": {name: (p.data.copy(), optimizer.m[name].copy(), optimizer.v[name].copy(),
                              None if p.grad is None else p.grad.copy()) for name, p in optimizer.parameters.items()}}


def test_resumed_after_any_micro_batch():
    def run(state=None):
        model = make_model(seed=5 if state else 0)
        model.set_dropout(0.2)
        optimizer, progress = AdamW(model), Progress()
        if state:
            progress, optimizer.steps = Progress(**state["progress"]), state["steps"]
            for name, p in optimizer.parameters.items():
                p.data, optimizer.m[name], optimizer.v[name], p.grad = state["arrays"][name]
        settings = Settings(epochs=2, batch_size=7, micro_batch_size=2, learning_rate=1e-2, evaluate_every=2)
        for event in train(model, optimizer, make_set(make_entries(13)), make_set(make_entries(3)), settings, progress,
                           np.random.default_rng(0 if state is None else 99)):
            yield event, copies(optimizer, progress), model

    whole = list(run())
    assert sum(isinstance(event, Accumulated) for event, _, _ in whole) == 10
    for i, (event, state, _) in enumerate(whole):
        if isinstance(event, Started):
            continue
        rest = list(run(state))[1:]
        expected = [without_seconds(asdict(event)) for event, _, _ in whole[i + 1 :]]
        assert [without_seconds(asdict(event)) for event, _, _ in rest] == expected
        if rest:
            assert_all_close(weights(rest[-1][2]), weights(whole[-1][2]), rtol=0)


def test_batches_by_tokens():
    class Watched(Fixed):
        def batches(self, batch_size, rng=None, **options):
            asked.append(options)
            return super().batches(batch_size)

    asked: list[dict] = []
    inputs = np.ones((2, 5), int)
    run_steps(make_model(), Watched(inputs, inputs), batch_tokens=64)
    assert asked and all(options == {"batch_tokens": 64} for options in asked)
    asked.clear()
    run_steps(make_model(), Watched(inputs, inputs))
    assert asked and not any(asked), "a set need not know of what nobody wants"
    data = make_set(make_entries(9))
    events = run_steps(make_model(), data, batch_tokens=int(data.lengths().max()) * 2, epochs=2)
    assert events[0].steps == len(steps_of(events)) == 2 * events[0].steps_per_epoch > 8
    assert all(event.processed <= 2 * data.lengths().max() for event in steps_of(events))


@pytest.mark.parametrize("changes, said", [({"batch_tokens": 0}, "batch_tokens is 0"), ({"moments": "int8"}, "moments"),
                                           ({"batch_tokens": 2.5}, "batch_tokens is 2.5")])
def test_settings_that_make_no_sense(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


def notices(events) -> list[Noticed]:
    return [event for event in events if isinstance(event, Noticed)]


def test_a_loss_far_above_guessing_is_noticed_in_the_first_step():
    model, data = make_model(), make_set(make_entries(8))
    assert notices(run_steps(model, data, epochs=4)) == []
    model = make_model()
    model.ln_f.weight.data *= 40
    noticed, = notices(run_steps(model, data, epochs=4))
    assert noticed.step == 1 and "the loss starts at" in noticed.text


def test_a_parameter_that_learns_nothing_is_noticed_in_the_third_step():
    model, data = make_model(), make_set(make_entries(8))
    for block in model.h:
        block.mlp.c_proj.weight.data[:] = 0  # so that nothing comes back to what is below
        block.mlp.c_proj.freeze()
    events = run_steps(model, data, epochs=4)
    noticed, = notices(events)
    assert noticed.step == 3 and "h.0.ln_2.weight" in noticed.text
    assert isinstance(events[events.index(noticed) - 1], Stepped), "between two steps all can be saved"


# ---- runs that turn, and runs that break

# The same questions with longer answers: learning the first makes the second likelier, then unlikelier.
TRAINING = [Entry.single(f"Say {i}.", "", "aaaa") for i in range(24)]
VALIDATION = [Entry.single(f"Say {i}.", "", "aaaab") for i in range(24)]
TURNING = Settings(epochs=20, batch_size=8, learning_rate=4e-2, evaluate_every=4, patience=3, warmup=0.05)


def fit_tiny(folder, settings=TURNING, seed=0, model=None, training=None, **options):
    """A run whose validation loss turns; returns model and events."""
    model = model or make_model()
    training = training or make_set(TRAINING, mask_prompt=True)
    events = fit(model, TOKENIZER, training, make_set(VALIDATION, mask_prompt=True), settings,
                 np.random.default_rng(seed), folder, **options)
    return model, events


def metrics(folder) -> list[dict]:
    """metrics.jsonl, by the strict rules of JSON."""
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def evaluations(events) -> list[dict]:
    return [event for event in events if event["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """One uninterrupted run: folder, model, events."""
    folder = tmp_path_factory.mktemp("turning")
    model, events = fit_tiny(folder)
    return folder, model, events


def test_early_stop_by_patience(turning):
    _, _, events = turning
    looks = evaluations(events)[1:]
    best = int(np.argmin([look["loss"] for look in looks]))
    assert len(looks) == best + 1 + TURNING.patience
    assert [look["stop"] for look in looks] == [False] * (len(looks) - 1) + [True]
    assert looks[-1]["step"] < 60, "the run should end before its last step"


def test_no_patience_runs_to_the_end(tmp_path):
    _, events = fit_tiny(tmp_path, Settings(**{**TURNING.__dict__, "patience": 0}))
    assert events[-1]["step"] == 60 and not any(look["stop"] for look in evaluations(events))


def test_best_weights_are_kept(turning):
    folder, model, events = turning
    looks = evaluations(events)[1:]
    best, last = min(look["loss"] for look in looks), looks[-1]["loss"]
    assert last > best + 1e-3
    validation = make_set(VALIDATION, mask_prompt=True)
    assert evaluate(model, validation, 8) == best
    assert evaluate(load_model(folder / "model"), validation, 8) == best
    assert_all_close(weights(load_model(folder / "model")), weights(model), rtol=0)


def test_what_a_run_leaves(turning):
    folder, _, events = turning
    assert metrics(folder) == events
    assert {event["kind"] for event in events} == {"step", "evaluation"}
    names = {path.name for path in folder.iterdir()}
    assert names - {"loss.png"} == {"metrics.jsonl", "model", "checkpoints", "run.lock"}


def test_loss_png(turning, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    folder, _, events = turning
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    steps = [event for event in events if event["kind"] == "step"]
    assert plot_losses(steps[:1], tmp_path / "one.png") and (tmp_path / "one.png").stat().st_size > 1000
    assert not plot_losses([], tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_smooth_does_not_lag():
    line = [3.0 * i for i in range(300)]
    assert smooth(line)[:-5] == pytest.approx(line[:-5]) and smooth(line)[-1] == pytest.approx(line[-1] - 7.5)
    wave = smooth([float(i % 2) for i in range(300)])
    assert all(0.4 < value < 0.6 for value in wave[5:]) and smooth([]) == [] and smooth([2.0]) == [2.0]


def test_same_seed_same_files(turning, tmp_path):
    folder, _, _ = turning
    fit_tiny(tmp_path / "again")
    fit_tiny(tmp_path / "other", Settings(**{**TURNING.__dict__, "max_steps": 4}), seed=1)
    first, again, other = ([without_seconds(event) for event in metrics(path)]
                           for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert first[:5] != other[:5]
    stored = [(path / "model" / "model.safetensors").read_bytes() for path in (folder, tmp_path / "again")]
    assert stored[0] == stored[1]


def test_run_without_validation_keeps_the_last_weights(tmp_path):
    model = make_model()
    events = fit(model, TOKENIZER, make_set(TRAINING), None, Settings(max_steps=3), np.random.default_rng(0), tmp_path)
    assert [event["step"] for event in events] == [1, 2, 3]
    assert_all_close(weights(load_model(tmp_path / "model")), weights(model), rtol=0)


class Poisoned(GPT2):
    """Its loss in training is NaN from the given call on."""

    bad_from = 0

    def loss(self, inputs, targets, total=None, rng=None):
        loss = super().loss(inputs, targets, total, rng)
        if loss.requires_grad:
            self.bad_from -= 1
            if self.bad_from < 0:
                return loss * np.float32(math.nan)
        return loss


def poisoned(bad_from: int) -> Poisoned:
    model = Poisoned(GPT2Config(vocab_size=TOKENIZER.n_vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    for (_, parameter), (_, source) in zip(model.named_parameters(), make_model(n_positions=64).named_parameters(),
                                           strict=True):
        parameter.data = source.data.copy()
    model.bad_from = bad_from
    return model


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_nan_in_the_loss(tmp_path, micro_batch_size):
    calls = 1 if micro_batch_size is None else 3
    settings = Settings(**{**TURNING.__dict__, "micro_batch_size": micro_batch_size})
    good = make_model(n_positions=64)
    fit_tiny(tmp_path / "good", Settings(**{**settings.__dict__, "patience": 0}), model=good)
    model = poisoned(bad_from=calls * 6 + calls - 1)
    before = []
    with pytest.raises(TrainingDiverged) as caught:
        fit_tiny(tmp_path / "bad", settings, model=model,
                 on_evaluation=lambda report: before.append(weights(model)))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("the loss is nan at step 7", "epoch 3", "learning rate 0.0", "--learning-rate",
                 f"best weights so far, of step 4, are in {tmp_path / 'bad' / 'model'}"):
        assert part in message, message
    assert [event["step"] for event in metrics(tmp_path / "bad") if event["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(array).all() for array in weights(model).values())
    assert_all_close(weights(load_model(tmp_path / "bad" / "model")), before[-1], rtol=0)


def test_nan_in_the_first_step(tmp_path):
    model = poisoned(0)
    before = weights(model)
    with pytest.raises(TrainingDiverged, match="step 1 .*best weights so far, of step 0, are in"):
        fit_tiny(tmp_path, model=model)
    assert_all_close(weights(model), before, rtol=0)
    assert_all_close(weights(load_model(tmp_path / "model")), before, rtol=0)


def test_nan_in_a_gradient():
    class Bent(Poisoned):
        def loss(self, *arguments, **options):
            loss = GPT2.loss(self, *arguments, **options)
            return (loss - loss.item()) ** 0.5 + loss.item() if loss.requires_grad else loss  # slope inf at 0

    model = poisoned(0)
    model.__class__ = Bent
    before = weights(model)
    with np.errstate(all="ignore"), pytest.raises(TrainingDiverged, match="the gradient norm is .* at step 1"):
        run_steps(model, make_set(TRAINING))
    assert_all_close(weights(model), before, rtol=0)


def test_last_step_into_nonsense_is_noticed(tmp_path):
    settings = Settings(epochs=1, batch_size=24, learning_rate=1e30, warmup=0)
    with np.errstate(all="ignore"), pytest.raises(TrainingDiverged):
        fit_tiny(tmp_path, settings)


# ---- interrupted and resumed


class Interrupt:
    """Raises KeyboardInterrupt at the given evaluation."""

    def __init__(self, at: int):
        self.left = at

    def __call__(self, report):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 1, 3, 4, 6])
def test_interrupted_and_resumed(turning, tmp_path, at):
    folder, model, events = turning
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, on_evaluation=Interrupt(at), state_minutes=0)
    resumed, _ = fit_tiny(tmp_path, seed=99 if at else 0, resume=True, state_minutes=0)
    again = metrics(tmp_path)
    for kind in ("step", "evaluation"):
        wanted = [event for event in events if event["kind"] == kind]
        got = [event for event in again if event["kind"] == kind]
        assert [event["step"] for event in got] == [event["step"] for event in wanted]
        assert [event["loss"] for event in got] == [event["loss"] for event in wanted]
    assert_all_close(weights(resumed), weights(model), rtol=0)
    assert_all_close(weights(load_model(tmp_path / "model")), weights(model), rtol=0)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}


class Breaking(type(make_set([]))):
    """Raises KeyboardInterrupt while the given training batch is made."""

    left = math.inf

    def collate(self, indices):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().collate(indices)


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_interrupted_between_two_evaluations(turning, tmp_path, steps):
    _, model, events = turning
    training = Breaking(TRAINING, TOKENIZER, prompt_style="phi3", max_length=CONTEXT, mask_prompt=True)
    training.left = steps
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, training=training, state_minutes=0)
    resumed, _ = fit_tiny(tmp_path, seed=99, resume=True)
    assert_all_close(weights(resumed), weights(model), rtol=0)
    wanted, again = ([without_seconds(event) for event in found] for found in (events, metrics(tmp_path)))
    for event in (*wanted, *again):  # looked at in a test of its own
        event.pop("train_loss", None)
    assert again == wanted


def test_train_loss_after_resuming_counts_all_steps_since_the_last_evaluation(turning, tmp_path):
    _, _, events = turning
    training = Breaking(TRAINING, TOKENIZER, prompt_style="phi3", max_length=CONTEXT, mask_prompt=True)
    training.left = 7
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, training=training, state_minutes=0)
    fit_tiny(tmp_path, resume=True)
    assert [look["train_loss"] for look in evaluations(metrics(tmp_path))] == pytest.approx(
        [look["train_loss"] for look in evaluations(events)])


def test_resume_with_dropout(tmp_path):
    settings = Settings(**{**TURNING.__dict__, "max_steps": 8, "patience": 0})

    def model():
        fresh = make_model()
        fresh.set_dropout(0.2)
        return fresh

    whole, _ = fit_tiny(tmp_path / "whole", settings, model=model())
    training = Breaking(TRAINING, TOKENIZER, prompt_style="phi3", max_length=CONTEXT, mask_prompt=True)
    training.left = 5
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path / "parts", settings, model=model(), training=training, state_minutes=0)
    resumed, _ = fit_tiny(tmp_path / "parts", settings, seed=99, model=model(), resume=True)
    assert_all_close(weights(resumed), weights(whole), rtol=0)


def test_resume_survives_a_torn_last_line_of_metrics(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, on_evaluation=Interrupt(2), state_minutes=0)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "st')
    fit_tiny(tmp_path, resume=True)
    steps = [event["step"] for event in metrics(tmp_path) if event["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


def test_interrupt_says_what_can_be_done(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, on_evaluation=lambda report: os.kill(os.getpid(), signal.SIGINT))
    assert f"the state is in {tmp_path / 'checkpoints' / 'step-000000.safetensors'}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    resumed, _ = fit_tiny(tmp_path, resume=True)
    whole, _ = fit_tiny(tmp_path / "whole")
    assert_all_close(weights(resumed), weights(whole), rtol=0)


def test_new_run_forgets_the_state_of_the_old_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, on_evaluation=Interrupt(3), state_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, seed=5, on_evaluation=Interrupt(1))
    with pytest.raises(ValueError, match="nothing to resume"):
        fit_tiny(tmp_path, resume=True)


def test_resume_refuses(tmp_path):
    with pytest.raises(ValueError, match="has no step-.*safetensors, so there is nothing to resume"):
        fit_tiny(tmp_path, resume=True)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path, on_evaluation=Interrupt(1), state_minutes=0)
    other = Settings(**{**TURNING.__dict__, "batch_size": 4})
    with pytest.raises(ValueError, match="started with batch_size = 8, now it is 4; resume with the same"):
        fit_tiny(tmp_path, other, resume=True)
    with pytest.raises(ValueError, match="started with fingerprint of the model at the start = .*, now it is"):
        fit_tiny(tmp_path, model=make_model(n_embd=8), resume=True)
    before = metrics(tmp_path)
    assert before, "a refused resume should leave the metrics alone"
    fit_tiny(tmp_path, resume=True)


def test_kept_state_lets_a_finished_run_be_resumed(tmp_path):
    model, events = fit_tiny(tmp_path, Settings(**{**TURNING.__dict__, "max_steps": 5}))
    again, same = fit_tiny(tmp_path, Settings(**{**TURNING.__dict__, "max_steps": 5}), resume=True)
    assert same == events
    assert_all_close(weights(again), weights(model), rtol=0)
