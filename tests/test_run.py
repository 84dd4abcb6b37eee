"""What a run says and leaves at its edges: no validation, a loss that is not finite, Ctrl-C, a folder in use."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tiny import TOKENIZER, assert_all_close, make_entries, make_model, make_set, weights
from tiny import one_thread as one_thread

import tinyft.run
from tinyft import InstructionSet, Settings, cli, fit, load_model, load_tokenizer
from tinyft.data.prompts import PROMPT_STYLES, find_style
from tinyft.memory import peak_megabytes
from tinyft.report import RunReport, plot_losses
from tinyft.run import RUN_FILES, STATE, claim_output
from tinyft.train import Progress, TrainingDiverged


class WithoutTargets(type(make_set([]))):
    """A validation set of which nothing is a target."""

    def collate(self, indices):
        inputs, targets = super().collate(indices)
        return inputs, np.full_like(targets, -100)


def without_targets(n: int) -> WithoutTargets:
    return WithoutTargets(make_entries(n), TOKENIZER, prompt_style="phi3", max_length=64)


def fit_few(folder, validation=None, model=None, steps=3, **options):
    """A run of a few steps; returns model and events."""
    model = model or make_model()
    settings = Settings(batch_size=4, max_steps=steps, learning_rate=options.pop("learning_rate", 1e-3), warmup=0.0)
    return model, fit(model, TOKENIZER, make_set(make_entries(12)), validation, settings, np.random.default_rng(0),
                      folder, **options)


# ---- validation


@pytest.mark.parametrize("n", [0, 3])
def test_validation_without_targets_is_none(tmp_path, capsys, n):
    model, events = fit_few(tmp_path / "empty", without_targets(n))
    said = capsys.readouterr().out
    assert said == "the validation set has no target tokens: training without it, and keeping the last weights\n"
    plain, _ = fit_few(tmp_path / "none")
    assert [event["kind"] for event in events] == ["step"] * 3
    assert_all_close(weights(model), weights(plain), rtol=0)
    assert_all_close(weights(load_model(tmp_path / "empty" / "model")), weights(model), rtol=0)


# ---- a loss that is not finite


def diverging(model):
    """The model with weights that overflow."""
    for _, parameter in model.named_parameters():
        parameter.data[...] = np.float32(1e30)
    return model


def message_of_divergence(folder, *arguments, **options) -> str:
    with np.errstate(all="ignore"), pytest.raises(TrainingDiverged) as caught:
        fit_few(folder, *arguments, **options)
    return str(caught.value)


def test_diverged_without_validation_names_no_weights(tmp_path):
    assert message_of_divergence(tmp_path, model=diverging(make_model())).endswith("; no weights have been saved")
    assert not list((tmp_path / "model").iterdir())


def test_diverged_at_the_first_evaluation_names_no_weights(tmp_path):
    validation = make_set(make_entries(3))
    message = message_of_divergence(tmp_path, validation, model=diverging(make_model()))
    assert "validation loss is nan after step 0" in message and message.endswith("; no weights have been saved")


def test_diverged_after_a_state_was_saved_names_it(tmp_path):
    message = message_of_divergence(tmp_path, learning_rate=1e30, state_minutes=0)
    assert message.endswith(f"; the weights of an earlier step are in {tmp_path / STATE}")
    assert (tmp_path / STATE).exists()


# ---- Ctrl-C


def interrupt_at_the_plot(monkeypatch):
    """Ctrl-C when the last event is past."""
    def plot(*arguments):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tinyft.run, "plot_losses", plot)


def test_interrupt_after_the_last_event(tmp_path, monkeypatch, capsys):
    interrupt_at_the_plot(monkeypatch)
    handler = signal.getsignal(signal.SIGINT)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit_few(tmp_path, model=model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().out == (
        f"interrupted after the last step; the model is in {tmp_path / 'model'}, the state is in {tmp_path / STATE}: "
        f"the same command with --output-dir {tmp_path} --resume goes on\n")
    assert_all_close(weights(load_model(tmp_path / "model")), weights(model), rtol=0)
    monkeypatch.undo()
    resumed, events = fit_few(tmp_path, resume=True)
    assert [event["step"] for event in events] == [1, 2, 3]
    assert_all_close(weights(resumed), weights(model), rtol=0)


def test_interrupt_after_the_last_event_ends_a_script_with_130(tmp_path, monkeypatch):
    interrupt_at_the_plot(monkeypatch)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: fit_few(tmp_path))
    assert caught.value.code == 130


# ---- the report


def test_a_run_in_a_pipe_writes_no_carriage_returns(tmp_path, capfd):
    fit_few(tmp_path, make_set(make_entries(3)))
    out, err = capfd.readouterr()
    assert err == "" and "\r" not in out
    assert [line.split(":")[0].split() for line in out.splitlines() if "validation" in line] == [
        ["epoch", "0.00,", "step", "0"], ["epoch", "0.33,", "step", "1"], ["epoch", "0.67,", "step", "2"],
        ["epoch", "1.00,", "step", "3"]]


def test_plotting_must_not_fail_a_run(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(tinyft.run, "plot_losses", broken)
    _, events = fit_few(tmp_path)
    assert len(events) == 3 and capsys.readouterr().out == "no plot: no fonts\n"


def test_a_title_is_no_formula(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    step = {"kind": "step", "step": 1, "epoch": 0.5, "loss": 1.0, "tokens": 8}
    assert plot_losses([step], tmp_path / "loss.png", title=r"$\frac{a$")


def test_metrics_end_their_lines_alike_everywhere(tmp_path, monkeypatch):
    opened = []

    def watched(path, mode="r", **options):
        opened.append((mode, options.get("newline")))
        return open(path, mode, **options)

    monkeypatch.setattr("tinyft.report.open", watched, raising=False)
    with RunReport(tmp_path, Progress()):
        pass
    assert opened == [("a", "\n")]


# ---- folders and memory


@pytest.mark.parametrize("name", RUN_FILES)
def test_every_file_of_a_run_marks_its_folder(tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / name).write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds a run \\({name}\\); .*--overwrite"):
        claim_output(tmp_path, resume=False, overwrite=False)
    assert claim_output(tmp_path, resume=False, overwrite=True) == tmp_path
    assert not (tmp_path / name).exists()


def test_peak_where_the_system_leaves_it_out(monkeypatch):
    assert math.isnan(peak_megabytes()) or peak_megabytes() > 1
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: "Name:\tpython\n")
    assert math.isnan(peak_megabytes())


# ---- settings


@pytest.mark.parametrize("name, value, expected", [
    ("epochs", 0, "an int of at least 1"), ("epochs", 1.5, "an int of at least 1"), ("epochs", True, "an int"),
    ("batch_size", 0, "an int of at least 1"), ("micro_batch_size", 0, "an int of at least 1"),
    ("max_steps", 0, "an int of at least 1"), ("evaluate_every", -1, "an int of at least 1"),
    ("patience", -1, "an int of at least 0"), ("patience", None, "an int of at least 0"),
    ("learning_rate", -1e-3, "a finite float above 0"), ("learning_rate", math.nan, "a finite float above 0"),
    ("learning_rate", "1e-3", "a finite float above 0"), ("clip_norm", 0, "a finite float above 0"),
    ("clip_norm", math.inf, "a finite float above 0"), ("weight_decay", -0.1, "a finite float of at least 0"),
    ("warmup", 1.5, "a float from 0 to 1"), ("beta2", 1.0, "a float from 0 to below 1"),
])
def test_settings_that_make_no_sense(name, value, expected):
    with pytest.raises(ValueError, match=f"^Settings: {name} is .*, expected {expected}"):
        Settings(**{name: value})


def test_settings_that_make_sense():
    Settings(epochs=1, patience=0, warmup=0, weight_decay=0, beta2=0.0, clip_norm=None, micro_batch_size=None,
             learning_rate=1, max_steps=None, evaluate_every=None)


# ---- what a resumed run and a saved folder must know


def test_a_run_with_frozen_weights_goes_on_with_the_same_ones_only(tmp_path):
    """The state holds no frozen weights: on another base a resumed run would mix two models."""
    def frozen(seed):
        model = make_model(seed)
        model.wte.freeze()
        return model

    fit_few(tmp_path, model=frozen(0))
    with pytest.raises(ValueError, match="started with frozen weights = .*, now it is"):
        fit_few(tmp_path, model=frozen(1), resume=True)
    with pytest.raises(ValueError, match="started with frozen weights = .*, now it is none"):
        fit_few(tmp_path, model=make_model(0), resume=True)
    model, _ = fit_few(tmp_path, model=frozen(0), resume=True)
    np.testing.assert_array_equal(model.wte.weight.data, make_model(0).wte.weight.data)


def test_the_saved_folder_says_the_prompt_style_of_the_training_set(tmp_path):
    fit_few(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "model")
    assert find_style(tokenizer) == PROMPT_STYLES["phi3"]
    assert TOKENIZER.chat_template is None, "the tokenizer that was given is left as it was"
    assert InstructionSet(make_entries(1), tokenizer, max_length=64).style == PROMPT_STYLES["phi3"]
