"""A whole training run: the loop of `train`, with its report, checkpoints, and the best weights at the end."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tiktoken

from .checkpoint import load_model, load_training_state, save_model, save_training_state
from .files import make_writable_folder
from .gpt2 import GPT2
from .memory import keep_freed_memory
from .optim import AdamW
from .report import RunReport, plot_losses
from .train import Evaluated, Progress, Settings, TrainingDiverged, TrainingSet, train

STATE = "training_state.safetensors"


def fit(
    model: GPT2,
    tokenizer: tiktoken.Encoding,
    training: TrainingSet,
    validation: TrainingSet | None,
    settings: Settings,
    rng: np.random.Generator,
    folder: str | os.PathLike,
    *,
    resume: bool = False,
    state_minutes: float = 10.0,
    keep_state: bool = False,
    on_evaluation: Callable[[RunReport], None] | None = None,
    title: str = "",
) -> list[dict]:
    """Train and leave the best weights in `model` and in folder/model; returns all events.

    folder also gets metrics.jsonl, loss.png, and every `state_minutes` the state from which `resume` goes on
    after an interruption. At the end that state is deleted, unless keep_state. on_evaluation: called after
    each evaluation, to show a sample reply, say.
    """
    folder = make_writable_folder(folder)
    keep_freed_memory()
    optimizer = AdamW(model, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay)
    progress, state = Progress(), folder / STATE
    if resume:
        if not state.exists():
            raise ValueError(f"{state} is missing, so there is nothing to resume; run without --resume")
        progress = load_training_state(state, optimizer, asdict(settings))
    else:
        state.unlink(missing_ok=True)
    saved = time.monotonic()
    with RunReport(folder, progress) as report:
        try:
            for event in train(model, optimizer, training, validation, settings, progress, rng):
                report.add(event)
                if isinstance(event, Evaluated) and event.improved:
                    save_model(model, tokenizer, folder / "model")
                if isinstance(event, Evaluated) and on_evaluation:
                    on_evaluation(report)
                if isinstance(event, Evaluated) and event.stop:
                    report.say(f"  stopped: {settings.patience} evaluations without a better validation loss")
                if time.monotonic() - saved > 60 * state_minutes:
                    save_training_state(state, optimizer, progress, asdict(settings))
                    saved = time.monotonic()
        except KeyboardInterrupt:
            # An interrupt can fall into the middle of an optimizer step; only what was saved between two is whole.
            report.say(f"interrupted; --resume goes on from {state}" if state.exists()
                       else "interrupted before the first state was saved")
            raise
        except TrainingDiverged as error:
            kept = f"the best weights so far are in {folder / 'model'}" if progress.best_step else "nothing was saved"
            raise TrainingDiverged(f"{error}; {kept}") from None
        events = report.events
    if keep_state:
        save_training_state(state, optimizer, progress, asdict(settings))
    else:
        state.unlink(missing_ok=True)
    _use_best(model, tokenizer, progress, folder)
    plot_losses(events, folder / "loss.png", title)
    return events


def _use_best(model: GPT2, tokenizer: tiktoken.Encoding, progress: Progress, folder: Path) -> None:
    """Put the best weights into the model; without any evaluation the last ones are the best there are."""
    if progress.best_step == 0:
        save_model(model, tokenizer, folder / "model")
    elif progress.best_step != progress.step:
        best = dict(load_model(folder / "model").named_parameters())
        for name, parameter in model.named_parameters():
            parameter.data = best[name].data
