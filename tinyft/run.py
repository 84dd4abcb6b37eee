"""A whole training run: the loop of `train`, with its report, checkpoints, and the best weights at the end."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import compile_ahead
from .checkpoint import (
    check_training_state,
    load_model,
    load_training_state,
    save_model,
    save_training_state,
    weights_fingerprint,
)
from .data.prompts import with_style
from .files import make_writable_folder
from .gpt2 import GPT2, GPT2Config
from .inference.generate import generate
from .memory import keep_freed_memory
from .optim import AdamW
from .report import RunReport, plot_losses
from .tokenizer import Tokenizer
from .train import Evaluated, Progress, Settings, TrainingDiverged, TrainingSet, has_targets, train

STATE = "training_state.safetensors"
# What a run leaves in its folder: `fit` itself, and the script around it.
RUN_FILES = ("metrics.jsonl", "loss.png", "replies.json", "scores.json", STATE, "model/model.safetensors")


def claim_output(folder: Path, resume: bool, overwrite: bool, model_folder: Path | None = None) -> Path:
    """Make a run's folder. ValueError if it holds a run and nobody said what to do, or there is none to resume.

    ValueError also if the model to start from lies where the run will put its own.
    """
    if model_folder is not None and model_folder.resolve() in (folder.resolve(), (folder / "model").resolve()):
        raise ValueError(f"--model {model_folder} would be replaced by this run's model; "
                         "choose an --output-dir elsewhere")
    if resume and not (folder / STATE).exists():
        raise ValueError(f"--resume: {folder / STATE} is missing, so there is nothing to resume; "
                         "start anew without --resume, with --overwrite if the folder holds a run")
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and not (resume or overwrite):
        go_on = "go on with it (--resume), " if STATE in found else ""
        raise ValueError(f"--output-dir {folder} holds a run ({', '.join(found)}); {go_on}replace it (--overwrite), "
                         "or choose another folder")
    if overwrite and not resume:  # or the new run's files would stand beside the old one's
        for name in found:
            (folder / name).unlink()
    return make_writable_folder(folder)


def warm_up() -> None:
    """Compile what training and generation need, or load it, before there is a clock or a progress bar to spoil.

    Shapes don't matter to compiled code, so that the smallest model does.
    """
    model = GPT2(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1), np.random.default_rng(0))
    ids = np.arange(8).reshape(2, 4)
    with _ending_at_once():
        compile_ahead.begin(np.dtype(np.float32))
        list(generate(model, ids[0], max_new_tokens=2))  # while the second process compiles the backward pass
        model.loss(ids, ids).backward()
        AdamW(model).step(1e-3, max_norm=1.0)


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in here, where nothing is to be saved yet.

    LLVM calls functions of Python while it compiles, and a KeyboardInterrupt that is raised in one of them is lost.
    """

    def end(*_) -> None:
        compile_ahead.stop()
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _identity(model: GPT2, settings: Settings, training: TrainingSet, identity: dict | None) -> dict:
    """What a resumed run must have in common with the one it goes on with; the state holds no frozen weights."""
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    of_frozen = {"frozen weights": weights_fingerprint(frozen) if frozen else "none"}
    fingerprint = getattr(training, "fingerprint", None)
    of_set = {"training set (data, prompt style, mask, lengths)": fingerprint()} if fingerprint else {}
    return (identity or {}) | asdict(settings) | of_frozen | of_set


def check_resumable(folder: str | os.PathLike, model: GPT2, training: TrainingSet, settings: Settings,
                    identity: dict | None = None) -> None:
    """ValueError unless the run in a folder can be gone on with, with these settings; as `fit` would say."""
    check_training_state(Path(folder) / STATE, _identity(model, settings, training, identity))


def fit(
    model: GPT2,
    tokenizer: Tokenizer,
    training: TrainingSet,
    validation: TrainingSet | None,
    settings: Settings,
    rng: np.random.Generator,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    identity: dict | None = None,
    state_minutes: float = 10.0,
    on_evaluation: Callable[[RunReport], None] | None = None,
    title: str = "",
) -> list[dict]:
    """Train and leave the best weights in `model` and in folder/model; returns all events.

    validation: None, or a set without target tokens, keeps the last weights, since no others are known to be
    better. folder also gets metrics.jsonl, loss.png, and the state from which `resume` goes on: every
    `state_minutes`, at Ctrl-C and at the end. Whoever is done with the run deletes it with `delete_state`. If the
    training set has a prompt style, the saved folder says so; the tokenizer that is given here stays as it is.
    identity: what else, besides settings and training set, a resumed run must have in common with the one it goes on
    with (the seed, ...). on_evaluation: called after each evaluation, to show a sample reply, say.

    Ctrl-C lets the current step or the saving at the end finish, saves the state and raises KeyboardInterrupt;
    a second one acts at once. From here on the whole process keeps the memory that it frees for its next
    arrays instead of handing it back to the system, see `memory.keep_freed_memory`. ValueError if the folder
    cannot be written or there is nothing to resume; TrainingDiverged if the loss is no longer finite.
    """
    folder = make_writable_folder(folder)
    make_writable_folder(folder / "model")
    keep_freed_memory()
    optimizer = AdamW(model, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay)
    progress, state = Progress(), folder / STATE
    if (style := getattr(training, "style", None)) is not None:  # the folder will say how its model is asked
        tokenizer = with_style(style, tokenizer)
    same = _identity(model, settings, training, identity)
    if resume and not state.exists():
        raise ValueError(f"{state} is missing, so there is nothing to resume; start anew without --resume")
    if resume:
        progress = load_training_state(state, optimizer, same)
    else:
        delete_state(folder)
    saved = time.monotonic()
    resuming = f"the state is in {state}: the same command with --output-dir {folder} --resume goes on"
    with RunReport(folder, progress) as report, _delayed_interrupt() as interrupted:
        if validation is not None and not has_targets(validation):
            report.say("the validation set has no target tokens: training without it, and keeping the last weights")
            validation = None
        try:
            for event in train(model, optimizer, training, validation, settings, progress, rng):
                report.add(event)
                if isinstance(event, Evaluated):
                    if event.improved:
                        save_model(model, tokenizer, folder / "model")
                    if on_evaluation:
                        on_evaluation(report)
                    if event.stop:
                        report.say(f"  stopped: {settings.patience} evaluations without a better validation loss")
                if interrupted() or time.monotonic() - saved > 60 * state_minutes:
                    save_training_state(state, optimizer, progress, same)
                    saved = time.monotonic()
                if interrupted():
                    report.say(f"interrupted; {resuming}")
                    raise KeyboardInterrupt
        except TrainingDiverged as error:
            _plot(report, folder, title)
            raise TrainingDiverged(f"{error}; {_what_is_saved(progress, folder)}") from None
        save_training_state(state, optimizer, progress, same)
        _use_best(model, tokenizer, progress, report, folder)
        _plot(report, folder, title)
        if interrupted():
            report.say(f"interrupted after the last step; the model is in {folder / 'model'}, {resuming}")
        return report.events


def delete_state(folder: str | os.PathLike) -> None:
    """Delete the state of a run that is done with: it is three times as large as the model."""
    (Path(folder) / STATE).unlink(missing_ok=True)


@contextmanager
def _delayed_interrupt():
    """Within the block the first Ctrl-C is only noted, so that a step is not cut in two; the second one acts.

    Gives a function that says whether there was one. At the end of the block it is raised, or it would be lost.
    """
    noted = []

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


def _what_is_saved(progress: Progress, folder: Path) -> str:
    """What a run that broke off leaves of its weights, in words."""
    if math.isfinite(progress.best_loss):
        return f"the best weights so far, of step {progress.best_step}, are in {folder / 'model'}"
    if (folder / STATE).exists():
        return f"the weights of an earlier step are in {folder / STATE}"
    return "no weights have been saved"


def _plot(report: RunReport, folder: Path, title: str) -> None:
    """Draw the losses. Whatever goes wrong, in matplotlib or on the disk: plotting must not fail a run."""
    try:
        plot_losses(report.events, folder / "loss.png", title)
    except Exception as error:
        report.say(f"no plot: {error}")


def _use_best(model: GPT2, tokenizer: Tokenizer, progress: Progress, report: RunReport, folder: Path) -> None:
    """Put the best weights into the model and its folder; where none were validated, these are the last ones."""
    if not math.isfinite(progress.best_loss):
        save_model(model, tokenizer, folder / "model")
    elif progress.best_step != progress.step:
        best = dict(load_model(folder / "model").named_parameters())
        for name, parameter in model.named_parameters():
            parameter.data = best[name].data
        if progress.best_step == 0:
            report.say("nothing was better than the untuned model; its weights are kept")
