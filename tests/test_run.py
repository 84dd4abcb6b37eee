"""What a run says and leaves at its edges: no validation, a loss that is not finite, Ctrl-C, a folder in use."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import TOKENIZER, assert_all_close, make_entries, make_model, make_set, weights
from tiny import one_thread as one_thread

import tinyft.checkpoint
import tinyft.keeper
import tinyft.report
import tinyft.state
from tinyft import InstructionSet, Settings, cli, fit, load_model, load_tokenizer
from tinyft.data.prompts import PROMPT_STYLES, find_style
from tinyft.memory import peak_megabytes
from tinyft.ranks import Ranks
from tinyft.report import RunReport, plot_losses
from tinyft.run import RUN_FILES, claim_output
from tinyft.signals import Terminated, delayed_signals
from tinyft.state import find_states
from tinyft.train import Accumulated, Stepped, TrainingDiverged, evaluate


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
    of_settings = {name: options.pop(name) for name in ("learning_rate", "micro_batch_size") if name in options}
    settings = Settings(**{"batch_size": 4, "max_steps": steps, "learning_rate": 1e-3, "warmup": 0.0, **of_settings})
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
    assert message.endswith(f"; the weights of an earlier step are in {find_states(tmp_path)[0]}")


# ---- Ctrl-C


def interrupt_at_the_plot(monkeypatch):
    """Ctrl-C when the last event is past."""
    def plot(*arguments):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tinyft.report, "plot_losses", plot)


def test_interrupt_after_the_last_event(tmp_path, monkeypatch, capsys):
    interrupt_at_the_plot(monkeypatch)
    handler = signal.getsignal(signal.SIGINT)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit_few(tmp_path, model=model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().out == (
        f"interrupted after the last step; the model is in {tmp_path / 'model'}, the state is in "
        f"{tmp_path / 'checkpoints' / 'step-000003.safetensors'}: the same command with --output-dir {tmp_path} "
        "--resume goes on\n")
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


def send_at(monkeypatch, number: int, steps: int, kind=Stepped):
    """A signal when the report takes the event of so many steps."""
    add = RunReport.add

    def adding(report, event):
        add(report, event)
        if isinstance(event, kind) and event.step == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunReport, "add", adding)


@pytest.mark.parametrize("number, error, status", [(signal.SIGINT, KeyboardInterrupt, 130),
                                                   (signal.SIGTERM, Terminated, 143)])
def test_a_signal_saves_the_state(tmp_path, monkeypatch, capsys, number, error, status):
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    send_at(monkeypatch, number, 2)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: fit_few(tmp_path))
    assert caught.value.code == status
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
    state = tmp_path / "checkpoints" / "step-000002.safetensors"
    assert find_states(tmp_path) == [state]
    assert capsys.readouterr().out == (f"interrupted; the state is in {state}: the same command with --output-dir "
                                       f"{tmp_path} --resume goes on\n")
    monkeypatch.undo()
    assert_all_close(weights(fit_few(tmp_path, resume=True)[0]), weights(fit_few(tmp_path / "whole")[0]), rtol=0)


def test_a_signal_within_a_step_saves_half_of_it(tmp_path, monkeypatch):
    send_at(monkeypatch, signal.SIGTERM, 2, Accumulated)
    with pytest.raises(Terminated):
        fit_few(tmp_path, micro_batch_size=1)
    assert [path.name for path in find_states(tmp_path)] == ["step-000001-and-001.safetensors"]
    monkeypatch.undo()
    resumed, events = fit_few(tmp_path, micro_batch_size=1, resume=True)
    whole, wanted = fit_few(tmp_path / "whole", micro_batch_size=1)
    assert_all_close(weights(resumed), weights(whole), rtol=0)
    assert [(event["step"], event["loss"], event["processed"]) for event in events] == [
        (event["step"], event["loss"], event["processed"]) for event in wanted]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(second):
    """In a process of its own, since SIGTERM ends it."""
    code = f"""
import os, signal
from tinyft.signals import delayed_signals
with delayed_signals() as signalled:
    os.kill(os.getpid(), signal.SIGTERM)
    assert signalled() == signal.SIGTERM
    os.kill(os.getpid(), {int(second)})
    print("not reached", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "not reached" not in done.stdout and done.returncode == -second, done.stderr


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with delayed_signals() as signalled:
            os.kill(os.getpid(), signal.SIGINT)
            assert not signalled() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_last_moment_is_not_lost():
    with pytest.raises(Terminated), delayed_signals():
        os.kill(os.getpid(), signal.SIGTERM)


# ---- states on the way


class Stop(Exception):
    """Ends a run as a power cut would: nothing is saved."""


def states_of(tmp_path, monkeypatch, **options) -> list[list[str]]:
    """The states that there are after each state written."""
    seen, save = [], tinyft.keeper.save_state

    def saving(*arguments):
        save(*arguments)
        seen.append([path.name.removesuffix(".safetensors") for path in find_states(tmp_path)])

    monkeypatch.setattr(tinyft.keeper, "save_state", saving)
    fit_few(tmp_path, **options)
    return seen


def test_a_state_every_n_steps(tmp_path, monkeypatch):
    seen = states_of(tmp_path, monkeypatch, steps=5, state_steps=2, keep_states=2)
    assert seen == [["step-000002"], ["step-000004", "step-000002"], ["step-000005", "step-000004"]]


def test_a_state_every_n_minutes_and_within_steps(tmp_path, monkeypatch):
    seen = states_of(tmp_path, monkeypatch, steps=2, state_minutes=0, keep_states=9, micro_batch_size=2)
    assert seen[-1][::-1] == ["step-000000", "step-000000-and-001", "step-000001", "step-000001-and-001", "step-000002"]


def test_no_state_but_the_last_is_due(tmp_path, monkeypatch):
    for options in ({"state_minutes": None}, {}):
        assert states_of(tmp_path, monkeypatch, **options) == [["step-000003"]]


def test_a_damaged_newest_state_is_named_and_the_one_before_taken(tmp_path, monkeypatch, capsys):
    fit_few(tmp_path, steps=5, state_steps=2)
    newest = find_states(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed, events = fit_few(tmp_path, steps=5, state_steps=2, resume=True)
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5]
    assert_all_close(weights(resumed), weights(fit_few(tmp_path / "whole", steps=5)[0]), rtol=0)


def test_what_killed_runs_have_left_is_cleared_away(tmp_path):
    fit_few(tmp_path, state_steps=2)
    for name in (".model.7.part", "checkpoints/.step-000003.safetensors.7.part", ".metrics.jsonl.7.part"):
        (tmp_path / name).mkdir() if "model" in name else (tmp_path / name).touch()
    fit_few(tmp_path, resume=True)
    assert not list(tmp_path.rglob("*.part"))


def test_a_user_s_files_beside_the_model_stay(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    fit_few(tmp_path, make_set(make_entries(3)))
    assert (tmp_path / "model" / "README.md").read_text() == "mine"


# ---- a full disk


class FullDisk:
    """Writing of tensors fails, with half of a file, while `full` is set."""

    def __init__(self, monkeypatch, module):
        self.full, self.refused = True, 0
        write = module.write_tensors

        def writing(path, *arguments):
            if self.full:
                self.refused += 1
                Path(path).write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, *arguments)

        monkeypatch.setattr(module, "write_tensors", writing)


def test_a_full_disk_costs_states_but_not_the_run(tmp_path, monkeypatch, capsys):
    disk = FullDisk(monkeypatch, tinyft.state)
    disk.full = False

    def full_in_the_middle(report):
        step = report.events[-1]["step"]
        disk.full = 2 <= step < 5
        if step in (3, 5):
            assert [path.name[:11] for path in find_states(tmp_path)] == ["step-000002", "step-000001"]
            assert not list(tmp_path.rglob("*.part"))

    entries = make_entries(15)
    model, _ = fit_few(tmp_path, make_set(entries[12:]), steps=6, state_steps=1, on_evaluation=full_in_the_middle)
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert said == [f"warning: {tmp_path / 'checkpoints'} could not be saved (No space left on device); what was saved "
                    "there before stays, training goes on and will try again: make room"]
    assert disk.refused == 3 and find_states(tmp_path)[0].name == "step-000006.safetensors"
    disk.full = False
    assert_all_close(weights(model), weights(fit_few(tmp_path / "whole", make_set(entries[12:]), steps=6)[0]), rtol=0)


def test_a_full_disk_keeps_the_best_model_that_could_be_saved(tmp_path, monkeypatch, capsys):
    disk, losses = FullDisk(monkeypatch, tinyft.checkpoint), []

    def full_after_two(report):
        losses.append(report.events[-1]["loss"])
        disk.full = len(losses) >= 2

    disk.full = False
    validation = make_set(make_entries(15)[12:])
    model, events = fit_few(tmp_path, validation, steps=6, learning_rate=1e-2, on_evaluation=full_after_two)
    assert sorted(losses, reverse=True) == losses, "every evaluation is better than the one before"
    out = capsys.readouterr().out
    assert out.count("warning: ") == 1 and f"{tmp_path / 'model'} could not be saved" in out
    assert disk.refused > 1, "it is tried again"
    assert_all_close(weights(load_model(tmp_path / "model")), weights(model), rtol=0)
    assert evaluate(model, validation, 4) == losses[1], "what is on the disk is what is called the best"
    assert not list(tmp_path.rglob("*.part"))


def test_a_model_that_cannot_be_saved_in_the_end_is_an_error(tmp_path, monkeypatch):
    FullDisk(monkeypatch, tinyft.checkpoint)
    with pytest.raises(OSError, match="No space left"):
        fit_few(tmp_path)
    monkeypatch.undo()
    model, _ = fit_few(tmp_path, resume=True)
    assert_all_close(weights(load_model(tmp_path / "model")), weights(model), rtol=0)


def test_an_interrupt_on_a_full_disk_says_what_there_is(tmp_path, monkeypatch, capsys):
    disk = FullDisk(monkeypatch, tinyft.state)
    send_at(monkeypatch, signal.SIGTERM, 2)
    with pytest.raises(Terminated):
        fit_few(tmp_path / "none")
    assert capsys.readouterr().out.endswith("interrupted; there is no state to resume\n")
    disk.full = False
    fit_few(tmp_path / "some", steps=1)


# ---- several ranks


class Second(Ranks):
    """Another rank than the first: it must write nothing."""

    rank, size = 1, 2

    def first(self, function, *arguments):
        return True  # what the first rank would say


def test_other_ranks_than_the_first_write_and_say_nothing(tmp_path, capsys):
    model = make_model()
    settings = Settings(batch_size=2, max_steps=2)
    entries = make_entries(15)
    fit(model, TOKENIZER, make_set(entries[:12]), make_set(entries[12:]), settings, np.random.default_rng(0), tmp_path,
        ranks=Second(), state_minutes=0, on_evaluation=lambda report: report.nothing)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


# ---- the report


def test_a_run_in_a_pipe_writes_no_carriage_returns(tmp_path, capfd):
    fit_few(tmp_path, make_set(make_entries(3)))
    out, err = capfd.readouterr()
    assert err == "" and "\r" not in out
    assert [line.split(":")[0].split() for line in out.splitlines() if "epoch " in line] == [
        ["epoch", "0.00,", "step", "0"], ["epoch", "0.33,", "step", "1"], ["epoch", "0.67,", "step", "2"],
        ["epoch", "1.00,", "step", "3"]]


def test_plotting_must_not_fail_a_run(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(tinyft.report, "plot_losses", broken)
    _, events = fit_few(tmp_path)
    assert len(events) == 3 and capsys.readouterr().out == "no plot: no fonts\n"


def test_a_title_is_no_formula(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    step = {"kind": "step", "step": 1, "epoch": 0.5, "loss": 1.0, "tokens": 8}
    assert plot_losses([step], tmp_path / "loss.png", title=r"$\frac{a$")


def test_metrics_end_their_lines_alike_everywhere(tmp_path):
    fit_few(tmp_path)
    assert b"\r" not in (tmp_path / "metrics.jsonl").read_bytes()


# ---- folders and memory


@pytest.mark.parametrize("name", RUN_FILES)
def test_every_file_of_a_run_marks_its_folder(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds a run \\({name}\\); .*--overwrite"):
        claim_output(tmp_path, resume=False, overwrite=False)
    assert claim_output(tmp_path, resume=False, overwrite=True) == tmp_path
    assert not (tmp_path / name).exists()


def test_the_states_of_a_run_mark_its_folder(tmp_path):
    fit_few(tmp_path)
    with pytest.raises(ValueError, match=r"holds a run \(.*checkpoints.*\); go on with it \(--resume\), replace it"):
        claim_output(tmp_path, resume=False, overwrite=False)
    assert claim_output(tmp_path, resume=True, overwrite=False) == tmp_path and find_states(tmp_path)
    claim_output(tmp_path, resume=False, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "model") == ["run.lock"]
    with pytest.raises(ValueError, match="--resume: .*checkpoints has no step-.*nothing to resume"):
        claim_output(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("name", ["", "model", "merged"])
def test_the_model_to_start_from_is_not_replaced(tmp_path, name):
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "model.safetensors").write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="would be replaced by this run's model; choose an --output-dir elsewhere"):
        claim_output(tmp_path, resume=False, overwrite=True, model_folder=tmp_path / name)
    assert (tmp_path / name / "model.safetensors").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_folder_below_a_file(tmp_path, overwrite):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write there .*; choose another folder"):
        claim_output(tmp_path / "file" / "run", resume=False, overwrite=overwrite)


def test_overwriting_keeps_a_link_to_where_states_are_kept(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "checkpoints").symlink_to(elsewhere)
    fit_few(folder)
    assert list(elsewhere.iterdir())
    claim_output(folder, resume=False, overwrite=True)
    assert list(elsewhere.iterdir()) == [] and (folder / "checkpoints").is_symlink()


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
