"""The training loop. It prints nothing and saves nothing: it yields what happened, and whoever runs it decides.

    for event in train(model, optimizer, training, validation, settings, progress, rng):
        if isinstance(event, Evaluated) and event.improved:
            save_model(model, tokenizer, folder)

Target tokens are the positions whose target is not -100: the only ones that have a loss and are learned.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .gpt2 import GPT2, needed_lengths
from .losses import IGNORE
from .optim import AdamW, cosine_with_warmup
from .tensor import no_grad


class TrainingSet(Protocol):
    """What can be trained on: `instructions.InstructionSet`, or anything else that makes batches."""

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Indices of each batch of one epoch, (batch_size,) or fewer; shuffled if there is an rng."""

    def collate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one batch, (B, T) each, -100 where there is nothing to learn."""


@dataclass(frozen=True)
class Settings:
    """How to train. An epoch is one pass over the training set. ValueError names a setting that makes no sense."""

    epochs: int = 2
    batch_size: int = 8
    micro_batch_size: int | None = None  # rows at a time; a batch is cut into these to save memory
    learning_rate: float = 5e-5
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.1
    beta2: float = 0.999  # memory of AdamW's second moment; 0.95 suits pretraining
    clip_norm: float | None = 1.0
    max_steps: int | None = None  # stop there, whatever the epochs
    evaluate_every: int | None = None  # steps; four times an epoch if None
    patience: int = 4  # evaluations without a better validation loss before it stops; 0: never

    def __post_init__(self):
        for name in ("epochs", "batch_size", "micro_batch_size", "max_steps", "evaluate_every"):
            self._check(name, int, "an int of at least 1", lambda value: value >= 1)
        self._check("patience", int, "an int of at least 0", lambda value: value >= 0)
        for name in ("learning_rate", "clip_norm"):
            self._check(name, (int, float), "a finite float above 0", lambda value: 0 < value < math.inf)
        self._check("weight_decay", (int, float), "a finite float of at least 0", lambda value: 0 <= value < math.inf)
        self._check("warmup", (int, float), "a float from 0 to 1", lambda value: 0 <= value <= 1)
        self._check("beta2", (int, float), "a float from 0 to below 1", lambda value: 0 <= value < 1)

    def _check(self, name: str, kind: type | tuple[type, ...], expected: str, fits: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is None and name in ("micro_batch_size", "clip_norm", "max_steps", "evaluate_every"):
            return
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise ValueError(f"Settings: {name} is {value!r}, expected {expected}")


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer, all that it takes to go on."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    tokens: int = 0  # target tokens so far, counted again in every epoch
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    evaluated_step: int = -1
    recent_losses: list[float] = field(default_factory=list)  # of the steps since then
    epoch_rng: dict = field(default_factory=dict)  # the generator before the epoch was shuffled
    now_rng: dict = field(default_factory=dict)  # the generator now


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # target tokens of this step
    processed: int  # tokens of all rows up to their last target; shared ones count in every row
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """A look at the validation set; train_loss is the mean over the steps since the last one."""

    step: int
    epoch: float
    tokens: int  # target tokens so far
    train_loss: float | None
    loss: float
    improved: bool
    stop: bool


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def _count(targets: np.ndarray) -> int:
    """The number of target tokens."""
    return int((targets != IGNORE).sum())


def has_targets(data: TrainingSet | None) -> bool:
    """Whether there is a set, with at least one target token in it."""
    return data is not None and any(_count(data.collate(indices)[1]) for indices in data.batches(1))


def evaluate(model: GPT2, data: TrainingSet, batch_size: int) -> float:
    """Mean loss over all target tokens of a set; NaN if it has none."""
    total, count = 0.0, 0
    with no_grad():
        for indices in data.batches(batch_size):
            inputs, targets = data.collate(indices)
            total += float(model.loss(inputs, targets, total=1).item())
            count += _count(targets)
    return total / count if count else math.nan


def _learn(model: GPT2, data: TrainingSet, indices: np.ndarray, settings: Settings, rng) -> tuple[float, int, int]:
    """Gradients of one batch, micro-batch by micro-batch; returns loss, target tokens and tokens processed.

    Every micro-batch divides by the target tokens of the whole batch, so that the sum is the batch's mean loss.
    """
    size = settings.micro_batch_size or len(indices)
    parts = [data.collate(indices[i : i + size]) for i in range(0, len(indices), size)]
    total = sum(_count(targets) for _, targets in parts)
    loss, processed = 0.0, 0
    for inputs, targets in parts:
        part_loss = model.loss(inputs, targets, total=total, rng=rng)
        loss += float(part_loss.item())
        if not math.isfinite(loss):
            break
        part_loss.backward()
        processed += int(needed_lengths(targets).sum())
    return loss, total, processed


def train(model: GPT2, optimizer: AdamW, training: TrainingSet, validation: TrainingSet | None,
          settings: Settings, progress: Progress, rng: np.random.Generator) -> Iterator:
    """Train, yielding Started, then Stepped and Evaluated as they come; `progress` is kept up to date.

    Between two events model, optimizer and progress belong together and can be saved; called with them
    again, training goes on as if it had not been interrupted. A validation set without target tokens is the
    same as none. Raises TrainingDiverged before a bad gradient can touch the weights.
    """
    steps_per_epoch = len(training.batches(settings.batch_size, np.random.default_rng(0)))  # whatever the order
    if steps_per_epoch == 0:
        raise ValueError("train: the training set is empty")
    if not has_targets(validation):
        validation = None
    steps = min(settings.epochs * steps_per_epoch, settings.max_steps or sys.maxsize)
    every = settings.evaluate_every or math.ceil(steps_per_epoch / 4)
    warmup = max(1, round(settings.warmup * steps))
    yield Started(steps, steps_per_epoch)
    if progress.now_rng:
        rng.bit_generator.state = progress.now_rng
    progress.now_rng = rng.bit_generator.state

    def evaluate_if_due() -> Evaluated | None:
        """The evaluation of the step just made, if one is due and not made before an interruption.

        Step 0 is the untuned model: what doesn't get better than that is not worth keeping.
        """
        due = progress.step % every == 0 or progress.step == steps
        if validation is None or not due or progress.evaluated_step == progress.step:
            return None
        loss = evaluate(model, validation, settings.batch_size)
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the validation loss is {loss} after step {progress.step}; "
                                   "try a lower --learning-rate, or look for odd entries in the data")
        return _update_best(loss, progress.step / steps_per_epoch, settings, progress)

    if event := evaluate_if_due():
        yield event
    if validation is not None and 0 < settings.patience <= progress.evaluations_since_best:
        return
    while progress.step < steps:
        batches = _epoch_batches(training, settings, progress, rng)
        for indices in batches[progress.step_in_epoch : progress.step_in_epoch + steps - progress.step]:
            begin = time.perf_counter()
            loss, tokens, processed = _learn(model, training, indices, settings, rng)
            learning_rate = cosine_with_warmup(progress.step, steps, peak=settings.learning_rate, warmup=warmup,
                                               floor=0.1 * settings.learning_rate)
            norm = optimizer.step(learning_rate, max_norm=settings.clip_norm) if math.isfinite(loss) else loss
            if not math.isfinite(norm):
                what = "loss" if not math.isfinite(loss) else "gradient norm"
                raise TrainingDiverged(
                    f"the {what} is {norm} at step {progress.step + 1} (epoch {progress.epoch + 1}, learning rate "
                    f"{learning_rate:.2g}); try a lower --learning-rate, or look for odd entries in the data"
                )
            progress.step += 1
            progress.step_in_epoch += 1
            progress.tokens += tokens
            progress.now_rng = rng.bit_generator.state
            progress.recent_losses.append(loss)
            yield Stepped(progress.step, progress.step / steps_per_epoch, loss, learning_rate, norm, tokens,
                          processed, time.perf_counter() - begin)
            if event := evaluate_if_due():
                yield event
                if event.stop:
                    return
        if progress.step_in_epoch >= steps_per_epoch:
            progress.epoch, progress.step_in_epoch, progress.epoch_rng = progress.epoch + 1, 0, {}


def _epoch_batches(training: TrainingSet, settings: Settings, progress: Progress, rng) -> list[np.ndarray]:
    """The epoch's shuffled batches; on resuming, the very same again."""
    if progress.epoch_rng:
        rng.bit_generator.state = progress.epoch_rng
        batches = training.batches(settings.batch_size, rng)
        rng.bit_generator.state = progress.now_rng
        return batches
    progress.epoch_rng = rng.bit_generator.state
    return training.batches(settings.batch_size, rng)


def _update_best(loss: float, epoch: float, settings: Settings, progress: Progress) -> Evaluated:
    """Compare with the best so far, and decide whether validation has turned."""
    train_loss = float(np.mean(progress.recent_losses)) if progress.recent_losses else None
    progress.evaluated_step, progress.recent_losses = progress.step, []
    improved = loss < progress.best_loss
    if improved:
        progress.best_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
    else:
        progress.evaluations_since_best += 1
    stop = settings.patience > 0 and progress.evaluations_since_best >= settings.patience
    return Evaluated(progress.step, epoch, progress.tokens, train_loss, loss, improved, stop)
