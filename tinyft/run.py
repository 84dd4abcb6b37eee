"""A whole training run: the loop of `train`, with its report, checkpoints, and the best weights at the end."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import compile_ahead, watch
from .checkpoint import model_fingerprint, weights_fingerprint
from .compact import compact
from .data.prompts import with_style
from .files import make_writable_folder, recover_folder, remove_leftovers
from .gpt2 import GPT2, GPT2Config
from .inference.generate import generate
from .keeper import Keeper
from .loggers import Logger
from .lora import LoraConfig, add_lora, lora_config
from .memory import keep_freed_memory
from .optim import AdamW
from .ranks import ALONE, Ranks
from .report import RunReport
from .run_lock import lock_folder, unlock_folder
from .signals import delayed_signals, interruption
from .state import FOLDER as STATES
from .state import OLD_STATE, check_state, delete_state, find_states, load_state, nothing_to_resume
from .tokenizer import Tokenizer
from .train import Evaluated, Progress, Settings, TrainingDiverged, TrainingSet, has_targets, train

# What a run leaves in its folder: `fit` itself, and the script around it.
RUN_FILES = ("metrics.jsonl", "loss.png", "replies.json", "scores.json", STATES, OLD_STATE, "model/model.safetensors",
             "model/adapter_config.json", "model/adapter_model.safetensors", "merged/model.safetensors")


def claim_output(folder: Path, resume: bool, overwrite: bool, model_folder: Path | None = None) -> Path:
    """Make a run's folder, and let no other process run in it as long as this one lives.

    ValueError if it holds a run and nobody said what to do, there is none to resume, another process is running there,
    or the model to start from lies where the run will put its own.
    """
    ours = [(folder / name).resolve() for name in ("", "model", "merged")]
    if model_folder is not None and model_folder.resolve() in ours:
        raise ValueError(f"--model {model_folder} would be replaced by this run's model; "
                         "choose an --output-dir elsewhere")
    if resume and not find_states(folder):
        raise ValueError(f"--resume: {nothing_to_resume(folder)}")
    lock = lock_folder(folder)
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and not (resume or overwrite):
        unlock_folder(lock)
        go_on = "go on with it (--resume), " if find_states(folder) else ""
        raise ValueError(f"--output-dir {folder} holds a run ({', '.join(found)}); {go_on}replace it (--overwrite), "
                         "or choose another folder")
    if overwrite and not resume:  # or the new run's files would stand beside the old one's
        delete_state(folder)
        for name in found:
            if not (folder / name).is_dir():  # a link to a folder of states
                (folder / name).unlink(missing_ok=True)
    return folder


def warm_up(base_weights: str = "float32", moments: str = "float32") -> None:
    """Compile what training and generation need, or load it, before there is a clock or a progress bar to spoil.

    base_weights: how the frozen matrices below adapters are kept; moments: as for `AdamW`. Shapes don't matter to
    compiled code, so that the smallest model does.

    >>> warm_up()  # a minute or so at the very first call, a second later
    """
    rng = np.random.default_rng(0)
    model = GPT2(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1), rng)
    if base_weights != "float32":
        add_lora(model, LoraConfig(rank=1), rng)
        compact(model, base_weights)
    ids = np.arange(8).reshape(2, 4)
    with _ending_at_once():
        compile_ahead.begin(np.dtype(np.float32))
        list(generate(model, ids[0], max_new_tokens=2))  # while the second process compiles the backward pass
        model.loss(ids, ids).backward()
        AdamW(model, moments=moments).step(1e-3, max_norm=1.0)


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
    """What a resumed run must have in common with the one it goes on with; the number of ranks is no part of it."""
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    adapted = lora_config(model)
    fingerprint = getattr(training, "fingerprint", None)
    return (identity or {}) | asdict(settings) | {
        "LoRA": asdict(adapted) if adapted else "none",
        "frozen weights": weights_fingerprint(frozen) if frozen else "none",  # the state holds none of them
        "fingerprint of the model at the start": model_fingerprint(model),
    } | ({"training set (data, prompt style, mask, lengths)": fingerprint()} if fingerprint else {})


def check_resumable(folder: str | os.PathLike, model: GPT2, training: TrainingSet, settings: Settings,
                    identity: dict | None = None) -> None:
    """ValueError unless the run in a folder can be gone on with, with these settings; as `fit` would say."""
    check_state(folder, _identity(model, settings, training, identity))


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
    state_minutes: float | None = 10.0,
    state_steps: int | None = None,
    keep_states: int = 2,
    on_evaluation: Callable[[RunReport], None] | None = None,
    title: str = "",
    base: str = "",
    ranks: Ranks = ALONE,
    loggers: Sequence[Logger] = (),
) -> list[dict]:
    """Train and leave the best weights in `model` and in folder/model; returns all events.

    validation: None, or a set without target tokens, keeps the last weights, since no others are known to be
    better. folder also gets metrics.jsonl, loss.png, and in checkpoints/ the last `keep_states` states from which
    `resume` goes on: every `state_minutes` and every `state_steps`, whichever comes first (None: never), at Ctrl-C and
    at the end. Whoever is done with the run deletes them with `delete_state`. If the training set has a prompt
    style, the saved folder says so; the tokenizer that is given here stays as it is. Of a model with LoRA
    folder/model holds the adapters alone, and the name of the model that they belong to, `base`.
    identity: what else, besides model, settings and training set, a resumed run must have in common with the one it
    goes on with (the seed, ...). on_evaluation: called after each evaluation, to show a sample reply, say; on the
    first rank only, which alone prints and writes. ranks: the processes that train together (`parallel.py`), each of
    which calls this. loggers: are told of every event (`loggers.py`).

    Ctrl-C and SIGTERM let the current step or the saving at the end finish, save the state and raise KeyboardInterrupt
    or Terminated; a second one acts at once. What cannot be saved on the way, on a full disk say, is said in one
    warning, what was saved before stays, and saving is tried again when it is next due. From here on the whole process
    keeps the memory that it frees for its next arrays instead of handing it back to the system, see
    `memory.keep_freed_memory`. ValueError if the folder cannot be written, another process runs there, or there is
    nothing to resume; OSError if the model cannot be saved at the end; TrainingDiverged if the loss is no longer
    finite.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from tinyft import InstructionSet, Settings, fit, load_model_and_tokenizer, read_entries
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> entries = read_entries("examples/data/train.json", max_entries=8)
    >>> data = InstructionSet(entries, tokenizer, mask_prompt=True, max_length=256)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     events = fit(model, tokenizer, data, None, Settings(max_steps=2), np.random.default_rng(0), folder)
    ...     (Path(folder) / "model" / "config.json").exists()
    True
    """
    folder = Path(folder)
    with _alone_in(folder, ranks):
        ranks.first(_prepare, folder)
        keep_freed_memory()
        optimizer = AdamW(model, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay,
                          moments=settings.moments)
        if (style := getattr(training, "style", None)) is not None:  # the folder will say how its model is asked
            tokenizer = with_style(style, tokenizer)
        same = _identity(model, settings, training, identity)
        progress = _resume(folder, optimizer, same, ranks) if resume else Progress()
        if not resume:
            ranks.first(delete_state, folder)
        with (RunReport(folder, progress, loggers, title) if ranks.is_first else nullcontext(_Silent())) as report, \
                delayed_signals() as signalled:
            keeper = Keeper(folder, model, tokenizer, optimizer, progress, same, base, state_minutes, state_steps,
                            keep_states, ranks, report)
            validation = _check_sets(training, validation, report)
            try:
                for event in train(model, optimizer, training, validation, settings, progress, rng, ranks):
                    report.add(event)
                    if isinstance(event, Evaluated):
                        keeper.after_evaluation(event)
                        if on_evaluation and ranks.is_first:
                            on_evaluation(report)
                        if event.stop:
                            report.say(f"  stopped: {settings.patience} evaluations without a better validation loss")
                    keeper.after(event, max(ranks.gather(signalled())))
            except TrainingDiverged as error:
                report.plot()
                raise TrainingDiverged(f"{error}; {_what_is_saved(progress, folder)}") from None
            keeper.finish()
            report.plot()
            if number := max(ranks.gather(signalled())):
                report.say(f"interrupted after the last step; the model is in {folder / 'model'}, "
                           f"{keeper.how_to_resume()}")
                raise interruption(number)
            return ranks.first(lambda: report.events)


@contextmanager
def _alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Make a run's folder, and let no other process run in it within the block."""
    lock = ranks.first(lock_folder, folder)
    try:
        yield
    finally:
        if ranks.is_first:
            unlock_folder(lock)


def _prepare(folder: Path) -> None:
    """Clear away what a run that was killed in a folder has left half written."""
    recover_folder(folder / "model")
    make_writable_folder(folder / "model")
    for place in (folder, folder / "model", folder / STATES):
        remove_leftovers(place)


def _resume(folder: Path, optimizer: AdamW, identity: dict, ranks: Ranks) -> Progress:
    """The progress of the run in a folder; its weights and moments on all ranks, though only the first reads files."""
    progress = ranks.first(load_state, folder, optimizer, identity)
    optimizer.steps = ranks.first(lambda: optimizer.steps)
    for name, parameter in optimizer.parameters.items():
        ranks.copy_from_first([parameter.data, optimizer.m[name], optimizer.v[name]])
    return progress


def _check_sets(training: TrainingSet, validation: TrainingSet | None, report: RunReport) -> TrainingSet | None:
    """Say what is wrong with the sets; returns the validation set if it is one."""
    if validation is not None and not has_targets(validation):
        report.say("the validation set has no target tokens: training without it, and keeping the last weights")
        validation = None
    for warning in watch.check_sets(training, validation):
        report.say(f"warning: {warning}")
    return validation


class _Silent:
    """The report of a rank that prints and writes nothing."""

    def say(self, text: str) -> None:
        """Nothing: the first rank says it."""

    def add(self, event) -> None:
        """Nothing: the first rank takes it."""

    def plot(self) -> None:
        """Nothing: the first rank draws it."""


def _what_is_saved(progress: Progress, folder: Path) -> str:
    """What a run that broke off leaves of its weights, in words."""
    if math.isfinite(progress.best_loss):
        return f"the best weights so far, of step {progress.best_step}, are in {folder / 'model'}"
    if states := find_states(folder):
        return f"the weights of an earlier step are in {states[0]}"
    return "no weights have been saved"
